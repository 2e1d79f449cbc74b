"""The rules of 2022: constants, schedule, steps by each rule, the milestone, refusals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anybatch import InputError
from anybatch.decide import (
    ReturnInterval,
    choose_relaxed_step,
    choose_smoothing_step,
    confidence_schedule,
    gaussian_smoothing,
    milestone_budget,
    return_interval,
    smoothness_constant,
    softmax_smoothing,
    vector_error_bounds,
)
from anybatch.decide.error_bounds import ErrorBound


def plain(d: float, f: float = 0.0, num_lost: int = 0) -> ErrorBound:
    return ErrorBound("plain", d, f, 0.05, num_lost=num_lost)


def step_of(norm: float, size: int, bound: ErrorBound, rule="corrected", smoothness=200.0):
    return choose_smoothing_step(gradient_norm=norm, batch_size=size, bound=bound, smoothness=smoothness, rule=rule)


def relaxed(norm: float, size: int, bound: ErrorBound, budget: float, smoothness=200.0):
    return choose_relaxed_step(gradient_norm=norm, batch_size=size, bound=bound, smoothness=smoothness, budget=budget)


def test_smoothing_constants_are_the_published_ones():
    gaussian, softmax = gaussian_smoothing(1.0, 1.0), softmax_smoothing(1.0, 1.0)
    assert (gaussian.score, gaussian.score_sq, gaussian.hessian) == pytest.approx((0.7978846, 1, 1), abs=1e-7)
    assert (softmax.score, softmax.score_sq, softmax.hessian) == (2, 4, 2)


@pytest.mark.parametrize(
    ("constants", "reward_bound", "version", "smoothness"),
    [
        (gaussian_smoothing(1.0, 1.0), 2.0, "2019", 2691.8312),
        (gaussian_smoothing(1.0, 1.0), 2.0, "improved", 400.0),
        (gaussian_smoothing(1.0, 1.0), 2.0, "published", 200.0),
        (softmax_smoothing(1.0, 1.0), 1.0, "2019", 7800.0),
        (softmax_smoothing(1.0, 1.0), 1.0, "improved", 600.0),
    ],
)
def test_the_smoothness_constant_is_the_published_one(constants, reward_bound, version, smoothness):
    found = smoothness_constant(constants, reward_bound=reward_bound, discount=0.9, version=version)
    assert found == pytest.approx(smoothness, abs=1e-4)


def test_constants_are_those_of_the_policies_themselves():
    draws = np.random.default_rng(0).normal(0.0, 2.0, 400_000)  # of a Gaussian with std 2 and one feature of size 3
    scores = 3 * draws / 4
    constants = gaussian_smoothing(3.0, 2.0)
    assert np.abs(scores).mean() == pytest.approx(constants.score, rel=0.01)
    assert (scores**2).mean() == pytest.approx(constants.score_sq, rel=0.01)


def test_the_schedule_spends_the_probability_of_a_run_and_no_more():
    assert sum(confidence_schedule(0.05, k, 1) * 2 for k in range(1, 1001)) == pytest.approx(0.0499500, abs=1e-7)
    spent = sum(confidence_schedule(0.05, k, i, num_events=3) * 3 for k in range(1, 301) for i in range(1, 301))
    assert 0.0496 < spent < 0.05
    assert confidence_schedule(0.05, 2, 3) == pytest.approx(0.05 / 6 / 12)


def test_the_best_step_and_batch_are_the_published_ones():
    step = step_of(1.3, 5918, plain(50.0))
    assert (step.required_batch_size, step.step_size, step.is_enough) == (5918, 0.0025, True)
    assert step.guaranteed_gain == pytest.approx(0.00105625, rel=1e-3)  # of a batch rounded up
    assert not step_of(1.3, 5917, plain(50.0)).is_enough


@pytest.mark.parametrize(("rule", "size"), [("published", 8200), ("published_fast", 1900), ("corrected", 62_490_300)])
def test_each_rule_stops_where_its_code_would(rule, size):
    def is_enough(check: int) -> bool:
        bound = vector_error_bounds.sub_gaussian_score(
            estimator="gpomdp",
            reward_bound=2.0,
            score_scale=1.0,
            num_parameters=1,
            discount=0.9,
            horizon=10,
            delta=confidence_schedule(0.05, 1, check),
        )
        return step_of(1.3, 100 * check, bound, rule).is_enough

    last = size // 100
    assert is_enough(last)
    assert not is_enough(last - 1)
    assert not is_enough(last // 2)


@given(norm=st.floats(0.1, 20), share=st.floats(0, 2), off=st.floats(-1, 1), smoothness=st.floats(0.1, 1e4))
def test_the_corrected_step_improves_whatever_the_gradient_within_the_error(norm, share, off, smoothness):
    step = step_of(norm, 100, plain(10 * share * norm), smoothness=smoothness)
    # the worst case of the true gradient, and the curvature at its limit
    improvement = step.step_size * norm * (norm + off * step.error) - smoothness * (step.step_size * norm) ** 2 / 2
    assert improvement >= step.guaranteed_gain - 1e-12 >= -1e-12
    assert (step.step_size > 0) == (step.error < norm) == step.is_safe


def test_below_the_required_batch_the_step_shrinks_with_the_error():
    sizes = [step_of(1.0, 100, plain(10 * error)).step_size for error in (0.0, 0.3, 0.5, 0.6, 0.8, 0.99, 1.0, 5.0)]
    assert sizes[:3] == [1 / 400] * 3
    assert sizes[2:] == sorted(sizes[2:], reverse=True)
    assert sizes[-2:] == [0.0, 0.0]
    assert step_of(1.0, 100, plain(8.0)).guaranteed_gain == pytest.approx(0.2**2 / (2 * 200.0))


def test_published_rules_step_without_a_guarantee_and_say_so():
    bound = plain(50.0)
    step = step_of(1.3, 150, bound, "published")  # an error of 4, three times the gradient
    assert (step.is_enough, step.step_size, step.is_safe) == (True, 1 / 400, False)
    assert step.guaranteed_gain < 0
    below = step_of(1.3, 50, bound, "published")
    assert (below.is_enough, below.step_size) == (False, 1 / 400)
    assert step_of(1.3, 20, bound, "published").step_size == 0
    fast = step_of(1.3, 30, bound, "published_fast")
    assert (fast.is_enough, fast.step_size, fast.required_batch_size) == (True, 1 / 200, 30)
    assert step_of(1.3, 29, bound, "published_fast").step_size == 0


@given(norm=st.floats(0.1, 20), d=st.floats(0.1, 100), f=st.floats(0.0, 500), num_lost=st.integers(0, 1))
def test_the_required_batch_is_enough_and_hardly_more(norm, d, f, num_lost):
    bound = plain(d, f, num_lost)
    required = step_of(norm, 10, bound).required_batch_size
    assert required is not None
    assert bound.error(required) <= norm / 2 * (1 + 1e-12)
    assert required <= 4 or bound.error(required - 2 - num_lost) > norm / 2


def test_a_gradient_of_zero_takes_no_step_and_no_number_is_enough():
    for rule in ("corrected", "published", "published_fast"):
        step = step_of(0.0, 10, plain(1.0), rule)
        assert (step.step_size, step.required_batch_size, step.is_safe) == (0.0, None, False)
    assert step_of(1e-200, 10, plain(1.0)).required_batch_size is None
    assert step_of(0.0, 10, plain(0.0), "published").step_size == 0
    assert relaxed(0.0, 10, plain(1.0), 1.0).step_size == 0


def test_a_budget_lets_a_batch_stop_earlier_and_bounds_the_loss():
    strict, loose = relaxed(1.0, 2000, plain(30.0), 0.0), relaxed(1.0, 2000, plain(30.0), 0.002)
    assert (strict.is_enough, strict.step_size) == (False, 0.0)
    assert (loose.is_enough, loose.step_size) == (True, 1 / 200)
    assert -0.002 <= loose.guaranteed_gain < 0
    assert loose.required_batch_size == math.ceil((30.0 / 0.9) ** 2)
    assert loose.reason.endswith("may lose 0.002")


@given(norm=st.floats(0.1, 20), share=st.floats(0, 3), budget=st.floats(0, 1), smoothness=st.floats(0.1, 1e3))
def test_a_relaxed_step_never_loses_more_than_its_budget(norm, share, budget, smoothness):
    step = relaxed(norm, 100, plain(10 * share * norm), budget, smoothness)
    assert step.guaranteed_gain >= -budget - 1e-9
    if budget == 0 and step.step_size:
        assert step.error <= norm / 2 + 1e-12


def test_the_interval_of_the_return_covers_it():
    rng = np.random.default_rng(0)
    returns = (rng.random((4000, 30)) < 0.2).astype(float)
    intervals = [
        return_interval(row.mean(), row.std(ddof=1), 30, reward_bound=1.0, discount=0.9, horizon=1, delta=0.3)
        for row in returns
    ]
    assert np.mean([low > 0.2 for low, _ in intervals]) <= 0.3
    assert np.mean([high < 0.2 for _, high in intervals]) <= 0.3
    narrow = [row.mean() - (row.mean() - low) / 10 > 0.2 for row, (low, _) in zip(returns, intervals, strict=True)]
    assert np.mean(narrow) > 0.3
    assert intervals[0].low < returns[0].mean() < intervals[0].high


def test_the_budget_is_what_lies_above_the_milestone():
    interval = ReturnInterval(8.5, 9.0)
    assert milestone_budget(interval, 10.0, 0.2) == pytest.approx(0.5)
    assert milestone_budget(interval, 10.0, 0.1) == 0
    assert milestone_budget(ReturnInterval(-3.0, -2.0), -1.0, 0.0) == 0


def test_the_reason_says_what_is_missing():
    assert step_of(1.3, 5918, plain(50.0)).reason == (
        "error 0.65 of 5918 trajectories against gradient 1.3: enough for step 0.0025"
    )
    assert step_of(1.3, 10, plain(50.0)).reason == (
        "error 15.81 of 10 trajectories against gradient 1.3: not enough, the rule asks for 5918"
    )
    assert step_of(1.3, 3000, plain(50.0)).reason.endswith("asks for 5918, or a step of 0.001489")
    assert step_of(0.0, 10, plain(1.0)).reason.endswith("against gradient 0: not enough, and no number would be")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: confidence_schedule(0.0, 1, 1), "delta must be between 0 and 1; got 0.0"),
        (lambda: confidence_schedule(0.1, 0, 1), "iteration must be a whole number of at least 1; got 0"),
        (lambda: confidence_schedule(0.1, 1, 0), "check must be a whole number of at least 1; got 0"),
        (lambda: step_of(math.nan, 1, plain(1.0)), "gradient_norm must be at least 0 and finite; got nan"),
        (lambda: step_of(1.0, 0, plain(1.0)), "batch_size must be a whole number of at least 1; got 0"),
        (lambda: step_of(1.0, 1, plain(1.0), smoothness=0.0), "smoothness must be positive and finite; got 0.0"),
        (lambda: step_of(1.0, 1, plain(1.0), "squared"), "rule must be one of corrected, published, published_fast"),
        (lambda: relaxed(1.0, 1, plain(1.0), -1.0), "budget must be at least 0 and finite; got -1.0"),
        (lambda: gaussian_smoothing(0.0, 1.0), "feature_bound must be positive and finite; got 0.0"),
        (lambda: softmax_smoothing(1.0, 0.0), "temperature must be positive and finite; got 0.0"),
        (
            lambda: smoothness_constant(gaussian_smoothing(1.0, 1.0), reward_bound=1.0, discount=1.0),
            "discount must be at least 0 and below 1; got 1.0",
        ),
        (
            lambda: smoothness_constant(gaussian_smoothing(1.0, 1.0), reward_bound=1.0, discount=0.9, version="2020"),
            "version must be one of improved, 2019, published; got '2020'",
        ),
        (
            lambda: return_interval(1.0, 1.0, 1, reward_bound=1.0, discount=0.9, horizon=3, delta=0.1),
            "num_trajectories must be at least 2; got 1",
        ),
        (lambda: milestone_budget(ReturnInterval(0.0, 1.0), 1.0, 1.5), "tolerance must be between 0 and 1; got 1.5"),
        (
            lambda: milestone_budget(ReturnInterval(-2.0, -1.0), -1.0, 0.2),
            "performance must not be negative with a tol",
        ),
    ],
)
def test_what_is_out_of_range_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
