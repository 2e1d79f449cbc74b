"""Kalman normalization: the checks of the digest by number, the slow twin, and BatchNorm where it must be BatchNorm."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference.kalman_norm import train_groups_once, train_once
from torch import nn

from anybatch.errors import InputError
from anybatch.nn import (
    GroupKalmanNorm,
    KalmanNorm1d,
    KalmanNorm2d,
    KalmanNorm3d,
    KalmanOptions,
    Moments,
    correct_moments,
    fold_channels,
    kalman_norm,
)
from anybatch.nn.group_kalman_norm import GroupCorrection
from anybatch.nn.kalman_correction import Correction
from anybatch.nn.prior_weight import adaptive_prior_weight, moments_of_gain
from anybatch.nn.split_normalization import normalize_splits, observe_splits

LAYERS = {2: KalmanNorm1d, 3: KalmanNorm1d, 4: KalmanNorm2d, 5: KalmanNorm3d}
FIXED = {"gain": "fixed"}
BY_HAND = torch.tensor([[1.0], [3.0], [-2.0], [2.0]])


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def moments(mean, var) -> Moments:
    return Moments(*(torch.tensor(each, dtype=torch.float64) for each in (mean, var)))


def standing_prior(mean, var):
    return lambda layer, predicted, observed: moments(mean, var)


def check_close(left, right, **tolerance) -> None:
    wanted = torch.as_tensor(right, dtype=left.dtype).view(left.shape)
    torch.testing.assert_close(left, wanted, **(tolerance or {"rtol": 1e-5, "atol": 1e-6}))


# ------------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize(("p", "mean", "var"), [(0.9, 0.9, 3.79), (0.05, 0.05, 1.1975), (0, 0, 1), (1, 1, 4)])
def test_check_1_the_blend_is_a_mixture(p, mean, var):
    posterior = correct_moments(moments([[0.0]], [[1.0]]), moments([[1.0]], [[4.0]]), p)
    check_close(posterior.mean, mean)
    check_close(posterior.var, var)


def test_check_2_two_splits():
    normalized = kalman_norm(BY_HAND, prior=Moments(torch.zeros(2, 1), torch.ones(2, 1)), prior_weight=0.9, splits=2)
    check_close(normalized.observed.mean, [2, 0])
    check_close(normalized.observed.var, [1, 4])
    check_close(normalized.posterior.mean, [0.2, 0])
    check_close(normalized.posterior.var, [1.36, 1.3])
    check_close(normalized.output, [0.685992, 2.400971, -1.754109, 1.754109])


@pytest.mark.parametrize(("running_splits", "mean", "var"), [("first", 0.02, 1.036), ("all", 0.01, 1.034)])
def test_check_3_running_statistics(running_splits, mean, var):
    prior = standing_prior([[0.0]], [[1.0]])
    layer = KalmanNorm1d(1, splits=2, prior_weight=0.9, running_splits=running_splits, prior=prior, **FIXED)
    layer(BY_HAND)
    check_close(layer.running_mean, mean)
    check_close(layer.running_var, var)
    assert layer.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("observed_var", "gate", "is_blended"),
    [
        ([1.0, 1.0], "layer", [False, False]),
        ([1.0, 10.0], "layer", [True, True]),
        ([1.0, 0.0], "layer", [False, False]),
        ([1.0, 0.0], "channel", [True, False]),
    ],
)
def test_check_4_the_gate_drops_a_prior_that_is_too_wide(observed_var, gate, is_blended):
    observed = moments([[0.0, 0.0]], [observed_var])
    posterior = correct_moments(observed, moments([[1.0, 1.0]], [[50.0, 300.0]]), 0.5, gate=gate)
    assert (posterior.mean[0] == 0.5).tolist() == is_blended
    assert posterior.var.isfinite().all()


def test_check_8_without_weight_on_the_prior_each_split_is_batch_norm():
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        for shape in ((8, 3), (8, 3, 5, 5), (8, 3, 16, 16)):
            x, grad = draw(*shape, dtype=dtype).requires_grad_(), draw(*shape, seed=1, dtype=dtype)
            layer = LAYERS[x.dim()](
                3, splits=2, prior_weight=0.0, dtype=dtype, prior=standing_prior([[1.0] * 3], [[2.0] * 3]), **FIXED
            )
            batch = [nn.BatchNorm1d, nn.BatchNorm2d][x.dim() == 4](3, dtype=dtype)
            wanted = torch.cat([batch(part) for part in x.chunk(2)])
            found = layer(x)
            (of_found,), (of_wanted,) = (torch.autograd.grad(y, x, grad) for y in (found, wanted))
            for left, right in ((found, wanted), (of_found, of_wanted)):
                check_close(left, right, rtol=0, atol=tolerance * right.abs().max().item())


def test_check_8_evaluation_is_batch_norm_and_checkpoints_load_both_ways():
    layer, batch = KalmanNorm2d(3, splits=2), nn.BatchNorm2d(3)
    layer(draw(4, 3, 5, 5, dtype=torch.float32))
    batch.load_state_dict(layer.state_dict())
    x = draw(3, 3, 5, 5, seed=1, dtype=torch.float32)
    assert torch.equal(layer.eval()(x), batch.eval()(x))
    layer.load_state_dict(nn.BatchNorm2d(3).state_dict())
    assert layer.num_batches_tracked == 0


def test_a_batch_norm_checkpoint_loads_into_a_layer_that_learns_its_gain():
    layer = KalmanNorm2d(3, prior_weight=0.8, prior=standing_prior([[0.0]], [[1.0]]))
    assert "prior_logit" in layer.state_dict()
    layer.load_state_dict(nn.BatchNorm2d(3).state_dict())
    check_close(layer.prior_logit.detach().sigmoid(), 0.8)


def test_check_10_the_prior_keeps_a_share_of_the_mean_gradient():
    x = draw(6, 1).requires_grad_()
    for p in (0.0, 0.9):
        prior = moments([[0.0]], [[1e6]])
        output = kalman_norm(x, prior=prior, prior_weight=p, ratio_limit=1e12, eps=0.0).output
        grad = torch.ones_like(output) + draw(6, 1, seed=1)
        std = kalman_norm(x, prior=prior, prior_weight=p, ratio_limit=1e12).posterior.var.sqrt()
        (of_input,) = torch.autograd.grad(output, x, grad)
        check_close(of_input.sum(), (p * grad.sum() / std).detach(), rtol=1e-3, atol=1e-9)


def test_check_12_channels_fold_into_groups():
    folded = fold_channels(moments([[0.0, 2.0]], [[1.0, 3.0]]), 1)
    check_close(folded.mean, 1)
    check_close(folded.var, 3)


def test_check_13_without_a_prior_running_statistics_are_batch_norms():
    layer, batch = KalmanNorm2d(3, splits=4), nn.BatchNorm2d(3)
    x = draw(8, 3, 5, 5, dtype=torch.float32)
    layer(x), batch(x)
    check_close(layer.running_mean, batch.running_mean)
    check_close(layer.running_var, batch.running_var)
    assert set(layer.state_dict()) == set(batch.state_dict())


def test_check_15_a_batch_that_does_not_divide_is_refused_with_a_way_out():
    with pytest.raises(
        InputError, match=r"splits must divide the batch; got 4 for a batch of 6. Choose 3 or 6, or a batch of 8"
    ):
        KalmanNorm1d(3, splits=4)(torch.ones(6, 3))
    with pytest.raises(InputError, match="micro_batch_size must divide the batch; got 4 for a batch of 3"):
        KalmanNorm1d(3, micro_batch_size=4)(torch.ones(3, 3))
    assert KalmanNorm1d(3, splits=4).eval()(torch.ones(6, 3)).isfinite().all()


@pytest.mark.parametrize("value", [torch.inf, 1e200])
def test_a_prior_that_is_dropped_may_be_infinite(value):
    x, p = draw(4, 3).requires_grad_(), torch.tensor([0.6], dtype=torch.float64, requires_grad=True)
    mean, var = draw(2, 3, seed=1), draw(2, 3, seed=2).square()
    narrow = Moments(mean.clone().requires_grad_(), var.clone().requires_grad_())
    mean[:, 1] = var[:, 1] = value
    wide = Moments(mean.requires_grad_(), var.requires_grad_())
    rule = Correction(1e-5, "channel", 1e3, 2)
    priors = ((*wide[:2], p), (*narrow[:2], p), (None, None, None))
    found, wanted, alone = (normalize_splits(x, 2, rule, (None, None, *prior)).output for prior in priors)
    check_close(found[:, 1], alone[:, 1])
    check_close(found[:, ::2], wanted[:, ::2])
    kept = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    of_found = torch.autograd.grad(found.sin().sum(), (x, *wide[:2], p))
    of_wanted = torch.autograd.grad((wanted.sin() * kept).sum(), (x, *narrow[:2], p))
    of_alone = torch.autograd.grad((alone.sin() * (1 - kept)).sum(), x)
    check_close(of_found[0], of_wanted[0] + of_alone[0])
    for left, right in zip(of_found[1:], of_wanted[1:], strict=True):
        check_close(left, right)


def test_a_prior_of_a_wider_type_widens_the_moments_alone():
    x = draw(4, 3, dtype=torch.float32).requires_grad_()
    prior = Moments(draw(2, 3, seed=1), 1 + draw(2, 3, seed=2).square())
    observed = observe_splits(x.detach(), 2)
    posterior = correct_moments(observed, prior, torch.tensor(0.5))
    wanted = correct_moments(Moments(*(each.double() for each in observed[:2])), prior, 0.5)
    assert posterior.var.dtype == torch.float64
    check_close(posterior.mean, wanted.mean)
    check_close(posterior.var, wanted.var)
    output = kalman_norm(x, prior=prior, prior_weight=0.5, splits=2).output
    output.square().sum().backward()
    assert output.dtype == x.grad.dtype == torch.float32
    assert x.grad.isfinite().all()


def test_a_prior_that_is_always_right_keeps_all_the_weight_despite_rounding():
    weights = [
        adaptive_prior_weight(torch.tensor([0.01, distance]), start=0.5).item() for distance in (0.0, 1e-33, 1e-4)
    ]
    assert weights == [1.0, 1.0, 1.0]
    assert adaptive_prior_weight(torch.zeros(2), start=0.5).item() == 0.5


def test_check_15_one_value_per_split_is_no_number_lost():
    x = draw(4, 3, 1, 1, dtype=torch.float32).requires_grad_()
    layer = KalmanNorm2d(3, splits=4, prior=standing_prior([[0.0] * 3], [[1.0] * 3]))
    layer(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert layer.running_var.isfinite().all()
    with pytest.raises(InputError, match="more than 1 value per channel"):
        KalmanNorm2d(3, splits=4)(x)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1), (4, 3, 1, 1)])
def test_a_split_of_one_value_is_normalized_by_its_prior(shape):
    x, weight, bias = draw(*shape), draw(3, seed=1), draw(3, seed=2)
    leaves = [each.requires_grad_() for each in (x, weight, bias, draw(4, 3, seed=3), draw(4, 3, seed=4).exp())]
    output = kalman_norm(*leaves[:3], Moments(*leaves[3:]), prior_weight=0.6, splits=4, ratio_limit=1e-3).output
    twin = train_once(*leaves[:3], tuple(leaves[3:]), 0.6, 4, ratio_limit=1e-3).output
    grad = draw(*shape, seed=5)
    check_close(output, twin, rtol=1e-9, atol=1e-9)
    for left, right in zip(*(torch.autograd.grad(each, leaves, grad) for each in (output, twin)), strict=True):
        check_close(left, right, rtol=1e-9, atol=1e-9)
        assert left.abs().max() > 1e-3


def test_running_statistics_of_splits_of_one_value_are_those_of_what_a_right_prior_foretells():
    prior = standing_prior([[1.0] * 8], [[4.0] * 8])
    layer = KalmanNorm1d(8, micro_batch_size=1, momentum=1.0, prior=prior)
    layer(1 + 2 * draw(4096, 8, dtype=torch.float32))
    check_close(layer.running_mean, [1.0] * 8, rtol=0, atol=0.2)
    check_close(layer.running_var, [4.0] * 8, rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("var", "options", "told"),
    [
        (None, {}, r"there is no prior; got 1, for .* \(4, 3\)\. Make fewer splits, or give the layer a prior\."),
        ([[1.0] * 3], {"prior_weight": 0.0, **FIXED}, "there is no prior; got 1"),
        ([[0.0] * 3], {}, "the prior foretells no variance; got 1, .* or give the layer a prior that is not of one"),
        ([[1e-12] * 3], {}, "the prior foretells no variance; got 1"),
        ([[1.0] * 3], {"gate": "layer"}, "gate is 'layer', .* got 1, .* or choose gate 'channel'"),
    ],
)
def test_splits_of_one_value_without_a_variance_are_refused(var, options, told):
    prior = None if var is None else standing_prior([[0.0] * 3], var)
    layer = KalmanNorm1d(3, splits=4, prior=prior, **options)
    with pytest.raises(InputError, match=f"more than 1 value per channel in training where {told}"):
        layer(draw(4, 3, dtype=torch.float32))
    assert layer.num_batches_tracked == 0
    options = {name: value for name, value in options.items() if name != "gain"}
    with pytest.raises(InputError, match=told):
        kalman_norm(draw(4, 3), prior=None if var is None else moments([[0.0] * 3], var), splits=4, **options)
    assert layer.eval()(draw(4, 3, dtype=torch.float32)).shape == (4, 3)


def test_a_prior_of_which_some_channels_are_constants_stands_in_for_one_value():
    layer = KalmanNorm1d(3, splits=4, prior=standing_prior([[0.0] * 3], [[1.0, 0.0, 1.0]]))
    assert layer(draw(4, 3, dtype=torch.float32)).isfinite().all()


def test_a_group_of_one_value_is_normalized_by_its_prior():
    layer = GroupKalmanNorm(3, 3, prior=standing_prior([[0.0] * 3], [[4.0] * 3]), dtype=torch.float64, **FIXED)
    x = draw(2, 3)
    check_close(layer(x), x / 2 / (2 + x.square() / 4 + 1e-5).sqrt(), rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------- the slow twin


@st.composite
def settings_of_a_pass(draw_value):
    num_splits, size = draw_value(st.integers(1, 4)), draw_value(st.integers(1, 4))
    rest = draw_value(st.lists(st.integers(1, 5), max_size=3))
    size = size + 1 if torch.Size(rest).numel() * size == 1 else size
    return (num_splits * size, draw_value(st.integers(1, 3)), *rest), num_splits


@given(
    settings_of_a_pass(),
    st.sampled_from([None, 0.05, 0.5, 0.9, 1.0]),
    st.sampled_from(["channel", "layer"]),
    st.sampled_from(["all", "first"]),
    st.booleans(),
    st.booleans(),
)
def test_a_training_pass_equals_the_slow_twin(setting, p, gate, running_splits, is_double, channels_last):
    shape, num_splits = setting
    num_channels = shape[1]
    dtype = torch.float64 if is_double else torch.float32
    x = draw(*shape, seed=3, dtype=dtype) + 0.5
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    grad = draw(*shape, seed=4)
    inputs = [x, draw(num_channels, seed=1, dtype=dtype), draw(num_channels, seed=2, dtype=dtype)]
    inputs += [
        draw(num_splits, num_channels, seed=5, dtype=dtype),
        draw(num_splits, num_channels, seed=6, dtype=dtype).exp(),
    ]
    leaves = [each.detach().clone(memory_format=torch.preserve_format).requires_grad_() for each in inputs]
    slow = [each.detach().double().requires_grad_() for each in inputs]
    prior = None if p is None else (lambda layer, predicted, observed: Moments(leaves[3], leaves[4]))
    layer = LAYERS[x.dim()](
        num_channels,
        splits=num_splits,
        prior_weight=p or 0.9,
        prior=prior,
        gate=gate,
        running_splits=running_splits,
        dtype=dtype,
        ratio_limit=3.0,
        eps=1e-3,
        **FIXED,
    )
    layer.weight, layer.bias = nn.Parameter(leaves[1].detach()), nn.Parameter(leaves[2].detach())
    leaves[1], leaves[2] = layer.weight, layer.bias
    output = layer(leaves[0])
    twin = train_once(
        *slow[:3],
        None if p is None else (slow[3], slow[4]),
        p,
        num_splits,
        gate,
        3.0,
        1e-3,
        running_splits=running_splits,
    )
    used = 3 if p is None else 5
    of_posterior = [draw(num_splits, num_channels, seed=7), draw(num_splits, num_channels, seed=8)]
    grads = [grad, *of_posterior]
    posterior = layer.latest.posterior
    fast = torch.autograd.grad(
        (output, posterior.mean, posterior.var), leaves[:used], [g.to(dtype) for g in grads], allow_unused=True
    )
    right = torch.autograd.grad((twin.output, twin.mean, twin.var), slow[:used], grads, allow_unused=True)
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if is_double else {"rtol": 2e-3, "atol": 2e-3}
    assert output.dtype == dtype
    assert output.stride() == x.stride()
    for left, wanted in zip((output, *fast), (twin.output, *right), strict=True):
        left, wanted = (
            torch.zeros(()) if each is None else each for each in (left, wanted)
        )  # a prior that was dropped
        check_close(left, wanted.expand(left.shape) if wanted.dim() == 0 else wanted, **tolerance)
    check_close(layer.running_mean, twin.running_mean.to(dtype), **tolerance)
    check_close(layer.running_var, twin.running_var.to(dtype), **tolerance)


@pytest.mark.parametrize("shape", [(6, 2), (6, 2, 3), (4, 2, 3, 3)])
def test_first_and_second_derivatives_agree_with_finite_differences(shape):
    inputs = [draw(*shape), draw(2, seed=1), draw(2, seed=2), draw(2, 2, seed=3), draw(2, 2, seed=4).exp()]
    inputs = [each.requires_grad_() for each in inputs]

    def output(x, weight, bias, mean, var):
        return kalman_norm(x, weight, bias, Moments(mean, var), prior_weight=0.6, splits=2).output

    assert torch.autograd.gradcheck(output, inputs)
    assert torch.autograd.gradgradcheck(output, inputs)


def test_group_kalman_norm_without_a_prior_is_group_norm():
    x = draw(3, 6, 4, 5).requires_grad_()
    layer = GroupKalmanNorm(2, 6, dtype=torch.float64)
    wanted = nn.functional.group_norm(x, 2)
    check_close(layer(x), wanted, rtol=1e-12, atol=1e-12)
    grad = draw(3, 6, 4, 5, seed=1)
    (left,), (right,) = (torch.autograd.grad(y, x, grad) for y in (layer(x), wanted))
    check_close(left, right, rtol=1e-10, atol=1e-12)


@st.composite
def settings_of_groups(draw_value):
    num_groups = draw_value(st.integers(1, 3))
    num_channels = num_groups * draw_value(st.integers(1, 3))
    rest = draw_value(st.lists(st.integers(1, 5), max_size=3))
    return (draw_value(st.integers(1, 4)), num_channels, *rest), num_groups


@given(
    settings_of_groups(),
    st.sampled_from([None, 0.05, 0.5, 0.9, 1.0]),
    st.sampled_from(["channel", "layer"]),
    st.booleans(),
    st.booleans(),
)
def test_a_pass_of_group_kalman_norm_equals_the_slow_twin(setting, p, gate, is_double, channels_last):
    shape, num_groups = setting
    num_samples, num_channels = shape[:2]
    dtype = torch.float64 if is_double else torch.float32
    x = draw(*shape, seed=3, dtype=dtype) + 0.5
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    of_prior = [draw(num_samples, num_channels, seed=seed, dtype=dtype) for seed in (5, 6)]
    inputs = [x, draw(num_channels, seed=1, dtype=dtype), draw(num_channels, seed=2, dtype=dtype)]
    inputs += [of_prior[0], of_prior[1].exp()]
    leaves = [each.detach().clone(memory_format=torch.preserve_format).requires_grad_() for each in inputs]
    slow = [each.detach().double().requires_grad_() for each in inputs]
    prior = None if p is None else (lambda layer, predicted, observed: Moments(leaves[3], leaves[4]))
    options = {"prior": prior, "prior_weight": p or 0.9, "gate": gate, "ratio_limit": 3.0, **FIXED}
    layer = GroupKalmanNorm(num_groups, num_channels, 1e-3, dtype=dtype, **options)
    layer.weight, layer.bias = nn.Parameter(leaves[1].detach()), nn.Parameter(leaves[2].detach())
    leaves[1], leaves[2] = layer.weight, layer.bias
    output = layer(leaves[0])
    twin = train_groups_once(*slow[:3], None if p is None else slow[3:], p, num_groups, gate, 3.0, 1e-3)
    used = 3 if p is None else 5
    grads = [draw(*shape, seed=4), *(draw(num_samples, num_channels, seed=seed) for seed in (7, 8))]
    posterior = layer.latest.posterior
    fast = torch.autograd.grad(
        (output, posterior.mean, posterior.var), leaves[:used], [g.to(dtype) for g in grads], allow_unused=True
    )
    right = torch.autograd.grad((twin.output, twin.mean, twin.var), slow[:used], grads, allow_unused=True)
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if is_double else {"rtol": 2e-3, "atol": 2e-3}
    assert output.stride() == x.stride()
    check_close(output, twin.output, **tolerance)
    check_close(posterior.mean, twin.mean, **tolerance)
    check_close(posterior.var, twin.var, **tolerance)
    for left, wanted, leaf in zip(fast, right, leaves[:used], strict=True):  # none of a prior that is dropped for all
        left, wanted = (torch.zeros_like(leaf) if each is None else each for each in (left, wanted))
        check_close(left, wanted, **tolerance)


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 3), (2, 4, 2, 2)])
def test_group_kalman_norm_with_a_prior_has_the_gradients_of_finite_differences(shape):
    inputs = [draw(*shape), draw(2, 4, seed=3), draw(2, 4, seed=4).exp()]
    inputs = [each.requires_grad_() for each in inputs]
    layer = GroupKalmanNorm(2, 4, dtype=torch.float64, prior=lambda layer, predicted, observed: Moments(*inputs[1:]))

    def output(x, mean, var):
        return layer(x)

    assert torch.autograd.gradcheck(output, inputs)
    assert torch.autograd.gradgradcheck(output, inputs)


@pytest.mark.parametrize("is_training", [True, False])
def test_group_kalman_norm_blends_the_folded_prior_in_any_mode(is_training):
    x = draw(2, 2, 3)
    prior = standing_prior([[0.0, 2.0]], [[1.0, 3.0]])
    layer = GroupKalmanNorm(1, 2, prior=prior, prior_weight=0.5, dtype=torch.float64, **FIXED).train(is_training)
    m, v = x.mean((1, 2)), x.var((1, 2), correction=0)
    mean, var = (m + 1) / 2, (v + 3) / 2 + (m - 1) ** 2 / 4
    check_close(layer(x), (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt(), rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------- what is around it


def test_a_prior_that_is_made_of_the_input_is_counted_once_in_a_gradient_with_history():
    x = draw(4, 3, 5, seed=1, dtype=torch.float64).requires_grad_()
    layer = KalmanNorm1d(3, splits=2, prior=lambda layer, predicted, observed: observed.pooled(), dtype=torch.float64)
    target = draw(4, 3, 5, seed=2, dtype=torch.float64)
    plain, with_history = (
        torch.autograd.grad((layer(x) * target).sum(), x, create_graph=each)[0] for each in (False, True)
    )
    check_close(with_history.detach(), plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_of_large_planes_keep_their_digits_beside_a_large_mean(dtype):
    x = draw(4, 5, 64, 65, seed=1, dtype=dtype) + 100
    mean, var = observe_splits(x, 2)[:2]
    parts = x.double().view(2, 2, 5, -1)
    rounding = torch.finfo(dtype).eps
    assert mean.dtype == var.dtype == dtype
    check_close(mean.double(), parts.mean((1, 3)), rtol=4 * rounding, atol=0)
    check_close(var.double(), parts.var((1, 3), correction=0), rtol=40 * rounding, atol=0)


def test_splits_of_constant_channels_have_no_variance():
    x = torch.arange(4.0).repeat_interleave(2)[:, None, None, None].expand(8, 3, 4, 5).contiguous()
    mean, var = observe_splits(x, 4)[:2]
    assert mean[:, 0].tolist() == [0, 1, 2, 3]
    assert not var.any()
    assert KalmanNorm2d(3, splits=4)(x).isfinite().all()


def test_a_large_mean_costs_no_digits():
    x = draw(8, 2, 8, 8, dtype=torch.float32) + 1000
    exact = train_once(x.double(), torch.ones(2), torch.zeros(2), None, 0.0, 4)
    check_close(KalmanNorm2d(2, splits=4)(x), exact.output.float(), rtol=1e-3, atol=1e-3)


def test_the_inside_is_float32_under_autocast():
    x = draw(4, 3, 5, 5, dtype=torch.bfloat16).requires_grad_()
    layer = KalmanNorm2d(3, splits=2, prior=standing_prior([[0.0] * 3], [[1.0] * 3]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    assert layer.latest.posterior.var.dtype == torch.float32
    output.sum().backward()
    assert x.grad.dtype == torch.bfloat16


def test_the_output_may_be_changed_in_place():
    for shape in ((4, 3), (4, 3, 8, 8)):
        x = draw(*shape, dtype=torch.float32).requires_grad_()
        nn.functional.relu(LAYERS[x.dim()](3)(x), inplace=True).sum().backward()
        assert x.grad is not None


def test_copies_and_pickles_hold_no_graph():
    layer = KalmanNorm1d(2)
    layer(draw(4, 2, dtype=torch.float32).requires_grad_())
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert copied.latest is None
        assert copied.options == layer.options


def test_a_learned_gain_moves_and_a_fixed_one_stays():
    prior = standing_prior([[0.0]], [[1.0]])
    layer = KalmanNorm1d(1, splits=2, prior=prior)
    layer(BY_HAND).square().sum().backward()
    assert layer.prior_logit.grad.abs() > 0
    assert [name for name, _ in KalmanNorm1d(1, splits=2, prior=prior, **FIXED).named_parameters()] == [
        "weight",
        "bias",
    ]


def test_an_adaptive_gain_trusts_a_prior_as_far_as_it_is_right():
    torch.manual_seed(0)
    weights = {}
    for error in (0.0, 3.0):
        layer = KalmanNorm1d(8, micro_batch_size=2, gain="adaptive", prior=standing_prior([[error] * 8], [[1.0] * 8]))
        for _ in range(30):
            layer(torch.randn(32, 8))
        weights[error] = layer.latest.prior_weight.item()
    assert weights[0.0] > 0.8
    # noise 1/2 against a squared error of 9
    assert weights[3.0] == pytest.approx(0.5 / 9.5, rel=0.1)


def alike_within_samples(num_samples: int, num_channels: int = 16, positions: int = 64) -> torch.Tensor:
    """Positions that tell little that the first did not; variance 1."""
    samples, rest = torch.randn(num_samples, num_channels, 1), torch.randn(num_samples, num_channels, positions)
    return 0.95**0.5 * samples + 0.05**0.5 * rest


@pytest.mark.parametrize("num_splits", [1, 32])
def test_an_adaptive_gain_of_one_split_does_not_take_positions_for_samples(num_splits):
    torch.manual_seed(0)
    prior = standing_prior([[0.3] * 16], [[1.0] * 16])
    layer = KalmanNorm1d(16, splits=num_splits, gain="adaptive", prior=prior)
    found = []
    for _ in range(100):
        layer(alike_within_samples(2 * num_splits))
        found.append(layer.latest.prior_weight.item())
    # two samples of variance 0.95, against a squared error of 0.09
    assert torch.tensor(found[20:]).mean().item() == pytest.approx(0.475 / (0.475 + 0.09), abs=0.03)


def test_the_noise_of_an_only_sample_is_that_of_independent_positions():
    torch.manual_seed(0)
    prior = standing_prior([[0.3] * 4], [[1.0] * 4])
    layer = KalmanNorm1d(4, gain="adaptive", prior=prior)
    found = []
    for _ in range(300):
        layer(torch.randn(1, 4, 10))
        found.append(layer.latest.prior_weight.item())
    # the biased variance of ten positions is 0.9
    assert torch.tensor(found[20:]).mean().item() == pytest.approx(0.09 / (0.1 + 0.09), abs=0.03)


@pytest.mark.parametrize("num_samples", [1, 16])
def test_the_adaptive_gain_of_group_norm_is_that_of_groups(num_samples):
    torch.manual_seed(0)
    prior = standing_prior([[1.0, 1.0, -1.0, -1.0]], [[1.0] * 4])  # wrong for every channel, right for every group
    layer = GroupKalmanNorm(2, 4, gain="adaptive", prior=prior)
    of_channels = torch.tensor([2.0, 0.0, -2.0, 0.0])[:, None]
    for _ in range(100):
        layer(torch.randn(num_samples, 4, 10) + of_channels)
    assert layer.latest.prior_weight.item() > 0.8


def test_a_channel_that_is_foretold_to_be_a_constant_does_not_decide_on_the_gain():
    observed = Moments(torch.tensor([[0.0, 0.0], [2.0, 1.0]]), torch.ones(2, 2))
    noise, distance = moments_of_gain(observed, Moments(torch.ones(2, 2), torch.tensor([[1.0, 1e-12]] * 2)), 2)
    check_close(noise, (2 + 100 * 0.5) / 2)
    check_close(distance, (1 + 100 * 0.5) / 2)


def test_control_priors_are_a_function_of_the_observed_moments():
    layer = KalmanNorm1d(
        1, splits=2, prior=lambda layer, predicted, observed: observed.pooled(), prior_weight=1.0, **FIXED
    )
    check_close(layer(BY_HAND), nn.BatchNorm1d(1)(BY_HAND))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": 0}, "splits must be a positive integer; got 0"),
        ({"splits": 2, "micro_batch_size": 2}, "splits must be left out beside micro_batch_size"),
        ({"prior_weight": 1.5}, "prior_weight must be between 0 and 1; got 1.5"),
        ({"prior_weight": 1.0}, "neither, for gain 'learned'"),
        ({"gain": "best"}, "gain must be one of fixed, learned, adaptive; got 'best'"),
        ({"transition": "best"}, "transition must be one of"),
        ({"state_space": "best"}, "state_space must be one of"),
        ({"gate": "best"}, "gate must be one of"),
        ({"ratio_limit": 0}, "ratio_limit must be positive"),
        ({"prior": "none"}, "prior must be a function or None; got 'none'"),
        ({"prior_weight": "0.9"}, "prior_weight must be between 0 and 1; got '0.9'"),
        ({"prior_weight": True}, "prior_weight must be between 0 and 1; got True"),
        ({"ratio_limit": "abc"}, "ratio_limit must be positive; got 'abc'"),
        ({"detach_prior": "maybe"}, "detach_prior must be True or False; got 'maybe'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        KalmanOptions(**options)


@pytest.mark.parametrize(
    ("make", "known"),
    [
        (lambda: KalmanNorm2d(3, eps=0.1, foo=1), "splits, micro_batch_size, prior_weight"),
        (lambda: GroupKalmanNorm(1, 3, foo=1), "prior_weight, gain"),
    ],
)
def test_options_that_do_not_exist_are_refused_with_those_that_do(make, known):
    with pytest.raises(InputError, match=f"options must be among {known}, .*; got foo. Leave it out"):
        make()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": -1}, "eps must be at least 0; got -1"),
        ({"eps": "a"}, "eps must be at least 0; got 'a'"),
        ({"momentum": 2.0}, "momentum must be between 0 and 1, or None; got 2.0"),
        ({"momentum": "none"}, "momentum must be between 0 and 1, or None; got 'none'"),
    ],
)
def test_settings_that_are_none_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        KalmanNorm2d(3, **settings)
    if "eps" in settings:
        with pytest.raises(InputError, match=message):
            GroupKalmanNorm(1, 3, **settings)
        with pytest.raises(InputError, match=message):
            kalman_norm(draw(4, 3), **settings)


@pytest.mark.parametrize("num_groups", [2, 2.0, "two", 0, True])
def test_groups_that_do_not_divide_the_channels_are_refused(num_groups):
    with pytest.raises(InputError, match=f"num_groups must be a divisor of the 3 channels; got {num_groups!r}"):
        GroupKalmanNorm(num_groups, 3)


def test_a_negative_prior_variance_is_refused():
    prior = Moments(torch.zeros(1, 3), torch.tensor([[1.0, -1.0, 1.0]]))
    with pytest.raises(InputError, match=r"prior must have variances of at least 0; got -1\.0"):
        kalman_norm(draw(4, 3), prior=prior, splits=2)


def test_a_prior_whose_values_cannot_be_looked_at_is_taken():
    x = draw(4, 3)

    def normalize(var):
        return kalman_norm(x.to(var.device), prior=Moments(torch.zeros_like(var), var), splits=2).output

    var = torch.ones(1, 3, dtype=torch.float64)
    check_close(torch.func.vjp(normalize, var)[0], normalize(var))
    check_close(torch.compile(normalize, backend="eager", fullgraph=True)(var), normalize(var))
    assert normalize(var.to("meta")).shape == x.shape


@pytest.mark.parametrize("is_training", [True, False])
def test_an_input_without_channels_is_refused(is_training):
    with pytest.raises(InputError, match=r"the input must have samples and channels, .*; got shape \(3,\)"):
        GroupKalmanNorm(1, 3).train(is_training)(torch.zeros(3))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("layer", [KalmanNorm1d(2), GroupKalmanNorm(1, 2)])
def test_input_without_a_variance_is_refused(layer, is_training, dtype):
    with pytest.raises(InputError, match="real floating point dtype"):
        layer.train(is_training)(torch.ones(4, 2, dtype=dtype))


@pytest.mark.parametrize("layer", [KalmanNorm2d(3), GroupKalmanNorm(3, 3)])
@pytest.mark.parametrize("num_channels", [1, 6])
@pytest.mark.parametrize("is_training", [True, False])
def test_other_channels_than_the_layers_are_refused_and_not_broadcast(layer, num_channels, is_training):
    with pytest.raises(InputError, match=f"must have the 3 channels of the layer; got {num_channels}"):
        layer.train(is_training)(torch.zeros(2, num_channels, 4, 4))


@pytest.mark.parametrize("options", [{}, {"splits": 2}, {"micro_batch_size": 2}])
def test_an_empty_batch_has_no_moments_to_train_on(options):
    with pytest.raises(InputError, match="a batch must have 1 sample or more in training; got 0"):
        KalmanNorm2d(3, **options)(torch.zeros(0, 3, 4, 4))
    assert GroupKalmanNorm(1, 3)(torch.zeros(0, 3, 4, 4)).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("shape", [(2, 2), (2, 1), (1, 1), (4, 3), (3,), (1, 2, 3)])
def test_a_prior_of_the_wrong_shape_is_refused_and_not_broadcast(shape):
    told = r"prior must have moments of shape \(2, 3\), splits and channels, or \(1, 3\) for all splits; got"
    prior = Moments(torch.zeros(shape), torch.ones(shape))
    x = draw(4, 3, dtype=torch.float32)
    with pytest.raises(InputError, match=told):
        KalmanNorm1d(3, splits=2, prior=lambda layer, predicted, observed: prior)(x)
    with pytest.raises(InputError, match=told):
        kalman_norm(x, prior=prior, splits=2)
    with pytest.raises(InputError, match=told):
        correct_moments(Moments(torch.zeros(2, 3), torch.ones(2, 3)), prior, 0.5)


def test_a_prior_for_all_splits_is_that_of_each():
    one, each = Moments(torch.zeros(1, 3), torch.ones(1, 3)), Moments(torch.zeros(2, 3), torch.ones(2, 3))
    x = draw(4, 3, dtype=torch.float32)
    assert torch.equal(kalman_norm(x, prior=one, splits=2).output, kalman_norm(x, prior=each, splits=2).output)


@pytest.mark.parametrize("prior", [(torch.zeros(2, 1), torch.ones(2, 1)), torch.zeros(2, 1), 0.0])
def test_a_prior_that_is_no_moments_is_refused(prior):
    told = rf"prior must be Moments; got {type(prior).__name__}\. Write Moments\(mean, var\)"
    with pytest.raises(InputError, match=told):
        KalmanNorm1d(1, splits=2, prior=lambda layer, predicted, observed: prior)(BY_HAND)
    with pytest.raises(InputError, match=told):
        kalman_norm(BY_HAND, prior=prior, splits=2)


def test_weights_of_other_channels_are_refused():
    with pytest.raises(InputError, match=r"weight must have one value for each of the 3 channels; got shape \(6,\)"):
        kalman_norm(draw(4, 3), weight=torch.ones(6))
    with pytest.raises(InputError, match=r"bias must have one value for each of the 3 channels; got shape \(1, 3\)"):
        kalman_norm(draw(4, 3), bias=torch.ones(1, 3))


def test_group_kalman_norm_takes_no_splits():
    with pytest.raises(InputError, match="Every sample is a split"):
        GroupKalmanNorm(2, 4, splits=2)


@given(
    seed=st.integers(0, 10**6),
    is_affine=st.booleans(),
    is_grouped=st.booleans(),
    has_prior=st.booleans(),
    gate=st.sampled_from(["channel", "layer"]),
    ratio_limit=st.sampled_from([0.0, 1.0, 100.0]),
    posterior_gradients=st.sets(st.sampled_from([2, 3])),
    learns_weight=st.booleans(),
    num_values=st.sampled_from([None, 1, 2]),
)
def test_the_closed_form_of_a_corrections_gradients_is_autograds(
    seed, is_affine, is_grouped, has_prior, gate, ratio_limit, posterior_gradients, learns_weight, num_values
):
    rule = Correction(1e-3, gate, ratio_limit, num_values)
    rule = GroupCorrection(*vars(rule).values(), num_groups=2) if is_grouped else rule
    means, variances = draw(2, 3, 6, seed=seed), 0.1 + draw(2, 3, 6, seed=seed + 1).square()
    affine = draw(2, 6, seed=seed + 2) if is_affine else (None, None)
    prior = (means[1], variances[1], torch.tensor([0.3], dtype=torch.float64)) if has_prior else (None,) * 3
    given_tensors = (means[0], variances[0], *affine, *prior)
    tensors = [None if each is None else each.detach().clone().requires_grad_() for each in given_tensors]
    if has_prior:
        tensors[-1].requires_grad_(learns_weight)
    outputs, grads = rule(*tensors), list(draw(4, 3, 6, seed=seed + 3))
    grads = [each if place < 2 or place in posterior_gradients else None for place, each in enumerate(grads)]
    wanted_of = [each for each in tensors if each is not None and each.requires_grad]
    pairs = [pair for pair in zip(outputs, grads, strict=True) if pair[1] is not None]
    of_outputs, of_grads = zip(*pairs, strict=True)
    wanted = torch.autograd.grad(of_outputs, wanted_of, of_grads, allow_unused=True)
    with torch.no_grad():
        scale, *found = rule.pull_back(Moments(*tensors[:2]), Moments(*outputs[2:]), tensors[2:], grads)
    check_close(scale, outputs[0].detach(), rtol=1e-12, atol=1e-12)
    found[0] = found[0] + scale * grads[1]  # which the centring of the input takes away
    assert [each is None for each in found] == [each is None or not each.requires_grad for each in tensors]
    for own, autograds in zip((each for each in found if each is not None), wanted, strict=True):
        expected = torch.zeros_like(own) if autograds is None else autograds
        check_close(own, expected, rtol=1e-9, atol=1e-10)


def test_a_gradient_by_vjp_is_the_gradient():
    x, target = draw(6, 3, 4, 4, seed=1), draw(6, 3, 4, 4, seed=2)
    prior = Moments(draw(3, 3, seed=3), draw(3, 3, seed=4).square())

    def loss(x):
        return (kalman_norm(x, prior=prior, splits=3).output * target).sum()

    _, pull_back = torch.func.vjp(loss, x)
    check_close(pull_back(torch.ones(()).double())[0], torch.func.grad(loss)(x), rtol=1e-9, atol=1e-9)


def test_a_gradient_in_another_layout_is_the_same_gradient():
    x, grad = draw(6, 3, 4, 5, seed=1).requires_grad_(), draw(6, 4, 5, 3, seed=2)
    output = kalman_norm(x, splits=3).output
    for laid_out in (grad.movedim(-1, 1), grad.movedim(-1, 1).contiguous()):
        found = torch.autograd.grad(output, x, laid_out, retain_graph=True)[0]
        plain = torch.autograd.grad(output, x, laid_out, create_graph=True)[0].detach()
        check_close(found, plain, rtol=1e-9, atol=1e-9)
