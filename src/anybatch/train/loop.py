"""How is a step taken, and the next? The one training loop: accumulate, step, repeat; alone or under torchrun."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from anybatch.errors import InputError
from anybatch.stats.sub_batches import SubBatchSource
from anybatch.train.data import MicroBatch, derive_seed, step_batches
from anybatch.train.runtime import Runtime
from anybatch.workload import Milestones, Workload


@dataclass
class Training:
    """A model under training: what a step changes."""

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler | None = None
    num_steps: int = 0
    num_samples: int = 0


def start_training(workload: Workload, runtime: Runtime, *, seed: int, lr_scale: float = 1.0) -> Training:
    """Build the model and its optimizer, equal on every rank.

    Args:
        workload: what is trained.
        runtime: device; with more than one rank the model is wrapped in DistributedDataParallel.
        seed: of the initial weights; the global random state is left as it was.
        lr_scale: factor on every parameter group's rate.

    Returns:
        The training, at step 0, in train mode.

    Raises:
        InputError: `model` or `optimizer` returns something else, or the model has nothing to train.
    """
    on_cuda = runtime.device.type == "cuda"
    with torch.random.fork_rng(devices=[runtime.device] if on_cuda else []):
        torch.manual_seed(derive_seed(seed, "init"))
        model = workload.model()
    if not isinstance(model, nn.Module):
        raise InputError(f"model of a Workload must return an nn.Module; got {type(model).__name__}.")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError("the model must have a trainable parameter; got none. Set requires_grad on some.")
    model = model.to(runtime.device)
    optimizer = workload.optimizer(model)
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"optimizer of a Workload must return an Optimizer; got {type(optimizer).__name__}.")
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * lr_scale
    if runtime.world_size > 1:
        model = DistributedDataParallel(model, device_ids=[runtime.device] if on_cuda else None)
    return Training(model.train(), optimizer, _scheduler(workload, optimizer))


def train(
    workload: Workload,
    runtime: Runtime,
    training: Training,
    *,
    batch_size: int,
    micro_batch_size: int | None = None,
    seed: int,
    num_workers: int = 0,
) -> Iterator[Tensor]:
    """Train without end, one step per item; what runs between two items sees the model at rest.

    Args:
        workload: what is trained.
        runtime: device, precision and ranks.
        training: from `start_training`; each step changes it.
        batch_size: samples per step over all ranks.
        micro_batch_size: at most so many per forward pass; the rest is accumulated. Default: no accumulation.
        seed: of the order of samples.
        num_workers: of the data loader.

    Yields:
        The step's mean loss on this rank, a scalar that is not waited for.

    Raises:
        InputError: a batch that does not fit the training set or the ranks, or a loss that cannot be used.
    """
    batches = step_batches(
        workload,
        runtime,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size or batch_size,
        seed=seed,
        num_workers=num_workers,
    )
    for micro_batches in batches:
        loss = train_step(workload, runtime, training, micro_batches)
        _count_samples(workload, training, batch_size)
        yield loss


def train_step(workload: Workload, runtime: Runtime, training: Training, micro_batches: Sequence[MicroBatch]) -> Tensor:
    """Take one optimizer step on this rank's micro-batches.

    Args:
        workload: what is trained.
        runtime: device, precision and ranks.
        training: changed in place.
        micro_batches: (batch, number of samples) each.

    Returns:
        The mean loss on this rank, a scalar.

    Raises:
        InputError: a loss that is not a scalar with a gradient.
    """
    training.optimizer.zero_grad(set_to_none=True)
    loss = accumulate(workload, runtime, training.model, micro_batches)
    training.optimizer.step()
    training.num_steps += 1
    return loss


def accumulate(
    workload: Workload,
    runtime: Runtime,
    model: nn.Module,
    micro_batches: Sequence[MicroBatch],
    source: SubBatchSource | None = None,
) -> Tensor:
    """Add up the gradient of the mean loss over all micro-batches of all ranks in `p.grad`.

    Args:
        workload: whose loss it is.
        runtime: device, precision and ranks.
        model: its gradients are added to.
        micro_batches: (batch, number of samples) each, of this rank.
        source: records each part, where given.

    Returns:
        The mean loss over this rank's parts, a scalar.

    Raises:
        InputError: a loss that is not a scalar with a gradient.
    """
    sizes = [
        float(count if workload.batch_size_of is None else workload.batch_size_of(batch))
        for batch, count in micro_batches
    ]
    total = runtime.sum([sum(sizes)])[0]
    losses = []
    for index, ((batch, _), size) in enumerate(zip(micro_batches, sizes, strict=True)):
        weight = size * runtime.world_size / total
        with _averaging(model, last=index == len(sizes) - 1):
            with runtime.precision():
                loss = require_scalar(workload.loss(model, to_device(batch, runtime.device)))
            with nullcontext() if source is None else source.sub_batch(size, weight):
                (loss * weight).backward()
        losses.append(loss.detach() * (size / sum(sizes)))
    return torch.stack(losses).sum()


def require_scalar(loss: Any) -> Tensor:
    """Return the loss if it is a scalar with a gradient.

    Args:
        loss: what a workload's loss function returned.

    Returns:
        The loss.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(loss, Tensor):
        raise InputError(f"loss of a Workload must return a scalar Tensor; got {type(loss).__name__}.")
    if loss.ndim:
        raise InputError(
            f"loss of a Workload must return a scalar; got shape {tuple(loss.shape)}. Take the mean over samples."
        )
    if not loss.requires_grad:
        raise InputError("loss of a Workload must depend on the model's parameters; it has no gradient.")
    return loss


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor of a nested batch; whatever else it holds stays as it is.

    Args:
        batch: tensors, mutable mappings, lists, tuples, named tuples, dataclasses, or objects with a `to` method.
        device: where to.

    Returns:
        The same structure.
    """
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, MutableMapping):
        moved = copy.copy(batch)
        for key, value in batch.items():
            moved[key] = to_device(value, device)
        return moved
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        names = [field.name for field in dataclasses.fields(batch) if field.init]
        return dataclasses.replace(batch, **{name: to_device(getattr(batch, name), device) for name in names})
    return batch


def _scheduler(workload: Workload, optimizer: Optimizer) -> LRScheduler | None:
    if isinstance(workload.schedule, Milestones):
        return LambdaLR(optimizer, workload.schedule.factor)
    return None if workload.schedule is None else workload.schedule(optimizer)


def _count_samples(workload: Workload, training: Training, batch_size: int) -> None:
    """Count a step's samples, and step the schedule at the end of an epoch."""
    before = training.num_samples
    training.num_samples += batch_size
    if training.scheduler is not None:
        assert workload.num_samples is not None
        for _ in range(training.num_samples // workload.num_samples - before // workload.num_samples):
            training.scheduler.step()


def _averaging(model: nn.Module, *, last: bool) -> AbstractContextManager[object]:
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()
