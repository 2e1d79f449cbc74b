"""Which law of samples against batch size do finished trainings follow, and from which size on does a batch not pay?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anybatch.errors import InputError

Array = NDArray[np.float64]
BEYOND = 1e4  # how far outside the batch sizes a critical one is looked for, as a factor
GRID = 2048


@dataclass(frozen=True)
class SamplesLaw:
    """samples(B) = E (1 + B / B_crit), fitted to the samples that trainings needed to a target.

    Attributes:
        examples: E, what a very small batch needs, in the unit of the samples.
        critical_batch_size: B_crit, at which samples are 2 E, in samples; None where samples do not grow with the
            batch.
        low: lower end of its interval; 0 where there is none.
        high: upper end; None where there is none.
        residuals: measured mean over fitted, less 1, per batch size in the order given.
        confidence: of `low` to `high`.
        reason: one sentence.
    """

    examples: float
    critical_batch_size: float | None
    low: float
    high: float | None
    residuals: tuple[float, ...]
    confidence: float
    reason: str

    def samples(self, batch_size: float) -> float:
        """Return what a training needs at a batch size, in the unit of the samples fitted.

        Args:
            batch_size: in samples.

        Returns:
            E (1 + B / B_crit).
        """
        return self.examples * (1 + (batch_size / self.critical_batch_size if self.critical_batch_size else 0))


def fit_samples_law(
    batch_sizes: Sequence[float],
    samples: Sequence[Sequence[float]],
    *,
    weights: Sequence[float] | None = None,
    confidence: float = 0.95,
) -> SamplesLaw:
    """Fit samples(B) = E (1 + B / B_crit) to what finished trainings needed to one target.

    Least squares of ln(mean of the runs) - ln(fitted) over the batch sizes: relative errors count alike at all sizes.
    The interval holds each B_crit whose sum of squares exceeds the least by at most (t s)^2, s^2 being the variance
    of one size's logarithm. It comes from two sources, of which the wider counts: the residuals, n - 2 degrees of
    freedom, and the runs' spread within a size over their number, pooled.

    Args:
        batch_sizes: n >= 2 different ones, in samples.
        samples: per batch size what each of its runs needed, in any unit (samples, epochs); a run that missed the
            target has no such number: leave its size out, for without it the mean is too small.
        weights: per batch size, on its squared residual. Default: equal.
        confidence: of the interval; between 0 and 1.

    Returns:
        The law. Where neither source exists (2 sizes of one run each) the interval is 0 to None.

    Raises:
        InputError: fewer than 2 different sizes, a size twice, a number that is not positive and finite, or another
            number of runs' lists or weights than of sizes.

    Example:
        >>> law = fit_samples_law([8, 32, 128], [[1090, 1070], [1330, 1310], [2270, 2290]])
        >>> print(f"{law.examples:.0f} samples, critical at {law.critical_batch_size:.0f}")
        1000 samples, critical at 100
        >>> print(f"{law.samples(256):.0f}")
        3560

    Source:
        McCandlish et al. 2018, arXiv:1812.06162, equation 2.11. Differs: fitted in the logarithm, at one target.
    """
    sizes, runs, shares = _points(batch_sizes, samples, weights, confidence)
    logs = np.array([math.log(values.mean()) for values in runs])
    low, high = math.log(sizes.min() / BEYOND), math.log(sizes.max() * BEYOND)
    log_critical = _minimize(sizes, logs, shares, low, high)
    is_flat = log_critical > high - 1e-3
    log_examples = _log_examples(sizes, logs, shares, np.array([math.inf if is_flat else log_critical]))[0]
    fitted = log_examples + _log_growth(sizes, math.inf if is_flat else log_critical)
    allowed = _allowed(logs - fitted, runs, shares, confidence)
    interval = _interval(sizes, logs, shares, allowed, np.linspace(low, high, GRID), log_critical)
    residuals = tuple(float(value) for value in np.expm1(logs - fitted))
    critical = None if is_flat else math.exp(log_critical)
    return SamplesLaw(
        examples=math.exp(log_examples),
        critical_batch_size=critical,
        low=interval[0],
        high=interval[1],
        residuals=residuals,
        confidence=confidence,
        reason=_reason(critical, interval, residuals, confidence),
    )


def _points(
    batch_sizes: Sequence[float], samples: Sequence[Sequence[float]], weights: Sequence[float] | None, confidence: float
) -> tuple[Array, list[Array], Array]:
    sizes = np.asarray(batch_sizes, dtype=float)
    runs = [np.atleast_1d(np.asarray(values, dtype=float)) for values in samples]
    shares = np.ones(len(sizes)) if weights is None else np.asarray(weights, dtype=float)
    if len(runs) != len(sizes) or len(shares) != len(sizes):
        raise InputError(
            f"samples and weights must be one per batch size; got {len(runs)} and {len(shares)} for {len(sizes)} sizes."
        )
    if len(sizes) < 2 or len(set(sizes)) < len(sizes):
        raise InputError(f"a law needs 2 or more batch sizes, each once; got {list(batch_sizes)}. Pool a size's runs.")
    for name, values in (("batch_sizes", sizes), ("weights", shares), *(("samples", values) for values in runs)):
        if not len(values) or not (np.isfinite(values) & (values > 0)).all():
            raise InputError(f"{name} must be positive and finite; got {values.tolist()}. Leave such a size out.")
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be between 0 and 1; got {confidence}.")
    return sizes, runs, shares / shares.mean()


def _log_growth(sizes: Array, log_critical: Array | float) -> Array:
    """Return ln(1 + B / B_crit), of shape (..., sizes)."""
    return np.log1p(sizes * np.exp(-np.asarray(log_critical))[..., None])


def _log_examples(sizes: Array, logs: Array, shares: Array, log_critical: Array) -> Array:
    return (logs - _log_growth(sizes, log_critical)) @ shares / shares.sum()


def _sum_of_squares(sizes: Array, logs: Array, shares: Array, log_critical: Array) -> Array:
    """Return the weighted sum of squares per critical size, E being the best for each."""
    residuals = logs - _log_growth(sizes, log_critical)
    residuals = residuals - (residuals @ shares / shares.sum())[:, None]
    return residuals**2 @ shares


def _minimize(sizes: Array, logs: Array, shares: Array, low: float, high: float) -> float:
    """Close in on the best logarithm of the critical size by ever finer grids."""
    while high - low > 1e-9:
        grid = np.linspace(low, high, 65)
        best = int(np.argmin(_sum_of_squares(sizes, logs, shares, grid)))
        low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, 64)])
    return (low + high) / 2


def _allowed(residuals: Array, runs: list[Array], shares: Array, confidence: float) -> float:
    """Return by how much a sum of squares may exceed the least, of the wider source; infinite where there is none."""
    from scipy.special import stdtrit  # slow to import, so only where it is used

    sources = []
    freedom = len(runs) - 2
    if freedom > 0:
        sources.append((freedom, float(residuals**2 @ shares) / freedom))
    freedom = sum(len(values) - 1 for values in runs)
    if freedom > 0:
        squares = sum(float((((values / values.mean()) - 1) ** 2).sum()) for values in runs)
        per_size = np.array([1 / len(values) for values in runs]) @ shares / len(runs)
        sources.append((freedom, squares / freedom * float(per_size)))
    quantiles = [float(stdtrit(freedom, (1 + confidence) / 2)) for freedom, _ in sources]
    return max((q**2 * variance for q, (_, variance) in zip(quantiles, sources, strict=True)), default=math.inf)


def _interval(
    sizes: Array, logs: Array, shares: Array, allowed: float, grid: Array, best: float
) -> tuple[float, float | None]:
    """Return the ends of the set of critical sizes; 0 and None where it reaches beyond the grid."""
    squares = _sum_of_squares(sizes, logs, shares, grid)
    least = _sum_of_squares(sizes, logs, shares, np.array([best]))[0]
    inside = np.flatnonzero(squares <= least + allowed)
    if not len(inside):
        return math.exp(best), math.exp(best)
    first, last = inside[0], inside[-1]
    low = 0.0 if first == 0 else math.exp(min(grid[first], best))
    return low, None if last == len(grid) - 1 else math.exp(max(grid[last], best))


def _reason(
    critical: float | None, interval: tuple[float, float | None], residuals: tuple[float, ...], confidence: float
) -> str:
    low, high = interval
    to = "no upper end" if high is None else f"{high:.3g}"
    found = "samples do not grow with the batch" if critical is None else f"critical batch size {critical:.3g}"
    worst = 100 * max(abs(value) for value in residuals)
    return (
        f"{found}, {100 * confidence:.4g}% interval {low:.3g} to {to}; "
        f"the law is within {worst:.2g}% of all {len(residuals)} sizes"
    )
