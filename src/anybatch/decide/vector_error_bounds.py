"""How far may a gradient estimate of n trajectories be from the true gradient, in the 2-norm?

Every bound reads error(n) = d / sqrt(n) + f / (n - 1), exceeded with probability at most delta. Two of them go by the
size of scores alone, so that they are known before a batch is drawn; two go by a variance. R is the largest absolute
reward, dim the number of parameters, gam the discount, H the horizon and T, of `score_weight`, how often scores and
rewards meet.
"""

from __future__ import annotations

import math

from anybatch.decide.argument_checks import (
    require_choice,
    require_count,
    require_discount,
    require_not_negative,
    require_positive,
    require_probability,
)
from anybatch.decide.error_bounds import ErrorBound, Estimator


def sub_gaussian_score(
    *,
    estimator: Estimator,
    reward_bound: float,
    score_scale: float,
    num_parameters: int,
    discount: float,
    horizon: int,
    delta: float,
) -> ErrorBound:
    """Bound the error where scores have no bound but Gaussian tails: d = 4 R W T sqrt(14 dim ln(6 / delta)).

    Args:
        estimator: by which T goes.
        reward_bound: R.
        score_scale: W; F / sig for a Gaussian policy with features of 2-norm at most F.
        num_parameters: dim.
        discount: gam, in [0, 1].
        horizon: H, in steps.
        delta: in (0, 1).

    Returns:
        The bound, in which nothing comes from data; f is 0.

    Raises:
        InputError: an argument outside its range.

    Example:
        >>> task = dict(estimator="gpomdp", reward_bound=2.0, num_parameters=1, discount=0.9, horizon=10, delta=0.0125)
        >>> round(sub_gaussian_score(score_scale=1.0, **task).d, 4)
        2250.9228

    Source:
        Papini, Pirotta and Restelli 2022, arXiv:1905.03231, by their code.
    """
    scale = _scale(estimator, reward_bound, score_scale, num_parameters, discount, horizon, delta)
    return ErrorBound("sub_gaussian", 4 * scale * math.sqrt(14 * num_parameters * math.log(6 / delta)), 0.0, delta)


def bounded_score(
    *,
    estimator: Estimator,
    reward_bound: float,
    score_bound: float,
    num_parameters: int,
    discount: float,
    horizon: int,
    delta: float,
) -> ErrorBound:
    """Bound the error where no score is above a bound: d = 2 R W T sqrt(2 dim ln(6 / delta)).

    Args:
        estimator: by which T goes.
        reward_bound: R.
        score_bound: W, of the 2-norm of a score; 2 F / tau for a softmax policy with features of 2-norm at most F.
        num_parameters: dim.
        discount: gam, in [0, 1].
        horizon: H, in steps.
        delta: in (0, 1).

    Returns:
        The bound, in which nothing comes from data; f is 0, and d that of `sub_gaussian_score` over 2 sqrt(7).

    Raises:
        InputError: an argument outside its range.

    Example:
        >>> task = dict(estimator="gpomdp", reward_bound=2.0, num_parameters=1, discount=0.9, horizon=10, delta=0.0125)
        >>> round(bounded_score(score_bound=1.0, **task).d, 4)
        425.3844

    Source:
        Papini et al. 2022, arXiv:1905.03231, by their code.
    """
    scale = _scale(estimator, reward_bound, score_bound, num_parameters, discount, horizon, delta)
    return ErrorBound("bounded_score", 2 * scale * math.sqrt(2 * num_parameters * math.log(6 / delta)), 0.0, delta)


def vector_bernstein(
    *,
    variance: float,
    estimator: Estimator,
    reward_bound: float,
    score_bound: float,
    num_parameters: int,
    discount: float,
    horizon: int,
    delta: float,
    is_heuristic: bool = False,
) -> ErrorBound:
    """Bound the error by the variance of the sample, and by the score's bound for what a sample may not have shown.

    d = sqrt(8 dim V ln(12 / delta)), f = 14 dim R W T ln(6 / delta) / 3.

    Args:
        variance: V, the sum over coordinates of the variance of one trajectory's gradient, from the batch itself.
        estimator: by which T goes.
        reward_bound: R.
        score_bound: W, of the 2-norm of a score.
        num_parameters: dim.
        discount: gam, in [0, 1].
        horizon: H, in steps.
        delta: in (0, 1).
        is_heuristic: say so where scores have no bound.

    Returns:
        The bound; infinite for one trajectory, of which there is no variance.

    Raises:
        InputError: an argument outside its range.

    Example:
        >>> task = dict(estimator="gpomdp", reward_bound=2.0, num_parameters=1, discount=0.9, horizon=10, delta=0.0125)
        >>> bound = vector_bernstein(variance=64.0, score_bound=1.0, **task)
        >>> bound.error(1), round(bound.error(1000), 4)
        (inf, 3.6207)

    Source:
        Papini et al. 2022, arXiv:1905.03231. Their code leaves R out of the second term; reward_bound=1 gives theirs.
    """
    require_not_negative(variance=variance)
    scale = _scale(estimator, reward_bound, score_bound, num_parameters, discount, horizon, delta)
    d = math.sqrt(8 * num_parameters * variance * math.log(12 / delta))
    f = 14 * num_parameters * scale * math.log(6 / delta) / 3
    return ErrorBound("bernstein", d, f, delta, is_heuristic, num_lost=1)


