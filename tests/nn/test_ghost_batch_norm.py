"""Ghost batch norm: the numbers of the paper's arithmetic, the slow twin, and BatchNorm where it must be BatchNorm."""

import copy
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference.ghost_batch_norm import ghost_sizes, train_once
from torch import nn

from anybatch.errors import InputError
from anybatch.nn import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    advance_running_statistic,
    ghost_batch_norm,
)

PAIRS = {
    2: (GhostBatchNorm1d, nn.BatchNorm1d),
    3: (GhostBatchNorm1d, nn.BatchNorm1d),
    4: (GhostBatchNorm2d, nn.BatchNorm2d),
    5: (GhostBatchNorm3d, nn.BatchNorm3d),
}
SHAPES = [(12, 3), (12, 3, 4), (12, 3, 2, 2), (12, 3, 2, 1, 2)]
FLOAT32 = {"rtol": 1e-4, "atol": 1e-5}
BY_HAND = torch.tensor([[1.0], [3.0], [2.0], [6.0]])


@pytest.fixture(scope="module", autouse=True, params=["in_planes", "back_in_planes", "in_turn", "together"])
def way_of_normalizing(request):
    """Run every test of this file in every way, whatever the size of its parts and maps."""
    with pytest.MonkeyPatch.context() as patch:
        smallest_part = 10**9 if request.param == "together" else 0
        planes = range(2, 64**2 + 1)
        is_back = request.param in ("in_planes", "back_in_planes")
        patch.setattr("anybatch.nn.part_normalization._VALUES_OF_A_CALL", smallest_part)
        patch.setattr("anybatch.nn.part_normalization._VALUES_OF_A_PART", 0)
        patch.setattr("anybatch.nn.part_normalization._PLANES_FORWARD", planes if request.param == "in_planes" else ())
        patch.setattr("anybatch.nn.part_normalization._PLANES_BACKWARD", planes if is_back else ())
        yield


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def check_close(left: torch.Tensor, right: object, **tolerance: float) -> None:
    wanted = torch.as_tensor(right, dtype=left.dtype).view(left.shape)
    torch.testing.assert_close(left, wanted, **(tolerance or FLOAT32))


def pair_for(x: torch.Tensor, **options) -> tuple[nn.Module, nn.Module]:
    """A ghost layer and the BatchNorm with the same, untypical, parameters."""
    ghost_type, batch_type = PAIRS[x.dim()]
    ghost = ghost_type(x.shape[1], **options, dtype=x.dtype)
    options = {name: value for name, value in options.items() if name not in ("ghost_batch_size", "running_update")}
    batch = batch_type(x.shape[1], **options, dtype=x.dtype)
    with torch.no_grad():
        ghost.weight.copy_(draw(x.shape[1], seed=1, dtype=x.dtype))
        ghost.bias.copy_(draw(x.shape[1], seed=2, dtype=x.dtype))
    batch.load_state_dict(ghost.state_dict())
    return ghost, batch


# ------------------------------------------------------------------------------------------- by hand


def test_four_numbers_in_two_ghost_batches():
    check_close(GhostBatchNorm1d(1, ghost_batch_size=2)(BY_HAND), [-0.999995, 0.999995, -0.99999875, 0.99999875])
    check_close(GhostBatchNorm1d(1, ghost_batch_size=4)(BY_HAND), [-1.069043, 0, -0.534522, 1.603565])


@pytest.mark.parametrize(
    ("ghost_batch_size", "running_update", "mean", "var"),
    [(2, "sequential", 0.58, 1.79), (2, "average", 0.30, 1.4), (4, "sequential", 0.30, 1.366667)],
)
def test_running_statistics_of_four_numbers(ghost_batch_size, running_update, mean, var):
    layer = GhostBatchNorm1d(1, ghost_batch_size=ghost_batch_size, running_update=running_update)
    layer(BY_HAND)
    check_close(layer.running_mean, mean)
    check_close(layer.running_var, var)


