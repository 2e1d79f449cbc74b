"""Does a claim hold? One test for all of them: a paired t-test over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from scipy.stats import t
from verdicts import Claim, judge_difference

LEVEL = 0.05


class PairedTest(NamedTuple):
    """What differences between seeds that share weights and order of samples say.

    Attributes:
        mean: of the differences.
        error: half the width of its 95% interval.
        p: two-sided, of a true mean of 0.
    """

    mean: float
    error: float
    p: float


@dataclass(frozen=True)
class Measured:
    """What a claim is judged by.

    Attributes:
        ours: in words.
        differences: one per seed, above 0 where the claim holds.
        unit: of the differences.
    """

    ours: str
    differences: Sequence[float]
    unit: str = "points"


@dataclass(frozen=True)
class Expected:
    """A claim before it is judged.

    Attributes:
        id: in `results.json`.
        statement: what is claimed.
        source: where.
        paper: its figures.
        measure: from what was found to what it is judged by; None where runs are missing.
    """

    id: str
    statement: str
    source: str
    paper: str
    measure: Callable[[Any], Measured | None]


def paired_test(differences: Sequence[float]) -> PairedTest | None:
    """Test whether differences are 0 in the mean; None of fewer than two."""
    if len(differences) < 2:
        return None
    mean, scatter = statistics.mean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    if not scatter:
        return PairedTest(mean, 0.0, 0.0 if mean else 1.0)
    freedom = len(differences) - 1
    return PairedTest(
        mean, float(t.ppf(1 - LEVEL / 2, freedom)) * scatter, 2 * float(t.sf(abs(mean) / scatter, freedom))
    )


def judge(expected: Sequence[Expected], found: Any) -> list[Claim]:
    """Judge the claims whose runs are there: an interval that leaves out 0 is p < 0.05."""
    claims = []
    for each in expected:
        measured = each.measure(found)
        if measured is not None:
            test = paired_test(measured.differences)
            about = (each.id, each.statement, each.source, each.paper, measured.ours, _spread(measured, test))
            verdict = judge_difference(
                measured.differences[0] if test is None else test.mean, None if test is None else test.error
            )
            claims.append(Claim(*about, len(measured.differences), verdict))
    return claims


def _spread(measured: Measured, test: PairedTest | None) -> str:
    if test is None:
        return f"{measured.differences[0]:+.2f} {measured.unit}, one seed"
    low, high = test.mean - test.error, test.mean + test.error
    return f"{test.mean:+.2f} {measured.unit}, 95% interval {low:+.2f} to {high:+.2f}, p = {test.p:.2g}"
