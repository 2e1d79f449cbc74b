"""Moving-average batch norm: the slow twin over several passes, its warm-up, its center, and checkpoints."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.moving_average_batch_norm import ReferenceLayer
from torch import nn

from anybatch.errors import InputError
from anybatch.nn import (
    MovingAverageBatchNorm1d,
    MovingAverageBatchNorm2d,
    MovingAverageBatchNorm3d,
    center_weights,
    uncenter_weights,
)

PAIRS = {
    2: (MovingAverageBatchNorm1d, nn.BatchNorm1d),
    3: (MovingAverageBatchNorm1d, nn.BatchNorm1d),
    4: (MovingAverageBatchNorm2d, nn.BatchNorm2d),
    5: (MovingAverageBatchNorm3d, nn.BatchNorm3d),
}
SHAPES = [(12, 3), (12, 3, 4), (12, 3, 2, 2), (12, 3, 2, 1, 2)]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layer_for(x: torch.Tensor, **options) -> nn.Module:
    layer = PAIRS[x.dim()][0](x.shape[1], **options, dtype=x.dtype)
    with torch.no_grad():
        layer.weight.copy_(draw(x.shape[1], seed=1))
        layer.bias.copy_(draw(x.shape[1], seed=2))
        layer.running_mean.copy_(draw(x.shape[1], seed=3) / 4)
    return layer


def twin_of(layer: nn.Module) -> ReferenceLayer:
    return ReferenceLayer(
        *(tensor.detach().clone() for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var)),
        layer.num_averaged,
        layer.warmup_updates,
        layer.r_max,
        layer.eps,
        layer.momentum,
    )


# ------------------------------------------------------------------------------------------- the slow twin


@given(
    st.sampled_from([(3,), (2, 4), (2, 2, 2), (2, 2, 1, 2)]),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 5),
    st.booleans(),
)
@settings(deadline=None)
def test_several_passes_equal_the_slow_twin(rest, num_parts, num_averaged, warmup_updates, is_double):
    dtype = torch.float64 if is_double else torch.float32
    shape = (2 * num_parts, *rest)
    layer = layer_for(
        draw(*shape).to(dtype), micro_batch_size=2, num_averaged=num_averaged, warmup_updates=warmup_updates, r_max=1.5
    )
    twin = twin_of(layer)
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if is_double else {"rtol": 1e-3, "atol": 1e-3}
    for step in range(8):
        x = (draw(*shape, seed=10 + step) * (1 + step / 4)).to(dtype).requires_grad_()
        grad = draw(*shape, seed=30 + step).to(dtype)
        layer.zero_grad()
        output = layer(x)
        output.backward(grad)
        wanted = twin.train_once(x.detach(), grad, 2)
        for ours, theirs in zip((output, x.grad, layer.weight.grad, layer.bias.grad), wanted, strict=True):
            torch.testing.assert_close(ours.double(), theirs, **tolerance)
        torch.testing.assert_close(layer.running_var.double(), twin.running_var, **tolerance)


def test_batches_of_one_micro_batch_and_one_batch_of_them_see_the_same_averages():
    """Check: splitting changes when the running variance moves, and nothing of the averages."""
    x = draw(8, 3)
    split = layer_for(x, micro_batch_size=2, num_averaged=3, warmup_updates=0)
    whole = layer_for(x, num_averaged=3, warmup_updates=0)
    split(x).square().sum().backward()
    for part in x.split(2):
        whole(part).square().sum().backward()
    torch.testing.assert_close(split.second_moments, whole.second_moments)
    assert split.num_updates == 1
    assert whole.num_updates == 4


# ------------------------------------------------------------------------------------------- what it must be


@pytest.mark.parametrize("shape", SHAPES)
def test_warming_up_it_is_batch_norm_without_the_mean(shape):
    x = draw(*shape)
    x -= x.mean((0, *range(2, x.dim())), keepdim=True)
    layer = layer_for(x)
    layer.running_mean.zero_()
    plain = PAIRS[len(shape)][1](3, dtype=torch.float64)
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if name in plain.state_dict()})
    torch.testing.assert_close(layer(x), plain(x))


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_is_batch_norm_and_its_checkpoints_load(shape):
    x = draw(*shape)
    plain = PAIRS[len(shape)][1](3, dtype=torch.float64)
    plain(x)
    layer = PAIRS[len(shape)][0](3, dtype=torch.float64)
    layer(x)
    layer.load_state_dict(plain.state_dict())
    assert torch.equal(layer.eval()(x), plain.eval()(x))
    assert layer.num_updates == 0


def test_a_state_goes_on_where_it_was():
    x = draw(8, 3)
    layer = layer_for(x, micro_batch_size=2, num_averaged=3, warmup_updates=1)
    for _ in range(5):
        layer(x).square().sum().backward()
    fresh = layer_for(x, micro_batch_size=2, num_averaged=3, warmup_updates=1)
    fresh.load_state_dict(layer.state_dict())
    gradients = []
    for each in (layer, fresh):
        leaf = draw(8, 3, seed=7).requires_grad_()
        each(leaf).pow(3).sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


def test_a_statistic_of_an_earlier_training_is_not_thrown_away():
    layer = MovingAverageBatchNorm1d(3, momentum=0.5, dtype=torch.float64)
    layer.num_batches_tracked.fill_(100)
    layer(torch.full((4, 3), 3.0, dtype=torch.float64))
    torch.testing.assert_close(layer.running_var, torch.full((3,), 5.0, dtype=torch.float64))


def test_the_center_is_never_moved():
    x = draw(8, 3)
    layer = layer_for(x)
    center = layer.running_mean.clone()
    layer(x + 5)
    assert torch.equal(layer.running_mean, center)


def test_a_pass_without_a_backward_leaves_the_projections():
    layer = MovingAverageBatchNorm1d(3)
    with torch.no_grad():
        layer(torch.randn(4, 3))
    assert not layer.projections.any()
    assert layer.second_moments.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bfloat16_inputs_have_float32_statistics(dtype):
    x = draw(16, 3, 4, 4, dtype=torch.float32).to(dtype).requires_grad_()
    layer = MovingAverageBatchNorm2d(3, micro_batch_size=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x)
    output.sum().backward()
    assert output.dtype == x.grad.dtype == dtype
    wide = MovingAverageBatchNorm2d(3, micro_batch_size=2)
    wide(x.detach().float())
    torch.testing.assert_close(layer.running_var, wide.running_var)


def test_a_copy_goes_its_own_way():
    layer = MovingAverageBatchNorm1d(3)
    twin = copy.deepcopy(layer)
    twin(torch.randn(4, 3))
    assert not layer.second_moments.any()
    assert layer.num_updates == 0


def test_the_layer_prints_its_settings():
    assert repr(MovingAverageBatchNorm3d(4, micro_batch_size=2)).endswith(
        "micro_batch_size=2, num_averaged=16, warmup_updates=100, r_max=5.0)"
    )


# ------------------------------------------------------------------------------------------- centred weights


def test_centred_weights_take_the_same_parameter_and_give_it_back_with_their_values():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert center_weights(model, ["0"]) == ("0",)
    assert center_weights(model, ["0"]) == ()
    assert {id(parameter) for parameter in model.parameters()} == {
        id(parameter) for group in optimizer.param_groups for parameter in group["params"]
    }
    centred = model[0].weight
    torch.testing.assert_close(centred, weight - weight.mean((1, 2, 3), keepdim=True))
    assert uncenter_weights(model) == ("0",)
    assert model[0].weight is weight
    torch.testing.assert_close(weight, centred)


def test_only_layers_with_weights_can_be_centred():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with pytest.raises(InputError, match="layer '1' must be a convolution or a linear layer to be centred; got ReLU"):
        center_weights(model, ["0", "1"])
    with pytest.raises(InputError, match=r"layer 'x' must be .* to be centred; got no such layer"):
        center_weights(model, ["x"])
    assert uncenter_weights(model) == ()


# ------------------------------------------------------------------------------------------- refusals


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_choices():
    with pytest.raises(InputError, match=r"got 2 for a batch of 7\. Choose 1 or 7, or a batch of 6 or 8\."):
        MovingAverageBatchNorm1d(3, micro_batch_size=2)(torch.zeros(7, 3))


def test_a_micro_batch_of_one_value_is_refused_in_training():
    with pytest.raises(InputError, match="more than 1 value per channel in training; got 1, with micro_batch_size 1"):
        MovingAverageBatchNorm1d(3, micro_batch_size=1)(torch.zeros(7, 3))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_complex_and_integer_inputs_are_refused(dtype):
    with pytest.raises(InputError, match=f"the input must have a real floating point dtype; got {dtype}"):
        MovingAverageBatchNorm1d(3)(torch.zeros(4, 3, dtype=dtype))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_averaged": 0}, "num_averaged must be an integer of at least 1; got 0"),
        ({"warmup_updates": -1}, "warmup_updates must be an integer of at least 0; got -1"),
        ({"r_max": 0.9}, "r_max must be at least 1; got 0.9"),
        ({"micro_batch_size": -2}, "micro_batch_size must be a positive integer or None; got -2"),
        ({"r_max": "abc"}, "r_max must be at least 1; got 'abc'"),
        ({"eps": -1.0}, "eps must be at least 0; got -1.0"),
        ({"momentum": "none"}, "momentum must be between 0 and 1, or None; got 'none'"),
        ({"momentum": -0.1}, "momentum must be between 0 and 1, or None; got -0.1"),
    ],
)
def test_settings_that_are_none_are_refused(options, told):
    with pytest.raises(InputError, match=told):
        MovingAverageBatchNorm2d(3, **options)


@pytest.mark.parametrize("num_channels", [1, 6])
def test_other_channels_than_the_layers_are_refused_and_not_broadcast(num_channels):
    with pytest.raises(InputError, match=f"must have the 3 channels of the layer; got {num_channels}"):
        MovingAverageBatchNorm2d(3)(torch.zeros(2, num_channels, 4, 4))
