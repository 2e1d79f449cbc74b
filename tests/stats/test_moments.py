"""From the gradients of parts to trace and squared norm: against the slow twin, and against known truths."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference.gradient_moments import moments_of_gradients

from anybatch.stats import GradientMoments

FLOAT64 = {"rtol": 1e-10, "atol": 1e-12}


@st.composite
def parts_of_two_modules(draw):
    """Gradients of K parts in two modules, with sizes and weights of any kind."""
    num_parts = draw(st.integers(2, 6))
    sizes = draw(st.lists(st.integers(1, 500), min_size=num_parts, max_size=num_parts))
    weights = draw(st.lists(st.floats(0.05, 20), min_size=num_parts, max_size=num_parts))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    gradients = {
        "body": torch.randn(num_parts, 3, 2, generator=generator, dtype=torch.float64),
        "head": 0.3 + torch.randn(num_parts, 4, generator=generator, dtype=torch.float64),
    }
    return gradients, sizes, weights


def check_close(left: torch.Tensor, right) -> None:
    torch.testing.assert_close(left, torch.as_tensor(right, dtype=left.dtype), **FLOAT64)


@given(parts_of_two_modules())
def test_moments_equal_the_slow_twin_for_any_sizes_and_weights(parts):
    gradients, sizes, weights = parts
    per_part = [{name: gradient[i] for name, gradient in gradients.items()} for i in range(len(sizes))]
    for used, given_weights in ((weights, weights), (sizes, None)):
        moments = GradientMoments.from_gradients(gradients, sizes, given_weights)
        twin = moments_of_gradients(per_part, sizes, used)
        assert moments.modules == ("body", "head")
        check_close(moments.weights.sum(), 1.0)
        check_close(moments.mean_of_sq_norms, list(twin.A.values()))
        check_close(moments.sq_norm_of_mean, list(twin.B.values()))
        # a - b may be small against a, so the quotients carry more rounding than A and B
        for got, wanted in (
            (moments.grad_var_trace(), [twin.trace("body"), twin.trace("head")]),
            (moments.grad_sq_norm(), [twin.sq_norm("body"), twin.sq_norm("head")]),
        ):
            size = max(abs(value) for value in wanted)
            torch.testing.assert_close(got, torch.tensor(wanted, dtype=got.dtype), rtol=1e-8, atol=1e-8 * size)


@given(parts_of_two_modules(), st.randoms(use_true_random=False))
def test_the_order_of_parts_does_not_matter(parts, random):
    gradients, sizes, weights = parts
    order = list(range(len(sizes)))
    random.shuffle(order)
    straight = GradientMoments.from_gradients(gradients, sizes, weights)
    shuffled = GradientMoments.from_gradients(
        {name: gradient[order] for name, gradient in gradients.items()},
        [sizes[i] for i in order],
        [weights[i] for i in order],
    )
    check_close(shuffled.mean_of_sq_norms, straight.mean_of_sq_norms)
    check_close(shuffled.sq_norm_of_mean, straight.sq_norm_of_mean)


@given(parts_of_two_modules(), st.floats(1e-3, 1e3))
def test_scaling_the_loss_scales_the_estimates_by_its_square(parts, factor):
    gradients, sizes, weights = parts
    plain = GradientMoments.from_gradients(gradients, sizes, weights)
    scaled = GradientMoments.from_gradients(
        {name: factor * gradient for name, gradient in gradients.items()}, sizes, weights
    )
    for name in ("grad_var_trace", "grad_sq_norm"):
        wanted = factor**2 * getattr(plain, name)()
        torch.testing.assert_close(getattr(scaled, name)(), wanted, rtol=1e-8, atol=1e-8 * float(wanted.abs().max()))


@given(parts_of_two_modules(), st.floats(0.1, 10))
def test_scaling_all_weights_or_the_unit_of_sizes_changes_no_squared_norm(parts, factor):
    gradients, sizes, weights = parts
    plain = GradientMoments.from_gradients(gradients, sizes, weights)
    scaled = GradientMoments.from_gradients(
        gradients, [factor * size for size in sizes], [factor * weight for weight in weights]
    )
    size = float(plain.grad_sq_norm().abs().max())
    torch.testing.assert_close(scaled.grad_sq_norm(), plain.grad_sq_norm(), rtol=1e-8, atol=1e-8 * size)
    torch.testing.assert_close(scaled.grad_var_trace(), factor * plain.grad_var_trace(), rtol=1e-8, atol=0.0)


@given(parts_of_two_modules())
def test_equal_parts_have_no_spread_and_their_own_squared_norm(parts):
    gradients, sizes, weights = parts
    equal = {name: gradient[:1].expand_as(gradient) for name, gradient in gradients.items()}
    moments = GradientMoments.from_gradients(equal, sizes, weights)
    norms = torch.stack([gradient[0].square().sum() for gradient in equal.values()])
    # the trace is in units of |g|^2 times the size of a part, at most 500
    torch.testing.assert_close(moments.grad_var_trace(), torch.zeros_like(norms), rtol=0.0, atol=1e-8)
    torch.testing.assert_close(moments.grad_sq_norm(), norms, rtol=1e-9, atol=1e-9)


@given(parts_of_two_modules())
def test_the_trace_is_never_negative(parts):
    moments = GradientMoments.from_gradients(*parts)
    assert bool((moments.grad_var_trace() >= 0).all())


def test_four_chunks_by_hand():
    chunks = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, 0.0]])
    moments = GradientMoments.from_gradients({"all": chunks}, [1, 1, 1, 1])
    assert moments.mean_of_sq_norms.tolist() == [2.0]
    assert moments.sq_norm_of_mean.tolist() == [1.25]
    assert moments.grad_sq_norm().tolist() == [1.0]
    assert moments.grad_var_trace().tolist() == [1.0]


def test_gradients_of_a_single_number_are_taken():
    moments = GradientMoments.from_gradients({"temperature": torch.tensor([1.0, 3.0])}, [1, 1])
    assert moments.mean_of_sq_norms.tolist() == [5.0]
    assert moments.sq_norm_of_mean.tolist() == [4.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_gradients_are_summed_in_float64(dtype):
    gradients = torch.full((2, 4096), 0.125, dtype=dtype)
    moments = GradientMoments.from_gradients({"all": gradients}, [4, 4])
    assert moments.mean_of_sq_norms.dtype == torch.float64
    assert moments.sq_norm_of_mean.tolist() == [64.0]


# ------------------------------------------------------------------------------------------- unbiased


SIZES = [1, 3, 8, 20]
TRUE_GRADIENT = np.linspace(0.05, 0.4, 12)
VARIANCES = np.linspace(0.5, 6.0, 12)
NUM_DRAWS = 3000


def gaussian_parts(seed: int) -> np.ndarray:
    """Draw (NUM_DRAWS, parts, coordinates): mean gradients of parts of Gaussian samples."""
    draw = np.random.default_rng(seed).standard_normal((NUM_DRAWS, len(SIZES), len(TRUE_GRADIENT)))
    return TRUE_GRADIENT + draw * np.sqrt(VARIANCES / np.asarray(SIZES)[:, None])


def quadratic_form_std(matrix: np.ndarray) -> float:
    """Standard deviation of sum_j x_j' M x_j for x_j ~ N(G_j 1, variance_j diag(1/n))."""
    variance = 0.0
    for mean, scale in zip(TRUE_GRADIENT, VARIANCES, strict=True):
        covariance = scale * np.diag(1 / np.asarray(SIZES, dtype=float))
        mu = np.full(len(SIZES), mean)
        variance += 2 * np.trace(matrix @ covariance @ matrix @ covariance)
        variance += 4 * mu @ matrix @ covariance @ matrix @ mu
    return float(np.sqrt(variance))


