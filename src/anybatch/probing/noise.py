"""How does the noise scale move along a short run?"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from anybatch.decide.noise_scale import NoiseScale, Target, average_noise_scale, pool_runs
from anybatch.probing.noise_meter import STEPS_PER_ROUND, MicroBatchSizes, NoiseMeter, StoppingRule
from anybatch.seeds import derive_seed
from anybatch.stats.moments import Geometry
from anybatch.train.evaluate import evaluate
from anybatch.train.loop import start_training, train
from anybatch.train.plan import Plan
from anybatch.train.progress import Progress
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload

POINTS = (0.0, 1 / 64, 1 / 32, 3 / 64, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0)
STRIDES = (1, 2, 4)  # every so many points where the budget holds no more
STEP_SIZES = (16, 128)  # the least that a point is planned with, and the most that it starts with
DEFAULT_RUN_BATCH_SIZE = 32
FEWEST_RUNS = 3
MOST_RUNS = 5
EVAL_BATCH_SIZE = 256
EVAL_SHARE = 0.1
DEFAULT_EPOCHS = 3


@dataclass(frozen=True)
class NoisePoint:
    """The noise scale at one point of a run.

    Attributes:
        num_samples: trained on before it.
        loss: mean over the samples measured with.
        noise_scale: at these weights.
    """

    num_samples: int
    loss: float
    noise_scale: NoiseScale


@dataclass(frozen=True)
class NoiseCurve:
    """The noise scale along short runs, and what it amounts to.

    Attributes:
        points: of the first run, in the order of training; a single one for a checkpoint.
        more_points: those of each further run.
        runs: each run's harmonic mean over its small-batch samples.
        average: the runs' harmonic mean; with 3 runs or more its interval holds the spread between runs.
        batch_size: of the runs; None for a checkpoint.
        lr_scale: factor on the workload's rate during the runs.
        share_of_training: how much of the workload's epochs a run covers; None where epochs are unknown.
        size_per_sample: what one sample counts, where a batch's size counts tokens or boxes; else 1.
        metrics: the workload's own at the end of the first run, on its evaluation set or as many samples of it as the
            budget allows; empty where it has none.
        reason: one sentence.
    """

    points: tuple[NoisePoint, ...]
    runs: tuple[NoiseScale, ...]
    average: NoiseScale
    batch_size: int | None
    lr_scale: float
    share_of_training: float | None
    size_per_sample: float
    metrics: Mapping[str, float]
    reason: str
    more_points: tuple[tuple[NoisePoint, ...], ...] = ()

    def average_to(self, loss: float) -> NoiseScale:
        """Return the runs' harmonic mean over the way down to a loss: the noise scale grows on the way.

        Args:
            loss: where each run is cut, between two points; one that does not get there counts as a whole.

        Returns:
            The mean; of a checkpoint its one point.
        """
        if self.batch_size is None:
            return self.average
        means = [average(points, self.batch_size, until=loss) for points in (self.points, *self.more_points)]
        return pool_runs(means) if len(means) > 1 else means[0]


def measure_noise_along_runs(
    workload: Workload,
    runtime: Runtime,
    *,
    micro_batch_sizes: MicroBatchSizes,
    samples_per_second: float,
    budget: float = 30.0,
    target: Target = "training_set",
    geometry: Geometry = "sgd",
    fractions: Sequence[float] = POINTS,
    num_workers: int = 0,
    seed: int = 0,
    progress: Progress,
) -> NoiseCurve:
    """Train with a small batch and measure the noise scale at some points on the way.

    A run goes through the workload's epochs where half the budget allows it; points are denser at its start, where
    the noise scale moves fastest. At each point the weights rest while as many samples are drawn as the interval
    needs, up to the point's share of the budget; measuring leaves no trace in the run. Where the budget holds at
    least 3 whole runs, up to 5 are made, each with its own weights and order of samples.

    Args:
        workload: what is trained.
        runtime: with more than one rank each rank draws its own samples.
        micro_batch_sizes: the smallest that trains and the largest that fits.
        samples_per_second: that a run may expect at its batch size.
        budget: seconds for runs and measurements.
        target: see `estimate_noise_scale`.
        geometry: "sgd", or "adam" for an optimizer of its kind, whose first point follows its first step.
        fractions: of a run, ascending to 1, that are measured at; where the budget holds fewer, every second or fourth.
        num_workers: of the data loader.
        seed: of weights and samples.
        progress: told at each point.

    Returns:
        The points and their harmonic mean.

    Raises:
        InputError: geometry "adam" with another optimizer.
        RunError: the loss or the gradients are not finite.
    """
    batch_size = run_batch_size(workload, runtime, micro_batch_sizes.smallest)
    num_samples, share = _run_length(workload, batch_size, samples_per_second * budget / 2)
    num_runs = _num_runs(num_samples / samples_per_second, share, budget)
    fractions, step_size = _measuring_plan(fractions, samples_per_second * budget / 2 / num_runs)
    plan = _RunPlan(
        batch_size=batch_size,
        num_samples=num_samples,
        fractions=fractions,
        step_size=step_size,
        micro_batch_sizes=micro_batch_sizes,
        samples_per_second=samples_per_second,
        budget=budget / num_runs,
        target=target,
        geometry=geometry,
        num_workers=num_workers,
    )
    runs: list[list[NoisePoint]] = []
    metrics: dict[str, float] = {}
    size_per_sample = 1.0
    for index in range(num_runs):

        def told(stage: str, fraction: float, text: str = "", done: int = index) -> None:
            progress(stage, (done + fraction) / num_runs, text)

        points, meter, model = _run(workload, runtime, plan, derive_seed(seed, "run", index), told)
        runs.append(points)
        if not index:
            size_per_sample = meter.size_per_sample
            most = int(EVAL_SHARE * budget * samples_per_second) + EVAL_BATCH_SIZE
            size = min(micro_batch_sizes.largest, EVAL_BATCH_SIZE)
            metrics = evaluate(workload, runtime, model, batch_size=size, max_samples=most, seed=seed)
    averages = tuple(average(points, batch_size) for points in runs)
    mean = pool_runs(averages) if len(runs) > 1 else averages[0]
    lr_scale = run_lr_scale(workload, batch_size)
    reason = _why(runs, mean, batch_size, share)
    more = tuple(tuple(points) for points in runs[1:])
    return NoiseCurve(
        tuple(runs[0]), averages, mean, batch_size, lr_scale, share, size_per_sample, metrics, reason, more
    )


def measure_noise_at_checkpoint(
    workload: Workload,
    runtime: Runtime,
    model: nn.Module,
    *,
    micro_batch_sizes: MicroBatchSizes,
    samples_per_second: float,
    budget: float = 30.0,
    target: Target = "training_set",
    seed: int = 0,
    progress: Progress,
) -> NoiseCurve:
    """Measure the noise scale at given weights only.

    Args:
        workload: whose data and loss.
        runtime: with more than one rank each rank draws its own samples.
        model: with the checkpoint's weights, in DistributedDataParallel where there are ranks.
        micro_batch_sizes: the smallest that trains and the largest that fits.
        samples_per_second: that measuring may expect.
        budget: seconds.
        target: see `estimate_noise_scale`.
        seed: of samples.
        progress: told at the end.

    Returns:
        A single point.

    Raises:
        RunError: the loss or the gradients are not finite.
    """
    step_size = _step_size(samples_per_second * budget / STEPS_PER_ROUND)
    part_size = _part_size(
        model, run_batch_size(workload, runtime, micro_batch_sizes.smallest), runtime, micro_batch_sizes
    )
    meter = NoiseMeter(workload, runtime, model, micro_batch_sizes, step_size, target, seed, part_size)
    loss, noise = meter.measure(budget, StoppingRule())
    progress("noise_scale", 1.0, _in_short(noise))
    reason = f"at the checkpoint's weights, with a loss of {loss:.3g}, from {noise.num_steps} steps"
    reason = reason if noise.value is not None else f"{reason}: {noise.reason}"
    return NoiseCurve(
        (NoisePoint(0, loss, noise),), (noise,), noise, None, 1.0, None, meter.size_per_sample, {}, reason
    )


def run_batch_size(workload: Workload, runtime: Runtime, min_micro_batch_size: int = 1) -> int:
    """Return the batch of the small-batch run: a quarter of the one the rate was tuned at, or 32.

    Args:
        workload: with or without a base batch size.
        runtime: every rank gets at least one micro-batch.
        min_micro_batch_size: the smallest that trains.

    Returns:
        Samples per step over all ranks.
    """
    base = workload.base_batch_size
    wanted = DEFAULT_RUN_BATCH_SIZE if base is None else max(base // 4, 1)
    return max(min(wanted, workload.num_samples or wanted), runtime.world_size * min_micro_batch_size)


def run_lr_scale(workload: Workload, batch_size: int) -> float:
    """Return the factor on the workload's rate at a run's batch: the square root rule, or 1 where nothing is known."""
    return 1.0 if workload.base_batch_size is None else math.sqrt(batch_size / workload.base_batch_size)


def average(points: Sequence[NoisePoint], batch_size: int, until: float = -math.inf) -> NoiseScale:
    """Average the noise scale over the stretches between points, by the small-batch samples each stands for.

    A stretch of n samples at batch b and noise scale s stands for n / (1 + b / s) samples of a very small batch.

    Args:
        points: in the order of training.
        batch_size: of the run.
        until: the loss at which the run is cut, where it first gets there; default: it is taken as a whole.

    Returns:
        The harmonic mean, see `average_noise_scale`.
    """
    weights = [0.0] * len(points)
    for index, (before, after) in enumerate(pairwise(points)):
        if before.loss <= until:
            break
        share = 1.0 if after.loss > until else (before.loss - until) / (before.loss - after.loss)
        inverse = max(0.0, (1 - share / 2) * before.noise_scale.inverse + share / 2 * after.noise_scale.inverse)
        stretch = share * (after.num_samples - before.num_samples) / (1 + batch_size * inverse)
        weights[index] += stretch * (1 - share / 2)
        weights[index + 1] += stretch * share / 2
    return average_noise_scale([point.noise_scale for point in points], weights if any(weights) else _first(points))


@dataclass(frozen=True)
class _RunPlan:
    batch_size: int
    num_samples: int
    fractions: Sequence[float]
    step_size: int
    micro_batch_sizes: MicroBatchSizes
    samples_per_second: float
    budget: float
    target: Target
    geometry: Geometry
    num_workers: int


def _run(
    workload: Workload, runtime: Runtime, plan: _RunPlan, seed: int, progress: Progress
) -> tuple[list[NoisePoint], NoiseMeter, nn.Module]:
    lr_scale = run_lr_scale(workload, plan.batch_size)
    training = start_training(workload, runtime, seed=seed, plan=Plan(lr_scale=lr_scale))
    part_size = _part_size(training.model, plan.batch_size, runtime, plan.micro_batch_sizes)
    meter = NoiseMeter(
        workload,
        runtime,
        training.model,
        plan.micro_batch_sizes,
        plan.step_size,
        plan.target,
        seed,
        part_size,
        plan.geometry,
        training.optimizer,
    )
    steps = train(
        workload,
        runtime,
        training,
        batch_size=plan.batch_size,
        micro_batch_size=plan.micro_batch_sizes.largest,
        seed=seed,
        num_workers=plan.num_workers,
    )
    started = time.monotonic()
    points: list[NoisePoint] = []
    if plan.geometry == "adam":
        next(steps)  # before it there are no second moments
    for index, fraction in enumerate(plan.fractions):
        while training.num_samples < fraction * plan.num_samples:
            next(steps)
        if points and points[-1].num_samples == training.num_samples:
            continue
        ahead = (1 - fraction) * plan.num_samples / plan.samples_per_second
        left = runtime.min([plan.budget - (time.monotonic() - started)])[0] - ahead
        rule = StoppingRule(average(points, plan.batch_size).inverse if points else 0.0)
        loss, noise = meter.measure(left / (len(plan.fractions) - index), rule)
        points.append(NoisePoint(training.num_samples, loss, noise))
        progress("noise_scale", (index + 1) / len(plan.fractions), f"loss {loss:.3g}: {_in_short(noise)}")
    return points, meter, training.model


def _run_length(workload: Workload, batch_size: int, affordable: float) -> tuple[int, float | None]:
    affordable = max(affordable, batch_size)
    if workload.num_samples is None:
        return int(affordable), None
    planned = (workload.epochs or DEFAULT_EPOCHS) * workload.num_samples
    length = min(planned, affordable)
    return int(length), None if workload.epochs is None else length / planned


def _first(points: Sequence[NoisePoint]) -> list[float]:
    return [1.0, *[0.0] * (len(points) - 1)]


def _part_size(model: nn.Module, batch_size: int, runtime: Runtime, sizes: MicroBatchSizes) -> int | None:
    """Return the run's own micro-batch where batch norm makes gradients depend on it."""
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return None
    return max(sizes.smallest, min(batch_size // runtime.world_size, sizes.largest))


def _measuring_plan(fractions: Sequence[float], affordable: float) -> tuple[Sequence[float], int]:
    """Return the points and the first step size that a number of samples to measure with allows."""
    for stride in STRIDES:
        points = fractions[::-stride][::-1]
        if affordable >= len(points) * STEPS_PER_ROUND * STEP_SIZES[0]:
            return points, _step_size(affordable / len(points) / STEPS_PER_ROUND)
    return fractions[-1:], _step_size(affordable / STEPS_PER_ROUND)


def _step_size(affordable: float) -> int:
    """Return the power of two below what one step may cost in samples, within limits."""
    return max(4, min(2 ** int(math.log2(max(affordable, 1.0))), STEP_SIZES[1]))


def _num_runs(seconds: float, share: float | None, budget: float) -> int:
    """Return how many whole runs of `seconds` of training fit; below 3 their spread says little, so 1."""
    fitting = int(budget / 2 / max(seconds, 1e-9)) if share == 1 else 1
    return min(fitting, MOST_RUNS) if fitting >= FEWEST_RUNS else 1


def _why(runs: list[list[NoisePoint]], mean: NoiseScale, batch_size: int, share: float | None) -> str:
    first, last = runs[0][0], runs[0][-1]
    cover = "" if share is None else f", {share:.0%} of the workload's epochs"
    path = f"{last.num_samples} samples at batch {batch_size}, loss {first.loss:.3g} to {last.loss:.3g}{cover}"
    if len(runs) == 1:
        text = f"the harmonic mean over a run of {path}; its interval is for this run, another seed would move it"
    else:
        text = f"the harmonic mean over {len(runs)} runs of {path}; its interval is from the spread between them"
    if mean.geometry == "adam":
        text += "; in Adam's geometry"
    return text if mean.value is not None else f"{text}; {mean.reason}"


def _in_short(noise: NoiseScale) -> str:
    if noise.value is not None:
        return f"noise scale {noise.value:.3g} ({noise.low:.3g} to {noise.high:.3g})"
    return f"noise scale at least {noise.at_least or 0:.3g}"
