"""Is the loss a mean over samples, and does accumulating micro-batches equal one large batch?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from anybatch.errors import InputError, RunError
from anybatch.probing.memory_trials import is_out_of_memory
from anybatch.stats.groups import group_parameters
from anybatch.train.data import MicroBatch, SampleDraws, collate, to_device
from anybatch.train.loop import accumulate, require_scalar, start_training
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload

TOLERANCE = 1e-3
NUM_SAMPLES = 8


@dataclass(frozen=True)
class ProbeWarning:
    """What makes accumulation differ from a large batch, or the advice uncertain.

    Attributes:
        cause: a few words.
        message: one or two sentences.
        relative_difference: norm of the gradients' difference over the norm of the large batch's; None where it
            is not a measured one.
    """

    cause: str
    message: str
    relative_difference: float | None = None


NOT_CHECKED = ProbeWarning(
    "not checked",
    "Two samples do not fit in memory at once, so whether the loss is a mean and whether accumulation equals a large "
    "batch could not be checked.",
)


@dataclass(frozen=True)
class InputCheck:
    """What a first look at the workload found.

    Attributes:
        min_micro_batch_size: 1, or 2 where a single sample has no finite gradient, as under some batch norms.
        warnings: what makes accumulation differ from a large batch.
    """

    min_micro_batch_size: int
    warnings: tuple[ProbeWarning, ...]


NOTHING_FITS = InputCheck(1, (NOT_CHECKED,))


def check_input(workload: Workload, runtime: Runtime, *, seed: int = 0) -> InputCheck:
    """Compare one batch with its halves accumulated, in full precision and with dropout off, and find the cause.

    Args:
        workload: what is checked.
        runtime: each rank checks for itself.
        seed: of weights and samples.

    Returns:
        The smallest micro-batch and the warnings.

    Raises:
        InputError: module prefixes do not fit the model, or the loss is not a scalar with a gradient, or is summed
            over samples.
        RunError: the loss is not finite.
    """
    alone = Runtime(runtime.device)
    model = start_training(workload, alone, seed=seed).model
    _check_modules(workload, model)
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.eval()
    num_samples = min(NUM_SAMPLES, (workload.num_samples or NUM_SAMPLES) // 2 * 2)
    samples = SampleDraws(workload, alone, seed, "check").samples(num_samples, distinct=False)
    return _look(workload, alone, model, samples)


def _look(workload: Workload, runtime: Runtime, model: nn.Module, samples: list[Any]) -> InputCheck:
    try:
        _refuse_bad_loss(workload, runtime, model, samples[:2])
        smallest = 1 if _trains_on_one(workload, runtime, model, samples) else 2
        comparable = len(samples) // 2 >= smallest
        return InputCheck(smallest, tuple(_compare(workload, runtime, model, samples)) if comparable else ())
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return _look(workload, runtime, model, samples[: len(samples) // 2]) if len(samples) >= 4 else NOTHING_FITS


def _check_modules(workload: Workload, model: nn.Module) -> None:
    try:
        group_parameters(model, workload.module_prefixes)
    except ValueError as error:
        raise InputError(str(error)) from error


def _refuse_bad_loss(workload: Workload, runtime: Runtime, model: nn.Module, samples: list[object]) -> None:
    def loss_of(times: int) -> Any:
        return workload.loss(model, to_device(collate(workload, samples * times), runtime.device))

    once = require_scalar(loss_of(1)).item()
    with torch.no_grad():
        twice, thrice = loss_of(2).item(), loss_of(3).item()
    if not all(map(_is_finite, (once, twice, thrice))):
        raise RunError(f"the loss is {once} on the first batch, before any step. Look at the data and the loss.")
    if _close(twice, 2 * once, 0.1) and _close(thrice, 3 * once, 0.1):  # wide, since dropout may be on
        raise InputError(
            "the loss is sum-reduced: it doubles when the batch is doubled. Return the mean over samples "
            "(reduction='mean')."
        )


def _trains_on_one(workload: Workload, runtime: Runtime, model: nn.Module, samples: list[object]) -> bool:
    try:
        gradient = _gradient(workload, runtime, model, [(collate(workload, samples[:1]), 1)])
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        return False
    return bool(gradient.isfinite().all())


def _compare(workload: Workload, runtime: Runtime, model: nn.Module, samples: list[object]) -> Iterable[ProbeWarning]:
    half = len(samples) // 2
    whole: list[MicroBatch] = [(collate(workload, samples), len(samples))]
    halves = [(collate(workload, part), half) for part in (samples[:half], samples[half:])]

    def difference() -> float:
        large = _gradient(workload, runtime, model, whole)
        return float((_gradient(workload, runtime, model, halves) - large).norm() / large.norm())

    first = _gradient(workload, runtime, model, whole)
    if float((_gradient(workload, runtime, model, whole) - first).norm()) > TOLERANCE * float(first.norm()):
        yield ProbeWarning(
            "random draws",
            "The same batch gives two gradients, so the loss draws random numbers outside dropout layers; whether "
            "accumulation equals a large batch could not be checked.",
        )
        return
    with_all = difference()
    if with_all <= TOLERANCE:
        return
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    for norm in norms:
        norm.eval()
    without_norms = difference() if norms else with_all
    if norms and without_norms < with_all / 2:
        yield ProbeWarning(
            "BatchNorm in train mode",
            f"{len(norms)} batch norms take their statistics from each micro-batch, so accumulation does not equal "
            "a large batch and small micro-batches are noisy. Use GroupNorm, or keep the micro-batch large.",
            with_all,
        )
    if without_norms > TOLERANCE:
        yield ProbeWarning(
            "the loss couples samples",
            "The gradient of a batch is not the mean of its halves' gradients: the loss compares samples or divides "
            "by a count that varies. Accumulation changes the objective; give what it divides by as batch_size_of.",
            without_norms,
        )


def _gradient(workload: Workload, runtime: Runtime, model: nn.Module, micro_batches: list[MicroBatch]) -> Tensor:
    model.zero_grad(set_to_none=True)
    accumulate(workload, runtime, model, micro_batches)
    grads = [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([grad.flatten() for grad in grads]).double()


def _close(value: float, other: float, tolerance: float) -> bool:
    return abs(value - other) < tolerance * abs(other)


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")
