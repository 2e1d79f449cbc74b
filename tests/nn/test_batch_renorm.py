"""Batch renormalization: the slow twin, batch norm within no limits, the layer's own evaluation within none."""

import copy
import pickle
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.batch_renorm import train_once
from torch import nn
from torch.utils.checkpoint import checkpoint

from anybatch.errors import InputError
from anybatch.nn import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d, RenormLimits, batch_renorm, renorm_limits

PAIRS = {
    2: (BatchRenorm1d, nn.BatchNorm1d),
    3: (BatchRenorm1d, nn.BatchNorm1d),
    4: (BatchRenorm2d, nn.BatchNorm2d),
    5: (BatchRenorm3d, nn.BatchNorm3d),
}
SHAPES = [(12, 3), (12, 3, 4), (12, 3, 2, 2), (12, 3, 2, 1, 2)]
AT_ONCE = (0, 0, 0)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layer_for(x: torch.Tensor, **options) -> nn.Module:
    """A layer with untypical parameters and statistics that are far from the batch's in some channels."""
    layer = PAIRS[x.dim()][0](x.shape[1], **options, dtype=x.dtype)
    with torch.no_grad():
        layer.weight.copy_(draw(x.shape[1], seed=1))
        layer.bias.copy_(draw(x.shape[1], seed=2))
        layer.running_mean.copy_(draw(x.shape[1], seed=3))
        layer.running_var.copy_(draw(x.shape[1], seed=4).exp())
    return layer


# ------------------------------------------------------------------------------------------- the slow twin


@st.composite
def settings_of_a_pass(draw_value):
    micro_batch_size = draw_value(st.integers(2, 4))
    num_parts = draw_value(st.integers(1, 4))
    rest = draw_value(st.lists(st.integers(1, 4), max_size=3))
    return (micro_batch_size * num_parts, draw_value(st.integers(1, 3)), *rest), micro_batch_size


@given(settings_of_a_pass(), st.floats(1, 4), st.floats(0, 3), st.booleans(), st.booleans())
@settings(deadline=None)
def test_a_training_pass_equals_the_slow_twin(setting, r_max, d_max, is_double, channels_last):
    shape, micro_batch_size = setting
    x = draw(*shape, seed=5).to(torch.float64 if is_double else torch.float32) + 0.5
    if channels_last and x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    grad = torch.empty_like(x).copy_(draw(*shape, seed=6))
    options = {"r_max": r_max, "d_max": d_max, "relaxation": AT_ONCE, "momentum": 0.1}
    layer = layer_for(x, micro_batch_size=micro_batch_size, **options)
    statistics = layer.running_mean.clone(), layer.running_var.clone()
    x.requires_grad_()
    output = layer(x)
    output.backward(grad)
    twin = train_once(x, layer.weight, layer.bias, grad, micro_batch_size, *statistics, r_max, d_max)
    # a part of two nearly equal numbers has a tiny variance: its gradient cancels large terms, and float32 shows it
    tolerance = {"rtol": 1e-8, "atol": 1e-8} if is_double else {"rtol": 2e-3, "atol": 2e-3}
    for ours, wanted in (
        (output, twin.output),
        (x.grad, twin.grad_input),
        (layer.weight.grad, twin.grad_weight),
        (layer.bias.grad, twin.grad_bias),
        (layer.running_mean, twin.running_mean),
        (layer.running_var, twin.running_var),
    ):
        torch.testing.assert_close(ours.double(), wanted, **tolerance)
    assert layer.num_batches_tracked == 1


