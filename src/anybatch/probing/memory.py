"""What is the largest micro-batch that trains?

On an accelerator sizes are tried for real. On a CPU a trial that runs out of memory would take the process along, so
trials run in one child process, in ascending order, and its peak is watched from outside.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from anybatch.errors import InputError
from anybatch.probing.memory_trials import AcceleratorTrials, ChildTrials
from anybatch.probing.progress import Progress
from anybatch.report.wording import memory_size
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload

MEMORY_SHARE = 0.8
MAX_TRIALS = 10
STREAM_LIMIT = 65_536


@dataclass(frozen=True)
class MemoryTrial:
    """One size tried. `peak_bytes` is None where the trial died before it could be read."""

    micro_batch_size: int
    peak_bytes: int | None
    fits: bool


@dataclass(frozen=True)
class MemoryLimit:
    """The largest micro-batch that trains.

    Attributes:
        max_micro_batch_size: samples per forward pass on one rank.
        limited_by: "memory", "dataset" where all its samples fit at once, or "search" where the search ended first.
        limit_bytes: what a trial may use at its peak, safety margin taken off.
        extrapolated: whether the size lies beyond the largest trial, on the straight line through the last two.
        trials: in ascending order of size.
        reason: one sentence.
    """

    max_micro_batch_size: int
    limited_by: Literal["memory", "dataset", "search"]
    limit_bytes: int
    extrapolated: bool
    trials: tuple[MemoryTrial, ...]
    reason: str


def measure_memory_limit(
    workload: Workload,
    runtime: Runtime,
    *,
    min_micro_batch_size: int = 1,
    memory: int | None = None,
    budget: float = 15.0,
    seed: int = 0,
    progress: Progress,
) -> MemoryLimit:
    """Find the largest micro-batch that trains and evaluates, optimizer state included, on every rank.

    Trials use the largest of a few hundred samples, several steps and an evaluation.

    Args:
        workload: what is trained.
        runtime: an accelerator is tried for real; a CPU by a child process.
        min_micro_batch_size: the smallest that trains at all; 2 under some batch norms.
        memory: bytes that a rank's process may use; default: 80 % of what is free now.
        budget: seconds for trials; a CPU's limit beyond what they reach is extrapolated.
        seed: of weights and samples.
        progress: told after each trial.

    Returns:
        The limit, equal on every rank.

    Raises:
        InputError: one sample does not fit.
        RunError: a trial failed for another reason than memory.
    """
    available = memory if memory is not None else int(MEMORY_SHARE * free_bytes(runtime))
    limit = int(runtime.min([available])[0])
    num_samples = workload.num_samples
    upper = STREAM_LIMIT if num_samples is None else num_samples // runtime.world_size
    search = _search_on_cpu if runtime.device.type == "cpu" else _search_on_accelerator
    return search(workload, runtime, limit, range(min_micro_batch_size, upper + 1), budget, seed, progress)


def free_bytes(runtime: Runtime) -> int:
    """Return the memory that a new allocation of this rank could use.

    Args:
        runtime: a CUDA device is asked itself; a CPU's free memory is shared among the ranks of the machine.

    Returns:
        Bytes.
    """
    if runtime.device.type == "cuda":
        return torch.cuda.mem_get_info(runtime.device)[0]
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    cgroup = Path("/sys/fs/cgroup/memory.max")
    if cgroup.exists() and (text := cgroup.read_text().strip()).isdigit():
        free = min(free, int(text) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def largest_that_fits(fits: Callable[[int], bool], sizes: range, max_trials: int = MAX_TRIALS) -> int:
    """Find the largest size that fits, in few trials: steps of four up, then halving in ratio.

    Args:
        fits: tries one size.
        sizes: what may be tried, ascending by one.
        max_trials: at most so many calls.

    Returns:
        The largest size that was tried and fits; 0 where the first does not.

    Example:
        >>> largest_that_fits(lambda size: size <= 100, range(1, 4097))
        99
    """
    upper = sizes[-1]
    good, bad, size = 0, upper + 1, sizes[0]
    for _ in range(max_trials):
        if fits(size):
            good = size
        else:
            bad = size
        size = round((good * bad) ** 0.5) if bad <= upper else min(4 * good, upper)
        if size <= good or size >= bad:
            break
    return good


def _search_on_accelerator(
    workload: Workload,
    runtime: Runtime,
    limit: int,
    sizes: range,
    budget: float,
    seed: int,
    progress: Progress,
) -> MemoryLimit:
    tries = AcceleratorTrials(workload, runtime, seed)
    trials: list[MemoryTrial] = []

    def fits(size: int) -> bool:
        peak = tries.peak_of(size)
        ok = runtime.all(peak is not None and peak <= limit)
        trials.append(MemoryTrial(size, peak, ok))
        progress("memory", len(trials) / MAX_TRIALS, f"{size} samples {'fit' if ok else 'do not fit'}")
        return ok

    largest = largest_that_fits(fits, sizes)
    trials.sort(key=lambda one: one.micro_batch_size)
    return _memory_limit(workload, largest, limit, sizes[-1], trials, extrapolated=False)


def _search_on_cpu(
    workload: Workload,
    runtime: Runtime,
    limit: int,
    sizes: range,
    budget: float,
    seed: int,
    progress: Progress,
) -> MemoryLimit:
    trials: list[MemoryTrial] = []
    extrapolated = False
    with ChildTrials(workload, runtime, seed) as child:
        size, upper, deadline = sizes[0], sizes[-1], time.monotonic() + budget
        while True:
            started = time.monotonic()
            peak = child.peak_of(size)
            fits = runtime.all(peak is not None and peak <= limit)
            trials.append(MemoryTrial(size, peak, fits))
            progress("memory", min(size / upper, 1.0), f"{size} samples {'fit' if fits else 'do not fit'}")
            if not fits or size >= upper:
                break
            following = _next_size(trials, limit, upper)
            if following <= size:
                break
            seconds = (time.monotonic() - started) * following / size
            if not runtime.all(time.monotonic() + seconds < deadline):
                extrapolated = True
                break
            size = following
    largest = max((trial.micro_batch_size for trial in trials if trial.fits), default=0)
    if extrapolated:
        largest = max(largest, _size_at_limit(trials, limit, upper))
    largest = int(runtime.min([largest])[0])
    return _memory_limit(workload, largest, limit, upper, trials, extrapolated)


def _next_size(trials: list[MemoryTrial], limit: int, upper: int) -> int:
    """Double; near the limit go to where the straight line through the last two trials meets it."""
    size = trials[-1].micro_batch_size
    return min(2 * size, _size_at_limit(trials, limit, upper), upper)


def _size_at_limit(trials: list[MemoryTrial], limit: int, upper: int) -> int:
    if len(trials) < 2:
        return upper
    before, last = trials[-2:]
    assert before.peak_bytes is not None
    assert last.peak_bytes is not None
    slope = (last.peak_bytes - before.peak_bytes) / (last.micro_batch_size - before.micro_batch_size)
    if slope <= 0:
        return upper
    return min(upper, int(last.micro_batch_size + 0.98 * (limit - last.peak_bytes) / slope))


def _memory_limit(
    workload: Workload, largest: int, limit: int, upper: int, trials: list[MemoryTrial], extrapolated: bool
) -> MemoryLimit:
    if largest == 0:
        peak = trials[0].peak_bytes
        what = "one sample" if trials[0].micro_batch_size == 1 else f"{trials[0].micro_batch_size} samples"
        needs = f"training on it takes {memory_size(peak)}" if peak else "it does not fit"
        raise InputError(
            f"memory must hold {what}; got {memory_size(limit)}, and {needs}. "
            "Give more memory or make the model smaller."
        )
    last = trials[-1]
    if largest < upper:
        limited_by = "memory"
        reason = f"{largest} samples fit in {memory_size(limit)}"
    elif workload.num_samples is None:
        limited_by = "search"
        reason = f"{largest} samples fit in {memory_size(limit)}; the search ends there"
    else:
        limited_by = "dataset"
        reason = f"all {largest} samples of the training set fit at once in {memory_size(limit)}"
    if extrapolated:
        reason += (
            f"; tried up to {last.micro_batch_size}, the rest follows the straight line through the last two trials"
        )
    return MemoryLimit(largest, limited_by, limit, extrapolated, tuple(trials), reason)
