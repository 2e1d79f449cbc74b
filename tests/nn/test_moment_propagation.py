"""Rules for moments: the digest's numbers, expectations by sampling, and borders."""

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from anybatch.errors import InputError
from anybatch.nn import CannotPropagate, Moments, find_propagation_rule, propagation_rule, through_convolution
from anybatch.nn.moment_propagation import PropagationRule
from anybatch.nn.plain_tap_moments import Taps
from anybatch.nn.sampled_transition import SampledTransition
from anybatch.nn.tap_moments import tap_moments


def at(mean, var, size=()) -> Moments:
    return Moments(torch.tensor([mean], dtype=torch.float64), torch.tensor([var], dtype=torch.float64), size)


def through(operation, *arguments, **keywords) -> Moments:
    leading = (operation,) if isinstance(operation, nn.Module) else ()
    return find_propagation_rule(operation).propagate(*leading, *arguments, **keywords)


def check_close(left, right, **tolerance) -> None:
    wanted = torch.as_tensor(right, dtype=left.dtype).view(left.shape)
    torch.testing.assert_close(left, wanted, **(tolerance or {"rtol": 1e-6, "atol": 1e-6}))


# ------------------------------------------------------------------------------------------- activations


@pytest.mark.parametrize("operation", [nn.ReLU(inplace=True), torch.relu, F.relu, "relu_"])
def test_check_5_relu(operation):
    result = through(operation, at([0.0, 0.5, -1.0, 3.0], [1.0, 2.0, 0.25, 1.0]))
    check_close(result.mean, [0.398942, 0.849089, 0.004245, 3.000382])
    check_close(result.var, [0.340845, 0.979919, 0.001424, 0.997503])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_check_5_a_constant_stays_one_and_has_gradients(dtype):
    mean = torch.tensor([[2.0, 0.0, -2.0]], dtype=dtype).requires_grad_()
    var = torch.zeros(1, 3, dtype=dtype).requires_grad_()
    result = through(torch.relu, Moments(mean, var))
    check_close(result.mean.detach(), [2.0, 0.0, 0.0])
    check_close(result.var.detach(), [0.0, 0.0, 0.0])
    (result.mean.sum() + result.var.sum()).backward()
    assert mean.grad.isfinite().all()
    assert var.grad.isfinite().all()


ACTIVATIONS = [
    nn.ReLU(), nn.LeakyReLU(0.2), nn.ReLU6(), nn.Hardtanh(-0.5, 1.5), nn.Hardsigmoid(), nn.Hardswish(), nn.PReLU(),
    nn.GELU(), nn.SiLU(), nn.Mish(), nn.ELU(), nn.SELU(), nn.Sigmoid(), nn.Tanh(), nn.Softplus(),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda each: type(each).__name__)
def test_an_activation_has_the_moments_of_its_function_of_a_gaussian(activation):
    moments = at([0.3, -1.0, 2.0, 4.0], [1.0, 2.0, 0.1, 3.0])
    grid = torch.linspace(-8, 8, 40001, dtype=torch.float64)
    weights = torch.exp(-grid.square() / 2)
    weights /= weights.sum()
    values = activation.double()(moments.mean[0, :, None] + moments.var[0, :, None].sqrt() * grid).detach()
    mean = (values * weights).sum(1)
    result = through(activation, moments)
    # sixteen nodes see a kink to some percent; closed forms are exact
    is_closed = isinstance(activation, (nn.ReLU, nn.LeakyReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish))
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if is_closed else {"rtol": 0.03, "atol": 0.01}
    check_close(result.mean, mean, **tolerance)
    check_close(result.var, ((values - mean[:, None]).square() * weights).sum(1), **tolerance)


