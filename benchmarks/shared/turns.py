"""How long do several calls take, measured in turns so that other work on the machine meets all alike?"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from statistics import median

NUM_MEDIANS = 3


def seconds_of(calls: Mapping[str, Callable[[], None]], num_rounds: int) -> dict[str, float]:
    """Return the least of three medians of each call's processor time.

    Args:
        calls: by name; all of them are timed in every round, in random order.
        num_rounds: per median.

    Returns:
        Seconds by name.
    """
    medians = medians_of(calls, num_rounds)
    return {name: min(of_name) for name, of_name in medians.items()}


def medians_of(calls: Mapping[str, Callable[[], None]], num_rounds: int) -> dict[str, list[float]]:
    """Return the three medians of each call's processor time, one after another.

    Args:
        calls: as of `seconds_of`.
        num_rounds: per median.

    Returns:
        Seconds by name.
    """
    medians = [_medians(calls, num_rounds) for _ in range(NUM_MEDIANS)]
    return {name: [each[name] for each in medians] for name in calls}


def _medians(calls: Mapping[str, Callable[[], None]], num_rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(num_rounds):
        for name in random.sample(list(calls), len(calls)):
            started = time.process_time()
            calls[name]()
            seconds[name].append(time.process_time() - started)
    return {name: median(each) for name, each in seconds.items()}
