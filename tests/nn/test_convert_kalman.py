"""Conversion to Kalman normalization: priors are found, what is refused leaves no trace, and the way back is exact."""

import copy

import pytest
import torch
from torch import nn

from anybatch.errors import InputError
from anybatch.nn import convert

torchvision = pytest.importorskip("torchvision")


def images(num_samples=4, size=32):
    return torch.randn(num_samples, 3, size, size, generator=torch.Generator().manual_seed(0))


def chain():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
    )


class Branching(nn.Module):
    """What torch.fx cannot trace."""

    def __init__(self):
        super().__init__()
        self.body = chain()

    def forward(self, x):
        return self.body(x) if x.sum() > 0 else self.body(-x)


def fused(model):
    """ResNet-18 with each batch norm folded into its convolution."""
    model = copy.deepcopy(model).eval()
    names = dict(model.named_modules())
    for name, norm in list(names.items()):
        if isinstance(norm, nn.BatchNorm2d):
            parent, _, last = name.rpartition(".")
            before = f"{parent}.0" if last == "1" else f"{parent}.conv{last[2:]}".removeprefix(".")
            conv = nn.utils.fusion.fuse_conv_bn_eval(names[before], norm)
            _put(model, before, conv)
            _put(model, name, nn.Identity())
    return model


def _put(model, name, module):
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, last, module)


@pytest.mark.parametrize("state_space", ["raw", "normalized"])
def test_resnet_18_has_priors_in_all_layers_but_the_first_and_evaluates_as_before(state_space):
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    model(images())
    wanted = model.eval()(images())
    conversion = convert(
        model, "kalman", example_inputs=images(), micro_batch_size=2, state_space=state_space, gain="learned"
    )
    assert len(conversion.replaced) == 20
    assert len(conversion.priors) == 19
    assert conversion.fallbacks.keys() == {"bn1"}
    assert any("maxpool" in cut for cut in conversion.cuts)
    if state_space == "normalized":
        assert len(conversion.cuts) == 1
    assert torch.equal(model(images()), wanted)
    assert "layers with a prior: 19 of 20" in str(conversion)


def test_a_trained_kalman_network_goes_back_to_batch_norm_and_into_its_convolutions():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10).double()
    keys = model.state_dict().keys()
    convert(model, "kalman", example_inputs=images().double(), micro_batch_size=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images().double()), torch.arange(4)).backward()
        optimizer.step()
    wanted = model.eval()(images().double())
    convert(model, "batch")
    assert model.state_dict().keys() == keys
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    torch.testing.assert_close(model(images().double()), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused(model)(images().double()), wanted, rtol=1e-5, atol=1e-5)


def test_an_optimizer_gets_the_gains_and_gives_them_up():
    model = chain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    own = {id(parameter) for parameter in model.parameters()}
    conversion = convert(
        model, "kalman", example_inputs=images(), optimizer=optimizer, micro_batch_size=2, gain="learned"
    )
    assert "1 parameters added, 0 removed, in the optimizer too" in conversion.notes
    gains = [parameter for parameter in model.parameters() if id(parameter) not in own]
    before = gains[0].detach().clone()
    model(images()).square().mean().backward()
    optimizer.step()
    assert not torch.equal(gains[0], before)
    convert(model, "kalman", example_inputs=images(), optimizer=optimizer, gain="fixed")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == own
    assert gains[0] not in optimizer.state


def test_a_conversion_without_an_optimizer_says_that_one_must_learn_of_the_gains():
    conversion = convert(chain(), "kalman", example_inputs=images(), gain="learned")
    assert any("make the optimizer after the conversion, or pass it as optimizer=" in note for note in conversion.notes)


@pytest.mark.parametrize("kind", ["kalman", "group_kalman"])
def test_missing_example_inputs_are_asked_for_and_nothing_changes(kind):
    model = chain()
    before = dict(model.named_modules())
    with pytest.raises(InputError, match="example_inputs must be given, to see which layer follows which; got None"):
        convert(model, kind)
    assert dict(model.named_modules()) == before


def test_a_model_that_cannot_be_traced_is_left_alone_and_the_map_by_names_is_named():
    model = Branching()
    before = dict(model.named_modules())
    with pytest.raises(InputError, match="sources"):
        convert(model, "kalman", example_inputs=images())
    assert dict(model.named_modules()) == before


def test_a_failed_conversion_leaves_an_earlier_one_in_place():
    model = chain()
    convert(model, "kalman", example_inputs=images(), micro_batch_size=2, gain="fixed")
    wanted = copy.deepcopy(model)(images())
    with pytest.raises(InputError, match="example_inputs must be given"):
        convert(model, "kalman")
    assert torch.equal(model(images()), wanted)


def test_group_kalman_goes_on_to_group_norm_with_its_groups_and_not_back_to_statistics():
    model = chain()
    weight = model[1].weight
    convert(model, "group_kalman", example_inputs=images(), num_groups=4)
    told = "layer '1' must have running statistics to become 'batch'; got GroupKalmanNorm"
    for kind in ("batch", "kalman", "ghost"):
        with pytest.raises(InputError, match=told.replace("batch", kind)):
            convert(model, kind, example_inputs=images() if kind == "kalman" else None)
    convert(model, "group")
    assert type(model[1]) is nn.GroupNorm
    assert model[1].num_groups == 4
    assert model[1].weight is weight
    assert not model._forward_pre_hooks


def test_options_of_another_value_are_refused_before_anything_changes():
    model = chain()
    with pytest.raises(InputError, match="gain must be one of fixed, learned, adaptive; got 'none'"):
        convert(model, "kalman", example_inputs=images(), gain="none")
    assert type(model[1]) is nn.BatchNorm2d


class ByKeyword(nn.Module):
    """Calls every module by keyword."""

    def __init__(self):
        super().__init__()
        self.body = chain()

    def forward(self, x):
        for module in self.body:
            x = module(input=x)
        return x


@pytest.mark.parametrize("options", [{}, {"transition": "sampled"}, {"state_space": "raw"}])
def test_layers_that_are_called_by_keyword_have_the_priors_of_others(options):
    named, plain = ByKeyword(), chain()
    conversion = convert(named, "kalman", example_inputs=images(), micro_batch_size=2, **options)
    convert(plain, "kalman", example_inputs=images(), micro_batch_size=2, **options)
    assert conversion.priors == {"body.4": "body.1"}
    outputs = []
    for model in (named, plain):
        torch.manual_seed(0)
        outputs.append(model(images()))
    torch.testing.assert_close(*outputs)


def test_an_average_of_the_weights_is_converted_by_its_module_as_the_note_says():
    model = chain()
    average = torch.optim.swa_utils.AveragedModel(model)
    conversion = convert(model, "kalman", example_inputs=images(), micro_batch_size=2)
    assert any("of an AveragedModel its module, `averaged.module`" in note for note in conversion.notes)
    convert(average.module, "kalman", example_inputs=images(), micro_batch_size=2)
    average.update_parameters(model)
    with torch.no_grad():
        model[4].prior_logit += 1
    average.update_parameters(model)
    torch.testing.assert_close(average.module[4].prior_logit, model[4].prior_logit - 0.5)
    assert average(images()).shape == model(images()).shape