def test_closed_forms_differentiate():
    mean = torch.tensor([[0.3, -1.0, 5.0]], dtype=torch.float64).requires_grad_()
    var = torch.tensor([[1.0, 0.5, 2.0]], dtype=torch.float64).requires_grad_()
    for activation in (nn.ReLU(), nn.Hardswish(), nn.ReLU6(), nn.SiLU()):
        assert torch.autograd.gradcheck(lambda m, v, f=activation: tuple(through(f, Moments(m, v))[:2]), (mean, var))


def test_a_large_mean_costs_no_digits():
    moments = Moments(torch.tensor([[1000.0]]), torch.tensor([[1.0]]))
    check_close(through(torch.relu, moments).var, 1.0, rtol=1e-5, atol=0)


# ------------------------------------------------------------------------------------------- linear maps


def test_check_6_a_convolution_of_relu():
    conv = nn.Conv1d(1, 1, 2, bias=False).double()
    conv.weight.data = torch.tensor([[[1.0, -2.0]]], dtype=torch.float64)
    result = through(conv, through(torch.relu, at([0.0], [1.0], (8,))))
    check_close(result.mean.detach(), -0.398942)
    check_close(result.var.detach(), 1.704225)


@given(st.integers(1, 2), st.integers(3, 8), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2), st.integers(1, 2))
def test_check_7_borders_are_exact(groups, size, kernel, stride, padding, dilation):
    if size + 2 * padding < dilation * (kernel - 1) + 1:
        return
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups).double()
    mean, var = torch.randn(2, 4, dtype=torch.float64), torch.rand(2, 4, dtype=torch.float64)
    result = through(conv, Moments(mean, var, (size, size + 1)))
    shape = (2, 4, size, size + 1)
    expected = conv(mean[..., None, None].expand(shape))
    spread = F.conv2d(var[..., None, None].expand(shape), conv.weight**2, None, stride, padding, dilation, groups)
    assert result.size == expected.shape[2:]
    check_close(result.mean, expected.mean((2, 3)))
    check_close(result.var, spread.mean((2, 3)) + expected.var((2, 3), correction=0))


def test_check_7_a_border_shifts_the_mean_of_a_small_map():
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False).double()
    corner, edge = -0.615, -0.601
    conv.weight.data = torch.tensor([[[[corner, edge, corner], [edge, 0.0, edge], [corner, edge, corner]]]]).double()
    size, num_draws = (8, 8), 4000
    before = Moments(*(each.expand(num_draws, 1) for each in at([0.0], [1.0])[:2]), size)
    rectified = through(torch.relu, before)
    inside, bordered = (through(conv, Moments(*rectified[:2], each)).mean.detach() for each in (None, size))
    torch.manual_seed(0)
    sampled = SampledTransition(conv, find_propagation_rule(conv), torch.relu, None)(before).mean.detach()
    # by hand: 0.398942 times 4 edges and 4 corners, of which 7 in 8 and 49 in 64 positions see a value
    check_close(inside[0], 0.398942 * 4 * (edge + corner))
    check_close(bordered[0], 0.398942 * 4 * (edge * 7 / 8 + corner * 49 / 64))
    assert (round(inside[0].item(), 2), round(bordered[0].item(), 2)) == (-1.94, -1.59)
    check_close(sampled.mean(), bordered[0], rtol=0.005, atol=0)


@pytest.mark.parametrize(("size", "tolerance"), [(200, 0.01), (8, 0.2)])
def test_check_7_the_sampled_prior_agrees_with_the_analytic_one(size, tolerance):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1)
    conv.weight.data = conv.weight.data.abs()
    source = Moments(torch.zeros(1, 3), torch.ones(1, 3), (size, size))
    sampled = SampledTransition(conv, find_propagation_rule(conv), torch.relu, None)(source)
    analytic = through(conv, through(torch.relu, source))
    interior = through(conv, Moments(*through(torch.relu, source)[:2], None))
    check_close(sampled.mean, analytic.mean, rtol=tolerance, atol=0)
    check_close(sampled.var, analytic.var, rtol=2.5 * tolerance, atol=0)
    assert ((interior.mean / analytic.mean - 1).abs() > 0.05).any() == (size == 8)


