"""Which module does each parameter belong to?"""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from anybatch.stats import group_parameters
from anybatch.stats.groups import unwrap


class Detector(nn.Module):
    """A parameter of its own, a backbone of two parts, and two children whose names begin alike."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.backbone = nn.ModuleDict({"body": nn.Linear(2, 3), "fpn": nn.Linear(3, 4, bias=False)})
        self.head = nn.Linear(4, 1)
        self.header = nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("the tests of grouping run no model")


@pytest.fixture
def model() -> Detector:
    return Detector()


@pytest.fixture
def single_process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def same(left: list[nn.Parameter], right: list[nn.Parameter]) -> bool:
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))


def test_default_groups_are_the_top_level_children_and_the_models_own_parameters(model):
    groups = group_parameters(model)
    assert list(groups) == ["scale", "backbone", "head", "header"]
    assert same(groups["scale"], [model.scale])
    assert same(groups["backbone"], list(model.backbone.parameters()))
    assert same(groups["head"], list(model.head.parameters()))


def test_a_sequence_of_prefixes_makes_one_group_each(model):
    groups = group_parameters(model, ["backbone.body", "backbone.fpn", "head", "header", "scale"])
    assert {name: len(group) for name, group in groups.items()} == {
        "scale": 1,
        "backbone.body": 2,
        "backbone.fpn": 1,
        "head": 2,
        "header": 2,
    }


def test_a_mapping_joins_prefixes_under_a_name(model):
    prefixes = {"backbone": "backbone.body", "neck": ("backbone.fpn", "scale"), "heads": ["head", "header"]}
    groups = group_parameters(model, prefixes)
    assert same(groups["backbone"], list(model.backbone["body"].parameters()))
    assert same(groups["neck"], [model.scale, model.backbone["fpn"].weight])
    assert same(groups["heads"], [*model.head.parameters(), *model.header.parameters()])


def test_overlapping_prefixes_inside_one_group_are_no_overlap(model):
    groups = group_parameters(model, {"all": ["backbone", "backbone.fpn", "head", "header", "scale"]})
    assert same(groups["all"], list(model.parameters()))


def test_a_prefix_may_name_a_single_parameter(model):
    groups = group_parameters(model, ["head.weight", "head.bias", "backbone", "header.weight", "header.bias", "scale"])
    assert same(groups["head.weight"], [model.head.weight])


def test_head_does_not_match_header(model):
    with pytest.raises(ValueError, match=r"every parameter must be in a module group; 2 are in none, such as 'header"):
        group_parameters(model, ["scale", "backbone", "head"])


def test_leftover_parameters_are_counted_and_named(model):
    with pytest.raises(ValueError, match=r"4 are in none, such as 'scale'\. Add a prefix for it\."):
        group_parameters(model, ["backbone.body", "head"])


def test_a_parameter_in_two_groups_is_refused(model):
    with pytest.raises(
        ValueError,
        match=r"'?backbone\.fpn\.weight'? must be in one module group; it is in 'backbone' and 'neck'",
    ):
        group_parameters(
            model,
            {
                "neck_first": "scale",
                "backbone": "backbone",
                "neck": "backbone.fpn",
                "heads": ["head", "header"],
            },
        )


def test_a_prefix_without_a_parameter_is_refused_and_the_children_are_listed(model):
    with pytest.raises(
        ValueError,
        match=r"module prefix 'trunk' must match a parameter; it matches none.*backbone, head, header",
    ):
        group_parameters(model, ["trunk"])


def test_a_single_string_is_refused_with_the_cure(model):
    with pytest.raises(ValueError, match=r"sequence or a mapping; got the string 'head'\. Write \['head'\]"):
        group_parameters(model, "head")


def test_a_model_without_trainable_parameters_is_refused(model):
    with pytest.raises(ValueError, match="must have a trainable parameter; got none"):
        group_parameters(model.requires_grad_(False))


def test_a_tied_parameter_counts_once_in_the_first_module(model):
    model.header.weight = nn.Parameter(torch.zeros(1, 4))
    model.header.weight = model.head.weight
    groups = group_parameters(model)
    assert same(groups["head"], list(model.head.parameters()))
    assert same(groups["header"], [model.header.bias])


def test_a_parameter_tied_across_two_groups_is_refused_with_both_names(model):
    model.header.weight = model.head.weight
    with pytest.raises(
        ValueError, match=r"parameter head\.weight = header\.weight must be in one.*'head' and 'header'"
    ):
        group_parameters(model, ["scale", "backbone", "head", "header"])


def test_a_tied_parameter_is_found_by_either_name(model):
    model.header.weight = model.head.weight
    groups = group_parameters(model, ["scale", "backbone", "header", "head.bias"])
    assert same(groups["header"], [model.head.weight, model.header.bias])


def test_frozen_parameters_and_wholly_frozen_groups_are_left_out(model):
    model.backbone.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    groups = group_parameters(model)
    assert list(groups) == ["scale", "head", "header"]
    assert same(groups["head"], [model.head.weight])


def test_a_prefix_of_frozen_parameters_alone_is_no_error(model):
    model.backbone.requires_grad_(False)
    assert list(group_parameters(model, ["scale", "backbone", "head", "header"])) == [
        "scale",
        "head",
        "header",
    ]


def test_compiled_models_are_looked_through(model):
    compiled = torch.compile(model)
    assert unwrap(compiled) is model
    assert list(group_parameters(compiled)) == ["scale", "backbone", "head", "header"]
    assert same(group_parameters(compiled, {"all": list(group_parameters(model))})["all"], list(model.parameters()))


@pytest.mark.usefixtures("single_process_group")
def test_data_parallel_models_are_looked_through_in_either_order(model):
    for wrapped in (
        DistributedDataParallel(model),
        torch.compile(DistributedDataParallel(model)),
        DistributedDataParallel(torch.compile(model)),
    ):
        assert unwrap(wrapped) is model
        assert list(group_parameters(wrapped)) == ["scale", "backbone", "head", "header"]
