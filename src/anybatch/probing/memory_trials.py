"""How is one micro-batch size tried, and which samples fill it?"""

from __future__ import annotations

import gc
import math
import time
from typing import Any

import torch

from anybatch.train.data import SampleDraws, collate, to_device
from anybatch.train.loop import Training, start_training, train_step
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload

NUM_SAMPLES_SCANNED = 256
NUM_SAMPLES_KEPT = 8
SECONDS_OF_SCAN = 1.0


class AcceleratorTrials:
    """Trains and evaluates on the device itself, anew for each size."""

    def __init__(self, workload: Workload, runtime: Runtime, seed: int) -> None:
        self._workload = workload
        self._runtime = Runtime(runtime.device, autocast=runtime.autocast)
        self._has_ranks = runtime.world_size > 1
        self._seed = seed
        self._samples = worst_case_samples(workload, seed)

    def peak_of(self, size: int) -> int | None:
        """Return the peak in bytes, None where memory ran out."""
        device = self._runtime.device
        release_cached(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            self._try(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None
        return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0

    def _try(self, size: int) -> None:
        training = start_training(self._workload, self._runtime, seed=self._seed)
        buckets = [torch.empty_like(p) for p in training.model.parameters()] if self._has_ranks else []
        try_size(self._workload, self._runtime, training, self._samples, size)
        del buckets  # what DistributedDataParallel would hold


def release_cached(device: torch.device) -> None:
    """Give what the allocator keeps for later back to a CUDA device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def try_size(
    workload: Workload,
    runtime: Runtime,
    training: Training,
    samples: list[Any],
    size: int,
    num_steps: int = 2,
) -> None:
    """Take training steps and an evaluation at one micro-batch size.

    Args:
        workload: what is trained.
        runtime: of one rank.
        training: changed by the steps.
        samples: repeated to fill the batch.
        size: micro-batch size.
        num_steps: training steps; the second one finds the optimizer's state allocated.
    """
    batch = collate(workload, [samples[index % len(samples)] for index in range(size)])
    for _ in range(num_steps):
        train_step(workload, runtime, training, [(batch, size)])
    training.model.eval()
    with torch.no_grad(), runtime.precision():
        workload.loss(training.model, to_device(batch, runtime.device))
    training.model.train()
    runtime.synchronize()


def worst_case_samples(workload: Workload, seed: int) -> list[Any]:
    """Return the few largest of as many samples as a second allows, some hundred at most, by tensor elements.

    Args:
        workload: whose training set is drawn from.
        seed: of the draw.

    Returns:
        At most 8 samples, the largest first.
    """
    draws = SampleDraws(workload, Runtime(torch.device("cpu")), seed, "memory")
    most = min(NUM_SAMPLES_SCANNED, workload.num_samples or NUM_SAMPLES_SCANNED)
    samples: list[Any] = []
    until = time.monotonic() + SECONDS_OF_SCAN
    for sample in draws.one_by_one(most):
        samples.append(sample)
        if time.monotonic() > until:
            break
    return sorted(samples, key=_num_elements, reverse=True)[:NUM_SAMPLES_KEPT]


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an allocator, of the device or of the host, said that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in ("out of memory", "can't allocate memory", "alloc_failed"))


def _num_elements(sample: Any) -> int:
    if hasattr(sample, "numel"):
        return sample.numel()
    if isinstance(sample, dict):
        return sum(_num_elements(value) for value in sample.values())
    if isinstance(sample, list | tuple):
        return sum(_num_elements(value) for value in sample)
    size = getattr(sample, "size", 1)  # of a NumPy array; of a PIL image it is (width, height)
    return math.prod(size) if isinstance(size, tuple) else size if isinstance(size, int) else 1
