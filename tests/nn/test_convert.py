"""Conversion: the model gets other layers, and everything that was attached to the old ones stays."""

import copy
import dataclasses
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from anybatch.errors import InputError
from anybatch.nn import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d, Kind, convert


def small_model() -> nn.Sequential:
    block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, eps=0.01, momentum=None))
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), block, nn.Flatten(), nn.LazyLinear(3), nn.BatchNorm1d(3)
    )


def images(num_samples: int = 12) -> torch.Tensor:
    return torch.randn(num_samples, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (nn.BatchNorm1d, GhostBatchNorm1d),
        (nn.BatchNorm2d, GhostBatchNorm2d),
        (nn.BatchNorm3d, GhostBatchNorm3d),
    ],
)
def test_each_batch_norm_becomes_its_ghost_and_comes_back(old, new):
    model = nn.Sequential(old(3))
    assert type(convert(model, "ghost", ghost_batch_size=8).model[0]) is new
    assert type(convert(model, "batch").model[0]) is old
    assert repr(model) == repr(nn.Sequential(old(3)))
    assert vars(model[0]).keys() == vars(old(3)).keys()


def test_the_same_parameters_and_buffers_are_adopted():
    model = small_model()
    model(images())
    before = tensors(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    conversion = convert(model, "ghost", ghost_batch_size=4, running_update="average")
    assert conversion.model is model
    assert conversion.replaced == ("1", "2.1", "5")
    after = tensors(model)
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    weight = after["2.1.weight"].detach().clone()
    model(images()).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[2][1].weight, weight)


def test_settings_and_mode_are_kept():
    model = small_model().eval()
    model[1].train().requires_grad_(False)
    convert(model, "ghost", ghost_batch_size=4, running_update="average")
    inner = model[2][1]
    assert (inner.eps, inner.momentum, inner.training) == (0.01, None, False)
    assert (inner.ghost_batch_size, inner.running_update) == (4, "average")
    assert model[1].training
    assert not model[1].weight.requires_grad


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}])
def test_layers_without_parameters_or_statistics_are_converted(options):
    model = nn.Sequential(nn.BatchNorm1d(3, **options))
    convert(model, "ghost", ghost_batch_size=4)
    assert model(torch.randn(12, 3)).shape == (12, 3)
    assert model.state_dict().keys() == nn.Sequential(nn.BatchNorm1d(3, **options)).state_dict().keys()


def test_a_converted_model_computes_as_ghost_layers_do():
    model = small_model()
    model(images())
    batch = copy.deepcopy(model)
    convert(model, "ghost", ghost_batch_size=4)
    wanted = GhostBatchNorm2d(4, ghost_batch_size=4)
    hidden = model[0](images())
    torch.testing.assert_close(model[1](hidden), wanted(hidden))
    assert torch.equal(convert(model, "batch").model.eval()(images()), model(images()))
    model.load_state_dict(batch.state_dict())
    assert torch.equal(model.train()(images()), batch.train()(images()))


def test_hooks_go_on_with_their_handles_and_the_new_layer():
    model = small_model()
    seen = []
    handles = [
        model[1].register_forward_hook(lambda module, inputs, output: seen.append(type(module))),
        model[1].register_forward_pre_hook(lambda module, inputs: seen.append(type(module))),
        model[1].register_full_backward_hook(lambda module, grad_input, grad_output: seen.append(type(module))),
    ]
    convert(model, "ghost", ghost_batch_size=4)
    model(images()).sum().backward()
    assert seen == [GhostBatchNorm2d] * 3
    for handle in handles:
        handle.remove()
    model(images()).sum().backward()
    assert len(seen) == 3


def test_a_layer_used_in_two_places_stays_one():
    shared = nn.BatchNorm1d(3)
    model = nn.ModuleDict({"first": shared, "second": shared, "inside": nn.Sequential(shared)})
    conversion = convert(model, "ghost")
    assert conversion.replaced == ("first",)
    assert type(model["first"]) is GhostBatchNorm1d
    assert model["first"] is model["second"] is model["inside"][0]


def test_a_model_that_is_a_batch_norm_is_a_new_object():
    old = nn.BatchNorm2d(3)
    conversion = convert(old, "ghost", ghost_batch_size=16)
    assert conversion.replaced == ("",)
    assert type(conversion.model) is GhostBatchNorm2d
    assert conversion.model.weight is old.weight
    assert type(old) is nn.BatchNorm2d


def test_a_model_without_batch_norm_is_left_alone():
    model = nn.Sequential(nn.Linear(3, 3), nn.GroupNorm(1, 3))
    for kind in ("ghost", "batch"):
        conversion = convert(model, kind)
        assert (conversion.model, conversion.replaced) == (model, ())
    assert convert(small_model(), "batch").replaced == ()


def test_ghost_layers_get_a_new_ghost_batch_size():
    model = nn.Sequential(GhostBatchNorm1d(3, ghost_batch_size=8))
    assert convert(model, "ghost", ghost_batch_size=16).replaced == ("0",)
    assert model[0].ghost_batch_size == 16


