"""At which rate is a recipe at its best? A grid that goes on beyond its edge while its best is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Scores = Mapping[float, float | None]  # by factor on the rate; None where it diverged


def best_factor(scores: Scores) -> float | None:
    """Return the factor with the highest score; None where every one diverged."""
    known = {factor: score for factor, score in scores.items() if score is not None}
    return max(known, key=lambda factor: known[factor], default=None)


def is_at_edge(scores: Scores) -> bool:
    """Return whether the best lies at the edge of what was tried, so that a better one may lie beyond."""
    return len(scores) > 1 and best_factor(scores) in (min(scores), max(scores), None)


def next_factor(scores: Scores, beyond: Sequence[float]) -> float | None:
    """Return the factor to try next.

    Args:
        scores: of what was tried.
        beyond: what may be tried besides.

    Returns:
        The nearest one beyond the edge that the best is at, the lower edge where all diverged; None where the best is
        inside, or none is left.
    """
    if not is_at_edge(scores):
        return None
    if best_factor(scores) == max(scores):
        return min((factor for factor in beyond if factor > max(scores)), default=None)
    return max((factor for factor in beyond if factor < min(scores)), default=None)
