"""Does the distance from the initial weights grow like the logarithm of the updates, or like a power of them?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from anybatch.errors import InputError

Law = Literal["log", "power", "undecided"]
Array = NDArray[np.float64]
FEWEST_POINTS = 4
DECISIVE = 2 * math.log(20)  # AICc: the other law is at most 1/20 as likely
LARGEST_EXPONENT = 4.0


@dataclass(frozen=True)
class DistanceLaw:
    """Two laws of the distance d after t updates, fitted to the same points: d = a + s ln t and d = c t^p.

    Attributes:
        intercept: a, in units of the distance.
        slope: s, in units of the distance per unit of ln t.
        coefficient: c, in units of the distance.
        exponent: p.
        r2_log: share of the variance of the distances that the logarithm explains.
        r2_power: the same for the power.
        first_update: the earliest that was fitted.
        last_update: the latest.
        num_points: points that were fitted.
        num_independent: how many independent points they are worth, the residuals of neighbours being alike.
        aicc_difference: AICc of the power less that of the logarithm, over the independent points; positive where the
            logarithm fits better.
        better: "log" or "power" where the difference is decisive, else "undecided".
        reason: one sentence.
    """

    intercept: float
    slope: float
    coefficient: float
    exponent: float
    r2_log: float
    r2_power: float
    first_update: float
    last_update: float
    num_points: int
    num_independent: float
    aicc_difference: float
    better: Law
    reason: str


def fit_distance_law(
    updates: Sequence[float], distances: Sequence[float], window: tuple[float, float] | None = None
) -> DistanceLaw:
    """Fit d = a + s ln t and its rival d = c t^p to distances from the initial weights, and choose between them.

    Both are least squares in d, not in ln d, so that their residuals have one unit. Both have two parameters, so
    AICc's penalty cancels and its difference is m ln(RSS_power / RSS_log), with m = n (1 - r) / (1 + r) independent
    points of n, r being the correlation of neighbouring residuals of the law that fits better (at least 0). A law is
    better where the other is at most 1/20 as likely: a difference of at least 2 ln 20 = 6.0.

    Args:
        updates: number of updates at each point, above 0, in any order; best spread evenly in ln t.
        distances: Euclidean norms of the weights less the initial ones, of the whole vector or of one tensor.
        window: first and last update to fit, both included; end it before the first drop of the rate. None for all.

    Returns:
        Both fits and which is better.

    Raises:
        InputError: another number of distances than of updates, an update that is not positive, a distance that is
            negative or not finite, points in the window at fewer than 4 different updates, or distances that are all
            equal.

    Example:
        >>> law = fit_distance_law([1000, 2000, 4000, 8000, 16000], [5.1, 6.6, 8.0, 9.5, 10.9])
        >>> print(f"{law.slope:.2f} per ln t, {law.better}")
        2.09 per ln t, log

    Source:
        Hoffer et al. 2017, arXiv:1705.08741, section 3 and figure 2: the logarithm. Rival and choice are ours;
        AICc: Hurvich and Tsai 1989; m: the effective sample size of a first-order autoregression.
    """
    t, d = _points(updates, distances, window)
    log_t = np.log(t)
    slope, intercept = (float(value) for value in np.polyfit(log_t, d, 1))
    coefficient, exponent = _fit_power(log_t, d)
    log_residuals = d - intercept - slope * log_t
    power_residuals = d - coefficient * np.exp(exponent * log_t)
    rss_log, rss_power = (_sum_of_squares(residuals, d) for residuals in (log_residuals, power_residuals))
    num_independent = _num_independent(log_residuals if rss_log <= rss_power else power_residuals)
    difference = num_independent * math.log(rss_power / rss_log)
    better = choose_distance_law([difference])
    total = float(((d - d.mean()) ** 2).sum())
    r2_log, r2_power = 1 - rss_log / total, 1 - rss_power / total
    return DistanceLaw(
        intercept=intercept,
        slope=slope,
        coefficient=coefficient,
        exponent=exponent,
        r2_log=r2_log,
        r2_power=r2_power,
        first_update=float(t[0]),
        last_update=float(t[-1]),
        num_points=len(t),
        num_independent=num_independent,
        aicc_difference=difference,
        better=better,
        reason=(
            f"{_words(better)}: R^2 {r2_log:.4f} of {intercept:.3g} + {slope:.3g} ln t and {r2_power:.4f} of "
            f"{coefficient:.3g} t^{exponent:.3g}, AICc apart by {abs(difference):.3g} (decisive from {DECISIVE:.2g}), "
            f"over {len(t)} points from update {t[0]:g} to {t[-1]:g}"
        ),
    )


def choose_distance_law(differences: Iterable[float]) -> Law:
    """Choose between the laws over several runs, which are independent, so that their AICc differences add up.

    Args:
        differences: `aicc_difference` of each run's fit, of one recipe at one batch size.

    Returns:
        "log" or "power" where the other is at most 1/20 as likely, else "undecided".

    Example:
        >>> choose_distance_law([-3.8, -3.2, -3.4])
        'power'
    """
    total = sum(differences)
    if not abs(total) >= DECISIVE:  # nor is what is no number
        return "undecided"
    return "log" if total > 0 else "power"


def _points(
    updates: Sequence[float], distances: Sequence[float], window: tuple[float, float] | None
) -> tuple[Array, Array]:
    t, d = np.asarray(updates, dtype=float), np.asarray(distances, dtype=float)
    if t.shape != d.shape or t.ndim != 1:
        raise InputError(f"updates and distances must be as many; got {t.size} and {d.size}.")
    if not (np.isfinite(t) & (t > 0)).all():
        raise InputError("updates must be positive and finite; got one that is not. Leave the initial point out.")
    if not (np.isfinite(d) & (d >= 0)).all():
        raise InputError("distances must be finite and at least 0; got one that is not. End before training diverged.")
    low, high = (0.0, math.inf) if window is None else window
    order = np.argsort(t, kind="stable")
    order = order[(t[order] >= low) & (t[order] <= high)]
    t, d = t[order], d[order]
    if len(np.unique(t)) < FEWEST_POINTS:
        raise InputError(
            f"a law needs points at {FEWEST_POINTS} or more different updates; got {len(np.unique(t))} from {low:g} to "
            f"{high:g}. Widen the window, or measure more often."
        )
    if d.min() == d.max():
        raise InputError(f"distances must differ; got {d[0]:g} at all {len(d)} points. Nothing moved.")
    return t, d


def _fit_power(log_t: Array, d: Array) -> tuple[float, float]:
    """Minimise the residuals over the exponent, the best coefficient being known for each: grids that close in."""
    centre = float(log_t.mean())

    def project(exponents: Array) -> tuple[Array, Array]:
        powers_EN = np.exp(np.outer(exponents, log_t - centre))  # E exponents, N points
        coefficients = powers_EN @ d / (powers_EN**2).sum(1)
        return ((d - coefficients[:, None] * powers_EN) ** 2).sum(1), coefficients

    low, high = -LARGEST_EXPONENT, LARGEST_EXPONENT
    while high - low > 1e-9:
        grid = np.linspace(low, high, 65)
        best = int(np.argmin(project(grid)[0]))
        low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, 64)])
    exponent = (low + high) / 2
    return float(project(np.array([exponent]))[1][0]) * math.exp(-exponent * centre), exponent


def _sum_of_squares(residuals: Array, d: Array) -> float:
    rounding = len(d) * float(np.finfo(float).eps * d.max()) ** 2
    return max(float(residuals @ residuals), rounding)


def _num_independent(residuals: Array) -> float:
    """Return n (1 - r) / (1 + r), r being the correlation of neighbouring residuals."""
    squares = float(residuals @ residuals)
    correlation = float(residuals[1:] @ residuals[:-1]) / squares if squares else 0.0
    correlation = max(correlation, 0.0)
    return len(residuals) * (1 - correlation) / (1 + correlation)


def _words(better: Law) -> str:
    return {
        "log": "the logarithm fits better",
        "power": "the power fits better",
        "undecided": "the two fit about as well",
    }[better]
