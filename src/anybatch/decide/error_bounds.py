"""How far may a gradient estimate of n trajectories be from the true gradient, coordinate by coordinate?

Every bound reads error(n) = d / sqrt(n) + f / n, exceeded with probability at most delta in each coordinate. delta is
the allowed probability of failure: 0.95 is bold, 0.05 is cautious. R is the largest absolute reward, M the largest
absolute feature, gam the discount, sig the standard deviation of the action; the range of a coordinate is the largest
less the smallest value that one trajectory can give to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from anybatch.decide.argument_checks import (
    require_choice,
    require_count,
    require_discount,
    require_not_negative,
    require_positive,
    require_probability,
)
from anybatch.errors import InputError

Estimator = Literal["reinforce", "gpomdp"]


@dataclass(frozen=True)
class ErrorBound:
    """An error of an estimate as a function of its batch: d / sqrt(n) + f / (n - num_lost).

    Attributes:
        name: "chebyshev", "hoeffding", ...
        d: coefficient of 1 / sqrt(n).
        f: coefficient of 1 / n; 0 for all but Bernstein's.
        delta: probability with which the error may be larger.
        is_heuristic: whether something in it came from the data without being paid for, so that delta is not proven.
        num_lost: trajectories that the second term does not count.
    """

    name: str
    d: float
    f: float
    delta: float
    is_heuristic: bool = False
    num_lost: int = 0

    def error(self, num_trajectories: float) -> float:
        """Return the error of an estimate from so many trajectories; infinite where there are too few.

        Args:
            num_trajectories: n, at least 1.

        Returns:
            In units of the gradient.
        """
        second = self.f / (num_trajectories - self.num_lost) if num_trajectories > self.num_lost else math.inf
        return self.d / math.sqrt(num_trajectories) + (second if self.f else 0.0)


def chebyshev(
    *,
    estimator: Estimator,
    reward_bound: float,
    feature_bound: float,
    discount: float,
    horizon: int,
    std: float,
    delta: float,
) -> ErrorBound:
    """Bound the error by the largest variance that a Gaussian policy with fixed std can have.

    d^2 = R^2 M^2 / (sig^2 delta) * H (sum_t gam^t)^2 for REINFORCE and, for G(PO)MDP, * sum_t (sum_{s >= t} gam^s)^2,
    t and s running over 0 ... H - 1.

    Args:
        estimator: whose variance it is.
        reward_bound: R.
        feature_bound: M.
        discount: gam, in [0, 1].
        horizon: H, in steps.
        std: sig; with several actions 1 / sqrt of the largest diagonal entry of the inverse covariance.
        delta: in (0, 1).

    Returns:
        The bound, in which nothing comes from data. It needs the score of the action that was drawn.

    Raises:
        InputError: an argument outside its range, or an unknown estimator.

    Example:
        >>> task = dict(reward_bound=4.0, feature_bound=2.0, discount=0.9, horizon=20, std=1.0)
        >>> round(chebyshev(estimator="gpomdp", **task, delta=0.95).d, 6)
        150.117226

    Source:
        Papini, Pirotta and Restelli 2017, "Adaptive Batch Size for Safe Policy Gradients"; the sum over t is the
        closed form of its code, written so that a discount of 1 is allowed. The paper's variance of G(PO)MDP takes
        rewards that do not follow the sign of the scores; `variance_bound` of the vector bounds does not.
    """
    require_choice(Estimator, estimator=estimator)
    require_positive(reward_bound=reward_bound, feature_bound=feature_bound, std=std)
    require_discount(discount)
    require_count(horizon=horizon)
    require_probability(delta)
    powers = [discount**step for step in range(horizon)]
    if estimator == "reinforce":
        spread = horizon * sum(powers) ** 2
    else:
        spread = sum(sum(powers[step:]) ** 2 for step in range(horizon))
    return ErrorBound("chebyshev", reward_bound * feature_bound / std * math.sqrt(spread / delta), 0.0, delta)


def hoeffding(range: float, delta: float, *, is_heuristic: bool = False) -> ErrorBound:
    """Bound the error by the range of one trajectory's gradient: d = range sqrt(ln(2 / delta) / 2).

    Args:
        range: in units of the gradient.
        delta: in (0, 1).
        is_heuristic: say so where the range is that of a sample.

    Returns:
        The bound, which asks nothing of the variance; f is 0.

    Raises:
        InputError: an argument outside its range.

    Example:
        >>> round(hoeffding(range=1280.0, delta=0.95).d, 6)
        780.926141

    Source:
        Hoeffding 1963, theorem 2; Papini et al. 2017.
    """
    require_not_negative(range=range)
    require_probability(delta)
    return ErrorBound("hoeffding", range * math.sqrt(math.log(2 / delta) / 2), 0.0, delta, is_heuristic)


def empirical_bernstein(
    variance: float,
    range: float,
    delta: float,
    *,
    is_heuristic: bool = False,
) -> ErrorBound:
    """Bound the error by the variance of the sample, and by the range for what a sample may not have shown.

    d = sqrt(2 ln(3 / delta) variance), f = 3 range ln(3 / delta).

    Args:
        variance: of one trajectory's gradient, over the batch that was used.
        range: as for `hoeffding`.
        delta: in (0, 1).
        is_heuristic: as for `hoeffding`.

    Returns:
        The bound; its variance being that of a batch, `error` is proven for that batch and a forecast for others.

    Raises:
        InputError: an argument outside its range.

    Example:
        >>> bound = empirical_bernstein(variance=2500.0, range=100.0, delta=0.95)
        >>> round(bound.d, 6), round(bound.f, 6)
        (75.825642, 344.971675)

    Source:
        Mnih, Szepesvari and Audibert 2008, "Empirical Bernstein stopping", equation 1; Papini et al. 2017.
    """
    require_not_negative(variance=variance, range=range)
    require_probability(delta)
    log_term = math.log(3 / delta)
    d = math.sqrt(2 * log_term * variance)
    return ErrorBound("bernstein", d, 3 * range * log_term, delta, is_heuristic)


def student_t(variance: float, num_samples: int, delta: float) -> ErrorBound:
    """Take Student's two-sided quantile as the error: d = t(1 - delta / 2; n - 1) sqrt(var). Approximate.

    It is exact for Gaussian samples alone; the sums over a trajectory are not, so nothing is proven, and the bound says
    so. It is the tightest by far.

    Args:
        variance: of one trajectory's gradient, with n - 1 in the denominator.
        num_samples: n, trajectories that the variance is from.
        delta: in (0, 1).

    Returns:
        The bound, marked heuristic; f is 0.

    Raises:
        InputError: an argument outside its range, or fewer than 2 samples.

    Example:
        >>> round(student_t(variance=1.0, num_samples=1000, delta=0.05).d, 4)
        1.9623

    Source:
        Student 1908; our choice to offer it beside the paper's bounds.
    """
    from scipy.special import stdtrit  # slow to import, so only where it is used

    require_not_negative(variance=variance)
    require_probability(delta)
    if num_samples < 2:
        raise InputError(f"a variance needs at least 2 samples; got {num_samples}.")
    quantile = float(stdtrit(num_samples - 1, 1 - delta / 2))
    return ErrorBound("student_t", quantile * math.sqrt(variance), 0.0, delta, is_heuristic=True)


def theoretical_range(
    *,
    reward_bound: float,
    feature_bound: float,
    action_diameter: float,
    action_volume: float,
    discount: float,
    std: float,
) -> float:
    """Return the published range of one trajectory's gradient: M D / sig^2 * |A| R / (1 - gam).

    Args:
        reward_bound: R.
        feature_bound: M.
        action_diameter: D, the largest distance between two actions.
        action_volume: |A|, of the set of actions.
        discount: gam, in [0, 1).
        std: sig.

    Returns:
        The range, for `hoeffding` and `empirical_bernstein`. It is the authors' and not a bound of a G(PO)MDP sample:
        on their own task one can be 2032.9, above the 1280 given here.

    Raises:
        InputError: an argument outside its range.

    Example:
        >>> round(theoretical_range(
        ...     reward_bound=4.0, feature_bound=2.0, action_diameter=4.0, action_volume=4.0, discount=0.9, std=1.0
        ... ), 6)
        1280.0

    Source:
        Papini et al. 2017, by their code.
    """
    require_positive(
        reward_bound=reward_bound,
        feature_bound=feature_bound,
        action_diameter=action_diameter,
        action_volume=action_volume,
        std=std,
    )
    require_discount(discount, below_one=True)
    return feature_bound * action_diameter / std**2 * action_volume * reward_bound / (1 - discount)