def vector_chebyshev(variance: float, delta: float, *, is_heuristic: bool = True) -> ErrorBound:
    """Bound the error by the variance alone: d = sqrt(V / delta).

    Args:
        variance: V, the sum over coordinates of the variance of one trajectory's gradient, or a bound on it.
        delta: in (0, 1). A small one costs more than in the other bounds, which have its logarithm.
        is_heuristic: False where V is a bound (`variance_bound`), and not that of a sample.

    Returns:
        The bound, whatever the shape of the distribution; f is 0.

    Raises:
        InputError: an argument outside its range.

    Example:
        >>> vector_chebyshev(64.0, 0.25).error(1024)
        0.5

    Source:
        Papini et al. 2022, arXiv:1905.03231.
    """
    require_not_negative(variance=variance)
    require_probability(delta)
    return ErrorBound("chebyshev", math.sqrt(variance / delta), 0.0, delta, is_heuristic)


def variance_bound(
    *, estimator: Estimator, reward_bound: float, score_sq_bound: float, discount: float, horizon: int
) -> float:
    """Bound the variance of one trajectory's gradient, summed over coordinates, for `vector_chebyshev`.

    It is xi2 R^2 T sum_t gam^t, t running over 0 ... H - 1.

    Args:
        estimator: by which T goes.
        reward_bound: R.
        score_sq_bound: xi2, of the mean squared norm of a score. For a Gaussian policy F^2 times the trace of the
            inverse covariance, F^2 / sig^2 with one action; 4 F^2 / tau^2 for a softmax one.
        discount: gam, in [0, 1].
        horizon: H, in steps.

    Returns:
        The bound, of the estimators without baseline.

    Raises:
        InputError: an argument outside its range.

    Example:
        >>> round(variance_bound(
        ...     estimator="gpomdp", reward_bound=1.0, score_sq_bound=1.0, discount=0.9, horizon=10
        ... ), 3)
        197.118

    Source:
        Papini et al. 2022, arXiv:1905.03231, by their code.
    """
    require_positive(reward_bound=reward_bound, score_sq_bound=score_sq_bound)
    weight = score_weight(estimator, discount, horizon)
    return score_sq_bound * reward_bound**2 * weight * sum(discount**step for step in range(horizon))


def score_weight(estimator: Estimator, discount: float, horizon: int) -> float:
    """Return T, how often scores and discounted rewards meet: sum_t (t + 1) gam^t, or H sum_t gam^t for REINFORCE.

    Args:
        estimator: "gpomdp" multiplies a reward with the scores up to it, "reinforce" with all.
        discount: gam, in [0, 1].
        horizon: H, in steps.

    Returns:
        A number of at least 1.

    Raises:
        InputError: an argument outside its range.

    Example:
        >>> round(score_weight("gpomdp", 0.9, 10), 6), round(score_weight("reinforce", 0.9, 10), 6)
        (30.264312, 65.132156)

    Source:
        Papini et al. 2022, arXiv:1905.03231, by their code.
    """
    require_choice(Estimator, estimator=estimator)
    require_discount(discount)
    require_count(horizon=horizon)
    counts = [horizon] * horizon if estimator == "reinforce" else range(1, horizon + 1)
    return sum(count * discount**step for step, count in enumerate(counts))


def _scale(
    estimator: Estimator,
    reward_bound: float,
    score_bound: float,
    num_parameters: int,
    discount: float,
    horizon: int,
    delta: float,
) -> float:
    require_positive(reward_bound=reward_bound, score_bound=score_bound)
    require_count(num_parameters=num_parameters)
    require_probability(delta)
    return reward_bound * score_bound * score_weight(estimator, discount, horizon)