# ------------------------------------------------------------------------------------------- what it must be


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"r_max": 1.0, "d_max": 0.0, "relaxation": AT_ONCE}])
def test_without_a_correction_it_is_batch_norm_on_each_micro_batch(shape, options):
    x, grad = draw(*shape), draw(*shape, seed=9)
    layer = layer_for(x, micro_batch_size=4, **options)
    plain = PAIRS[len(shape)][1](3, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    wanted = torch.cat([plain(part) for part in theirs.split(4)])
    output = layer(ours)
    output.backward(grad)
    wanted.backward(grad)
    torch.testing.assert_close(output, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_limits_training_gives_what_evaluation_gives(shape):
    x = draw(*shape)
    layer = layer_for(x, micro_batch_size=2, r_max=1e6, d_max=1e6, relaxation=AT_ONCE)
    evaluated = copy.deepcopy(layer).eval()(x)
    torch.testing.assert_close(layer(x), evaluated)


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_is_batch_norm_and_checkpoints_load_both_ways(shape):
    x = draw(*shape)
    layer = layer_for(x, micro_batch_size=4)
    layer(x)
    plain = PAIRS[len(shape)][1](3, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(x), plain.eval()(x))
    fresh = PAIRS[len(shape)][0](3, dtype=torch.float64)
    fresh.load_state_dict(plain.state_dict())
    assert torch.equal(fresh.running_var, layer.running_var)


def test_the_gradient_takes_the_correction_as_a_constant():
    x = draw(8, 1).requires_grad_()
    limits = RenormLimits(torch.tensor(1e6), torch.tensor(1e6))
    statistics = torch.zeros(1).double(), torch.ones(1).double()
    batch_renorm(x, *statistics, limits=limits).output.pow(3).sum().backward()
    assert abs(x.grad.sum()) < 1e-10  # as batch norm: a shift of the batch changes nothing


def test_limits_are_batch_norm_first_and_grow_in_a_straight_line():
    found = [renorm_limits(torch.tensor(n), 3.0, 5.0, (10, 20, 40)) for n in (0, 10, 15, 20, 25, 40, 99)]
    assert [limit.r_max.item() for limit in found] == pytest.approx([1, 1, 1 + 2 / 6, 1 + 2 / 3, 2, 3, 3])
    assert [limit.d_max.item() for limit in found] == pytest.approx([0, 0, 2.5, 5, 5, 5, 5])
    steps = [renorm_limits(torch.tensor(n), 3.0, 5.0, (1, 1, 1)) for n in range(3)]
    assert [tuple(limit.item() for limit in each) for each in steps] == [(1, 0), (3, 5), (3, 5)]


def test_a_layer_relaxes_its_limits_by_its_own_updates():
    layer = BatchRenorm1d(1, momentum=0.0, relaxation=(1, 2, 2), dtype=torch.float64)
    x = draw(8, 1) * 2 + 1
    outputs = [layer(x) for _ in range(4)]
    evaluated = layer.eval()(x)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], evaluated, atol=0.1)
    torch.testing.assert_close(outputs[2], evaluated)
    torch.testing.assert_close(outputs[3], evaluated)


def test_without_momentum_the_statistics_are_the_average_of_all_passes():
    layer = BatchRenorm1d(3, momentum=None, micro_batch_size=4, dtype=torch.float64)
    batches = [draw(8, 3, seed=seed) for seed in range(3)]
    for batch in batches:
        layer(batch)
    torch.testing.assert_close(layer.running_mean, torch.cat(batches).mean(0))


def test_a_batch_below_the_micro_batch_size_is_one_part():
    x = draw(6, 3)
    torch.testing.assert_close(layer_for(x, micro_batch_size=32)(x), layer_for(x)(x))


# ------------------------------------------------------------------------------------------- dtypes, layouts, tools


def test_channels_last_stays_channels_last():
    x = draw(12, 3, 4, 4).to(memory_format=torch.channels_last)
    output = layer_for(x, micro_batch_size=4)(x)
    assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(64, 3), (64, 3, 8, 8)])
def test_bfloat16_autocast_has_float32_statistics(shape):
    x = draw(*shape, dtype=torch.float32) + 3
    layer = PAIRS[len(shape)][0](3, micro_batch_size=16, relaxation=AT_ONCE)
    wide = copy.deepcopy(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x.bfloat16().requires_grad_())
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), wide(x.bfloat16().float()), rtol=2e-2, atol=2e-2)  # rounded to 8 bits
    torch.testing.assert_close(layer.running_var, wide.running_var)


def test_the_layer_is_traced_without_a_graph_break():
    x = draw(12, 3, 4, 4)
    layer = layer_for(x, micro_batch_size=4, relaxation=AT_ONCE)
    plain = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), plain(x))
    torch.testing.assert_close(layer.running_var, plain.running_var)
    assert layer.num_batches_tracked == plain.num_batches_tracked == 1


