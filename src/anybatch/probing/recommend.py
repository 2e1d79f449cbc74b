"""Which batch size follows from memory, speed and noise?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from anybatch.decide.lr_scaling import Rule
from anybatch.probing.law import SampleLaw, StepPlan, StepTimes

Objective = Literal["time", "samples"]

CLOSE = 1.1
LARGEST_DEVICES = 2**20
LARGEST_BATCH_SIZE = 2**20


@dataclass(frozen=True)
class Setup:
    """What a recommendation is made from.

    Attributes:
        law: samples over batch size.
        times: seconds of a step over a rank's share.
        max_micro_batch_size: the largest that fits.
        min_micro_batch_size: the smallest that trains.
        num_samples: in the training set; None for a stream.
        world_size: ranks measured with.
    """

    law: SampleLaw
    times: StepTimes
    max_micro_batch_size: int
    min_micro_batch_size: int
    num_samples: int | None
    world_size: int


@dataclass(frozen=True)
class Band:
    """A predicted ratio with the interval that B_crit's gives it; None is unbounded."""

    value: float
    low: float
    high: float | None


@dataclass(frozen=True)
class CurvePoint:
    """Predicted cost of one batch size, relative to the recommended one.

    `*_low` and `*_high` come from the interval of B_crit; None is unbounded.
    """

    batch_size: int
    micro_batch_size: int
    accumulation_steps: int
    relative_time: float
    relative_time_low: float
    relative_time_high: float | None
    relative_samples: float
    relative_samples_low: float
    relative_samples_high: float | None


@dataclass(frozen=True)
class DevicePoint:
    """Predicted speed-up of several devices over one, each at its own best batch; an upper bound: perfect scaling."""

    devices: int
    batch_size: int
    micro_batch_size: int
    speedup: float
    speedup_low: float
    speedup_high: float
    efficiency: float


@dataclass(frozen=True)
class DiminishingReturns:
    """From how many devices on they are together less than half as fast as that many times one."""

    devices: int | None
    reason: str


@dataclass(frozen=True)
class Recommendation:
    """A batch size and how to make it.

    Attributes:
        batch_size: samples per optimizer step over all ranks.
        batch_size_low: the smallest size that B_crit's estimate and the ends of its interval would recommend.
        batch_size_high: the largest.
        micro_batch_size: samples per forward pass on one rank.
        accumulation_steps: forward passes per optimizer step.
        lr_scale: factor on the workload's rate; None where it is not known what batch the rate was tuned at.
        lr_rule: which rule gave it; None with `lr_scale`.
        betas: Adam's, moved with the batch; None for SGD.
        time_of_largest: predicted time at the largest batch that fits, over that at the recommended one; None where
            they are the same.
        samples_of_largest: the same for samples to target.
        reasons: number -> one sentence.
        settings: framework -> lines to copy.
    """

    batch_size: int
    batch_size_low: int
    batch_size_high: int
    micro_batch_size: int
    accumulation_steps: int
    lr_scale: float | None
    lr_rule: Rule | None
    betas: tuple[float, ...] | None
    time_of_largest: Band | None
    samples_of_largest: Band | None
    reasons: Mapping[str, str]
    settings: Mapping[str, str]


def choose_batch_size(setup: Setup, objective: Objective) -> tuple[int, int, int]:
    """Choose the batch size with the least predicted cost.

    Args:
        setup: what was measured.
        objective: "time" minimises the time to a given loss; "samples" takes the fastest of the sizes that need at most
            10 % more samples than the smallest.

    Returns:
        The choice at the estimate of B_crit, and the smallest and largest of the choices there and at the ends of
        its interval.
    """
    sizes = candidate_sizes(setup)
    choices = []
    for end in range(3):
        samples = {size: setup.law.samples(size)[end] for size in sizes}
        allowed = sizes
        if objective == "samples":
            allowed = [size for size in sizes if samples[size] <= CLOSE * samples[sizes[0]]]
        choices.append(min(allowed, key=lambda size: samples[size] * _seconds_per_sample(setup, size)))
    return choices[0], min(choices), max(choices)


def candidate_sizes(setup: Setup) -> list[int]:
    """Return the batch sizes that are compared: powers of two a rank, as far as they can matter.

    Args:
        setup: what was measured.

    Returns:
        Ascending sizes, up to the largest that fits, four times B_crit, and the training set; at least one.
    """
    ranks = setup.world_size
    upper = max(ranks * setup.max_micro_batch_size, 4 * setup.law.critical_batch_size)
    upper = min(upper, setup.num_samples or LARGEST_BATCH_SIZE)
    first = ranks * setup.min_micro_batch_size
    powers = [ranks * 2**power for power in range(32) if first <= ranks * 2**power <= upper]
    return sorted({*powers, max(first, min(ranks * setup.max_micro_batch_size, int(upper)))})


