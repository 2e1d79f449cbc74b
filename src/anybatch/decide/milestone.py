"""How much may the next update lose, if performance must stay near the best so far?"""

from __future__ import annotations

import math
from typing import NamedTuple

from anybatch.decide.argument_checks import (
    require_count,
    require_discount,
    require_not_negative,
    require_positive,
    require_probability,
)
from anybatch.errors import InputError


class ReturnInterval(NamedTuple):
    """Where the performance of a policy lies.

    Attributes:
        low: lower confidence bound.
        high: upper confidence bound.
    """

    low: float
    high: float


def return_interval(
    mean: float,
    std: float,
    num_trajectories: int,
    *,
    reward_bound: float,
    discount: float,
    horizon: int,
    delta: float,
    has_both_signs: bool = False,
) -> ReturnInterval:
    """Bound the performance by the returns of a batch.

    mean +- [std sqrt(2 ln(2 / delta) / n) + 7 S R (1 - gam^H) / (1 - gam) ln(2 / delta) / (3 (n - 1))], S being 1 for
    rewards of one sign and 2 otherwise.

    Args:
        mean: of the discounted returns.
        std: of the discounted returns, with n - 1 in the denominator.
        num_trajectories: n, at least 2.
        reward_bound: R, the largest absolute reward.
        discount: gam, in [0, 1].
        horizon: H, in steps.
        delta: probability of failure of each end, in (0, 1).
        has_both_signs: whether rewards may be positive and negative, which doubles the range of the returns.

    Returns:
        Both ends, in units of the return.

    Raises:
        InputError: an argument outside its range.

    Example:
        >>> interval = return_interval(10.0, 0.5, 1000, reward_bound=1.0, discount=0.9, horizon=100, delta=0.05)
        >>> f"{interval.low:.3f} {interval.high:.3f}"
        '9.871 10.129'

    Source:
        Maurer and Pontil 2009, arXiv:0907.3740, theorem 4, as used by Papini et al. 2022, arXiv:1905.03231, who
        have S = 1.
    """
    require_not_negative(std=std)
    require_positive(reward_bound=reward_bound)
    require_discount(discount)
    require_count(horizon=horizon)
    require_probability(delta)
    if num_trajectories < 2:
        raise InputError(f"num_trajectories must be at least 2; got {num_trajectories}.")
    spread = (2 if has_both_signs else 1) * reward_bound * sum(discount**step for step in range(horizon))
    log_term = math.log(2 / delta)
    width = std * math.sqrt(2 * log_term / num_trajectories) + 7 * spread * log_term / (3 * (num_trajectories - 1))
    return ReturnInterval(mean - width, mean + width)


def milestone_budget(current: ReturnInterval, best_high: float, tolerance: float) -> float:
    """Return what the next update may lose: max(0, low - (1 - lambda) best), best being the highest upper bound so far.

    Args:
        current: of the policy that is to be updated.
        best_high: the largest upper bound on the performance of any policy so far, this one included.
        tolerance: lambda, in [0, 1]: performance stays above (1 - lambda) times the best. 0 for monotonic improvement.

    Returns:
        The budget, in units of the return.

    Raises:
        InputError: a tolerance outside its range, or a negative performance, of which a share is no tolerance.

    Example:
        >>> milestone_budget(ReturnInterval(9.0, 10.0), best_high=10.0, tolerance=0.2)
        1.0

    Source:
        Papini et al. 2022, arXiv:1905.03231, by their code.
    """
    if not 0 <= tolerance <= 1:
        raise InputError(f"tolerance must be between 0 and 1; got {tolerance}. 0 asks for monotonic improvement.")
    if tolerance and best_high < 0:
        raise InputError(
            f"performance must not be negative with a tolerance; got at most {best_high:.4g}. "
            "Add a constant to the rewards, or take tolerance=0."
        )
    return max(0.0, current.low - (1 - tolerance) * best_high)
