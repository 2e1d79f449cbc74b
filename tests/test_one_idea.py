"""The methods are functions of the batch size over a noise scale: the equations, across rooms.

With N the noise scale tr(S) / |G|^2, or its counterpart where another quantity is estimated:

    samples to a loss              E (1 + B / N)
    safe batch, 2022, Chebyshev    (4 / delta) N
    safe batch, 2017, Chebyshev    (12.68 / delta) N of the largest coordinate
    AGVM's noise fraction          1 / (1 + B / (2 N))
    gain of Kalman normalization   1 / (1 + N / n),  N = v / t^2
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anybatch.decide import choose_smoothing_step, estimate_noise_scale, fit_samples_law, optimal_batch_size
from anybatch.decide.agvm import measure_noise_fractions
from anybatch.decide.error_bounds import ErrorBound
from anybatch.decide.vector_error_bounds import vector_chebyshev
from anybatch.nn.moments import Moments
from anybatch.nn.prior_weight import adaptive_prior_weight, moments_of_gain
from anybatch.probing.law import SampleLaw
from anybatch.stats import GradientMoments
from anybatch.stats.half_batches import HalfBatches

positive = st.floats(0.05, 50)


def one_gradient_per_sample(num_samples, spreads=(3.0, 1.0, 2.0), means=(0.5, -0.4, 0.1), seed=0):
    """(num_samples, dim) gradients of single samples or trajectories."""
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_samples, len(means), generator=rng, dtype=torch.float64)
    return torch.tensor(means) + noise * torch.tensor(spreads)


def moments_of(grads):
    """Each sample is a part of its own; each coordinate a module."""
    columns = {str(index): grads[:, index : index + 1] for index in range(grads.shape[1])}
    return GradientMoments.from_gradients(columns, [1.0] * len(grads))


def chebyshev_of(variance, delta):
    """The 2017 bound with the variance of the sample in place of the worst case: what the identity needs."""
    return ErrorBound("chebyshev", math.sqrt(variance / delta), 0.0, delta, is_heuristic=True)


# the safe batches


@given(st.floats(0.01, 0.99), st.integers(3, 40), st.integers(0, 1000))
def test_the_safe_batch_of_2022_is_four_over_delta_noise_scales(delta, num_samples, seed):
    """Conditions: Chebyshev's bound, the sample's variance, and |g|^2 of the estimate itself in the noise scale."""
    grads = one_gradient_per_sample(num_samples, seed=seed)
    trace = moments_of(grads).grad_var_trace().sum().item()
    sq_norm = grads.mean(0).square().sum().item()
    bound = vector_chebyshev(grads.var(0).sum().item(), delta)
    step = choose_smoothing_step(gradient_norm=sq_norm**0.5, batch_size=num_samples, bound=bound, smoothness=1.0)
    assert step.required_batch_size == pytest.approx(4 / delta * trace / sq_norm, abs=1.01, rel=1e-9)


@given(st.floats(0.01, 0.99), st.integers(3, 40), st.integers(0, 1000))
def test_the_safe_batch_of_2017_is_13_over_delta_noise_scales_of_the_largest_coordinate(delta, num_samples, seed):
    """Conditions: Chebyshev's bound with the sample's variance, no second term, no limits that bind."""
    grads = one_gradient_per_sample(num_samples, seed=seed)
    mean = grads.mean(0)
    largest = int(mean.abs().argmax())
    noise_scale = moments_of(grads).grad_var_trace()[largest].item() / mean[largest].item() ** 2
    bound = chebyshev_of(grads[:, largest].var().item(), delta)
    found = optimal_batch_size(mean[largest].abs().item(), bound, 1, 10**12)
    factor = (13 + 3 * math.sqrt(17)) / 2
    assert factor == pytest.approx(12.68, abs=0.005)
    assert found == pytest.approx(factor / delta * noise_scale, abs=1.01, rel=1e-9)


def test_with_many_samples_both_safe_batches_are_those_of_the_measured_noise_scale():
    """Condition: samples well beyond the noise scale, else |g|^2 of the estimate holds noise: |G|^2 + tr(S) / n."""
    grads, delta = one_gradient_per_sample(80_000), 0.2
    steps = [moments_of(part) for part in grads.split(4000)]
    noise = estimate_noise_scale(steps)
    mean, variances = grads.mean(0), grads.var(0)
    bound = vector_chebyshev(variances.sum().item(), delta)
    both = choose_smoothing_step(gradient_norm=mean.norm().item(), batch_size=1, bound=bound, smoothness=1.0)
    assert noise.value == pytest.approx(14 / 0.42, rel=0.05)
    assert both.required_batch_size == pytest.approx(4 / delta * noise.value, rel=0.02)
    one = optimal_batch_size(mean[0].item(), chebyshev_of(variances[0].item(), delta), 1, 10**9)
    assert one == pytest.approx(12.6847 / delta * noise.modules["0"].value, rel=0.02)


# AGVM


@given(st.lists(st.integers(1, 50), min_size=2, max_size=6), st.integers(0, 1000))
def test_the_noise_fraction_of_agvm_is_one_over_one_plus_the_batch_over_two_noise_scales(sizes, seed):
    """Conditions: parts weighted by their sizes, unbiased estimates, and a squared norm that came out positive."""
    rng = torch.Generator().manual_seed(seed)
    scales = torch.tensor(sizes)[:, None] ** -0.5
    grads = {
        name: mean + torch.randn(len(sizes), 20, generator=rng, dtype=torch.float64) * scales
        for name, mean in (("backbone", 0.5), ("head", 3.0))
    }
    moments = GradientMoments.from_gradients(grads, sizes)
    trace, sq_norm = moments.grad_var_trace(), moments.grad_sq_norm()
    for index, fraction in enumerate(measure_noise_fractions(moments).values()):
        if sq_norm[index] > 0:
            noise_scale = (trace[index] / sq_norm[index]).item()
            assert fraction == pytest.approx(1 / (1 + sum(sizes) / (2 * noise_scale)))


@pytest.mark.parametrize("noise_scale", [10.0, 100.0, 1000.0])
def test_the_published_cosine_is_on_average_the_same_fraction(noise_scale):
    """Conditions: independent halves of one size, and noise over many coordinates, so that norms hardly vary."""
    rng, dim, half, fractions = torch.Generator().manual_seed(0), 4000, 50, []
    truth = torch.full((dim,), 1 / dim**0.5, dtype=torch.float64)
    for _ in range(100):
        noise = torch.randn(2, dim, generator=rng, dtype=torch.float64) * (noise_scale / dim / half) ** 0.5
        halves = HalfBatches.from_gradients({"all": truth + noise[0]}, {"all": truth + noise[1]}, [half, half])
        fractions.append(measure_noise_fractions(halves)["all"])
    assert np.mean(fractions) == pytest.approx(1 / (1 + 2 * half / (2 * noise_scale)), rel=0.02)


# the law of training


@given(positive, st.floats(2, 2000))
def test_the_fitted_law_and_the_predicted_one_are_one_function(examples, noise_scale):
    """Condition: measured points that follow the law; then B_crit is the noise scale that the probe predicts with."""
    sizes = [4, 16, 64, 256, 1024]
    fitted = fit_samples_law(sizes, [[examples * (1 + size / noise_scale)] for size in sizes])
    predicted = SampleLaw(noise_scale, noise_scale, noise_scale, "made up")
    for size in (1, 32, 5000):
        assert fitted.samples(size) / fitted.examples == pytest.approx(predicted.samples(size)[0], rel=1e-4)


def test_samples_follow_the_law_where_each_step_has_its_best_rate():
    """Conditions: a loss with one curvature in all directions, and a noise scale that stays along the run.

    A step at rate r from squared gradient norm 1 leaves (1 - r)^2 + r^2 N / B of the loss, N being the noise scale.
    Samples of a stretch are B over what the best rate takes off.
    """
    noise_scale, rates, sizes = 40.0, np.linspace(1e-4, 1, 20_001), [2, 8, 32, 128, 512]
    gains = [1 - ((1 - rates) ** 2 + rates**2 * noise_scale / size).min() for size in sizes]
    law = fit_samples_law(sizes, [[size / gain] for size, gain in zip(sizes, gains, strict=True)])
    assert law.critical_batch_size == pytest.approx(noise_scale, rel=1e-3)
    assert max(map(abs, law.residuals)) < 1e-4


# normalization


@given(st.floats(0.1, 10), st.integers(2, 500), st.floats(1.05, 100))
def test_the_gain_of_an_adaptive_kalman_norm_is_one_over_one_plus_noise_over_error(variance, num_values, excess):
    """Conditions: one split, so that the noise of a mean is v / n, and a prior further off than that noise."""
    error_sq = (excess - 1) * variance / num_values  # t^2, which the distance holds beside the noise
    distance = math.sqrt(error_sq + variance / num_values)
    observed = Moments(*(torch.tensor([row], dtype=torch.float64) for row in ([1.0, -2.0], [variance] * 2)))
    prior = Moments(observed.mean + distance, observed.var)
    gain = 1 - adaptive_prior_weight(moments_of_gain(observed, prior, num_values), start=0.5).item()
    assert gain == pytest.approx(1 / (1 + (variance / num_values) / error_sq), rel=1e-9)
    noise_scale = variance / error_sq
    assert gain == pytest.approx(1 / (1 + noise_scale / num_values), rel=1e-9)


def test_a_prior_nearer_than_the_noise_allows_gets_all_the_weight():
    """The condition, from its other side: t^2 would be negative."""
    observed = Moments(torch.zeros(1, 3), torch.ones(1, 3))
    prior = Moments(torch.full((1, 3), 0.1), torch.ones(1, 3))
    assert adaptive_prior_weight(moments_of_gain(observed, prior, 10), start=0.5).item() == 1


# one function


@given(st.floats(1, 1e4), st.floats(1, 1e4))
def test_law_fraction_and_gain_are_the_same_function_of_batch_over_noise_scale(batch_size, noise_scale):
    """A batch of one noise scale doubles the samples, and a Kalman gain of one half."""
    growth = SampleLaw(noise_scale, noise_scale, noise_scale, "made up").samples(batch_size)[0]
    noise = torch.tensor([noise_scale / batch_size, noise_scale / batch_size + 1], dtype=torch.float64)
    gain = 1 - adaptive_prior_weight(noise, start=0.5).item()
    assert gain == pytest.approx(1 - 1 / growth, rel=1e-6, abs=1e-9)
