"""Bounds on the 2-norm of the error: published constants, what dimension and reward do, coverage, refusals."""

import math

import numpy as np
import pytest

from anybatch import InputError
from anybatch.decide import vector_error_bounds

TASK = {"estimator": "gpomdp", "reward_bound": 2.0, "num_parameters": 1, "discount": 0.9, "horizon": 10}
score_weight = vector_error_bounds.score_weight


def sub_gaussian(**change):
    return vector_error_bounds.sub_gaussian_score(**{"score_scale": 1.0, "delta": 0.0125} | TASK | change)


def bounded(**change):
    return vector_error_bounds.bounded_score(**{"score_bound": 1.0, "delta": 0.0125} | TASK | change)


def bernstein(**change):
    options = {"variance": 3.0, "score_bound": 1.0, "delta": 0.0125} | TASK | change
    return vector_error_bounds.vector_bernstein(**options)


@pytest.mark.parametrize(
    ("estimator", "horizon", "weight"),
    [("gpomdp", 10, 30.264312), ("reinforce", 10, 65.132156), ("gpomdp", 100, 99.970782)],
)
def test_scores_meet_rewards_as_often_as_published(estimator, horizon, weight):
    assert score_weight(estimator, 0.9, horizon) == pytest.approx(weight, abs=1e-6)
    closed = (1 - 0.9**horizon - horizon * (0.9**horizon - 0.9 ** (horizon + 1))) / 0.01
    assert estimator == "reinforce" or score_weight(estimator, 0.9, horizon) == pytest.approx(closed)
    assert score_weight("gpomdp", 1.0, 4) == 10


def test_the_sub_gaussian_bound_is_the_published_one():
    assert sub_gaussian().d == pytest.approx(2250.9228, abs=1e-4)
    assert (sub_gaussian().f, sub_gaussian().is_heuristic) == (0.0, False)


def test_the_other_bounds_follow_their_formulas():
    weight = score_weight("gpomdp", 0.9, 10)
    assert bounded(num_parameters=8).d == pytest.approx(4 * weight * math.sqrt(16 * math.log(480)))
    bound = bernstein(num_parameters=8)
    first = math.sqrt(8 * 8 * 3.0 * math.log(12 / 0.0125) / 50)
    second = 14 * 8 * 2.0 * weight * math.log(480) / (3 * 49)
    assert bound.error(50) == pytest.approx(first + second)
    assert bound.error(1) == math.inf
    assert vector_error_bounds.vector_chebyshev(9.0, 0.25).error(4) == 3.0


def test_bernsteins_second_term_grows_with_the_reward():
    assert bernstein(reward_bound=4.0).f == 2 * bernstein(reward_bound=2.0).f
    assert bernstein(reward_bound=4.0).d == bernstein(reward_bound=2.0).d


def test_what_is_taken_from_data_or_not_bounded_says_so():
    assert vector_error_bounds.vector_chebyshev(1.0, 0.1).is_heuristic
    assert not vector_error_bounds.vector_chebyshev(1.0, 0.1, is_heuristic=False).is_heuristic
    assert bernstein(is_heuristic=True).is_heuristic
    assert not bernstein().is_heuristic


@pytest.mark.parametrize("estimator", ["reinforce", "gpomdp"])
def test_the_variance_bound_holds_for_rewards_that_follow_the_sign_of_the_scores(estimator):
    scores = np.random.default_rng(0).normal(0.0, 1.0, (200_000, 10))
    sums = scores.cumsum(1)
    totals = sums[:, -1:] if estimator == "reinforce" else sums
    samples = (0.9 ** np.arange(10) * 3.0 * np.abs(totals)).sum(1)  # |reward| 3, of the sign of what it multiplies
    bound = vector_error_bounds.variance_bound(
        estimator=estimator, reward_bound=3.0, score_sq_bound=1.0, discount=0.9, horizon=10
    )
    assert bound / 2 < (samples**2).mean() <= 1.01 * bound


@pytest.mark.parametrize(
    ("make", "change", "message"),
    [
        (sub_gaussian, {"score_scale": 0.0}, "score_bound must be positive and finite; got 0.0"),
        (sub_gaussian, {"num_parameters": 0}, "num_parameters must be a whole number of at least 1; got 0"),
        (bounded, {"delta": 1.0}, "delta must be between 0 and 1; got 1.0"),
        (bounded, {"reward_bound": math.nan}, "reward_bound must be positive and finite; got nan"),
        (bounded, {"estimator": "pgpe"}, "estimator must be one of reinforce, gpomdp; got 'pgpe'"),
        (bernstein, {"variance": -1.0}, "variance must be at least 0"),
        (bernstein, {"discount": 2.0}, "discount must be between 0 and 1; got 2.0"),
        (bernstein, {"horizon": 0}, "horizon must be a whole number"),
    ],
)
def test_what_is_out_of_range_is_refused(make, change, message):
    with pytest.raises(InputError, match=message):
        make(**change)


def test_chebyshev_and_the_variance_bound_refuse_too():
    with pytest.raises(InputError, match="variance must be at least 0"):
        vector_error_bounds.vector_chebyshev(-1.0, 0.1)
    with pytest.raises(InputError, match="delta must be between 0 and 1"):
        vector_error_bounds.vector_chebyshev(1.0, 0.0)
    with pytest.raises(InputError, match="score_sq_bound must be positive"):
        vector_error_bounds.variance_bound(
            estimator="gpomdp", reward_bound=1.0, score_sq_bound=0.0, discount=0.9, horizon=3
        )
