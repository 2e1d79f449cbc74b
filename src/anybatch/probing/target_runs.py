"""How long does a run take to a target loss?"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from anybatch.probing.target import LossPoint, crossing_of
from anybatch.seeds import derive_seed
from anybatch.train.evaluate import evaluate
from anybatch.train.loop import Training, start_training, train
from anybatch.train.plan import Plan
from anybatch.train.randomness import kept_generators
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload

Status = Literal["reached", "not reached", "diverged", "out of time", "done"]
GROWTH = 1.05  # from one evaluation to the next, in samples: as many of them on a slow way as on a fast one
EVAL_BATCH_SIZE = 512
LOST = 4.0  # times the way down, by which a loss that has risen counts as diverged
PATIENCE = 0.25  # of the samples allowed, after which the loss must be below its start


@dataclass(frozen=True)
class TargetRun:
    """What one run is.

    Attributes:
        batch_size: samples per step over all ranks.
        micro_batch_size: at most so many per forward pass and rank.
        lr_scale: factor on the workload's rate, which stays constant.
        seed: of weights and order.
        target_loss: ends the run; None: it goes through all its samples.
        spacing: samples between two evaluations, at least.
        eval_samples: training samples that the loss is taken on, the same ones each time.
    """

    batch_size: int
    micro_batch_size: int
    lr_scale: float
    seed: int
    target_loss: float | None
    spacing: int
    eval_samples: int


@dataclass(frozen=True)
class Limits:
    """Where a run gives up: samples trained on, and seconds with evaluations."""

    samples: float
    seconds: float


@dataclass(frozen=True)
class RunRecord:
    """What became of a run.

    Attributes:
        status: "reached" its target; "not reached" within its samples; "diverged"; "out of time"; "done" of a run
            without a target.
        samples: to the target, or seen.
        seconds: of training alone: to the target, or spent.
        cost: seconds with evaluations.
        limits: that it had.
        curve: the loss at each evaluation.
    """

    status: Status
    samples: float
    seconds: float
    cost: float
    limits: Limits
    curve: tuple[LossPoint, ...]

    def answers(self, limits: Limits) -> bool:
        """Return whether another run within these limits could tell nothing new."""
        if self.status in ("out of time", "not reached"):
            is_short = self.limits.seconds < limits.seconds if self.status == "out of time" else False
            return not is_short and self.limits.samples >= limits.samples
        return True


def run_to_target(
    workload: Workload, runtime: Runtime, run: TargetRun, limits: Limits, *, num_workers: int = 0
) -> RunRecord:
    """Train at a constant rate until the loss on a fixed draw of training samples reaches the target.

    Evaluations are taken out of the time. They stand a twentieth of the samples apart, so the first one below the
    target is found as finely on a long way as on a short one, and lies between the two by interpolation.

    Args:
        workload: its schedule is left out.
        runtime: device, precision and ranks.
        run: what is trained.
        limits: where it gives up.
        num_workers: of the data loader.

    Returns:
        The record, equal on every rank.
    """
    with kept_generators(runtime.device):
        return _Way(replace(workload, schedule=None, metric=None), runtime, run, limits, num_workers).go()


class _Way:
    def __init__(self, workload: Workload, runtime: Runtime, run: TargetRun, limits: Limits, num_workers: int) -> None:
        self.workload = workload
        self.runtime = runtime
        self.run = run
        self.limits = limits
        self.seed = derive_seed(run.seed, "run to target")
        self.training: Training = start_training(workload, runtime, seed=self.seed, plan=Plan(lr_scale=run.lr_scale))
        self.steps = train(
            workload,
            runtime,
            self.training,
            batch_size=run.batch_size,
            micro_batch_size=run.micro_batch_size,
            seed=self.seed,
            num_workers=num_workers,
        )

    def go(self) -> RunRecord:
        started = time.monotonic()
        curve = [LossPoint(0, 0.0, self._loss())]
        cost = 0.0
        while (status := status_of(self.run, self.limits, curve, cost)) is None:
            seconds = curve[-1].seconds + self._advance(next_evaluation(self.run, self.training.num_samples))
            curve.append(LossPoint(self.training.num_samples, seconds, self._loss()))
            cost = self.runtime.max([time.monotonic() - started])[0]
        reached = crossing_of(curve, self.run.target_loss) if self.run.target_loss is not None else None
        samples, seconds = reached or (float(curve[-1].samples), curve[-1].seconds)
        return RunRecord(status, samples, seconds, cost, self.limits, tuple(curve))

    def _advance(self, num_samples: int) -> float:
        """Train up to so many samples; return the slowest rank's seconds."""
        started = time.perf_counter()
        while self.training.num_samples < num_samples:
            next(self.steps)
        self.runtime.synchronize()
        return self.runtime.max([time.perf_counter() - started])[0]

    def _loss(self) -> float:
        return training_loss(self.workload, self.runtime, self.training.model, self.run.eval_samples)


def training_loss(workload: Workload, runtime: Runtime, model: nn.Module, num_samples: int) -> float:
    """Return the mean loss on a fixed draw of training samples, in eval mode.

    Args:
        workload: without a metric.
        runtime: each rank takes its share.
        model: left as it was.
        num_samples: of a smaller set all are taken.

    Returns:
        The loss.
    """
    size = min(num_samples, EVAL_BATCH_SIZE)
    found = evaluate(
        workload,
        runtime,
        model,
        batch_size=size,
        max_samples=num_samples,
        dataset=workload.train_set,
        with_loss=True,
    )
    return found["loss"]


def next_evaluation(run: TargetRun, num_samples: int) -> int:
    """Return after how many samples the next is due: a step, the spacing or, on the way to a target, a twentieth later.

    Args:
        run: what it is.
        num_samples: so far.

    Returns:
        Samples.
    """
    later = num_samples if run.target_loss is None else math.ceil(GROWTH * num_samples)
    return max(num_samples + run.batch_size, num_samples + run.spacing, later)


def status_of(run: TargetRun, limits: Limits, curve: Sequence[LossPoint], cost: float) -> Status | None:
    """Judge a run by its curve so far.

    Args:
        run: what it is.
        limits: where it gives up.
        curve: from the untrained model on.
        cost: seconds so far.

    Returns:
        How it ends; None while it goes on.
    """
    first, last = curve[0], curve[-1]
    if not math.isfinite(last.loss):
        return "diverged"
    if run.target_loss is not None:
        if last.loss <= run.target_loss:
            return "reached"
        has_risen = last.loss - first.loss > LOST * (first.loss - run.target_loss)
        is_stuck = last.samples > PATIENCE * limits.samples and last.loss >= first.loss
        if has_risen or is_stuck:
            return "diverged"
    if last.samples >= limits.samples:
        return "done" if run.target_loss is None else "not reached"
    return "out of time" if cost > limits.seconds else None
