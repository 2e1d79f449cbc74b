"""What does a study say of a claim? Claims with their figures, and verdicts from seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A statement of a paper beside what was measured here.

    Attributes:
        id: of the claim, unique in its study.
        statement: what should hold.
        source: where the paper says so.
        paper: its figures.
        ours: the figures here.
        spread: over seeds, or what else tells how far they can be trusted.
        seeds: how many.
        verdict: "reproduced", "partly", "not" or, where the seeds do not tell, "undecided".
    """

    id: str
    statement: str
    source: str
    paper: str
    ours: str
    spread: str
    seeds: int
    verdict: str


def judge_difference(above: float, error: float | None) -> str:
    """Say what a difference that should be positive shows.

    Args:
        above: the difference.
        error: half its 95% interval; None of one seed.

    Returns:
        "reproduced" where the whole interval is above zero, "not" where it is below, "undecided" in between and of
        one seed.
    """
    if error is None:
        return "undecided"
    return "reproduced" if above > error else "not" if above < -error else "undecided"


def welch_error(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return half the width of the 95% interval of a difference of means.

    Where one side is of one seed, it is taken to scatter as the other does; None where both are.
    """
    from scipy.stats import t

    several = max(first, second, key=len)
    if len(several) < 2:
        return None
    if min(len(first), len(second)) < 2:
        return float(t.ppf(0.975, len(several) - 1)) * statistics.stdev(several) * math.sqrt(1 + 1 / len(several))
    parts = [statistics.variance(values) / len(values) for values in (first, second)]
    if not sum(parts):
        return 0.0
    freedom = sum(parts) ** 2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (first, second), strict=True))
    return float(t.ppf(0.975, freedom)) * math.sqrt(sum(parts))


def mean_error(values: Sequence[float]) -> float | None:
    """Return half the width of the 95% interval of a mean; None of one value."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def shown(values: Sequence[float]) -> str:
    """Return the mean of figures, with their standard deviation where there are several."""
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.2f}"
