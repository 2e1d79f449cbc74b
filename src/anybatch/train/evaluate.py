"""How good is a model on a set of samples?"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from anybatch.apply.sample_stream import Keys
from anybatch.seeds import derive_seed
from anybatch.stats.groups import unwrap
from anybatch.train.data import MicroBatch, SeededDataset, collate, size_of, to_device
from anybatch.train.preserve import preserved
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload


def evaluate(
    workload: Workload,
    runtime: Runtime,
    model: nn.Module,
    *,
    batch_size: int,
    max_samples: int,
    seed: int = 0,
    dataset: Dataset[Any] | None = None,
    with_loss: bool = False,
) -> dict[str, float]:
    """Count the workload's metric over its evaluation set, each sample at most once, in eval mode.

    Args:
        workload: whose metric it is.
        runtime: each of W ranks takes every W-th sample; counts are merged.
        model: left as it was.
        batch_size: samples per forward pass; the figures do not depend on it.
        max_samples: of a larger set so many are drawn; of a stream the first so many are taken.
        seed: of that draw, and of what the set draws.
        dataset: other samples than the workload's `eval_set`.
        with_loss: whether the workload's mean loss is taken too, as "loss".

    Returns:
        Figure by name, equal on every rank; empty where there is nothing to evaluate on, or nothing asked for.

    Example:
        >>> from anybatch.train.loop import start_training
        >>> from anybatch.workloads import load_workload
        >>> workload, runtime = load_workload("digits"), Runtime.detect("cpu")
        >>> model = start_training(workload, runtime, seed=0).model
        >>> 0 <= evaluate(workload, runtime, model, batch_size=64, max_samples=360)["accuracy"] <= 1
        True
    """
    dataset = workload.eval_set if dataset is None else dataset
    if dataset is None or (workload.metric is None and not with_loss):
        return {}
    metric = None if workload.metric is None else workload.metric()
    total = size = 0.0
    inner = unwrap(model)
    with preserved(inner), torch.no_grad(), runtime.precision():
        inner.eval()
        if runtime.world_size > 1:  # each rank has normalized its own samples; rank 0's statistics are what is saved
            for buffer in inner.buffers():
                dist.broadcast(buffer, src=0)
        for batch, count in _batches(workload, runtime, dataset, batch_size, max_samples, seed):
            moved = to_device(batch, runtime.device)
            if metric is not None:
                metric.update(inner, moved)
            if with_loss:
                weight = size_of(workload, batch, count)
                total += float(workload.loss(inner, moved)) * weight
                size += weight
    figures = {} if metric is None else _merged(metric, runtime).compute()
    if with_loss:
        total, size = runtime.sum([total, size])
        figures = {"loss": total / size if size else float("nan"), **figures}
    return {name: float(value) for name, value in figures.items()}


def _merged(metric: Any, runtime: Runtime) -> Any:
    if runtime.world_size == 1:
        return metric
    gathered: list[Any] = [None] * runtime.world_size
    dist.all_gather_object(gathered, metric)
    metric, *others = gathered
    for other in others:
        metric.merge(other)
    return metric


def _batches(
    workload: Workload, runtime: Runtime, dataset: Dataset[Any], batch_size: int, max_samples: int, seed: int
) -> Iterator[MicroBatch]:
    if isinstance(dataset, IterableDataset):
        samples = islice(dataset, runtime.rank, max_samples, runtime.world_size)
        while batch := list(islice(samples, batch_size)):
            yield collate(workload, batch), len(batch)
        return
    population = len(dataset)  # pyright: ignore[reportArgumentType]
    drawn = range(population)
    if max_samples < population:
        drawn = random.Random(derive_seed(seed, "eval")).sample(range(population), max_samples)
    own = np.asarray(drawn, dtype=np.int64)[runtime.rank :: runtime.world_size]
    batches = SeededDataset(workload, dataset, derive_seed(seed, "eval draws"))
    for start in range(0, len(own), batch_size):
        indices = own[start : start + batch_size]
        yield batches.__getitems__(Keys(np.zeros_like(indices), indices)), len(indices)
