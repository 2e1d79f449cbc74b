"""Bounds on the error of one coordinate: the paper's tables, what moves them, coverage, refusals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference.safe_step import chebyshev_d

from anybatch import InputError
from anybatch.decide import error_bounds

TASK = {"reward_bound": 4.0, "feature_bound": 2.0, "discount": 0.9, "horizon": 20, "std": 1.0}
RANGE = {
    "reward_bound": 4.0,
    "feature_bound": 2.0,
    "action_diameter": 4.0,
    "action_volume": 4.0,
    "discount": 0.9,
    "std": 1.0,
}
positive = st.floats(0.01, 100)
probability = st.floats(0.001, 0.999)


@pytest.mark.parametrize(
    ("estimator", "published"),
    [
        ("reinforce", [322.438618, 362.892692, 444.450963, 628.548580, 1405.477353]),
        ("gpomdp", [150.117226, 168.951363, 206.922316, 292.632345, 654.345817]),
    ],
)
def test_chebyshev_gives_the_published_coefficients(estimator, published):
    deltas = (0.95, 0.75, 0.50, 0.25, 0.05)
    found = [error_bounds.chebyshev(estimator=estimator, **TASK, delta=delta) for delta in deltas]
    assert [bound.d for bound in found] == pytest.approx(published, abs=1e-6)
    assert {bound.f for bound in found} == {0.0}
    assert not any(bound.is_heuristic for bound in found)


@pytest.mark.parametrize(("estimator", "variance"), [("reinforce", 98768.3294), ("gpomdp", 21408.4224)])
def test_chebyshev_stands_on_the_variance_bound(estimator, variance):
    bound = error_bounds.chebyshev(estimator=estimator, **TASK, delta=0.3)
    assert bound.d**2 * 0.3 == pytest.approx(variance, abs=1e-4)


@given(
    estimator=st.sampled_from(["reinforce", "gpomdp"]),
    reward=positive,
    feature=positive,
    discount=st.floats(0.0, 0.95),
    horizon=st.integers(1, 60),
    std=positive,
    delta=probability,
)
def test_chebyshev_equals_the_closed_form_of_the_paper(estimator, reward, feature, discount, horizon, std, delta):
    bound = error_bounds.chebyshev(
        estimator=estimator,
        reward_bound=reward,
        feature_bound=feature,
        discount=discount,
        horizon=horizon,
        std=std,
        delta=delta,
    )
    expected = chebyshev_d(estimator, reward, feature, discount, horizon, std, delta)
    assert bound.d == pytest.approx(expected, rel=1e-9)


def test_chebyshev_goes_over_to_a_discount_of_one():
    near, at = (error_bounds.chebyshev(estimator="gpomdp", **TASK | {"discount": x}, delta=0.1) for x in (1 - 1e-9, 1))
    assert at.d == pytest.approx(near.d, rel=1e-6)
    assert at.d == pytest.approx(8 * math.sqrt(sum(steps**2 for steps in range(1, 21)) / 0.1))


def test_hoeffding_and_bernstein_give_the_published_coefficients():
    assert error_bounds.theoretical_range(**RANGE) == pytest.approx(1280)
    assert error_bounds.hoeffding(1280.0, 0.95).d == pytest.approx(780.926141, abs=1e-6)
    bound = error_bounds.empirical_bernstein(variance=32.0**2, range=300.0, delta=0.95)
    assert (bound.d, bound.f) == pytest.approx((48.52841, 1034.91502), abs=1e-5)


@pytest.mark.parametrize(
    ("bound", "d", "f", "error"),
    [
        (error_bounds.hoeffding(320.0, 0.95), 195.231535, 0.0, 11.271698),
        (error_bounds.hoeffding(100.0, 0.95), 61.009855, 0.0, 3.522406),
        (error_bounds.empirical_bernstein(2500.0, 320.0, 0.95), 75.825642, 1103.909360, 8.057493),
        (error_bounds.empirical_bernstein(2500.0, 100.0, 0.95), 75.825642, 344.971675, 5.527701),
    ],
)
def test_the_official_test_configuration_has_these_errors_at_300_trajectories(bound, d, f, error):
    assert (bound.d, bound.f, bound.error(300)) == pytest.approx((d, f, error), abs=1e-6)


BOUNDS = [
    error_bounds.chebyshev(estimator="gpomdp", **TASK, delta=0.2),
    error_bounds.hoeffding(30.0, 0.2),
    error_bounds.empirical_bernstein(9.0, 30.0, 0.2),
    error_bounds.student_t(9.0, 50, 0.2),
]


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: bound.name)
def test_more_trajectories_leave_a_smaller_error(bound):
    errors = [bound.error(size) for size in (1, 2, 10, 100, 10_000)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 90
    assert all(error > 0 for error in errors)


@given(scale=st.floats(0.01, 100), delta=probability, size=st.integers(1, 10**6))
def test_errors_scale_with_the_gradient(scale, delta, size):
    for one, other in (
        (error_bounds.hoeffding(3.0, delta), error_bounds.hoeffding(3.0 * scale, delta)),
        (
            error_bounds.empirical_bernstein(2.0, 3.0, delta),
            error_bounds.empirical_bernstein(2.0 * scale**2, 3.0 * scale, delta),
        ),
        (error_bounds.student_t(2.0, 9, delta), error_bounds.student_t(2.0 * scale**2, 9, delta)),
        (
            error_bounds.chebyshev(estimator="gpomdp", **TASK, delta=delta),
            error_bounds.chebyshev(estimator="gpomdp", **TASK | {"reward_bound": 4.0 * scale}, delta=delta),
        ),
    ):
        assert other.error(size) == pytest.approx(scale * one.error(size))


@given(deltas=st.lists(probability, min_size=2, max_size=2, unique=True).map(sorted))
def test_a_smaller_probability_of_failure_asks_for_a_larger_error(deltas):
    for make in (
        lambda delta: error_bounds.chebyshev(estimator="reinforce", **TASK, delta=delta),
        lambda delta: error_bounds.hoeffding(3.0, delta),
        lambda delta: error_bounds.empirical_bernstein(2.0, 3.0, delta),
        lambda delta: error_bounds.student_t(2.0, 9, delta),
    ):
        assert make(deltas[0]).error(50) > make(deltas[1]).error(50)


def two_point_means(size: int, share: float, repetitions: int):
    """Means of `size` samples of a 0-1 variable that is 1 with probability `share`, and their sample variances."""
    means = np.random.default_rng(0).binomial(size, share, repetitions) / size
    return means, means * (1 - means) * size / (size - 1)


@pytest.mark.parametrize("share", [0.5, 0.03])
@pytest.mark.parametrize("delta", [0.05, 0.5])
def test_errors_are_exceeded_no_more_often_than_promised(share, delta):
    means, variances = two_point_means(60, share, 20_000)
    off = np.abs(means - share)
    hoeffding = error_bounds.hoeffding(1.0, delta).error(60)
    bernstein = np.array([error_bounds.empirical_bernstein(v, 1.0, delta).error(60) for v in variances])
    for error in (hoeffding, bernstein):
        assert (off > error).mean() <= delta
        assert (off > error / 10).mean() > delta, "a tenth of the error must be exceeded, or the test sees nothing"


def test_student_is_exceeded_as_often_as_it_says_for_gaussian_samples():
    samples = np.random.default_rng(1).normal(0.0, 3.0, (20_000, 8))
    errors = np.array([error_bounds.student_t(v, 8, 0.2).error(8) for v in samples.var(1, ddof=1)])
    assert (np.abs(samples.mean(1)) > errors).mean() == pytest.approx(0.2, abs=0.01)


def test_what_rests_on_the_data_says_that_it_is_heuristic():
    assert error_bounds.student_t(1.0, 5, 0.1).is_heuristic
    assert error_bounds.hoeffding(1.0, 0.1, is_heuristic=True).is_heuristic
    assert error_bounds.empirical_bernstein(1.0, 1.0, 0.1, is_heuristic=True).is_heuristic
    assert not error_bounds.empirical_bernstein(1.0, 1.0, 0.1).is_heuristic


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, 95.0, math.nan])
def test_a_delta_outside_its_range_is_refused(delta):
    for make in (
        lambda: error_bounds.chebyshev(estimator="gpomdp", **TASK, delta=delta),
        lambda: error_bounds.hoeffding(1.0, delta),
        lambda: error_bounds.empirical_bernstein(1.0, 1.0, delta),
        lambda: error_bounds.student_t(1.0, 5, delta),
    ):
        with pytest.raises(InputError, match="delta must be between 0 and 1; got"):
            make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimator": "pgpe"}, "estimator must be one of reinforce, gpomdp; got 'pgpe'"),
        ({"reward_bound": 0.0}, "reward_bound must be positive and finite; got 0.0"),
        ({"feature_bound": math.inf}, "feature_bound must be positive and finite; got inf"),
        ({"std": -1.0}, "std must be positive"),
        ({"discount": 1.1}, "discount must be between 0 and 1; got 1.1"),
        ({"horizon": 0}, "horizon must be a whole number of at least 1; got 0"),
        ({"horizon": 2.5}, "horizon must be a whole number"),
    ],
)
def test_chebyshev_refuses_what_is_out_of_range(change, message):
    with pytest.raises(InputError, match=message):
        error_bounds.chebyshev(**({"estimator": "gpomdp", "delta": 0.1} | TASK | change))


def test_what_is_negative_or_too_little_is_refused():
    with pytest.raises(InputError, match="range must be at least 0 and finite; got -1"):
        error_bounds.hoeffding(-1.0, 0.1)
    with pytest.raises(InputError, match="variance must be at least 0 and finite; got nan"):
        error_bounds.empirical_bernstein(math.nan, 1.0, 0.1)
    with pytest.raises(InputError, match="a variance needs at least 2 samples; got 1"):
        error_bounds.student_t(1.0, 1, 0.1)
    with pytest.raises(InputError, match="action_diameter must be positive"):
        error_bounds.theoretical_range(**RANGE | {"action_diameter": 0.0})
    with pytest.raises(InputError, match=r"discount must be at least 0 and below 1; got 1.0"):
        error_bounds.theoretical_range(**RANGE | {"discount": 1.0})
