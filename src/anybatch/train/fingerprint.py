"""When is a workload the same one as before?"""

from __future__ import annotations

import hashlib
import math
import pickle
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from anybatch.apply.sample_stream import Keys
from anybatch.errors import InputError
from anybatch.train.data import SeededDataset, to_device
from anybatch.train.loop import Training, require_scalar, start_training
from anybatch.train.randomness import seeded
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload

NUM_SAMPLES = 32


def fingerprint(workload: Workload, runtime: Runtime) -> str:
    """Return a short text that changes when what is trained does.

    It looks at behaviour, since code cannot be compared: the model's structure, the optimizer with its settings,
    regime and schedule, the size of both sets with some of their samples, and loss, gradient and metric of the fresh
    model on those. Its blind spot is a change that none of these shows, such as one in samples that were not looked at.

    Args:
        workload: what is trained.
        runtime: where; the model is built once.

    Returns:
        16 hexadecimal digits.

    Raises:
        InputError: the training set is a stream.

    Example:
        >>> from anybatch.workloads import load_workload
        >>> len(fingerprint(load_workload("digits"), Runtime.detect("cpu")))
        16
    """
    if workload.num_samples is None:
        raise InputError(
            "train_set must have a length for runs to be kept; got a stream. Keep none, or take a part of it."
        )
    alone = Runtime(runtime.device, autocast=runtime.autocast)
    training = start_training(workload, alone, seed=0)
    batch = _some(workload, workload.train_set)
    parts: list[Any] = [
        workload.name,
        [(name, tuple(value.shape), str(value.dtype)) for name, value in training.model.state_dict().items()],
        re.sub(r" at 0x[0-9a-f]+", "", str(training.model)),
        str(training.optimizer),
        _groups(training),
        (workload.base_batch_size, workload.epochs, rates_by_epoch(workload, alone)),
        [_content(workload, dataset) for dataset in (workload.train_set, workload.eval_set)],
        *_behaviour(workload, alone, training.model, batch),
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _groups(training: Training) -> list[list[str]]:
    """Return the names of the parameters in each group of the optimizer."""
    names = {id(parameter): name for name, parameter in training.model.named_parameters()}
    groups = training.optimizer.param_groups
    return [[names.get(id(parameter), "?") for parameter in group["params"]] for group in groups]


def rates_by_epoch(workload: Workload, runtime: Runtime) -> list[list[float]]:
    """Return the rate of every parameter group at the start and after each epoch: a schedule by what it does."""
    if workload.num_samples is None or workload.epochs is None:
        return []
    training = start_training(workload, runtime, seed=0)
    training.optimizer.step()  # without gradients it does nothing, but schedulers want to see it
    rates = []
    for epoch in range(math.ceil(workload.epochs) + 1):
        training.scheduler.advance(epoch * workload.num_samples)
        rates.append([float(group["lr"]) for group in training.optimizer.param_groups])
    return rates


def _content(workload: Workload, dataset: Dataset[Any] | None) -> tuple[int, str] | None:
    if dataset is None or isinstance(dataset, IterableDataset):
        return None
    return len(dataset), _digest(_some(workload, dataset))  # pyright: ignore[reportArgumentType]


def _some(workload: Workload, dataset: Dataset[Any]) -> Any:
    """Return a batch of samples spread over a set."""
    size = len(dataset)  # pyright: ignore[reportArgumentType]
    indices = np.unique(np.linspace(0, size - 1, min(size, NUM_SAMPLES)).astype(np.int64))
    return SeededDataset(workload, dataset, seed=0).__getitems__(Keys(np.zeros_like(indices), indices))


def _digest(batch: Any) -> str:
    """Return a digest of a nested batch; what is neither a tensor nor plain counts by its type."""
    if isinstance(batch, Tensor):
        return hashlib.sha256(pickle.dumps(batch.detach().cpu().float().numpy())).hexdigest()
    if isinstance(batch, dict):
        return repr([(key, _digest(value)) for key, value in batch.items()])
    if isinstance(batch, list | tuple):
        return repr([_digest(value) for value in batch])
    return repr(batch) if isinstance(batch, int | float | str | bool) else type(batch).__name__


def _behaviour(workload: Workload, runtime: Runtime, model: nn.Module, batch: Any) -> list[str]:
    """Return loss, norm of the gradient and metric on a batch, to three digits, which rounding rarely moves."""
    moved = to_device(batch, runtime.device)
    with seeded(runtime.device, 0):
        with runtime.precision():
            loss = require_scalar(workload.loss(model.train(), moved))
        loss.backward()
        figures = {"loss": loss.item(), "gradient": nn.utils.clip_grad_norm_(model.parameters(), math.inf).item()}
        if workload.metric is not None:
            metric = workload.metric()
            with torch.no_grad(), runtime.precision():
                metric.update(model.eval(), moved)
            figures |= metric.compute()
    if workload.batch_size_of is not None:
        figures["size"] = workload.batch_size_of(batch)
    return [f"{name} {float(value):.3g}" for name, value in figures.items()]
