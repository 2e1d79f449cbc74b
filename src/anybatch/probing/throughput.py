"""How fast does each micro-batch size train?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

import torch
from torch import Tensor

from anybatch.errors import RunError
from anybatch.train.data import MicroBatch, SampleDraws, step_batches, to_device
from anybatch.train.loop import start_training, train_step
from anybatch.train.plan import Plan
from anybatch.train.progress import Progress
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload

KNEE_SHARE = 0.9
CALLS_PER_VISIT = 3
NUM_ROUNDS = 12
QUIET = 0.05


@dataclass(frozen=True)
class ThroughputPoint:
    """How fast one micro-batch size trains.

    Attributes:
        micro_batch_size: samples per forward pass on one rank.
        samples_per_second: over all ranks, of whole steps on a batch that lies on the device; see `quiet`.
        samples_per_second_low: from the median step.
        samples_per_second_high: from the fastest step.
        samples_per_second_with_loader: with the data loader in the loop.
        seconds_per_step: without the loader, see `quiet`.
        seconds_per_step_with_loader: in the same way.
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

    Sizes are timed in turns, a few steps each, over and over.

    Args:
        workload: what is trained.
        runtime: with more than one rank steps are data-parallel and timed together.
        max_micro_batch_size: the largest size that fits.
        min_micro_batch_size: the smallest that trains at all.
        budget: seconds; a size whose first turn would not fit into what is left of it ends the curve.
        num_workers: of the data loader.
        seed: of weights and samples.
        progress: told after each size.

    Returns:
        The curve: step times after warm-up, the slowest rank's, of the moments in which the machine was quiet.

    Raises:
        RunError: the loss is not finite.
    """
    timer = _Timer(workload, runtime, num_workers, seed)
    deadline = time.monotonic() + budget
    for size in grid(min_micro_batch_size, max_micro_batch_size):
        if timer.sizes and not runtime.all(timer.expect(size) < deadline - time.monotonic()):
            break
        timer.visit(size)
        rate = size * runtime.world_size / quiet(timer.sizes[size].without)
        progress("throughput", min(1.0, size / max_micro_batch_size), f"{size}: {rate:.0f} samples/s")
    for _ in range(NUM_ROUNDS - 1):
        for size in timer.sizes:
            if runtime.all(timer.expect(size) < deadline - time.monotonic()):
                timer.visit(size)
    return _curve([one.point(runtime.world_size) for one in timer.sizes.values()], quiet(timer.optimizer))


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


def quiet(seconds: Sequence[float]) -> float:
    """Return the time that a call takes where other work leaves the machine alone: that only ever adds.

    Args:
        seconds: of calls spread over time.

    Returns:
        The fifth percentile.

    Example:
        >>> quiet([0.5, 0.1, 0.11, 0.7])
        0.1
    """
    return sorted(seconds)[int(QUIET * len(seconds))]


@dataclass
class _TimedSize:
    """Step times of one size, over all visits."""

    micro_batch_size: int
    host_batch: list[MicroBatch]
    without: list[float] = field(default_factory=list)
    loaded: list[float] = field(default_factory=list)
    visit_seconds: float = 0.0

    def point(self, world_size: int) -> ThroughputPoint:
        num_samples = self.micro_batch_size * world_size
        fastest, least, middle = min(self.without), quiet(self.without), median(self.without)
        loaded = max(quiet(self.loaded), least)
        return ThroughputPoint(
            micro_batch_size=self.micro_batch_size,
            samples_per_second=num_samples / least,
            samples_per_second_low=num_samples / middle,
            samples_per_second_high=num_samples / fastest,
            samples_per_second_with_loader=num_samples / loaded,
            seconds_per_step=least,
            seconds_per_step_with_loader=loaded,
        )


class _Timer:
    """Times sizes in turns, so that a busy moment hits all of them alike."""

    def __init__(self, workload: Workload, runtime: Runtime, num_workers: int, seed: int) -> None:
        self.workload = workload
        self.runtime = runtime
        self.num_workers = num_workers
        self.seed = seed
        self.training = start_training(workload, runtime, seed=seed, plan=Plan(lr_scale=0.0))
        self.draws = SampleDraws(workload, runtime, seed, "throughput")
        self.sizes: dict[int, _TimedSize] = {}
        self.optimizer: list[float] = []

    def expect(self, size: int) -> float:
        """Return the seconds that a visit should take, by the last one of this size or of the largest so far."""
        known = self.sizes.get(size) or self.sizes[max(self.sizes)]
        return known.visit_seconds * size / known.micro_batch_size

    def visit(self, size: int) -> None:
        """Time a few steps of a size, on a batch that lies on the device and with the loader."""
        started = time.monotonic()
        one = self._known(size)
        on_device = [(to_device(batch, self.runtime.device), count) for batch, count in one.host_batch]
        if not one.without:
            self._check_loss(size, on_device)
        one.without += self._time(lambda: self._step(on_device))
        batches = self._batches(size)
        for _ in range(2 * self.num_workers):  # what workers fetched ahead would flatter the loader
            next(batches)
        loaded = self._time(lambda: self._step(next(batches)), num_calls=max(CALLS_PER_VISIT, 2 * self.num_workers))
        one.loaded += [fmean(loaded)] if self.num_workers else loaded  # workers deliver in bursts
        self.optimizer += self._time(lambda: self.training.optimizer.step())
        one.visit_seconds = time.monotonic() - started

    def _known(self, size: int) -> _TimedSize:
        if size not in self.sizes:
            self.sizes[size] = _TimedSize(size, self.draws.parts([size], distinct=False))
        return self.sizes[size]

    def _step(self, parts: Sequence[MicroBatch]) -> Tensor:
        return train_step(self.workload, self.runtime, self.training, parts)

    def _check_loss(self, size: int, parts: Sequence[MicroBatch]) -> None:
        loss = self._step(parts)
        if not self.runtime.all(bool(torch.isfinite(loss))):
            raise RunError(f"the loss is {float(loss)} on the first batch of {size} samples. Look at data and loss.")

    def _batches(self, size: int) -> Iterator[list[MicroBatch]]:
        return step_batches(
            self.workload,
            self.runtime,
            batch_size=size * self.runtime.world_size,
            micro_batch_size=size,
            seed=self.seed,
            num_workers=self.num_workers,
        )

    def _time(self, action: Callable[[], object], num_calls: int = CALLS_PER_VISIT) -> list[float]:
        """Return seconds per call, of the slowest rank, after a warm-up."""
        seconds = []
        for _ in range(1 + num_calls):
            self.runtime.synchronize()
            started = time.perf_counter()
            action()
            self.runtime.synchronize()
            seconds.append(time.perf_counter() - started)
        return self.runtime.max(seconds[1:])


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