@pytest.mark.parametrize("num_values", [1, 40, 10**6])
@pytest.mark.parametrize("num_splits", [1, 2])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_derivatives_of_a_convolution_agree_with_finite_differences(memory_format, num_splits, num_values, monkeypatch):
    for module in ("tap_moments", "row_moments"):
        monkeypatch.setattr(f"anybatch.nn.{module}._VALUES_OF_A_CHUNK", num_values)
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 5, 3, padding=1).double().to(memory_format=memory_format)
    inputs = (torch.randn(num_splits, 2).double(), torch.rand(num_splits, 2).double(), conv.weight.detach())

    def moments(mean, var, weight):
        return tuple(through_convolution(Moments(mean, var, (3, 4)), weight, conv.bias.detach(), padding=1)[:2])

    inputs = [each.requires_grad_() for each in inputs]
    assert torch.autograd.gradcheck(moments, inputs)
    assert torch.autograd.gradgradcheck(moments, inputs)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 5), st.sampled_from([1, 2, 3, 6]), st.booleans())
def test_one_row_is_what_it_is_among_many(num_rows, num_channels, num_outputs, kernel, is_channels_last):
    torch.manual_seed(0)
    weight = torch.randn(num_outputs, num_channels, kernel, kernel, dtype=torch.float64)
    weight = weight.contiguous(memory_format=torch.channels_last if is_channels_last else torch.contiguous_format)
    mean, var = (torch.rand(num_rows, num_channels, dtype=torch.float64) for _ in range(2))
    leaves = [each.requires_grad_() for each in (mean, var, weight)]
    root = torch.rand(kernel**2, kernel**2)
    taps = Taps(tuple(torch.rand(kernel**2).tolist()), tuple(map(tuple, (root @ root.T).tolist())))
    together = tap_moments(mean, var, weight, taps, 1)
    rows = [tap_moments(*row, weight, taps, 1) for row in zip(mean.split(1), var.split(1), strict=True)]
    alone = [torch.cat(each) for each in zip(*rows, strict=True)]
    for left, right in zip(together, alone, strict=True):
        check_close(left, right)
    losses = (sum(each.sin().sum() for each in moments) for moments in (together, alone))
    for left, right in zip(*(torch.autograd.grad(loss, leaves) for loss in losses), strict=True):
        check_close(left, right)


def test_what_is_kept_for_the_way_back_is_small_beside_the_weights():
    def kept(weight):
        sizes = []
        taps = Taps((1.0,) * weight[0, 0].numel())
        with torch.autograd.graph.saved_tensors_hooks(lambda each: sizes.append(each.numel()), lambda each: None):
            tap_moments(torch.rand(1, 64), torch.rand(1, 64), weight.requires_grad_(), taps, 1)
        return sum(sizes) - weight.numel()

    assert kept(torch.rand(256, 64)) < 0.02 * 256 * 64
    assert kept(torch.rand(256, 64, 3, 3)) < 0.2 * 256 * 64 * 9


@pytest.mark.parametrize("num_splits", [1, 2])
def test_what_one_moment_owes_to_the_other_is_counted_once_in_a_gradient_with_history(num_splits):
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 3, 3).double()
    mean, var = torch.randn(num_splits, 3).double(), torch.rand(num_splits, 3).double()

    def output(mean):
        before = through(torch.relu, Moments(mean, var, (5, 5)))
        return sum(each.square().sum() for each in through_convolution(before, weight, padding=1)[:2])

    mean.requires_grad_()
    plain, with_history = (torch.autograd.grad(output(mean), mean, create_graph=each)[0] for each in (False, True))
    check_close(with_history.detach(), plain, rtol=1e-9, atol=1e-9)
    check_close(torch.func.grad(output)(mean.detach()), plain, rtol=1e-9, atol=1e-9)
    assert torch.autograd.gradgradcheck(output, mean)