def test_running_statistics_of_four_numbers_in_the_papers_other_forms():
    means, variances = torch.tensor([[2.0], [4.0]]), torch.tensor([[1.0], [4.0]])
    check_close(advance_running_statistic(torch.ones(1), variances, 0.1), 1.30)  # biased
    stds = (variances + 1e-5).sqrt()
    check_close(advance_running_statistic(torch.ones(1), stds, 0.1), 1.100001, rtol=0, atol=5e-7)
    printed = torch.tensor([[0.1 * 0.9], [0.1 * 0.9**2]])  # of algorithm 1, which do not sum to 1 with what is kept
    check_close((printed * means).sum(0), 0.504)
    check_close(0.81 + (printed * stds).sum(0), 1.062001, rtol=0, atol=5e-7)
    assert printed.sum().item() + 0.81 == pytest.approx(0.981)


def test_an_average_that_forgets_as_the_sequential_update_does_weighs_the_ghost_batches_alike():
    momentum = 1 - (1 - 0.1) ** 2
    layer = GhostBatchNorm1d(1, ghost_batch_size=2, running_update="average", momentum=momentum)
    layer(BY_HAND)
    check_close(layer.running_mean, 0.57)
    check_close(layer.running_var, 0.81 * 1 + 0.19 * (2 + 8) / 2)
    layer(BY_HAND[[2, 3, 0, 1]])
    check_close(layer.running_mean, 0.81 * 0.57 + 0.57)


def test_evaluation_after_the_sequential_update():
    layer = GhostBatchNorm1d(1, ghost_batch_size=2)
    layer(BY_HAND)
    check_close(layer.eval()(torch.tensor([[0.0], [5.0]])), [-0.433511, 3.303654])