@pytest.mark.parametrize("weights", [None, [1, 1, 1, 1], [5, 1, 2, 1]], ids=["by size", "equal weights", "any weights"])
def test_both_estimates_are_unbiased_with_the_analytic_spread(weights):
    draws = torch.from_numpy(gaussian_parts(seed=7))
    moments = GradientMoments.from_gradients({str(i): draw for i, draw in enumerate(draws)}, SIZES, weights)
    w = np.asarray(SIZES if weights is None else weights, dtype=float)
    w = w / w.sum()
    a, b = (w / SIZES).sum(), (w**2 / SIZES).sum()
    outer, diagonal = np.outer(w, w), np.diag(w)
    cases = [
        (moments.grad_var_trace(), VARIANCES.sum(), (diagonal - outer) / (a - b)),
        (moments.grad_sq_norm(), (TRUE_GRADIENT**2).sum(), (a * outer - b * diagonal) / (a - b)),
    ]
    for estimates, truth, matrix in cases:
        std = quadratic_form_std(matrix)
        assert abs(estimates.mean().item() - truth) < 4 * std / NUM_DRAWS**0.5
        # the sample standard deviation of these skewed estimates itself spreads by about 2 percent
        assert estimates.std().item() == pytest.approx(std, rel=0.08)


def test_the_bias_that_is_removed_is_visible():
    draws = torch.from_numpy(gaussian_parts(seed=7))
    moments = GradientMoments.from_gradients({str(i): draw for i, draw in enumerate(draws)}, SIZES)
    truth = (TRUE_GRADIENT**2).sum()
    standard_error = moments.sq_norm_of_mean.std().item() / NUM_DRAWS**0.5
    assert moments.sq_norm_of_mean.mean().item() - truth > 20 * standard_error


