"""Measurements made up for the tests of what follows from them."""

from collections.abc import Callable, Sequence
from typing import Any

from anybatch.decide.noise_scale import NoiseScale
from anybatch.probing.law import SampleLaw, StepTimes
from anybatch.probing.recommend import Setup
from anybatch.probing.throughput import ThroughputCurve, ThroughputPoint

POWERS = tuple(2**power for power in range(13))


def curve_of(
    seconds: Callable[[float], float], sizes: Sequence[int] = POWERS, optimizer_seconds: float = 0.0
) -> ThroughputCurve:
    """A throughput curve whose step of B samples takes seconds(B)."""
    points = []
    for size in sizes:
        rate = size / seconds(size)
        points.append(ThroughputPoint(size, rate, rate, rate, rate, seconds(size), seconds(size)))
    return ThroughputCurve(tuple(points), optimizer_seconds, sizes[0], "made up")


def noise_of(value: float | None, low: float = 0.0, high: float | None = None, **changes: Any) -> NoiseScale:
    """A noise scale of the whole model."""
    fields: dict[str, Any] = {
        "value": value,
        "low": low,
        "high": high,
        "verdict": "undetermined" if value is None else "measured",
        "at_least": None,
        "steps_to_settle": None,
        "inverse": 0.0 if value is None else 1 / value,
        "inverse_std_error": 0.0,
        "num_steps": 16,
        "num_skipped": 0,
        "confidence": 0.95,
        "target": "training_set",
        **changes,
    }
    return NoiseScale(**fields)


def setup_of(
    seconds: Callable[[float], float],
    law: SampleLaw,
    *,
    largest: int = 4096,
    smallest: int = 1,
    num_samples: int | None = None,
    world_size: int = 1,
    optimizer_seconds: float = 0.0,
) -> Setup:
    """A setup with the powers of two up to the largest micro-batch timed."""
    sizes = [size for size in POWERS if smallest <= size < largest] + [largest]
    times = StepTimes(curve_of(seconds, sizes, optimizer_seconds), largest)
    return Setup(law, times, largest, smallest, num_samples, world_size)


def law_of(critical: float, low: float | None = None, high: float | None = None) -> SampleLaw:
    return SampleLaw(critical, critical if low is None else low, high, "made up")