@given(st.integers(1, 40), st.floats(0.0, 1.0))
def test_the_closed_form_is_as_many_updates_and_its_weights_sum_to_one(num_parts, momentum):
    parts = draw(num_parts, 3, seed=num_parts, dtype=torch.float64)
    running = draw(3, dtype=torch.float64)
    stepwise = running
    for part in parts:
        stepwise = (1 - momentum) * stepwise + momentum * part
    check_close(advance_running_statistic(running, parts, momentum), stepwise, rtol=1e-12, atol=1e-12)
    ones = advance_running_statistic(running.new_ones(3), torch.ones_like(parts), momentum)
    check_close(ones, running.new_ones(3), rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------- the slow twin


@st.composite
def settings_of_a_pass(draw_value):
    ghost_batch_size = draw_value(st.integers(2, 5))
    num_samples = draw_value(st.integers(2, 23))
    rest = draw_value(st.lists(st.integers(1, 6), max_size=3))
    return (num_samples, draw_value(st.integers(1, 3)), *rest), ghost_batch_size


@given(
    settings_of_a_pass(),
    st.sampled_from(["sequential", "average"]),
    st.sampled_from([None, 0.1, 0.9]),
    st.booleans(),
    st.booleans(),
)
def test_a_training_pass_equals_the_slow_twin(setting, running_update, momentum, is_double, channels_last):
    shape, ghost_batch_size = setting
    x = draw(*shape, seed=3, dtype=torch.float64 if is_double else torch.float32) + 0.5
    if channels_last and x.dim() == 4:
        x = x.to(memory_format=torch.channels_last)
    grad = torch.empty_like(x).copy_(draw(*shape, seed=4))
    ghost, _ = pair_for(x, ghost_batch_size=ghost_batch_size, momentum=momentum, running_update=running_update)
    x.requires_grad_()
    output = ghost(x)
    output.backward(grad)
    twin = train_once(x, ghost.weight, ghost.bias, grad, ghost_batch_size, momentum=momentum, mode=running_update)
    # a part of two nearly equal numbers has a tiny variance: its gradient cancels large terms, and float32 shows it
    tolerance = {"rtol": 1e-8, "atol": 1e-8} if is_double else {"rtol": 2e-3, "atol": 2e-3}
    check_close(output, twin.output, **tolerance)
    check_close(x.grad, twin.grad_input, **tolerance)
    check_close(ghost.weight.grad, twin.grad_weight, **tolerance)
    check_close(ghost.bias.grad, twin.grad_bias, **tolerance)
    check_close(ghost.running_mean, twin.running_mean, **tolerance)
    check_close(ghost.running_var, twin.running_var, **tolerance)
    assert ghost.num_batches_tracked == len(ghost_sizes(shape[0], ghost_batch_size))


@pytest.mark.parametrize("num_samples", [20, 23])
@pytest.mark.parametrize("rest", [(), (7,), (3, 3)])
def test_float64_equals_the_slow_twin_to_its_last_digits(num_samples, rest):
    x = draw(num_samples, 3, *rest, dtype=torch.float64).requires_grad_()
    grad = draw(num_samples, 3, *rest, seed=4, dtype=torch.float64)
    ghost, _ = pair_for(x, ghost_batch_size=5)
    output = ghost(x)
    output.backward(grad)
    twin = train_once(x, ghost.weight, ghost.bias, grad, 5)
    pairs = (
        (output, twin.output),
        (x.grad, twin.grad_input),
        (ghost.weight.grad, twin.grad_weight),
        (ghost.bias.grad, twin.grad_bias),
        (ghost.running_mean, twin.running_mean),
        (ghost.running_var, twin.running_var),
    )
    for left, right in pairs:
        check_close(left, right, rtol=1e-12, atol=1e-12)


def test_without_momentum_running_statistics_average_all_ghost_batches_over_passes():
    layer = GhostBatchNorm1d(2, ghost_batch_size=3, momentum=None)
    passes = [draw(9, 2, seed=5), draw(6, 2, seed=6), draw(4, 2, seed=7)]
    means, variances = [], []
    for x in passes:
        layer(x)
        for part in x.split(ghost_sizes(len(x), 3)):
            means.append(part.mean(0))
            variances.append(part.var(0))
    assert layer.num_batches_tracked == 6
    check_close(layer.running_mean, torch.stack(means).mean(0))
    check_close(layer.running_var, torch.stack(variances).mean(0))


@pytest.mark.parametrize("shape", [(10, 2), (10, 2, 3), (8, 2, 2, 2), (9, 1, 4, 4)])
def test_first_and_second_derivatives_agree_with_finite_differences(shape):
    x = draw(*shape, dtype=torch.float64).requires_grad_()
    weight, bias = draw(shape[1], seed=1, dtype=torch.float64), draw(shape[1], seed=2, dtype=torch.float64)
    inputs = (x, weight.requires_grad_(), bias.requires_grad_())

    def output(*tensors):
        return ghost_batch_norm(*tensors, ghost_batch_size=4).output

    assert torch.autograd.gradcheck(output, inputs)
    assert torch.autograd.gradgradcheck(output, inputs)


def test_no_gradient_flows_through_the_statistics_that_are_kept():
    layer = GhostBatchNorm1d(1, ghost_batch_size=2)
    layer(BY_HAND.clone().requires_grad_())
    assert not layer.running_mean.requires_grad
    normalized = ghost_batch_norm(BY_HAND.clone().requires_grad_(), ghost_batch_size=2)
    assert not normalized.mean.requires_grad
    assert not normalized.var.requires_grad


# ------------------------------------------------------------------------------------------- one pass, or chunks


class Net(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = norm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_a_ghost_layer_equals_chunked_accumulation():
    x, target = draw(24, 2, 6, 6), torch.arange(24) % 3
    whole = Net(lambda channels: GhostBatchNorm2d(channels, ghost_batch_size=6))
    chunked = Net(nn.BatchNorm2d)
    chunked.load_state_dict(whole.state_dict())
    loss = nn.functional.cross_entropy(whole(x), target)
    loss.backward()
    total = torch.zeros(())
    for inputs, labels in zip(x.chunk(4), target.chunk(4), strict=True):
        part = nn.functional.cross_entropy(chunked(inputs), labels) / 4
        part.backward()
        total += part.detach()
    check_close(loss.detach(), total)
    for left, right in zip(whole.parameters(), chunked.parameters(), strict=True):
        check_close(left.grad, right.grad)
    for left, right in zip(whole.buffers(), chunked.buffers(), strict=True):
        check_close(left, right)


def test_the_order_inside_a_ghost_batch_does_not_matter_and_who_is_in_it_does():
    x = draw(8, 3)
    inside, across = [1, 3, 0, 2, 4, 5, 6, 7], [4, 1, 2, 3, 0, 5, 6, 7]
    output = ghost_batch_norm(x, ghost_batch_size=4).output
    check_close(ghost_batch_norm(x[inside], ghost_batch_size=4).output, output[inside])
    assert (ghost_batch_norm(x[across], ghost_batch_size=4).output - output[across]).abs().max() > 0.1


# ------------------------------------------------------------------------------------------- is BatchNorm


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"track_running_stats": False}])
def test_a_batch_below_twice_the_ghost_size_and_evaluation_are_batch_norm_to_the_bit(shape, options):
    x = draw(*shape)
    ghost, batch = pair_for(x, ghost_batch_size=7, **options)
    assert torch.equal(ghost(x), batch(x))
    for left, right in zip(ghost.buffers(), batch.buffers(), strict=True):
        assert torch.equal(left, right)
    ghost.ghost_batch_size = 2
    assert torch.equal(ghost.eval()(x), batch.eval()(x))


