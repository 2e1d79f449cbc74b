"""How far may a policy step along its largest partial derivative, and from how many trajectories the next time?"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

from anybatch.decide.argument_checks import (
    require_batch_limits,
    require_choice,
    require_count,
    require_discount,
    require_not_negative,
    require_positive,
)
from anybatch.decide.error_bounds import ErrorBound

Mode = Literal["safe", "paper"]
BEST_ERROR = (math.sqrt(17) - 3) / 4  # of the gradient, where the gain per trajectory is largest and f is 0


@dataclass(frozen=True)
class SafeStep:
    """A step size and the next batch size.

    Attributes:
        step_size: multiply the largest coordinate of the gradient with it; all others stay. 0 for no step.
        next_batch_size: trajectories for the next gradient.
        is_safe: whether the error of this batch is below the gradient, so that the step improves with the bound's
            probability.
        error: of the batch that was used, in units of the gradient.
        guaranteed_gain: lower bound on the improvement; negative for an unsafe step of the mode "paper".
        reason: one sentence.
    """

    step_size: float
    next_batch_size: int
    is_safe: bool
    error: float
    guaranteed_gain: float
    reason: str


def gaussian_penalty(
    *,
    reward_bound: float,
    feature_bound: float,
    discount: float,
    std: float,
    action_volume: float,
    num_actions: int = 1,
    covariance_det: float | None = None,
    mode: Mode = "safe",
) -> float:
    """Return c, by which a step of a Gaussian policy may fall short of its linear gain: c |step|_1^2.

    c = R M^2 / ((1 - gam)^2 sig^2) (|A| / sqrt((2 pi)^k det) + gam / (2 (1 - gam))), k actions with a covariance of
    determinant det; sig^2 for one. In mode "safe" the bracket counts as 1 where it is less: the volume stands for what
    the density can shift among actions, but a clipped action has mass at the ends however close these are, and with 1
    in its place c is half of the smoothness constant of 2022, which needs no volume.

    Args:
        reward_bound: R, the largest absolute reward.
        feature_bound: M, the largest absolute feature.
        discount: gam, in [0, 1).
        std: sig; with several actions 1 / sqrt of the largest diagonal entry of the inverse covariance.
        action_volume: |A|, of the set of actions: its length, area, ...
        num_actions: k.
        covariance_det: default: sig^(2 k), which is that of independent actions with one std.
        mode: "safe", or "paper" for the bracket as published, however small.

    Returns:
        The penalty constant, in units of return per squared parameter.

    Raises:
        InputError: an argument outside its range.

    Example:
        >>> round(gaussian_penalty(reward_bound=4.0, feature_bound=2.0, discount=0.9, std=1.0, action_volume=4.0), 6)
        9753.230595

    Source:
        Papini et al. 2017. Differs: "safe" is ours. For several actions derived here, for steps along one coordinate;
        their code takes the square root of the determinant for std.
    """
    require_choice(Mode, mode=mode)
    determinant = std ** (2 * num_actions) if covariance_det is None else covariance_det
    require_positive(
        reward_bound=reward_bound,
        feature_bound=feature_bound,
        std=std,
        action_volume=action_volume,
        covariance_det=determinant,
    )
    require_discount(discount, below_one=True)
    require_count(num_actions=num_actions)
    share = action_volume / math.sqrt((2 * math.pi) ** num_actions * determinant) + discount / (2 * (1 - discount))
    bracket = max(share, 1.0) if mode == "safe" else share
    return reward_bound * feature_bound**2 / ((1 - discount) ** 2 * std**2) * bracket


def choose_safe_step(
    *,
    max_gradient: float,
    batch_size: int,
    bound: ErrorBound,
    penalty: float,
    min_batch_size: int,
    max_batch_size: int,
    mode: Mode = "safe",
) -> SafeStep:
    """Choose the step along the largest coordinate of a gradient estimate, and the size of the next batch.

    step = (g - e)^2 / (2 c (g + e)^2), e being the error of the batch that was used; its gain is at least
    (g - e)^4 / (4 c (g + e)^2) with the bound's probability. Where e is not below g nothing is sure, and "safe" takes
    no step.

    Args:
        max_gradient: g, the largest absolute coordinate of the estimate.
        batch_size: trajectories that the estimate is from.
        bound: of the error of that coordinate.
        penalty: c, from `gaussian_penalty`.
        min_batch_size: least trajectories of the next batch.
        max_batch_size: most trajectories of the next batch.
        mode: "safe", or "paper" for the published runs, which step by the same formula where e is above g too, and
            search below `max_batch_size` alone.

    Returns:
        Step size and next batch size, with their reason.

    Raises:
        InputError: an argument outside its range, or limits that contradict each other.

    Example:
        >>> from anybatch.decide import error_bounds
        >>> bound = error_bounds.hoeffding(range=1280.0, delta=0.95)
        >>> step = choose_safe_step(
        ...     max_gradient=9.5, batch_size=90_000, bound=bound, penalty=9753.23, min_batch_size=100,
        ...     max_batch_size=500_000,
        ... )
        >>> f"{step.step_size:.3e}", step.next_batch_size, step.is_safe
        ('1.665e-05', 85714, True)

    Source:
        Papini et al. 2017, by their code and its logs. Differs: "safe" is ours.
    """
    require_choice(Mode, mode=mode)
    require_positive(penalty=penalty)
    require_count(batch_size=batch_size)
    next_batch_size = optimal_batch_size(max_gradient, bound, min_batch_size, max_batch_size, mode=mode)
    error = bound.error(batch_size)
    is_safe = error < max_gradient
    takes_step = is_safe or (mode == "paper" and math.isfinite(error) and error + max_gradient > 0)
    ratio = (max_gradient - error) / (max_gradient + error) if takes_step else 0.0
    step_size = ratio**2 / (2 * penalty)
    if is_safe:
        gain = step_size * (max_gradient - error) ** 2 / 2
    else:
        gain = step_size * max_gradient * (max_gradient - error - penalty * step_size * max_gradient)
    reason = _reason(max_gradient, error, batch_size, step_size, bound) + _forecast(
        max_gradient, next_batch_size, max_batch_size, bound
    )
    return SafeStep(step_size, next_batch_size, is_safe, error, gain if step_size else 0.0, reason)


def optimal_batch_size(
    max_gradient: float, bound: ErrorBound, min_batch_size: int, max_batch_size: int, *, mode: Mode = "safe"
) -> int:
    """Return the batch size with the largest guaranteed gain per trajectory, (g - e)^4 / ((g + e)^2 n).

    For e = d / sqrt(n) it is ceil((13 + 3 sqrt(17)) / 2 d^2 / g^2). For Bernstein's bound the gain per trajectory
    rises exactly while (d u + 2 f u^2) (3 g + e) > g^2 - e^2, u being 1 / sqrt(n). The left side grows with u and the
    right one falls, so there is one maximum, found by bisection.

    Args:
        max_gradient: g, the largest absolute coordinate of the gradient.
        bound: of its error.
        min_batch_size: least trajectories.
        max_batch_size: most trajectories; also the answer where no batch up to it has an error below g.
        mode: "paper" searches Bernstein's optimum below `max_batch_size` alone, as published.

    Returns:
        Trajectories.

    Raises:
        InputError: an argument outside its range, or limits that contradict each other.

    Example:
        >>> from anybatch.decide import error_bounds
        >>> bound = error_bounds.empirical_bernstein(variance=32.0**2, range=300.0, delta=0.95)
        >>> optimal_batch_size(10.0, bound, 100, 500_000)
        1285

    Source:
        Papini et al. 2017; they walk the batch size one by one.
    """
    require_not_negative(max_gradient=max_gradient)
    require_batch_limits(min_batch_size, max_batch_size)
    min_batch_size, max_batch_size = int(min_batch_size), int(max_batch_size)
    if max_gradient == 0:
        return max_batch_size
    if bound.f == 0:
        root = bound.d / (BEST_ERROR * max_gradient)
        wanted = math.ceil(root**2) if root <= math.sqrt(max_batch_size) else max_batch_size
        return min(max(wanted, min_batch_size), max_batch_size)
    sizes = range(min_batch_size, max_batch_size + (mode == "safe"))
    return _search(max_gradient, bound, sizes) or max_batch_size


def _search(gradient: float, bound: ErrorBound, sizes: range) -> int | None:
    first_safe = bisect_left(sizes, True, key=lambda size: bound.error(size) < gradient)
    peak = bisect_left(sizes, True, lo=first_safe, key=lambda size: not _gain_rises(gradient, bound, size))
    neighbours = sizes[max(peak - 1, first_safe) : peak + 1]
    return max(neighbours, key=lambda size: gain_per_trajectory(gradient, bound, size), default=None)


def gain_per_trajectory(gradient: float, bound: ErrorBound, batch_size: int) -> float:
    """Return the guaranteed gain over the batch size, up to the factor 1 / (4 c): what the next batch maximises.

    Args:
        gradient: g, the largest absolute coordinate of the gradient.
        bound: of its error.
        batch_size: n, with an error below g.

    Returns:
        (g - e)^4 / ((g + e)^2 n).
    """
    error = bound.error(batch_size)
    return (gradient - error) ** 4 / ((gradient + error) ** 2 * batch_size)


def _gain_rises(gradient: float, bound: ErrorBound, size: int) -> bool:
    error = bound.error(size)
    slope = bound.d / math.sqrt(size) + 2 * bound.f * size / (size - bound.num_lost) ** 2  # -2 n d error / dn
    return slope * (3 * gradient + error) > gradient**2 - error**2


def _reason(gradient: float, error: float, batch_size: int, step_size: float, bound: ErrorBound) -> str:
    compared = f"{error:.4g} {'<' if error < gradient else '>='} gradient {gradient:.4g}"
    text = f"{bound.name} error of {batch_size} trajectories {compared}: "
    if error < gradient:
        text += f"step {step_size:.4g} improves with probability {1 - bound.delta:.4g} per coordinate"
        return text + (" if the heuristic bound holds" if bound.is_heuristic else "")
    return text + (f"step {step_size:.4g} as published, without a guarantee" if step_size else "no step")


def _forecast(gradient: float, size: int, largest: int, bound: ErrorBound) -> str:
    if size == largest and bound.error(size) >= gradient:
        return f"; no batch of up to {largest} trajectories would do"
    return f"; next batch {size}"
