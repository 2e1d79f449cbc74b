"""How far may a gradient estimate of n trajectories be from the true gradient, in the 2-norm?"""

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
    """Bound the error of a policy with sub-Gaussian score: d = 4 R W T sqrt(14 dim ln(6 / delta)).

    Args:
        estimator: "reinforce" or "gpomdp".
        reward_bound: R, the largest absolute reward.
        score_scale: W; F / sig for a Gaussian policy with features of 2-norm at most F.
        num_parameters: dim.
        discount: in [0, 1].
        horizon: in steps.
        delta: probability of failure, in (0, 1).

    Returns:
        The bound.

    Raises:
        InputError: an argument outside its range.

    Example:
        >>> bound = sub_gaussian_score(
        ...     estimator="gpomdp", reward_bound=2.0, score_scale=1.0, num_parameters=1, discount=0.9, horizon=10,
        ...     delta=0.0125,
        ... )
        >>> round(bound.d, 4)
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
    """Bound the error of a policy with bounded score: d = 2 R W T sqrt(2 dim ln(6 / delta)).

    Args:
        estimator: "reinforce" or "gpomdp".
        reward_bound: R, the largest absolute reward.
        score_bound: W; 2 F / tau for a softmax policy with features of 2-norm at most F.
        num_parameters: dim.
        discount: in [0, 1].
        horizon: in steps.
        delta: probability of failure, in (0, 1).

    Returns:
        The bound.

    Raises:
        InputError: an argument outside its range.

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
    """Bound the error by the variance of the sample.

    error(n) = sqrt(8 dim V ln(12 / delta) / n) + 14 dim R W T ln(6 / delta) / (3 (n - 1)).

    Args:
        variance: V, the sum over coordinates of the variance of one trajectory's gradient.
        estimator: "reinforce" or "gpomdp".
        reward_bound: R, the largest absolute reward.
        score_bound: W, of the 2-norm of the score.
        num_parameters: dim.
        discount: in [0, 1].
        horizon: in steps.
        delta: probability of failure, in (0, 1).
        is_heuristic: say so where the score is not bounded.

    Returns:
        The bound.

    Raises:
        InputError: an argument outside its range.

    Source:
        Papini et al. 2022, arXiv:1905.03231. Their code leaves R out of the second term; reward_bound=1 gives theirs.
    """
    require_not_negative(variance=variance)
    scale = _scale(estimator, reward_bound, score_bound, num_parameters, discount, horizon, delta)
    d = math.sqrt(8 * num_parameters * variance * math.log(12 / delta))
    f = 14 * num_parameters * scale * math.log(6 / delta) / 3
    return ErrorBound("bernstein", d, f, delta, is_heuristic, num_lost=1)


def vector_chebyshev(variance: float, delta: float, *, is_heuristic: bool = True) -> ErrorBound:
    """Bound the error by the variance: d = sqrt(V / delta).

    Args:
        variance: V, the sum over coordinates of the variance of one trajectory's gradient, or a bound on it.
        delta: probability of failure, in (0, 1).
        is_heuristic: False where V is a bound (`variance_bound`), and not that of a sample.

    Returns:
        The bound.

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
    """Bound the variance of one trajectory's gradient, summed over coordinates.

    REINFORCE: H xi2 R^2 (sum_t gam^t)^2. G(PO)MDP: xi2 R^2 (sum_t gam^t) (sum_t (t + 1) gam^t).

    Args:
        estimator: "reinforce" or "gpomdp".
        reward_bound: R, the largest absolute reward.
        score_sq_bound: of the mean squared norm of the score. For a Gaussian policy F^2 times the trace of the inverse
            covariance, F^2 / sig^2 with one action; xi2 for a softmax one.
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
        estimator: "reinforce" or "gpomdp".
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