def test_one_ghost_batch_of_the_function_is_batch_norm():
    x = draw(12, 3, 4)
    normalized = ghost_batch_norm(x, ghost_batch_size=32, eps=0.1)
    check_close(normalized.output, nn.functional.batch_norm(x, None, None, training=True, eps=0.1))
    check_close(normalized.mean, x.mean((0, 2)).view(1, 3))
    check_close(normalized.var, x.var((0, 2)).view(1, 3))


@pytest.mark.parametrize("shape", SHAPES)
def test_checkpoints_load_both_ways(shape):
    ghost_type, batch_type = PAIRS[len(shape)]
    ghost, batch = ghost_type(3, ghost_batch_size=4), batch_type(3)
    ghost(draw(*shape))
    batch.load_state_dict(ghost.state_dict())
    fresh = ghost_type(3)
    fresh.load_state_dict(batch.state_dict())
    assert isinstance(ghost, batch_type)
    assert fresh.num_batches_tracked == 3
    assert torch.equal(fresh.running_var, ghost.running_var)


def test_a_copy_goes_its_own_way():
    layer = GhostBatchNorm1d(1, ghost_batch_size=2, running_update="average")
    twin = copy.deepcopy(layer)
    twin(BY_HAND)
    check_close(layer.running_mean, 0.0)
    check_close(twin.running_mean, 0.30)


def test_the_layer_prints_its_ghost_batch_size():
    text = repr(GhostBatchNorm2d(4, ghost_batch_size=16, running_update="average"))
    assert text.startswith("GhostBatchNorm2d(4, eps=1e-05")
    assert text.endswith("ghost_batch_size=16, running_update=average)")


# ------------------------------------------------------------------------------------------- dtypes, layouts, tools


@pytest.mark.parametrize("num_samples", [12, 14])
@pytest.mark.parametrize(
    ("shape", "layout"), [((3, 4, 4), torch.channels_last), ((3, 2, 4, 4), torch.channels_last_3d)]
)
def test_channels_last_stays_channels_last(num_samples, shape, layout):
    x = draw(num_samples, *shape)
    ghost, _ = pair_for(x, ghost_batch_size=4)
    output = ghost(x.to(memory_format=layout))
    assert output.is_contiguous(memory_format=layout)
    check_close(output.contiguous(), copy.deepcopy(ghost)(x))