def test_a_mean_that_splits_share_leaves_them_their_variances():
    shared, own = torch.zeros(1, 3), torch.tensor([[1.0, 1.0, 1.0], [9.0, 9.0, 9.0]])
    var = through_convolution(Moments(shared, own), torch.ones(2, 3)).var
    assert var.tolist() == [[3.0, 3.0], [27.0, 27.0]]
    joined = through(torch.cat, [Moments(shared, own, (2,)), Moments(shared, own[:1], (2,))], 1)
    assert joined.mean.shape == joined.var.shape == (2, 6)


@pytest.mark.parametrize("num_splits", [1, 2])
@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 2, 2), (5, 3, 7, 7)])
def test_the_gradient_of_a_weight_is_added_to_the_layers_own_where_it_lies(shape, num_splits):
    weight = torch.randn(shape, requires_grad=True)
    mean, var = torch.randn(num_splits, 3), torch.rand(num_splits, 3)
    moments = tap_moments(mean, var, weight, Taps((0.5,) * weight[0, 0].numel()), 1)
    (gradient,) = torch.autograd.grad(sum(each.sum() for each in moments), weight)
    assert not gradient._is_view()
    assert gradient.shape == weight.shape


def test_a_linear_layer_mixes_channels():
    linear = nn.Linear(2, 1).double()
    result = through(linear, at([1.0, 2.0], [3.0, 4.0]))
    weight = linear.weight[0]
    check_close(result.mean, (weight * torch.tensor([1.0, 2.0])).sum() + linear.bias)
    check_close(result.var, (weight**2 * torch.tensor([3.0, 4.0])).sum())
    with pytest.raises(CannotPropagate, match="last dimension"):
        through(linear, at([1.0, 2.0], [3.0, 4.0], (5,)))


# ------------------------------------------------------------------------------------------- the rest


def test_check_11_sums_add_and_concatenation_and_padding_stay_within_splits():
    total = through(torch.add, at([1.0], [2.0]), at([3.0], [4.0]))
    assert (total.mean.item(), total.var.item()) == (4.0, 6.0)
    splits = Moments(torch.arange(8.0).view(4, 2), torch.ones(4, 2), (2, 2))
    joined = through(torch.cat, [splits, splits], 1)
    assert joined.mean[1].tolist() == [2.0, 3.0, 2.0, 3.0]
    shared = Moments(torch.tensor([[5.0, 6.0]]), torch.ones(1, 2), (2, 2))
    assert through(torch.add, shared, splits).mean.tolist() == [[5.0 + 2 * s, 7.0 + 2 * s] for s in range(4)]
    assert through(torch.cat, [shared, splits], 1).mean[2].tolist() == [5.0, 6.0, 4.0, 5.0]
    padded = through(F.pad, splits, (0, 0, 0, 0, 1, 1))
    assert padded.mean.tolist() == [[0.0, 2.0 * s, 2.0 * s + 1, 0.0] for s in range(4)]
    assert padded.var[2].tolist() == [0.0, 1.0, 1.0, 0.0]


def test_check_12_dropout():
    result = through(nn.Dropout(0.5), at([1.0], [1.0]))
    assert (result.mean.item(), result.var.item()) == (1.0, 3.0)
    assert through(nn.Dropout(0.5).eval(), at([1.0], [1.0])).var.item() == 1.0
    assert through(torchvision.ops.StochasticDepth(0.5, "row"), at([1.0], [1.0])).var.item() == 3.0