def normed(**options) -> nn.Sequential:
    """Two layers, of which the second sees what the first makes of its statistics; these are far from the batch's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchRenorm2d(4, **options), nn.ReLU(), nn.Conv2d(4, 3, 3))
    model = model.append(BatchRenorm2d(3, **options)).double()
    for seed in range(3):
        model(2 * draw(8, 3, 8, 8, seed=seed) + 1)
    return model


def gradients(model, run, xs) -> list[torch.Tensor]:
    model.zero_grad()
    sum((run(x) * draw(8, 3, 4, 4, seed=7)).sum() for x in xs).backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("num_passes", [1, 3])
@pytest.mark.parametrize("relaxation", [AT_ONCE, (1, 20, 20)])
def test_a_checkpoint_computes_a_pass_again_with_the_statistics_that_it_read(use_reentrant, num_passes, relaxation):
    model = normed(micro_batch_size=2, momentum=0.3, relaxation=relaxation)
    twin = copy.deepcopy(model)
    xs = [draw(8, 3, 8, 8, seed=seed).requires_grad_() for seed in range(5, 5 + num_passes)]
    found = gradients(model, lambda x: checkpoint(model, x, use_reentrant=use_reentrant), xs)
    for left, right in zip(found, gradients(twin, twin, xs), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)
    for left, right in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def test_copies_and_pickles_remember_no_pass():
    layer = BatchRenorm1d(3)
    layer(draw(4, 3, dtype=torch.float32))
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert len(layer._passes) == 1
        assert len(copied._passes) == 0


def test_the_layer_prints_its_settings():
    assert repr(BatchRenorm2d(4, micro_batch_size=2)).endswith(
        "micro_batch_size=2, r_max=3.0, d_max=5.0, relaxation=(5000, 25000, 40000))"
    )


# ------------------------------------------------------------------------------------------- refusals


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_choices():
    told = (
        "micro_batch_size must divide the batch in training; got 4 for a batch of 14. Choose 2 or 7, or a batch of 12 "
        "or 16."
    )
    layer = BatchRenorm1d(3, micro_batch_size=4)
    with pytest.raises(InputError, match=re.escape(told)):
        layer(torch.zeros(14, 3))
    assert layer.eval()(torch.zeros(14, 3)).shape == (14, 3)


@pytest.mark.parametrize(("shape", "size"), [((4, 3), 1), ((4, 3, 1, 1), 1), ((1, 3), None)])
def test_a_micro_batch_of_one_value_is_refused_in_training(shape, size):
    layer = PAIRS[len(shape)][0](3, micro_batch_size=size)
    told = rf"more than 1 value per channel in training; got 1, with micro_batch_size {size} and an input of shape "
    with pytest.raises(InputError, match=told + re.escape(str(shape))):
        layer(torch.zeros(shape))
    assert layer.eval()(torch.zeros(shape)).shape == shape


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool])
@pytest.mark.parametrize("mode", [True, False])
def test_complex_and_integer_inputs_are_refused(dtype, mode):
    with pytest.raises(InputError, match=f"the input must have a real floating point dtype; got {dtype}"):
        BatchRenorm1d(3).train(mode)(torch.zeros(4, 3, dtype=dtype))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"micro_batch_size": 0}, "micro_batch_size must be a positive integer or None; got 0"),
        ({"micro_batch_size": 2.5}, "micro_batch_size must be a positive integer or None; got 2.5"),
        ({"r_max": 0.5}, "r_max must be at least 1; got 0.5"),
        ({"r_max": "a"}, "r_max must be at least 1; got 'a'"),
        ({"d_max": None}, "d_max must be at least 0; got None"),
        ({"d_max": -1.0}, "d_max must be at least 0; got -1.0"),
        ({"relaxation": (10, 5, 20)}, r"relaxation must be three numbers of updates.*got \(10, 5, 20\)"),
        ({"relaxation": 10}, "relaxation must be three numbers of updates.*got 10"),
        ({"relaxation": (10, 20)}, r"relaxation must be three numbers of updates.*got \(10, 20\)"),
        ({"momentum": "none"}, "momentum must be between 0 and 1, or None; got 'none'"),
        ({"momentum": 1.5}, "momentum must be between 0 and 1, or None; got 1.5"),
    ],
)
def test_settings_that_are_none_are_refused(options, told):
    with pytest.raises(InputError, match=told):
        BatchRenorm2d(3, **options)


def test_an_input_of_other_dimensions_is_refused_as_by_batch_norm():
    with pytest.raises(ValueError, match="expected 4D input"):
        BatchRenorm2d(3)(torch.zeros(64, 3))


@pytest.mark.parametrize("num_channels", [1, 6])
def test_other_channels_than_the_layers_are_refused_and_not_broadcast(num_channels):
    with pytest.raises(InputError, match=f"must have the 3 channels of the layer; got {num_channels}"):
        BatchRenorm2d(3)(torch.zeros(2, num_channels, 4, 4))


def test_passes_of_one_batch_are_computed_again_each_with_what_it_read():
    torch.manual_seed(0)
    batch = torch.randn(8, 3, dtype=torch.float64) + 1

    def gradient(run):
        layer = BatchRenorm1d(3, momentum=0.3, relaxation=(0, 0, 0), dtype=torch.float64)
        weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
        losses = [(run(layer, batch * weight) * (k + 1)).square().sum() for k in range(3)]
        return torch.autograd.grad(sum(losses), weight)[0]

    plain = gradient(lambda layer, x: layer(x))
    again = gradient(lambda layer, x: checkpoint(layer, x, use_reentrant=False))
    torch.testing.assert_close(again, plain, rtol=1e-12, atol=1e-12)


def test_a_pass_that_is_forgotten_is_told():
    layer = BatchRenorm1d(3, relaxation=(0, 0, 0))
    batches = [torch.randn(8, 3, generator=torch.Generator().manual_seed(k)).requires_grad_() for k in range(20)]
    outputs = [checkpoint(layer, batch, use_reentrant=False) for batch in batches]
    with pytest.warns(UserWarning, match="must be among the last 16"):
        sum(output.square().sum() for output in outputs).backward()


def test_what_was_remembered_stays_neither_behind_a_move_nor_in_a_replica():
    layer = BatchRenorm1d(3)
    layer(torch.randn(8, 3))
    replica = layer._replicate_for_data_parallel()
    assert replica._passes is not layer._passes
    assert layer._passes
    assert not layer.double()._passes