def test_an_input_that_is_not_contiguous_is_taken():
    x = draw(3, 12, 5).transpose(0, 1)
    check_close(
        ghost_batch_norm(x, ghost_batch_size=4).output, ghost_batch_norm(x.contiguous(), ghost_batch_size=4).output
    )


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(64, 3), (64, 3, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bfloat16_autocast_has_float32_statistics(shape, affine, dtype):
    x = (draw(*shape) + 3).to(dtype)
    layer = PAIRS[len(shape)][0](3, ghost_batch_size=16, affine=affine)
    wide = copy.deepcopy(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x.requires_grad_())
        output.float().square().sum().backward()
    assert output.dtype == x.grad.dtype == dtype
    check_close(output.float(), wide(x.detach().float()), rtol=1e-2, atol=1e-2)  # the output is rounded to 8 bits
    check_close(layer.running_mean, wide.running_mean)
    check_close(layer.running_var, wide.running_var)


def test_a_bfloat16_layer_works():
    layer = GhostBatchNorm2d(3, ghost_batch_size=4, dtype=torch.bfloat16)
    output = layer(draw(12, 3, 4, 4).bfloat16())
    output.sum().backward()
    assert output.dtype == layer.running_mean.dtype == layer.weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5, 5)])
def test_a_frozen_layer_needs_no_gradient_and_a_plain_one_no_parameters(shape):
    x = draw(*shape).requires_grad_()
    layer_type = PAIRS[len(shape)][0]
    gradients = []
    for frozen in (
        layer_type(3, ghost_batch_size=4),
        layer_type(3, ghost_batch_size=4).requires_grad_(False),
        layer_type(3, ghost_batch_size=4, affine=False, track_running_stats=False),
    ):
        (gradient,) = torch.autograd.grad(frozen(x).pow(3).sum(), x, create_graph=True)
        gradients.append((gradient, *torch.autograd.grad(gradient.square().sum(), x)))
    for first, second in gradients[1:]:
        check_close(first, gradients[0][0])
        check_close(second, gradients[0][1])


@pytest.mark.parametrize("shape", [(16, 3), (18, 3), (18, 3, 6, 6)])
def test_a_mean_far_from_zero_costs_no_accuracy(shape):
    x = (draw(*shape) + 300).requires_grad_()
    grad = draw(*shape, seed=9)
    ghost, _ = pair_for(x, ghost_batch_size=8)
    output = ghost(x)
    output.backward(grad)
    twin = train_once(x, ghost.weight, ghost.bias, grad, 8)
    # float32 holds such inputs to 2e-5 of their spread
    check_close(output, twin.output, rtol=1e-3, atol=1e-3)
    check_close(x.grad, twin.grad_input, rtol=1e-3, atol=1e-3)
    check_close(ghost.running_var, twin.running_var, rtol=1e-4, atol=1e-4)


def test_a_first_sample_far_from_the_others_costs_no_accuracy():
    x = draw(64, 3, 8, 8) + 300
    x[0] -= 600
    x[32] = 0.0
    normalized = ghost_batch_norm(x, ghost_batch_size=32)
    parts = x.double().view(2, 32, 3, 64).transpose(1, 2).flatten(2)
    rounding = torch.finfo(torch.float32).eps
    check_close(normalized.mean.double(), parts.mean(2), rtol=8 * rounding, atol=0.0)
    check_close(normalized.var.double(), parts.var(2), rtol=2 * 32 * rounding, atol=0.0)


def test_the_largest_plane_that_mostly_repeats_a_value_costs_no_accuracy():
    x = draw(4, 3, 64, 64) * 0.1 + 1
    x[draw(*x.shape, seed=1) < 0.8] = 0.0
    normalized = ghost_batch_norm(x, ghost_batch_size=2)
    parts = x.double().view(2, 2, 3, -1).transpose(1, 2).flatten(2)
    check_close(normalized.mean.double(), parts.mean(2), rtol=1e-5, atol=0.0)
    check_close(normalized.var.double(), parts.var(2), rtol=1e-5, atol=0.0)


def test_running_statistics_keep_their_precision_where_products_may_lose_it():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        parts = draw(64, 512) + 300
        advanced = advance_running_statistic(torch.zeros(512), parts, 0.1)
    finally:
        torch.set_float32_matmul_precision(before)
    check_close(advanced.double(), advance_running_statistic(torch.zeros(512), parts.double(), 0.1), rtol=1e-6, atol=0)


