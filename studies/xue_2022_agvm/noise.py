"""How noisy is each module's gradient while a model trains, at a small and at a large batch?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from anybatch import Recipe, Workload
from anybatch.seeds import derive_seed
from anybatch.stats import GradientMoments, HalfBatches, MicroBatches, MicroBatchHalves, group_parameters
from anybatch.train.data import MicroBatch, SampleDraws
from anybatch.train.loop import Training, accumulate, start_training, train
from anybatch.train.plain import plain
from anybatch.train.preserve import preserved
from anybatch.train.randomness import seed_generators
from anybatch.train.recipes import plan_training
from anybatch.train.run import evenly_spaced
from anybatch.train.run_folder import RunFolder
from anybatch.train.runtime import Runtime

PART = 16  # images that share batch norm's statistics in every measurement
CPU = Runtime(torch.device("cpu"))
Point = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """How much is measured at each point.

    Attributes:
        small: the small batch.
        large: the large one.
        num_small: small batches that are averaged.
        num_normalized: batches of 64 over which the effect of batch norm is averaged; 0: not measured.
    """

    small: int = 32
    large: int = 512
    num_small: int = 8
    num_normalized: int = 0


@dataclass(frozen=True)
class NoiseRun:
    """A training whose noise is measured on the way.

    Attributes:
        batch_size: samples per step.
        recipe: how.
        epochs: at the workload's base batch.
        num_points: measurements, equally spaced, beside one before the first step.
        measure: how much.
        micro_batch_size: samples per forward pass of the training.
        lr_factor: on the recipe's rate.
        seed: of everything.
    """

    batch_size: int
    recipe: Recipe
    epochs: float
    num_points: int
    measure: Measure
    micro_batch_size: int = 128
    lr_factor: float = 1.0
    seed: int = 0


def follow(workload: Workload, run: NoiseRun, folder: RunFolder) -> list[Point]:
    """Train, or go on from the folder's checkpoint, and measure on the way.

    Args:
        workload: what is trained.
        run: how.
        folder: of this run alone.

    Returns:
        One entry per measurement.
    """
    assert workload.epochs is not None
    assert workload.num_samples is not None
    untrained = start_training(workload, CPU, seed=run.seed).optimizer
    plan = plan_training(run.recipe, workload, run.batch_size, untrained, run.lr_factor)
    plan = plan.stretched(run.epochs / workload.epochs)
    training = start_training(workload, CPU, seed=run.seed, plan=plan)
    points: list[Point] = []
    if (state := folder.checkpoint()) is not None:
        training.load_state_dict(state["training"])
        points = state["record"]
    last = round(run.epochs * workload.num_samples / run.batch_size)
    measured_at = {0, *evenly_spaced(last, run.num_points)}
    steps = train(
        workload,
        CPU,
        training,
        batch_size=run.batch_size,
        micro_batch_size=run.micro_batch_size,
        seed=run.seed,
    )
    lr = _rate(training)  # of the update before a point
    while True:
        is_measured = bool(points) and points[-1]["updates"] == training.num_steps
        if training.num_steps in measured_at and not is_measured:
            points.append(plain({"lr": lr, **measure_point(workload, training, run.measure, run.seed)}))
            folder.save_checkpoint({"training": training.state_dict(), "record": points})
        if training.num_steps >= last:
            return points
        lr = _rate(training)
        next(steps)


def _rate(training: Training) -> float:
    return float(training.optimizer.param_groups[0]["lr"])


def measure_point(workload: Workload, training: Training, how: Measure, seed: int) -> Point:
    """Return the noise of every module at the weights as they are, which nothing of it changes.

    Args:
        workload: what is trained.
        training: at rest between two steps.
        how: how much is measured.
        seed: of the samples, other ones at each update.

    Returns:
        Place, scales of AGVM, and per module the noise fraction of the small and the large batch, and the noise scale
        from the small one.
    """
    assert workload.num_samples is not None
    draws = SampleDraws(workload, CPU, seed, f"noise at {training.num_steps}")
    point: Point = {
        "updates": training.num_steps,
        "epochs": training.num_samples / workload.num_samples,
    }
    with preserved(training.model):
        seed_generators(derive_seed(seed, "noise", training.num_steps))
        point |= measure_modules(workload, training.model, draws, how)
        if how.num_normalized:
            batches = [draws.parts([32, 32]) for _ in range(how.num_normalized)]
            point |= normalized_together(workload, training.model, batches)
    rates = training.module_rates
    return point | {"scales": None if rates is None else dict(rates.agvm.scales)}


Measured = tuple[HalfBatches, GradientMoments]


def _measured(workload: Workload, model: nn.Module, parts: Sequence[MicroBatch]) -> Measured:
    """Return the halves and the moments of one batch."""
    halves = MicroBatchHalves(model, workload.module_prefixes)
    moments = MicroBatches(model, workload.module_prefixes)
    model.zero_grad(set_to_none=True)
    accumulate(workload, CPU, model.train(), parts, _Both(halves, moments))  # pyright: ignore[reportArgumentType]
    found = halves.finish(), moments.finish()
    model.zero_grad(set_to_none=True)
    return found


class _Both:
    """Two sources that record the same parts."""

    def __init__(self, *sources: Any) -> None:
        self._sources = sources

    def sub_batch(self, size: float, weight: float | None = None) -> ExitStack:
        stack = ExitStack()
        for source in self._sources:
            stack.enter_context(source.sub_batch(size, weight))
        return stack


def measure_modules(workload: Workload, model: nn.Module, draws: SampleDraws, how: Measure) -> Point:
    """Return the noise of every module, as `join` does, on fresh images; gradients and batch norm's statistics move."""
    small = [_measured(workload, model, draws.parts([PART] * (how.small // PART))) for _ in range(how.num_small)]
    return join(small, _measured(workload, model, draws.parts([PART] * (how.large // PART))), how.large)


def join(small: Sequence[Measured], large: Measured, large_size: int) -> Point:
    """Average small batches, numerators and denominators by themselves, and put the large one beside them.

    Args:
        small: some batches.
        large: one.
        large_size: images of that one.

    Returns:
        Per module: noise fractions, the noise scale in images, and the fraction of the large batch that follows from
        it, 1 / (1 + large_size / (2 noise scale)).
    """
    modules = small[0][0].modules
    dots = sum(halves.products for halves, _ in small)
    norms = sum(halves.sq_norms.prod(0).sqrt() for halves, _ in small)
    signal = sum(moments.grad_sq_norm() for _, moments in small)
    noise = sum(moments.grad_var_trace() for _, moments in small)
    assert isinstance(dots, torch.Tensor)
    assert isinstance(signal, torch.Tensor)
    signal = signal.clamp(min=0)
    half_noise = 2 * noise / large_size
    columns = {
        "small": 1 - dots / norms,
        "large": 1 - large[0].cosines(),
        "noise_scale": noise / signal,
        "predicted": half_noise / (signal + half_noise),
    }
    return {name: dict(zip(modules, column.tolist(), strict=True)) for name, column in columns.items()}


def normalized_together(workload: Workload, model: nn.Module, batches: Sequence[Sequence[MicroBatch]]) -> Point:
    """Compare halves that batch norm normalizes together, as synchronized ranks do, with halves by themselves.

    Args:
        workload: a segmenter, whose loss can be taken per half.
        model: in train mode.
        batches: of two halves each.

    Returns:
        Per module the noise fraction, "together" and "apart".
    """
    groups = group_parameters(model, workload.module_prefixes)
    sums = {kind: {name: [0.0, 0.0] for name in groups} for kind in ("together", "apart")}
    for halves in batches:
        for kind in sums:
            first, second = _half_gradients(model, groups, halves, together=kind == "together")
            for name in groups:
                sums[kind][name][0] += float(first[name] @ second[name])
                sums[kind][name][1] += float(first[name].norm() * second[name].norm())
    return {kind: {name: 1 - dot / norm for name, (dot, norm) in found.items()} for kind, found in sums.items()}


def _half_gradients(
    model: nn.Module, groups: dict[str, list[nn.Parameter]], halves: Sequence[MicroBatch], *, together: bool
) -> list[dict[str, torch.Tensor]]:
    images = [batch[0] for batch, _ in halves]
    truths = [torch.stack([target["semantic"] for target in batch[1]]) for batch, _ in halves]
    logits = model(torch.cat(images)).split(len(images[0])) if together else [model(part) for part in images]
    found = []
    for part, truth in zip(logits, truths, strict=True):
        parameters = [parameter for group in groups.values() for parameter in group]
        grads = iter(torch.autograd.grad(cross_entropy(part, truth), parameters, retain_graph=True))
        found.append({name: torch.cat([next(grads).flatten() for _ in group]) for name, group in groups.items()})
    return found
