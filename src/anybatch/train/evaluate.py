"""How good is a model on the evaluation set?"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from anybatch.stats.groups import unwrap
from anybatch.train.data import collate, derive_seed
from anybatch.train.loop import to_device
from anybatch.train.preserve import preserved
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload


def evaluate(
    workload: Workload, runtime: Runtime, model: nn.Module, *, batch_size: int, max_samples: int, seed: int = 0
) -> dict[str, float]:
    """Count the workload's metric over its evaluation set, each sample at most once, in eval mode.

    Args:
        workload: with `eval_set` and `metric`.
        runtime: each of W ranks takes every W-th sample; counts are merged.
        model: left as it was.
        batch_size: samples per forward pass; the figures do not depend on it.
        max_samples: of a larger set so many are drawn; of a stream the first so many are taken.
        seed: of that draw.

    Returns:
        Figure by name, equal on every rank; empty where the workload has no evaluation set or metric.

    Example:
        >>> from anybatch.train.loop import start_training
        >>> from anybatch.workloads import load_workload
        >>> workload, runtime = load_workload("digits"), Runtime.detect("cpu")
        >>> model = start_training(workload, runtime, seed=0).model
        >>> 0 <= evaluate(workload, runtime, model, batch_size=64, max_samples=360)["accuracy"] <= 1
        True
    """
    if workload.eval_set is None or workload.metric is None:
        return {}
    metric = workload.metric()
    samples = islice(_samples(workload.eval_set, max_samples, seed), runtime.rank, None, runtime.world_size)
    inner = unwrap(model)
    with preserved(inner), torch.no_grad(), runtime.precision():
        inner.eval()
        while batch := list(islice(samples, batch_size)):
            metric.update(inner, to_device(collate(workload, batch), runtime.device))
    if runtime.world_size > 1:
        gathered: list[Any] = [None] * runtime.world_size
        dist.all_gather_object(gathered, metric)
        metric, *others = gathered
        for other in others:
            metric.merge(other)
    return {name: float(value) for name, value in metric.compute().items()}


def _samples(dataset: Dataset[Any], max_samples: int, seed: int) -> Iterator[Any]:
    if isinstance(dataset, IterableDataset):
        return islice(dataset, max_samples)
    size = len(dataset)  # pyright: ignore[reportArgumentType]
    drawn = random.Random(derive_seed(seed, "eval")).sample(range(size), min(size, max_samples))
    return (dataset[index] for index in drawn)