def test_an_ensemble_in_one_call_has_the_statistics_of_each():
    x = draw(4, 8, 3) + 5
    by_vmap = torch.vmap(lambda each: ghost_batch_norm(each, ghost_batch_size=4).mean)
    one_by_one = torch.stack([ghost_batch_norm(each, ghost_batch_size=4).mean for each in x])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anybatch.nn.part_normalization._VALUES_OF_A_CALL", 10**9)
        check_close(by_vmap(x), one_by_one)


@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan"), "a"])
def test_an_eps_that_is_not_above_zero_is_refused(eps):
    with pytest.raises(InputError, match="eps must be above 0; got"):
        GhostBatchNorm2d(3, eps=eps)
    with pytest.raises(InputError, match="eps must be above 0; got"):
        ghost_batch_norm(draw(8, 3), ghost_batch_size=4, eps=eps)


def test_channels_of_one_value_have_no_variance_below_zero():
    x = draw(1, 512, 1, 1).expand(8, 512, 7, 7).contiguous().requires_grad_()
    normalized = ghost_batch_norm(x, ghost_batch_size=4)
    assert (normalized.var >= 0).all()
    assert normalized.output.abs().max() < 1e-3
    normalized.output.square().sum().backward()
    assert x.grad.isfinite().all()


def test_a_layer_on_the_data_itself_has_gradients_for_its_parameters_alone():
    x, grad = draw(12, 3, 4), draw(12, 3, 4, seed=9)
    ghost, _ = pair_for(x, ghost_batch_size=4)
    ghost(x).backward(grad)
    twin = train_once(x, ghost.weight, ghost.bias, grad, 4)
    check_close(ghost.weight.grad, twin.grad_weight)
    check_close(ghost.bias.grad, twin.grad_bias)


@pytest.mark.parametrize(("shape", "momentum"), [((12, 3), None), ((14, 3, 4, 4), 0.1)])
def test_the_layer_is_traced_without_a_graph_break(shape, momentum):
    x = draw(*shape)
    layer = PAIRS[len(shape)][0](3, ghost_batch_size=4, momentum=momentum)
    plain = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    left, right = x.clone().requires_grad_(), x.clone().requires_grad_()
    compiled(left).square().sum().backward()
    plain(right).square().sum().backward()
    check_close(left.grad, right.grad)
    check_close(layer.running_var, plain.running_var)
    assert layer.num_batches_tracked == plain.num_batches_tracked


def test_functional_gradients_are_those_of_autograd():
    x = draw(14, 3, 4).requires_grad_()

    def loss(x):
        return ghost_batch_norm(x, ghost_batch_size=4).output.pow(3).sum()

    (wanted,) = torch.autograd.grad(loss(x), x)
    check_close(torch.func.grad(loss)(x.detach()), wanted)


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("shape", "ghost_batch_size"), [((4, 3), 1), ((4, 3, 1, 1), 1), ((1, 3), 32)])
def test_a_ghost_batch_of_one_value_is_refused_in_training(shape, ghost_batch_size):
    layer = PAIRS[len(shape)][0](3, ghost_batch_size=ghost_batch_size)
    told = rf"more than 1 value per channel in training; got 1, with ghost_batch_size {ghost_batch_size} "
    with pytest.raises(InputError, match=told + rf"and an input of shape {re.escape(str(shape))}\. Raise"):
        layer(torch.zeros(shape))
    with pytest.raises(ValueError, match=told):
        ghost_batch_norm(torch.zeros(shape), ghost_batch_size=ghost_batch_size)
    assert layer.eval()(torch.zeros(shape)).shape == shape


def test_one_sample_with_several_positions_is_a_ghost_batch():
    check_close(GhostBatchNorm2d(1, ghost_batch_size=1)(BY_HAND.view(2, 1, 2, 1)), [-1.0, 1.0, -1.0, 1.0])