# ------------------------------------------------------------------------------------------- refusals


def test_a_gradient_that_is_not_finite_is_counted_once_per_part():
    gradients = {"body": torch.ones(3, 2), "head": torch.ones(3, 2)}
    gradients["body"][0, 0] = float("nan")
    gradients["head"][0, 0] = float("inf")
    gradients["head"][2, 1] = float("inf")
    assert GradientMoments.from_gradients(gradients, [1, 1, 1]).num_non_finite.item() == 2
    assert GradientMoments.from_gradients({"all": torch.ones(3, 2)}, [1, 1, 1]).num_non_finite.item() == 0


def test_a_sum_that_overflowed_counts_although_its_parts_are_finite():
    moments = GradientMoments.from_parts(["all"], [1, 1], [1, 1], torch.ones(2, 1), torch.tensor([float("inf")]))
    assert moments.num_non_finite.item() == 1


def test_a_single_part_is_refused():
    with pytest.raises(ValueError, match=r"gradient moments need at least 2 sub-batches; got 1\. Accumulate 2 or more"):
        GradientMoments.from_gradients({"all": torch.ones(1, 2)}, [4])


@pytest.mark.parametrize(
    ("sizes", "weights", "counts"),
    [
        ([1, 1, 1], None, "3, 3 and 4"),
        ([1, 1, 1, 1], [1, 1], "4, 2 and 4"),
        ([1, 1, 1, 1], [1], "4, 1 and 4"),
        ([1, 1, 1], [1, 1, 1, 1], "3, 4 and 4"),
    ],
)
def test_sizes_and_weights_that_do_not_fit_the_parts_are_refused(sizes, weights, counts):
    with pytest.raises(ValueError, match=f"sizes, weights and sub-batches must be as many; got {counts}"):
        GradientMoments.from_gradients({"all": torch.ones(4, 2)}, sizes, weights)


@pytest.mark.parametrize("bad", [0, -1, float("inf"), float("nan")])
def test_sizes_and_weights_must_be_positive_and_finite(bad):
    gradients = {"all": torch.ones(2, 2)}
    with pytest.raises(ValueError, match=r"sizes must be positive and finite; got \[1, "):
        GradientMoments.from_gradients(gradients, [1, bad], [1, 1])
    with pytest.raises(ValueError, match=r"weights must be positive and finite; got \[1, "):
        GradientMoments.from_gradients(gradients, [1, 1], [1, bad])