def predicted_curve(setup: Setup, reference: int) -> list[CurvePoint]:
    """Predict time and samples at every candidate size, relative to one of them.

    Args:
        setup: what was measured.
        reference: the size whose cost is 1.

    Returns:
        One point per candidate and the reference, ascending.
    """
    return [_curve_point(setup, size, reference) for size in sorted({*candidate_sizes(setup), reference})]


def sizes_close_to(curve: Sequence[CurvePoint]) -> tuple[int, int]:
    """Return the smallest and the largest size whose time is within 10 % of the best on the curve."""
    best = min(point.relative_time for point in curve)
    close = [point.batch_size for point in curve if point.relative_time <= CLOSE * best]
    return min(close), max(close)


def plan_step(setup: Setup, batch_size: int) -> StepPlan:
    """Plan how the rank with the largest share makes its part of a batch."""
    return setup.times.plan(-(-batch_size // setup.world_size))


def device_table(setup: Setup, devices: Sequence[int]) -> list[DevicePoint]:
    """Predict the best batch and the speed-up over one device for numbers of devices.

    Args:
        setup: what was measured; each device is as fast as a rank here and communication costs nothing.
        devices: numbers of devices.

    Returns:
        One point per number that the training set has samples for.
    """
    limit = setup.num_samples
    return [
        _device_point(setup, count) for count in devices if limit is None or count * setup.min_micro_batch_size <= limit
    ]


def diminishing_devices(setup: Setup) -> DiminishingReturns:
    """Find the number of devices from which on the efficiency, speed-up over devices, is below one half.

    Args:
        setup: as for `device_table`.

    Returns:
        A power of two; None where the training set or the search ends first.
    """
    count = 2
    most = min(setup.num_samples or LARGEST_DEVICES, LARGEST_DEVICES) // setup.min_micro_batch_size
    while count <= most:
        point = _device_point(setup, count)
        if point.efficiency < 0.5:
            return DiminishingReturns(
                count,
                f"{count} devices are together {point.speedup:.3g} times as fast as one, an efficiency of "
                f"{point.efficiency:.0%}, if communication costs nothing",
            )
        count *= 2
    return DiminishingReturns(None, f"up to {count // 2} devices the efficiency is at least 50%")


def _seconds_per_sample(setup: Setup, batch_size: int) -> float:
    return plan_step(setup, batch_size).seconds / batch_size


def _curve_point(setup: Setup, size: int, reference: int) -> CurvePoint:
    plan = plan_step(setup, size)
    speed = _seconds_per_sample(setup, size) / _seconds_per_sample(setup, reference)
    samples, low, high = _relative_samples(setup.law, size, reference)
    return CurvePoint(
        batch_size=size,
        micro_batch_size=plan.micro_batch_size,
        accumulation_steps=plan.accumulation_steps,
        relative_time=samples * speed,
        relative_time_low=low * speed,
        relative_time_high=high * speed,
        relative_samples=samples,
        relative_samples_low=low,
        relative_samples_high=high,
    )


def _relative_samples(law: SampleLaw, size: int, reference: int) -> tuple[float, float, float]:
    ratios = [
        _ratio(mine, other, size / reference)
        for mine, other in zip(law.samples(size), law.samples(reference), strict=True)
    ]
    return ratios[0], min(ratios), max(ratios)


def _ratio(mine: float, other: float, limit: float) -> float:
    return limit if mine == float("inf") else mine / other


def _device_point(setup: Setup, count: int) -> DevicePoint:
    shares = [2**power for power in range(24) if 2**power >= setup.min_micro_batch_size]
    shares = [share for share in shares if share <= setup.max_micro_batch_size] or [setup.min_micro_batch_size]
    limit = setup.num_samples
    fitting = [share for share in shares if limit is None or share * count <= limit]

    def seconds(devices: int, share: int, end: int) -> float:
        return setup.law.samples(devices * share)[end] * setup.times.plan(share).seconds / (devices * share)

    best = min(fitting, key=lambda share: seconds(count, share, 0))
    speedups = []
    for end in range(3):
        alone = min(seconds(1, share, end) for share in shares)
        together = min(seconds(count, share, end) for share in fitting)
        speedups.append(alone / together if together < float("inf") else 1.0)
    plan = setup.times.plan(best)
    return DevicePoint(
        devices=count,
        batch_size=count * best,
        micro_batch_size=plan.micro_batch_size,
        speedup=speedups[0],
        speedup_low=min(speedups),
        speedup_high=max(speedups),
        efficiency=speedups[0] / count,
    )
