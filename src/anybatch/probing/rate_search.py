"""Which learning rate is tried next, and which is the best?

Rates are powers of two times the workload's own, named by their exponent. A rate that was given up has no cost.
"""

from __future__ import annotations

from collections.abc import Mapping

FEWEST_RATES = 4
MOST_FAILURES = 7

Costs = Mapping[int, float | None]


def next_rate(costs: Costs, first: int) -> int | None:
    """Choose the next exponent: outwards from the first guess to four rates, then on beyond a best one at the edge.

    Args:
        costs: exponent -> samples to the target, None where it was given up.
        first: the exponent to start from.

    Returns:
        An exponent that was not tried; None where the best one has a worse neighbour on both sides, or where seven
        rates on both sides of the guess have failed.

    Example:
        >>> next_rate({}, 0), next_rate({0: 90.0}, 0), next_rate({0: 90.0, 1: 80.0}, 0)
        (0, 1, 2)
        >>> next_rate({0: 90.0, 1: 80.0, 2: None}, 0), next_rate({-1: 95.0, 0: 90.0, 1: 80.0, 2: None}, 0)
        (-1, None)
    """
    if not costs:
        return first
    best, low, high = best_rate(costs), min(costs), max(costs)
    if best is None:
        outwards = low - 1 if first - low <= high - first else high + 1
        return outwards if len(costs) < MOST_FAILURES else None
    if best == high:
        return high + 1
    if best == low or len(costs) < FEWEST_RATES:
        return low - 1
    return None


def best_rate(costs: Costs) -> int | None:
    """Return the exponent with the least cost, the smaller rate of two equal ones; None where all were given up."""
    reached = {exponent: cost for exponent, cost in costs.items() if cost is not None}
    return min(reached, key=lambda exponent: (reached[exponent], exponent), default=None)


def is_bracketed(costs: Costs) -> bool:
    """Return whether enough rates were tried and the best lies between two that are worse."""
    best = best_rate(costs)
    return best is not None and len(costs) >= FEWEST_RATES and min(costs) < best < max(costs)