@pytest.mark.parametrize(
    ("function", "arguments", "mean", "var"),
    [
        (torch.mul, (2.0,), 2.0, 12.0),
        (torch.div, (2.0,), 0.5, 0.75),
        (torch.sub, (2.0,), -1.0, 3.0),
        (torch.neg, (), -1.0, 3.0),
        (torch.mul, (torch.full((1, 1, 1), 2.0),), 2.0, 12.0),
        (F.interpolate, (None, 2.0), 1.0, 3.0),
        (F.avg_pool2d, (2,), 1.0, 3.0),
    ],
)
def test_scales_and_shifts(function, arguments, mean, var):
    result = through(function, at([1.0], [3.0], (4, 4)), *arguments)
    assert (result.mean.item(), result.var.item()) == (mean, var)


def test_flattening_repeats_channels_over_positions():
    result = through(nn.Flatten(), at([1.0, 2.0], [3.0, 4.0], (1, 2)))
    assert result.mean.tolist() == [[1.0, 1.0, 2.0, 2.0]]


@pytest.mark.parametrize("is_training", [True, False])
def test_another_norm_on_the_way_is_what_it_normalizes_to(is_training):
    norm = nn.BatchNorm2d(1).double().train(is_training)
    norm.running_var.fill_(4.0)
    nn.init.constant_(norm.weight, 2.0)
    result = through(norm, at([1.0], [3.0], (4, 4)))
    check_close(result.mean.detach(), 0.0 if is_training else 1.0, rtol=1e-4, atol=1e-4)
    check_close(result.var.detach(), 4.0 if is_training else 3.0, rtol=1e-4, atol=1e-4)


def test_batch_norm_in_training_normalizes_by_the_batch_whatever_its_momentum():
    norm = nn.BatchNorm2d(1, momentum=0.0).double()
    norm.running_var.fill_(4.0)
    assert through(norm, at([1.0], [3.0], (4, 4))).var.item() == 1.0


def test_upsampling_of_any_kind_keeps_moments_and_grows_the_map():
    for module in (nn.Upsample(scale_factor=2), nn.UpsamplingNearest2d(size=8)):
        assert through(module, at([1.0], [3.0], (4, 4))) == at([1.0], [3.0], (8, 8))


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (torch.mul, (at([1.0], [1.0], (4, 4)), at([1.0], [1.0], (4, 4)))),
        (torch.add, (at([1.0], [1.0], (4, 4)), at([1.0], [1.0], (2, 2)))),
        (torch.cat, ([at([1.0], [1.0], (4, 4))], 2)),
        (F.pad, (at([1.0], [1.0], (4, 4)), (1, 1))),
        (torch.flatten, (at([1.0], [1.0], (4, 4)), 2)),
        (F.avg_pool2d, (at([1.0], [1.0], (4, 4)), 3, 2, 1)),
        (torch.mul, (at([1.0], [1.0], (4, 4)), torch.ones(4, 4))),
    ],
)
def test_what_a_rule_does_not_hold_for_it_refuses(function, arguments):
    with pytest.raises(CannotPropagate):
        through(function, *arguments)


def test_a_subclass_with_a_forward_of_its_own_has_no_rule():
    class Weird(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    class Plain(nn.Conv2d):
        pass

    assert find_propagation_rule(Weird(1, 1, 1)) is None
    assert isinstance(find_propagation_rule(Plain(1, 1, 1)), PropagationRule)


def test_a_rule_needs_an_operation():
    with pytest.raises(InputError, match="at least one"):
        propagation_rule()


def test_moments_and_their_gradients_are_the_same_under_autocast():
    def found(is_autocast):
        draws = torch.Generator().manual_seed(1)
        tensors = [torch.rand(shape, generator=draws).requires_grad_() for shape in ((1, 16), (1, 16), (8, 16, 3, 3))]
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            out = through_convolution(Moments(*tensors[:2], (8, 8)), tensors[2], padding=1)
            (out.mean.float().sum() + out.var.float().sum()).backward()
        return [out.mean, out.var, *(each.grad for each in tensors)]

    for under, plain in zip(found(True), found(False), strict=True):
        torch.testing.assert_close(under, plain)
