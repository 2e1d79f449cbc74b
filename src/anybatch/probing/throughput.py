"""How fast does each micro-batch size train?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

import torch

from anybatch.errors import RunError
from anybatch.train.data import SampleDraws, step_batches
from anybatch.train.loop import Training, start_training, to_device, train_step
from anybatch.train.plan import Plan
from anybatch.train.progress import Progress
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload

KNEE_SHARE = 0.9
NUM_WARMUP = 1
NUM_TIMED = (3, 30)


@dataclass(frozen=True)
class ThroughputPoint:
    """How fast one micro-batch size trains.

    Attributes:
        micro_batch_size: samples per forward pass on one rank.
        samples_per_second: over all ranks, of whole steps on a batch that lies on the device; from the median step.
        samples_per_second_low: from the upper quartile of the step times.
        samples_per_second_high: from the lower quartile.
        samples_per_second_with_loader: with the data loader in the loop.
        seconds_per_step: median, without the loader.
        seconds_per_step_with_loader: median.
    """

    micro_batch_size: int
    samples_per_second: float
    samples_per_second_low: float
    samples_per_second_high: float
    samples_per_second_with_loader: float
    seconds_per_step: float
    seconds_per_step_with_loader: float


@dataclass(frozen=True)
class ThroughputCurve:
    """Throughput over micro-batch sizes.

    Attributes:
        points: ascending in size.
        optimizer_seconds: what of a step does not grow with the batch and is paid once per accumulation.
        knee: the smallest size that reaches `KNEE_SHARE` of the best throughput with loader.
        reason: one sentence on the knee.
    """

    points: tuple[ThroughputPoint, ...]
    optimizer_seconds: float
    knee: int
    reason: str


def measure_throughput(
    workload: Workload,
    runtime: Runtime,
    *,
    max_micro_batch_size: int,
    min_micro_batch_size: int = 1,
    budget: float = 20.0,
    num_workers: int = 0,
    seed: int = 0,
    progress: Progress,
) -> ThroughputCurve:
    """Time training steps at micro-batch sizes 1, 2, 4, ... and the largest, as far as the budget goes.

    Args:
        workload: what is trained.
        runtime: with more than one rank steps are data-parallel and timed together.
        max_micro_batch_size: the largest size that fits.
        min_micro_batch_size: the smallest that trains at all.
        budget: seconds; a size that would not fit into what is left of it ends the curve.
        num_workers: of the data loader.
        seed: of weights and samples.
        progress: told after each size.

    Returns:
        The curve: median step times after warm-up, the slowest rank's.

    Raises:
        RunError: the loss is not finite.
    """
    training = start_training(workload, runtime, seed=seed, plan=Plan(lr_scale=0.0))
    draws = SampleDraws(workload, runtime, seed, "throughput")
    deadline = time.monotonic() + budget
    points: list[ThroughputPoint] = []
    optimizer_seconds = 0.0
    for size in grid(min_micro_batch_size, max_micro_batch_size):
        allowed = max((deadline - time.monotonic()) / 4, 0.05)
        if points and not runtime.all(_affordable(points, size, deadline - time.monotonic())):
            break
        point = _time_size(workload, runtime, training, draws, size, allowed, num_workers, seed)
        if not points:
            optimizer_seconds = _time_optimizer(runtime, training)
        points.append(point)
        progress(
            "throughput",
            min(1.0, size / max_micro_batch_size),
            f"{size}: {point.samples_per_second:.0f} samples/s",
        )
    return _curve(points, optimizer_seconds)


def grid(smallest: int, largest: int) -> list[int]:
    """Return the powers of two from `smallest` to `largest`, and `largest`.

    Args:
        smallest: at least 1.
        largest: at least `smallest`.

    Returns:
        Ascending sizes.

    Example:
        >>> grid(1, 12)
        [1, 2, 4, 8, 12]
    """
    powers = [2**power for power in range(largest.bit_length()) if smallest <= 2**power < largest]
    return [*powers, largest]


def _affordable(points: list[ThroughputPoint], size: int, seconds_left: float) -> bool:
    last = points[-1]
    per_step = last.seconds_per_step + last.seconds_per_step_with_loader
    return (NUM_WARMUP + NUM_TIMED[0]) * per_step * size / last.micro_batch_size < seconds_left


def _time_size(
    workload: Workload,
    runtime: Runtime,
    training: Training,
    draws: SampleDraws,
    size: int,
    allowed: float,
    num_workers: int,
    seed: int,
) -> ThroughputPoint:
    fixed = [(to_device(batch, runtime.device), count) for batch, count in draws.parts([size], distinct=False)]
    batches = step_batches(
        workload,
        runtime,
        batch_size=size * runtime.world_size,
        micro_batch_size=size,
        seed=seed,
        num_workers=num_workers,
    )
    loss = train_step(workload, runtime, training, fixed)
    if not runtime.all(bool(torch.isfinite(loss))):
        raise RunError(f"the loss is {float(loss)} on the first batch of {size} samples. Look at data and loss.")
    without = _time(runtime, allowed, lambda: train_step(workload, runtime, training, fixed))
    for _ in range(2 * num_workers):  # what workers fetched ahead would flatter the loader
        next(batches)
    loaded = _time(runtime, allowed, lambda: train_step(workload, runtime, training, next(batches)))
    low, _, high = quantiles(without, n=4)
    middle, middle_loaded = median(without), max(median(loaded), median(without))
    num_samples = size * runtime.world_size
    return ThroughputPoint(
        micro_batch_size=size,
        samples_per_second=num_samples / middle,
        samples_per_second_low=num_samples / high,
        samples_per_second_high=num_samples / low,
        samples_per_second_with_loader=num_samples / middle_loaded,
        seconds_per_step=middle,
        seconds_per_step_with_loader=middle_loaded,
    )


def _time_optimizer(runtime: Runtime, training: Training) -> float:
    def step() -> None:
        training.optimizer.step()

    return median(_time(runtime, 0.1, step))


def _time(runtime: Runtime, allowed: float, action: Callable[[], object]) -> list[float]:
    """Return seconds per call, of the slowest rank: `NUM_TIMED` calls within `allowed` seconds, after warm-up."""
    for _ in range(NUM_WARMUP):
        action()
    runtime.synchronize()
    seconds: list[float] = []
    fewest, most = NUM_TIMED
    until = time.perf_counter() + allowed
    while len(seconds) < fewest or (len(seconds) < most and runtime.all(time.perf_counter() < until)):
        started = time.perf_counter()
        action()
        runtime.synchronize()
        seconds.append(time.perf_counter() - started)
    return runtime.max(seconds)


def _curve(points: Sequence[ThroughputPoint], optimizer_seconds: float) -> ThroughputCurve:
    best = max(points, key=lambda point: point.samples_per_second_with_loader)
    enough = KNEE_SHARE * best.samples_per_second_with_loader
    knee = next(point for point in points if point.samples_per_second_with_loader >= enough)
    reason = (
        f"{knee.micro_batch_size} is the smallest size within {1 - KNEE_SHARE:.0%} of the best throughput, "
        f"{best.samples_per_second_with_loader:.0f} samples/s at {best.micro_batch_size}"
    )
    return ThroughputCurve(
        tuple(points), min(optimizer_seconds, points[0].seconds_per_step), knee.micro_batch_size, reason
    )