def test_a_conversion_prints_a_table_and_cannot_be_changed():
    conversion = convert(small_model(), "ghost", ghost_batch_size=4)
    first, *rows = str(conversion).splitlines()
    assert first == "layers replaced: 3, kind: ghost"
    assert [row.split()[0] for row in rows] == ["1", "2.1", "5"]
    assert all("ghost_batch_size=4" in row for row in rows)
    assert str(convert(nn.BatchNorm1d(3), "ghost")).splitlines()[1].startswith("  (model)  GhostBatchNorm1d(3,")
    assert str(convert(nn.Linear(3, 3), "batch")) == "layers replaced: 0, kind: batch"
    with pytest.raises(dataclasses.FrozenInstanceError):
        conversion.kind = "batch"  # pyright: ignore[reportAttributeAccessIssue]


# ------------------------------------------------------------------------------------------- refusals


class NormWithActivation(nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input).relu()


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (NormWithActivation(3), r"layer '1' must be exactly .*; got NormWithActivation\. Put a plain BatchNorm"),
        (nn.SyncBatchNorm(3), r"layer '1' must be exactly .*; got SyncBatchNorm\. Put a plain BatchNorm"),
        (nn.LazyBatchNorm2d(), r"layer '1' must be exactly .*; got LazyBatchNorm2d\. Run a batch through"),
    ],
)
def test_other_batch_norms_are_refused_before_anything_changes(layer, told):
    model = nn.Sequential(nn.BatchNorm2d(3), layer)
    with pytest.raises(InputError, match=told):
        convert(model, "ghost")
    assert type(model[0]) is nn.BatchNorm2d
    assert convert(model, "batch").replaced == ()


def test_a_lazy_batch_norm_that_has_seen_a_batch_is_converted():
    model = nn.Sequential(nn.LazyBatchNorm2d())
    model(images())
    assert convert(model, "ghost").replaced == ("0",)
    assert model(images()).shape == images().shape


def compile_it(layer):
    layer.compile(backend="eager")


def patch_it(layer):
    layer.forward = lambda input: input


def hook_its_loading(layer):
    layer.register_load_state_dict_pre_hook(lambda *arguments: None)


@pytest.mark.parametrize("bind", [compile_it, patch_it, hook_its_loading])
@pytest.mark.parametrize(("layer_type", "kind"), [(nn.BatchNorm2d, "ghost"), (GhostBatchNorm2d, "batch")])
def test_what_is_bound_to_the_old_layer_is_refused(bind, layer_type, kind):
    layer = layer_type(3)
    bind(layer)
    with pytest.raises(
        InputError, match=r"the model must hold nothing that is bound to the old object; got a compiled"
    ):
        convert(layer, kind)


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match=f"to must be one of {', '.join(get_args(Kind))}; got 'instance'"):
        convert(small_model(), "instance")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"to must be one of .*; got \['ghost'\]"):
        convert(small_model(), ["ghost"])  # pyright: ignore[reportArgumentType]


def test_the_kind_may_be_named():
    assert convert(model=small_model(), to="ghost").kind == "ghost"


def test_what_is_no_model_or_no_optimizer_is_refused():
    with pytest.raises(InputError, match=r"model must be a torch\.nn\.Module; got int"):
        convert(5, "ghost")  # pyright: ignore[reportArgumentType]
    model = small_model()
    with pytest.raises(InputError, match=r"optimizer must be a torch\.optim\.Optimizer or None; got int"):
        convert(model, "ghost", optimizer=5)  # pyright: ignore[reportArgumentType]
    assert type(model[1]) is nn.BatchNorm2d


def test_options_of_another_kind_are_refused():
    with pytest.raises(InputError, match="options of kind 'batch' must be none; got ghost_batch_size"):
        convert(small_model(), "batch", ghost_batch_size=4)


def test_bad_options_are_refused_before_anything_changes():
    model = small_model()
    with pytest.raises(InputError, match="ghost_batch_size must be a positive integer; got 0"):
        convert(model, "ghost", ghost_batch_size=0)
    assert type(model[1]) is nn.BatchNorm2d


@pytest.mark.parametrize(
    ("reparametrize", "held"),
    [
        (lambda norm: prune.l1_unstructured(norm, "weight", amount=0.5), "weight_mask, weight_orig"),
        (lambda norm: prune.l1_unstructured(norm, "bias", amount=0.5), "bias_mask, bias_orig"),
        (nn.utils.weight_norm, "weight_g, weight_v"),
    ],
    ids=["pruned weight", "pruned bias", "weight norm"],
)
@pytest.mark.parametrize("kind", ["ghost", "kalman", "group", "sync"])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_a_norm_whose_weights_are_made_of_others_is_refused(reparametrize, held, kind):
    model = nn.Sequential(nn.BatchNorm2d(8))
    reparametrize(model[0])
    before = model[0]
    told = f"layer '0' must hold its weight and bias itself; got {held} of pruning, .* Make them permanent first: "
    with pytest.raises(InputError, match=told):
        convert(model, kind, example_inputs=torch.randn(2, 8, 4, 4) if kind == "kalman" else None)
    assert model[0] is before


def test_a_layer_of_our_own_whose_weight_is_pruned_is_refused_and_converted_once_that_is_permanent():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    convert(model, "group_kalman", example_inputs=torch.randn(2, 3, 4, 4))
    prune.l1_unstructured(model[1], "weight", amount=0.5)
    with pytest.raises(
        InputError, match="layer '1' must hold its weight and bias itself; got weight_mask, weight_orig"
    ):
        convert(model, "group")
    prune.remove(model[1], "weight")
    assert convert(model, "group").replaced == ("1",)