@pytest.mark.parametrize("bad", [0, -3, 2.5, True, None])
def test_a_ghost_batch_size_that_is_no_positive_integer_is_refused(bad):
    with pytest.raises(InputError, match=rf"ghost_batch_size must be a positive integer; got {bad}\."):
        GhostBatchNorm1d(3, ghost_batch_size=bad)
    with pytest.raises(InputError, match=r"ghost_batch_size must be a positive integer"):
        ghost_batch_norm(BY_HAND, ghost_batch_size=bad)


def test_an_unknown_running_update_is_refused():
    with pytest.raises(InputError, match="running_update must be one of sequential, average; got 'mean'"):
        GhostBatchNorm2d(3, running_update="mean")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="running_update must be one of sequential, average; got 'mean'"):
        advance_running_statistic(torch.zeros(1), BY_HAND, 0.1, running_update="mean")  # pyright: ignore


def test_a_cumulative_average_needs_the_count():
    with pytest.raises(InputError, match="num_batches_tracked must be given where momentum is None"):
        advance_running_statistic(torch.zeros(1), BY_HAND, None)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
@pytest.mark.parametrize("is_training", [True, False])
def test_input_without_a_variance_is_refused(is_training, dtype):
    x = torch.ones(12, 3, dtype=dtype)
    with pytest.raises(InputError, match="real floating point dtype"):
        GhostBatchNorm1d(3, ghost_batch_size=4).train(is_training)(x)
    with pytest.raises(InputError, match="real floating point dtype"):
        ghost_batch_norm(x, ghost_batch_size=4)


@pytest.mark.parametrize("num_channels", [1, 6])
@pytest.mark.parametrize("num_samples", [4, 12])
@pytest.mark.parametrize("is_training", [True, False])
def test_other_channels_than_the_layers_are_refused(num_channels, num_samples, is_training):
    with pytest.raises(InputError, match=f"must have the 3 channels of the layer; got {num_channels}"):
        GhostBatchNorm1d(3, ghost_batch_size=4).train(is_training)(draw(num_samples, num_channels))


def test_weights_of_other_channels_are_refused():
    with pytest.raises(InputError, match=r"weight must have one value for each of the 3 channels; got shape \(6,\)"):
        ghost_batch_norm(draw(12, 3), torch.ones(6), ghost_batch_size=4)
    with pytest.raises(InputError, match=r"bias must have one value for each of the 3 channels; got shape \(1, 3\)"):
        ghost_batch_norm(draw(12, 3), None, torch.ones(1, 3), ghost_batch_size=4)
    with pytest.raises(InputError, match=r"must have samples and channels, \(N, C\) or \(N, C, \*\); got shape \(4,\)"):
        ghost_batch_norm(torch.ones(4))


def test_an_input_of_other_dimensions_is_refused_as_by_batch_norm():
    with pytest.raises(ValueError, match="expected 4D input"):
        GhostBatchNorm2d(3)(torch.zeros(64, 3))


def test_a_gradient_by_vjp_is_the_gradient():
    x, target = draw(12, 3, 4, 4, seed=1, dtype=torch.float64), draw(12, 3, 4, 4, seed=2, dtype=torch.float64)
    layer = GhostBatchNorm2d(3, ghost_batch_size=4, track_running_stats=False, dtype=torch.float64)
    _, pull_back = torch.func.vjp(lambda x: (layer(x) * target).sum(), x)
    wanted = torch.func.grad(lambda x: (layer(x) * target).sum())(x)
    check_close(pull_back(torch.ones((), dtype=torch.float64))[0], wanted, rtol=1e-9, atol=1e-9)


def test_beside_a_mean_of_a_thousand_deviations_the_output_is_about_as_exact_as_batch_norms():
    x = draw(16, 2, 64, 64, seed=1) + 1000
    ghost = GhostBatchNorm2d(2, ghost_batch_size=8)
    errors = []
    for output in (ghost(x), torch.cat([nn.BatchNorm2d(2)(part) for part in x.split(8)])):
        exact = torch.cat([nn.BatchNorm2d(2, dtype=torch.float64)(part) for part in x.double().split(8)])
        errors.append((output.double() - exact).abs().max().item())
    assert errors[0] < 5 * errors[1]
