"""Priors along a network: who has one, cuts, and that they are the same under copies, checkpoints and compilers."""

import copy
import operator
import pickle
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch
import torchvision
from reference.kalman_norm import train_once
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from anybatch.errors import InputError
from anybatch.nn import (
    GroupKalmanNorm,
    KalmanNorm1d,
    KalmanNorm2d,
    Moments,
    convert,
    propagation_rule,
    through_convolution,
    unwire_kalman,
    wire_kalman,
)
from anybatch.nn.activation_moments import through_relu

EXAMPLE = torch.zeros(4, 3, 8, 8)


def chain(dtype=torch.float32, **options) -> nn.Sequential:
    torch.manual_seed(0)
    options = {"micro_batch_size": 2, "state_space": "raw", "dtype": dtype, **options}
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, dtype=dtype),
        KalmanNorm2d(4, **options),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, padding=1, dtype=dtype),
        KalmanNorm2d(6, **options),
    )


def images(num_samples: int = 4, seed: int = 1, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(num_samples, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradients(model: nn.Module, x: torch.Tensor, run=None) -> list[torch.Tensor]:
    model.zero_grad()
    (model if run is None else run)(x).square().mul(torch.linspace(0.5, 1, 8)).mean().backward()
    return [each.grad.clone() for each in model.parameters()]


def to_kalman(model: nn.Module, **options) -> nn.Module:
    for name, child in list(model.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            layer = KalmanNorm2d(child.num_features, child.eps, child.momentum, micro_batch_size=2, **options)
            layer.load_state_dict(child.state_dict())
            setattr(model, name, layer)
        else:
            to_kalman(child, **options)
    return model


# ------------------------------------------------------------------------------------------- who has a prior


def test_check_13_the_first_norm_has_no_prior_and_the_next_one_has_the_first():
    wiring = wire_kalman(chain(), EXAMPLE)
    assert wiring.priors == {"4": "1"}
    assert wiring.cuts == {}
    assert wiring.fallbacks == {"1": "first norm: nothing is known of the model's input"}
    assert "layers with a prior: 1 of 2" in str(wiring)


@pytest.mark.parametrize("state_space", ["raw", "normalized", "observed"])
def test_gradients_with_history_are_those_without(state_space):
    model = chain(torch.float64, state_space=state_space)
    wire_kalman(model, EXAMPLE.double())
    x = images(dtype=torch.float64)
    plain, with_history = (
        torch.autograd.grad(
            model(x).square().mul(torch.linspace(0.5, 1, 8)).mean(), [*model.parameters()], create_graph=each
        )
        for each in (False, True)
    )
    for left, right in zip(plain, with_history, strict=True):
        torch.testing.assert_close(left, right.detach(), rtol=1e-9, atol=1e-12)


def test_the_prior_is_the_posterior_before_through_relu_and_convolution():
    model = chain(torch.float64, gain="fixed")
    wire_kalman(model, EXAMPLE.double())
    x = images(dtype=torch.float64)
    output = model(x)
    source = model[1].latest.posterior
    std = source.var.sqrt()
    normal = torch.distributions.Normal(0.0, 1.0)
    cdf, pdf = normal.cdf(source.mean / std), normal.log_prob(source.mean / std).exp()
    mean = source.mean * cdf + std * pdf
    var = (source.mean**2 + source.var) * cdf + source.mean * std * pdf - mean**2
    maps = model[3](mean[..., None, None].expand(-1, -1, 8, 8))
    spread = nn.functional.conv2d(var[..., None, None].expand(-1, -1, 8, 8), model[3].weight ** 2, padding=1)
    prior = (maps.mean((2, 3)), spread.mean((2, 3)) + maps.var((2, 3), correction=0))
    torch.testing.assert_close(model[4].latest.prior.mean, prior[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model[4].latest.prior.var, prior[1], rtol=1e-9, atol=1e-9)
    twin = train_once(model[:4](x), model[4].weight, model[4].bias, prior, model[4].options.prior_weight, 2)
    torch.testing.assert_close(output, twin.output, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("transition", ["analytic", "sampled"])
def test_in_normalized_space_micro_batches_share_the_prior_and_draw_their_own_samples(transition):
    model = chain(torch.float64, transition=transition, state_space="normalized")
    wire_kalman(model, EXAMPLE.double())
    model(images(dtype=torch.float64))
    mean, var = model[4].latest.prior[:2]
    assert mean.shape == (2, 6)
    assert torch.equal(mean[0], mean[1]) == torch.equal(var[0], var[1]) == (transition != "sampled")


def test_the_shared_prior_follows_from_affine_parameters_and_what_eps_leaves_of_the_variance():
    model = chain(torch.float64, gain="fixed", eps=0.1, state_space="normalized")
    nn.init.uniform_(model[1].weight)
    nn.init.normal_(model[1].bias)
    wire_kalman(model, EXAMPLE.double())
    model(images(dtype=torch.float64))
    source = model[1].latest.posterior.var
    var = model[1].weight ** 2 * (source / (source + 0.1)).mean(0)
    expected = through_convolution(
        through_relu(Moments(model[1].bias[None], var[None], (8, 8))), model[3].weight, model[3].bias, padding=1
    )
    torch.testing.assert_close(model[4].latest.prior.mean[:1], expected.mean)
    torch.testing.assert_close(model[4].latest.prior.var[:1], expected.var)


@pytest.mark.parametrize(("state_space", "num_cuts"), [("normalized", 1), ("observed", 1), ("raw", 8)])
def test_check_14_resnet_18(state_space, num_cuts):
    torch.manual_seed(0)
    batch = torchvision.models.resnet18()
    model = to_kalman(copy.deepcopy(batch), state_space=state_space)
    wiring = wire_kalman(model, torch.zeros(4, 3, 32, 32))
    assert len(wiring.priors) == 19
    assert list(wiring.fallbacks) == ["bn1"]
    assert len(wiring.cuts) == num_cuts
    assert wiring.cuts["behind maxpool"] == "no rule for MaxPool2d"
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), batch.eval()(x))
    assert all(module.latest is None for module in model.modules() if isinstance(module, KalmanNorm2d))


MODELS = torchvision.models


def faster_rcnn_backbone() -> nn.Module:
    return MODELS.detection.fasterrcnn_resnet50_fpn(weights_backbone=None, norm_layer=nn.BatchNorm2d).backbone


NETWORKS = [
    (MODELS.resnet50, 52, 1),
    (MODELS.densenet121, 120, 1),
    (MODELS.mobilenet_v3_small, 33, 1),
    (MODELS.efficientnet_b0, 48, 1),
    (lambda: MODELS.segmentation.deeplabv3_resnet50(weights_backbone=None), 59, 1),
    (lambda: MODELS.segmentation.fcn_resnet50(weights_backbone=None), 53, 1),
    (faster_rcnn_backbone, 52, 1),
]


@pytest.mark.parametrize(("network", "num_priors", "num_fallbacks"), NETWORKS)
def test_published_networks_are_wired(network, num_priors, num_fallbacks):
    wiring = wire_kalman(to_kalman(network()), torch.zeros(4, 3, 64, 64))
    assert (len(wiring.priors), len(wiring.fallbacks)) == (num_priors, num_fallbacks)


def test_a_network_with_drop_out_and_products_trains():
    torch.manual_seed(0)
    model = to_kalman(torchvision.models.mobilenet_v3_small())
    wire_kalman(model, torch.zeros(4, 3, 32, 32))
    model(torch.randn(4, 3, 32, 32)).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_wiring_leaves_modules_mode_buffers_and_random_numbers_alone():
    model = chain()
    modules, state, rng = list(model.modules()), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    wire_kalman(model, EXAMPLE)
    assert list(model.modules()) == modules
    assert model.training
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


def test_unwired_a_model_is_as_it_was():
    model = chain()
    x = images()
    before, names = model(x), list(model.state_dict())
    wire_kalman(model, EXAMPLE)
    assert (model(x) - before).abs().max() > 0.1
    unwire_kalman(model)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_wired_again_a_model_has_each_hook_once():
    model = chain()
    wire_kalman(model, EXAMPLE)
    hooks = len(model._forward_hooks), len(model._forward_pre_hooks)
    wire_kalman(model, EXAMPLE)
    assert (len(model._forward_hooks), len(model._forward_pre_hooks)) == hooks


# ------------------------------------------------------------------------------------------- what the prior is


@pytest.mark.parametrize("state_space", ["raw", "normalized", "observed"])
def test_check_9_the_scale_of_a_convolution_does_not_matter(state_space):
    outputs = []
    for factor in (1, 3):
        model = chain(torch.float64, state_space=state_space, eps=0.0)
        wire_kalman(model, EXAMPLE.double())
        with torch.no_grad():
            model[3].weight *= factor
            model[3].bias *= factor
        outputs.append(model(images(dtype=torch.float64)))
    assert (outputs[0] - outputs[1]).abs().max() < 1e-12


@pytest.mark.parametrize("transition", ["analytic", "sampled", "learned"])
@pytest.mark.parametrize("gain", ["fixed", "learned", "adaptive"])
def test_every_kind_trains(transition, gain):
    torch.manual_seed(0)
    model = nn.Sequential(chain(transition=transition, gain=gain), nn.ReLU(), nn.Conv2d(6, 6, 1))
    model.append(KalmanNorm2d(6, micro_batch_size=2, transition=transition, gain=gain))
    wiring = wire_kalman(model, EXAMPLE)
    assert "3" in wiring.priors
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(3):
        optimizer.zero_grad()
        model(images(seed=step)).square().mul(torch.linspace(0.5, 1, 8)).mean().backward()
        optimizer.step()
    assert all(parameter.grad is not None and parameter.isfinite().all() for parameter in model.parameters())


def test_a_sampled_prior_is_the_analytic_one_with_noise():
    priors = {}
    for transition in ("analytic", "sampled"):
        model = chain(transition=transition)
        wire_kalman(model, EXAMPLE)
        torch.manual_seed(0)
        draws = []
        for _ in range(200):
            model(images())
            draws.append(model[4].latest.prior.mean.detach())
        priors[transition] = torch.stack(draws)
    assert priors["analytic"].std(0).max() < 1e-6
    assert priors["sampled"].std(0).min() > 1e-3
    torch.testing.assert_close(priors["sampled"].mean(0), priors["analytic"].mean(0), rtol=0.05, atol=0.02)


def test_a_detached_prior_sends_no_gradient():
    found = []
    for detach_prior in (False, True):
        model = chain(detach_prior=detach_prior, prior_weight=0.99, gain="fixed")
        wire_kalman(model, EXAMPLE)
        found.append(gradients(model, images())[0])
        assert model[4].latest.prior.mean.requires_grad != detach_prior
    assert (found[0] - found[1]).abs().max() > 1e-4


def test_the_moments_of_a_pass_can_be_read():
    model = chain()
    wire_kalman(model, EXAMPLE)
    model(images())
    latest = model[4].latest
    assert latest.observed.mean.shape == latest.prior.mean.shape == latest.posterior.var.shape == (2, 6)
    assert latest.posterior.mean.grad_fn is None


def directly(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return part(x)


class Residual(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.stem = chain(**options)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = KalmanNorm2d(6, micro_batch_size=2, **options)
        self.head = nn.Conv2d(6, 5, 1)
        self.last = KalmanNorm2d(5, micro_batch_size=2, **options)
        self.run = directly

    def forward(self, x):
        x = self.run(self.stem, x).relu()
        x = torch.relu(self.run(self.norm, self.run(self.conv, x)) + x)
        return self.run(self.last, self.run(self.head, x))


def test_a_sum_keeps_its_prior_in_normalized_space_and_is_cut_in_raw_space():
    assert wire_kalman(Residual(state_space="normalized"), EXAMPLE).cuts == {}
    cuts = wire_kalman(Residual(state_space="raw"), EXAMPLE).cuts
    assert list(cuts) == ["before head"]
    assert "another scale" in cuts["before head"]


def test_a_cut_observes_the_tensor_itself():
    model = Residual(state_space="raw", gain="fixed")
    wire_kalman(model, EXAMPLE)
    seen = []
    model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(images())
    parts = seen[0].unflatten(0, (2, 2)).transpose(1, 2).flatten(2)
    weight = model.head.weight[..., 0, 0]
    torch.testing.assert_close(model.last.latest.prior.mean, parts.mean(2) @ weight.T + model.head.bias)
    torch.testing.assert_close(model.last.latest.prior.var, parts.var(2, correction=0) @ weight.square().T)


def pooled(activation: nn.Module) -> nn.Sequential:
    """A network with a cut behind its pooling, whose output the activation gets."""
    torch.manual_seed(0)
    return nn.Sequential(chain(), nn.MaxPool2d(1), activation, nn.Conv2d(6, 6, 1), KalmanNorm2d(6, micro_batch_size=2))


@pytest.mark.parametrize(
    "sources", [None, {"4": [["1", "2", "3"]]}, {"4": [["2", "3"]]}], ids=["traced", "before", "behind"]
)
def test_a_tensor_that_is_observed_may_be_changed_in_place(sources):
    found = []
    for is_in_place in (False, True):
        model = pooled(nn.ReLU(is_in_place))
        wiring = wire_kalman(model, EXAMPLE, sources)
        assert "4" in wiring.priors
        assert list(wiring.cuts) == ["behind 2" if sources and sources["4"][0][0] == "2" else "behind 1"]
        found.append(gradients(model, images()))
    for left, right in zip(*found, strict=True):
        assert torch.equal(left, right)


# ------------------------------------------------------------------------------------------- the same everywhere


COPIES = [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]


@pytest.mark.parametrize("copied", COPIES, ids=["copy", "pickle"])
def test_a_copy_is_wired_to_itself(copied):
    model = Residual()
    wire_kalman(model, EXAMPLE)
    model(images())
    other = copied(model)
    wanted = gradients(model, images())
    for left, right in zip(gradients(other, images()), wanted, strict=True):
        torch.testing.assert_close(left, right)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for left, right in zip(gradients(other, images()), wanted, strict=True):
        torch.testing.assert_close(left, right)


class Through(nn.Module):
    """A function between two layers, called as it is."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.conv = KalmanNorm2d(3, micro_batch_size=2), nn.Conv2d(3, 4, 3)
        self.second, self.function = KalmanNorm2d(4, micro_batch_size=2), function

    def forward(self, x):
        return self.second(self.conv(self.function(self.first(x))))


FUNCTIONS = [nn.functional.silu, nn.functional.gelu, torch.sigmoid, torch.tanh, operator.methodcaller("tanh")]


@pytest.mark.parametrize("function", FUNCTIONS, ids=["silu", "gelu", "sigmoid", "tanh", "method"])
@pytest.mark.parametrize("copied", COPIES, ids=["copy", "pickle"])
def test_a_model_that_is_wired_through_a_function_can_be_copied(function, copied):
    model = Through(function)
    assert wire_kalman(model, EXAMPLE).priors == {"second": "first"}
    torch.testing.assert_close(copied(model)(images()), model(images()))


def test_a_copy_in_the_middle_of_a_pass_is_empty():
    model = Opaque()
    wire_kalman(model, sources={"body.4": [["body.2", "body.3"]]})
    model.body(images())  # the pass of the model does not end
    other = copy.deepcopy(model)
    assert other.body[4].latest is None
    assert all(place.latest is None for place in other.body[4].program.steps)


@pytest.mark.parametrize("transition", ["analytic", "sampled"])
@pytest.mark.parametrize("gain", ["learned", "adaptive"])
def test_checkpointed_activations_give_the_same_gradients_and_buffers(transition, gain):
    model = Residual(transition=transition, gain=gain)
    wire_kalman(model, EXAMPLE)
    plain, checkpointed = copy.deepcopy(model), copy.deepcopy(model)
    checkpointed.run = partial(checkpoint, use_reentrant=False)
    for step in range(2):
        torch.manual_seed(step)
        wanted = gradients(plain, images(seed=step))
        torch.manual_seed(step)
        found = gradients(checkpointed, images(seed=step))
        for left, right in zip(found, wanted, strict=True):
            torch.testing.assert_close(left, right)
    for left, right in zip(checkpointed.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("layer", [KalmanNorm2d, GroupKalmanNorm])
def test_a_wired_model_that_is_checkpointed_as_a_whole_keeps_its_adaptive_gain(use_reentrant, layer):
    torch.manual_seed(0)
    options = {"gain": "adaptive", "dtype": torch.float64}
    norm = (lambda: layer(2, 4, **options)) if layer is GroupKalmanNorm else (lambda: layer(4, splits=2, **options))
    modules = [nn.Conv2d(3, 4, 3, padding=1), norm(), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), norm()]
    model = nn.Sequential(*modules).double()
    wire_kalman(model, EXAMPLE.double())
    for seed in range(3):
        model(images(8, seed, torch.float64) * (1 + seed))
    twin = copy.deepcopy(model)
    x = images(8, dtype=torch.float64).requires_grad_()
    wanted = gradients(twin, x)
    assert 0.01 < twin[4].latest.prior_weight < 0.99
    found = gradients(model, x, partial(checkpoint, model, use_reentrant=use_reentrant))
    for left, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)
    for left, right in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


class SharedHead(nn.Module):
    """A head that is run on several levels, its parts by a function each."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        options = {"micro_batch_size": 2, "dtype": torch.float64, "eps": 0.1, **options}
        layers = [(nn.Conv2d(3, 3, 3, padding=1).double(), KalmanNorm2d(3, **options), nn.ReLU()) for _ in range(3)]
        self.parts = nn.ModuleList(nn.Sequential(*each) for each in layers)
        self.runs = (directly, directly, directly)

    def head(self, x):
        for part, run in zip(self.parts, self.runs, strict=True):
            x = run(part, x)
        return x

    def forward(self, first, second, third):
        return self.head(first), self.head(second), self.head(third)


NOT_REENTRANT = partial(checkpoint, use_reentrant=False)


def gradients_of_head(model: nn.Module, *levels: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    sum((each * each.detach().sin()).sum() for each in model(*levels)).backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("state_space", ["raw", "normalized", "observed"])
@pytest.mark.parametrize("gain", ["learned", "adaptive"])
@pytest.mark.parametrize(
    "runs",
    [(directly, directly, NOT_REENTRANT), (directly, NOT_REENTRANT, NOT_REENTRANT), (NOT_REENTRANT,) * 3],
    ids=["the last", "the last two", "all"],
)
def test_a_shared_head_whose_parts_are_checkpointed_reads_the_moments_of_its_own_call(state_space, gain, runs):
    model = SharedHead(state_space=state_space, gain=gain)
    levels = [(seed + 1) * draw_level(size, seed) + seed for seed, size in enumerate((8, 6, 4))]
    assert wire_kalman(model, tuple(levels)).priors == {"parts.1.1": "parts.0.1", "parts.2.1": "parts.1.1"}
    twin = copy.deepcopy(model)
    model.runs = runs
    for left, right in zip(gradients_of_head(model, *levels), gradients_of_head(twin, *levels), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)
    for left, right in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def draw_level(size: int, seed: int) -> torch.Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(seed)).double()


def test_calls_hold_no_graph_behind_their_pass_and_no_pass_before():
    model = SharedHead(state_space="raw")
    levels = tuple(draw_level(size, 0) for size in (8, 6, 4))
    wire_kalman(model, levels)
    for _ in range(2):
        model(*levels)
    model.parts[0](levels[0])  # outside a pass
    calls = model.parts[0][1].calls.held
    assert len(calls) == 3
    assert all(call.moments.observed.mean.grad_fn is None for _, call in calls)
    assert pickle.loads(pickle.dumps(model)).parts[0][1].calls.held == []


REENTRANT = partial(checkpoint, use_reentrant=True)
LOSES_GRADIENT = "a prior must be predicted within a checkpointed part .* Pass use_reentrant=False to the checkpoint"


class Parts(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.parts, self.run = nn.ModuleList(parts), directly

    def forward(self, x):
        for part in self.parts:
            x = self.run(part, x)
        return x


def in_parts(*lengths: int, run=REENTRANT, **options) -> nn.Module:
    """A chain of three norms, cut into checkpointed parts of so many modules."""
    options = {"gain": "fixed", "prior_weight": 0.9, **options}
    last = [nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), KalmanNorm2d(6, micro_batch_size=2, **options)]
    modules = iter((*chain(**options), *last))
    model = Parts(*(nn.Sequential(*(next(modules) for _ in range(length))) for length in lengths))
    assert len(wire_kalman(model, EXAMPLE).priors) == 2
    model.run = run
    return model


def plain_gradients(model: nn.Module) -> list[torch.Tensor]:
    model = copy.deepcopy(model)
    model.run = directly
    return gradients(model, images().requires_grad_())


@pytest.mark.parametrize(
    ("state_space", "lengths"), [("raw", (3, 5)), ("raw", (3, 3, 2)), ("observed", (3, 3, 2)), ("observed", (6, 2))]
)
def test_a_gradient_that_reentrant_checkpoints_lose_is_told_of(state_space, lengths):
    model = in_parts(*lengths, state_space=state_space)
    with pytest.warns(UserWarning, match=LOSES_GRADIENT):
        of_first, *_ = gradients(model, images().requires_grad_())
    wanted, *_ = plain_gradients(model)
    assert (of_first - wanted).norm() > 0.01 * wanted.norm()


def test_a_gradient_that_is_lost_from_a_part_that_is_not_checkpointed_is_told_of():
    model = in_parts(3, 5, state_space="raw")
    model.run = lambda part, x: (directly if len(part) == 3 else REENTRANT)(part, x)
    with pytest.warns(UserWarning, match=LOSES_GRADIENT):
        gradients(model, images().requires_grad_())


def test_a_gradient_that_is_lost_on_the_way_to_a_sum_is_told_of():
    model = Residual(state_space="normalized", gain="fixed")
    wire_kalman(model, EXAMPLE)
    model.run = REENTRANT
    with pytest.warns(UserWarning, match=LOSES_GRADIENT):
        gradients(model, images().requires_grad_())


@pytest.mark.parametrize(
    ("lengths", "options"),
    [
        ((8,), {"state_space": "observed"}),  # predicted within the part
        ((3, 3, 2), {"state_space": "normalized", "eps": 1e-9}),  # from affine parameters, which are read again
        ((3, 5), {"state_space": "observed"}),  # from those too, as the first norm has no prior
        ((3, 3, 2), {"state_space": "observed", "detach_prior": True}),
        ((3, 3, 2), {"state_space": "observed", "run": partial(checkpoint, use_reentrant=False)}),
    ],
    ids=["within", "normalized", "first", "detached", "not reentrant"],
)
def test_where_checkpoints_lose_no_gradient_nothing_is_said(lengths, options):
    model = in_parts(*lengths, **options)
    wanted = plain_gradients(model)
    for left, right in zip(gradients(model, images().requires_grad_()), wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-5)


def test_a_frozen_layer_before_a_reentrant_checkpoint_has_no_gradient_to_lose():
    model = in_parts(3, 5, state_space="raw")
    model.parts[0].requires_grad_(False).eval()
    model(images().requires_grad_()).square().mean().backward()
    assert model.parts[1][1].weight.grad is not None


def pooled_to_one_value(pooling: nn.Module) -> nn.Sequential:
    options = {"micro_batch_size": 1}
    last = [nn.Conv2d(6, 5, 1), KalmanNorm2d(5, **options)]
    return nn.Sequential(chain(state_space="normalized", **options), nn.ReLU(), pooling, *last)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_one_value_per_split_has_the_same_gradients_under_a_compiler():
    model = pooled_to_one_value(nn.AvgPool2d(8))
    assert "4" in wire_kalman(model, EXAMPLE).priors
    compiled = copy.deepcopy(model)
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    wanted = gradients(model, images())
    assert model[3].weight.grad.abs().max() > 1e-4
    for left, right in zip(gradients(compiled, images(), run), wanted, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("state_space", ["raw", "normalized", "observed"])
def test_a_prior_that_is_observed_on_one_value_does_not_stand_in_for_one(state_space):
    model = pooled_to_one_value(nn.AdaptiveMaxPool2d(1))
    for layer in (model[0][1], model[0][4], model[4]):
        layer.options = replace(layer.options, state_space=state_space)
    assert list(wire_kalman(model, EXAMPLE).cuts) == ["behind 2"]
    with pytest.raises(InputError, match=r"where the prior foretells no variance; got 1, .* not of one value itself"):
        model(images())


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler hides it, unless warnings are errors
def test_a_compiled_model_has_no_break_and_the_same_numbers():
    model = Residual()
    wire_kalman(model, EXAMPLE)
    compiled = copy.deepcopy(model)
    run = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for step in range(2):
        wanted = gradients(model, images(seed=step))
        for left, right in zip(gradients(compiled, images(seed=step), run), wanted, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)
    for left, right in zip(compiled.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(left, right)


def test_no_graph_outlives_its_pass():
    model = chain()
    wire_kalman(model, EXAMPLE)
    model(images())
    for step in model[4].program.steps:
        assert step.latest.mean.grad_fn is None


def test_evaluation_predicts_nothing_and_group_kalman_norm_does():
    model = chain()
    wire_kalman(model, EXAMPLE)
    model.eval()(images())
    assert model[4].latest is None
    group = nn.Sequential(
        nn.Conv2d(3, 4, 3), GroupKalmanNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 4, 3), GroupKalmanNorm(2, 4)
    )
    wire_kalman(group, EXAMPLE)
    training = group(images())
    torch.testing.assert_close(group.eval()(images()), training)
    assert group[4].latest.prior is not None


def test_behind_a_frozen_layer_the_prior_is_that_of_its_running_statistics():
    model = chain(gain="fixed")
    wire_kalman(model, EXAMPLE)
    model[1].eval()
    model(images())
    assert model[4].latest.prior.mean.shape == (2, 6)
    running = Moments(model[1].running_mean[None], model[1].running_var[None], (8, 8))
    wanted = through_convolution(through_relu(running), model[3].weight, model[3].bias, padding=1)
    for found, expected in zip(model[4].latest.prior[:2], wanted[:2], strict=True):
        torch.testing.assert_close(found, expected.expand(2, -1))


def test_frozen_early_layers_keep_the_priors_of_a_residual_network():
    torch.manual_seed(0)
    model = to_kalman(torchvision.models.resnet18(num_classes=10), state_space="normalized")
    wire_kalman(model, torch.zeros(4, 3, 32, 32))
    for part in (model.bn1, model.layer1, model.layer2):
        part.eval()
    model(torch.randn(4, 3, 64, 64)).sum().backward()
    of_training = [each for each in model.modules() if isinstance(each, KalmanNorm2d) and each.training]
    assert len(of_training) == 10
    assert all(layer.latest.prior is not None for layer in of_training)


def test_a_frozen_layer_that_a_pass_leaves_out_foretells_nothing():
    model = Opaque()
    wire_kalman(model, sources={"body.4": [["body.1", torch.relu, "body.3"]]})
    model.body[1].eval()
    model(images())
    assert model.body[4].latest.prior is not None
    model.body[1].forward = lambda x: x
    model(images())
    assert model.body[4].latest.prior is None


def test_a_prior_that_a_rule_does_not_hold_for_is_refused():
    model = Opaque()
    wire_kalman(model, sources={"body.4": [["body.1", torch.flatten]]})
    with pytest.raises(InputError, match="a rule at every step of its way; got a change of shape"):
        model(images())


# ------------------------------------------------------------------------------------------- shared, named, opaque


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        options = {"micro_batch_size": 2, "state_space": "raw"}  # where the moments are each call's own
        self.conv, self.first = nn.Conv2d(3, 3, 3, padding=1), KalmanNorm2d(3, **options)
        self.other, self.second = nn.Conv2d(3, 3, 3, padding=1), KalmanNorm2d(3, **options)

    def tower(self, x):
        return self.second(self.other(self.first(self.conv(x)).relu()))

    def forward(self, x):
        return self.tower(x), self.tower(-x)


def test_a_shared_layer_has_a_prior_for_each_call():
    model = Shared()
    wiring = wire_kalman(model, EXAMPLE)
    assert wiring.priors == {"second": "first"}
    priors = []
    model.second.register_forward_hook(lambda module, *_: priors.append(module.latest.prior.mean))
    model(images())
    assert (priors[0] - priors[1]).abs().max() > 1e-3
    once = copy.deepcopy(model)
    once.tower(images())
    torch.testing.assert_close(once.second.latest.prior.mean, priors[0])


def test_a_shared_layer_behind_different_operations_has_none():
    class Twice(Shared):
        def forward(self, x):
            y = self.first(self.conv(x))
            return self.second(self.other(y.relu())) + self.second(self.other(torch.tanh(y)))

    assert wire_kalman(Twice(), EXAMPLE).fallbacks["second"] == "called several times, behind different operations"


class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = chain()

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        return self.body(x)


def test_a_model_that_cannot_be_traced_says_how_to_name_sources():
    with pytest.raises(InputError, match=r"traceable by torch.fx.*sources="):
        wire_kalman(Opaque(), EXAMPLE)


def test_named_sources_are_what_a_trace_finds():
    traced, named = chain(), Opaque()
    wire_kalman(traced, EXAMPLE)
    wiring = wire_kalman(named, sources={"body.4": [["body.1", torch.relu, "body.3"]]})
    assert wiring.priors == {"body.4": "body.1"}
    assert wiring.fallbacks == {"body.1": "not in sources"}
    torch.testing.assert_close(named(images()), traced(images()))


def test_named_sources_may_begin_at_any_module_and_add_up():
    model = Opaque()
    wiring = wire_kalman(model, sources={"body.4": [["body.2", "body.3"], ["body.1", torch.relu, "body.3"]]})
    assert list(wiring.cuts) == ["behind body.2"]
    model(images())
    assert model.body[4].latest.prior is not None


def test_an_opaque_module_inside_is_cut():
    model = nn.Sequential(chain(), nn.Conv2d(6, 3, 1), Opaque())
    wiring = wire_kalman(model, EXAMPLE)
    assert wiring.fallbacks["2.body.4"].startswith("inside 2, which torch.fx cannot trace: TraceError: ")
    assert "0.4" in wiring.priors


def test_a_layer_that_is_never_called_is_told_from_one_that_cannot_be_traced():
    model = Residual(state_space="normalized")
    model.spare = KalmanNorm2d(3, micro_batch_size=2)
    assert wire_kalman(model, EXAMPLE).fallbacks["spare"] == "its calls are not in the graph"


class Counting(nn.Module):
    def forward(self, x):
        for _ in range(len(torch.nonzero(x > 1e9))):
            x = x + 1
        return x


def test_an_opaque_module_whose_shapes_depend_on_values_is_run():
    model = nn.Sequential(chain(), Counting(), nn.Conv2d(6, 3, 1), KalmanNorm2d(3, micro_batch_size=2))
    wiring = wire_kalman(model, EXAMPLE)
    assert wiring.cuts == {"behind 1": "no rule for Counting"}
    assert "3" in wiring.priors


def test_a_sampled_prior_has_the_arguments_of_the_activation():
    class Leaky(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            options = {"micro_batch_size": 2, "transition": "sampled"}
            self.first, self.conv = KalmanNorm2d(3, **options), nn.Conv2d(3, 4, 3)
            self.second = KalmanNorm2d(4, **options)

        def forward(self, x):
            return self.second(self.conv(nn.functional.leaky_relu(self.first(x), 0.9)))

    model = Leaky()
    wire_kalman(model, torch.zeros(2, 3, 64, 64))
    model(torch.randn(2, 3, 64, 64))
    found, wanted = model.second.latest.prior, model.second.latest.observed  # of independent values, so both agree
    torch.testing.assert_close(found.var, wanted.var, rtol=0.15, atol=0)
    copy.deepcopy(model)(torch.randn(2, 3, 64, 64))
    pickle.dumps(model.second.program)


def test_a_user_can_add_a_rule():
    class Halve(nn.Module):
        def forward(self, x):
            return x / 2 if x.sum() < 1e9 else x

    def model():
        return nn.Sequential(chain(), Halve(), nn.Conv2d(6, 3, 1), KalmanNorm2d(3, micro_batch_size=2))

    assert wire_kalman(model(), EXAMPLE).cuts == {"behind 1": "no rule for Halve"}
    propagation_rule(Halve)(lambda module, moments: Moments(moments.mean / 2, moments.var / 4, moments.size))
    assert wire_kalman(model(), EXAMPLE).cuts == {}


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"body.9": [["body.1"]]}, "sources must be of Kalman normalization layers"),
        ({"body.4": ["body.1"]}, "must be a list of paths"),
        ({"body.4": 3}, "must be a list of paths; got 3"),
        ({"body.4": [3]}, r"must be a list of paths; got \[3\]"),
        ([("body.4", [["body.1"]])], r"sources must map names of layers to lists of paths; got a list"),
        ("body.4", "sources must map names of layers to lists of paths; got a str"),
        ({"body.4": [["body.1", ["body.3"]]]}, "operations with a propagation rule; got"),
        ({"body.4": [["body.7", "body.3"]]}, "sources must name modules"),
        ({"body.4": [["body.1", torch.sort]]}, "operations with a propagation rule"),
        ({"body.4": [["body.1"], ["body.1", "body.3"]]}, r"must each pass a convolution .*; got \['body.1'\]"),
    ],
)
def test_sources_that_do_not_exist_are_refused(sources, message):
    with pytest.raises(InputError, match=message):
        wire_kalman(Opaque(), sources=sources)


@pytest.mark.parametrize("transition", ["sampled", "learned"])
def test_named_sources_are_followed_in_closed_form_alone(transition):
    model = Opaque()
    model.body = chain(transition=transition)
    with pytest.raises(InputError, match=f"must be 'analytic' where sources are named; got '{transition}'"):
        wire_kalman(model, sources={"body.4": [["body.1", torch.relu, "body.3"]]})


def test_what_cannot_be_wired_is_refused():
    with pytest.raises(InputError, match="example_inputs must be given"):
        wire_kalman(chain())
    with pytest.raises(InputError, match="must have KalmanNorm"):
        wire_kalman(nn.Linear(2, 2), EXAMPLE)
    with pytest.raises(InputError, match="example_inputs must run through"):
        wire_kalman(chain(), torch.zeros(4, 5, 8, 8))
    with pytest.raises(InputError, match="the same splits"):
        wire_kalman(nn.Sequential(KalmanNorm1d(2, splits=2), KalmanNorm1d(2)), torch.zeros(4, 2))
    with pytest.raises(InputError, match="and detach_prior; got"):
        wire_kalman(nn.Sequential(KalmanNorm1d(2, detach_prior=True), KalmanNorm1d(2)), torch.zeros(4, 2))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the process group, about devices
def test_data_parallel_ranks_find_every_parameter_used(tmp_path):
    options = {"init_method": f"file://{tmp_path / 'store'}", "rank": 0, "world_size": 1}
    torch.distributed.init_process_group("gloo", **options)
    try:
        model = Residual()
        wire_kalman(model, EXAMPLE)
        wanted = gradients(copy.deepcopy(model), images())
        parallel = nn.parallel.DistributedDataParallel(model)
        for _ in range(2):
            found = gradients(model, images(), parallel)
            for left, right in zip(found, wanted, strict=True):
                torch.testing.assert_close(left, right)
    finally:
        torch.distributed.destroy_process_group()


RUNS_LATE = r"sources of '{}' must run before it; got {}, behind it.* Name a layer or a module that runs before"


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        ({"body.1": [["body.4"]]}, ("body.1", r"\['body.4'\]")),
        ({"body.1": [["body.3"]]}, ("body.1", r"\['body.3'\]")),
        ({"body.4": [["body.1", "body.3"], ["body"]]}, ("body.4", r"\['body'\]")),
    ],
    ids=["layer", "observed", "one of two"],
)
def test_a_named_source_that_runs_behind_its_reader_is_told_of_once(sources, told):
    model = Opaque()
    model.body = chain(state_space="normalized")
    wire_kalman(model, sources=sources)
    model.eval()(images())  # where no prior is wanted
    with pytest.warns(UserWarning, match=RUNS_LATE.format(*told)):
        model.train()(images())
    model(images())
    unwire_kalman(model)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("options", "leaves_out"), [({}, False), ({}, True), ({"gain": "fixed", "prior_weight": 0.0}, False)]
)
def test_of_named_sources_in_order_nothing_is_told(options, leaves_out):
    model = Opaque()
    model.body = chain(**options)
    wire_kalman(model, sources={"body.4": [["body.1", torch.relu, "body.3"]]})
    if leaves_out:
        model.body[1].forward = lambda x: x
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for model_or_copy in (model, pickle.loads(pickle.dumps(model)) if not leaves_out else model):
            model_or_copy(images())
    assert not told


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at it
def test_a_compiled_layer_of_an_eager_model_is_compiled_once_however_often_it_is_called():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x):
            for _ in range(5):
                x = self.norm(self.conv(x)).relu()
            return x.sum()

    torch._dynamo.reset()
    counter = CompileCounter()
    model = Loop()
    convert(model, "kalman", micro_batch_size=2, example_inputs=torch.randn(4, 4, 8, 8))
    model.norm.compile(backend=counter, fullgraph=True)
    for _ in range(2):
        model(torch.randn(4, 4, 8, 8)).backward()
    assert counter.frame_count <= 2  # without a prior in the first call, and with one
