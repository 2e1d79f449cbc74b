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
from anybatch.machine_memory import container_bytes, physical_bytes
from anybatch.probing.child_trials import ChildTrials
from anybatch.probing.memory_trials import AcceleratorTrials, release_cached
from anybatch.report.wording import memory_size
from anybatch.train.progress import Progress
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload

MEMORY_SHARE = 0.8
MAX_TRIALS = 10
STREAM_LIMIT = 65_536
SAFETY = 0.98
FEWEST_TO_EXTRAPOLATE = 4
FURTHEST_EXTRAPOLATION = 32


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
    release_cached(runtime.device)
    available = memory if memory is not None else int(MEMORY_SHARE * free_bytes(runtime))
    limit = int(runtime.min([available])[0])
    num_samples = workload.num_samples
    upper = STREAM_LIMIT if num_samples is None else num_samples // runtime.world_size
    search = _search_on_cpu if runtime.device.type == "cpu" else _search_on_accelerator
    return search(workload, runtime, limit, range(min_micro_batch_size, upper + 1), budget, seed, progress)


def free_bytes(runtime: Runtime) -> int:
    """Return the memory that this rank's process could use, with what it holds already on a CPU.

    Args:
        runtime: a CUDA device is asked itself; a CPU's free memory is shared among the ranks of the machine.

    Returns:
        Bytes.
    """
    if runtime.device.type == "cuda":
        return torch.cuda.mem_get_info(runtime.device)[0]
    free = physical_bytes() or 0
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    limit = container_bytes()
    if limit is not None:
        free = min(free, limit - _cgroup_bytes_in_use())
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) + _resident_bytes()


def _cgroup_bytes_in_use() -> int:
    """Return what a container holds without the file cache, which gives way."""
    stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
    return int(Path("/sys/fs/cgroup/memory.current").read_text()) - int(stat.get("inactive_file", 0))


def _resident_bytes() -> int:
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def largest_that_fits(
    fits: Callable[[int], bool],
    sizes: range,
    max_trials: int = MAX_TRIALS,
    go_on: Callable[[], bool] = lambda: True,
) -> int:
    """Find a size that fits, close to the largest that does, in few trials: steps of four up, then halving in ratio.

    Args:
        fits: tries one size.
        sizes: what may be tried, ascending by one.
        max_trials: at most so many calls.
        go_on: asked after each trial whether there is time for another one.

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
        if size <= good or size >= bad or not go_on():
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
        trials.append(_agreed_trial(runtime, limit, size, tries.peak_of(size)))
        fit = trials[-1].fits
        progress("memory", len(trials) / MAX_TRIALS, f"{size} samples {'fit' if fit else 'do not fit'}")
        return fit

    deadline = time.monotonic() + budget
    largest = largest_that_fits(fits, sizes, go_on=lambda: runtime.all(time.monotonic() < deadline))
    trials.sort(key=lambda one: one.micro_batch_size)
    return _memory_limit(workload, largest, limit, sizes[-1], trials)


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

    def fits(child: ChildTrials, size: int) -> bool:
        trials.append(_agreed_trial(runtime, limit, size, child.peak_of(size)))
        progress("memory", min(size / sizes[-1], 1.0), f"{size} samples {'fit' if trials[-1].fits else 'do not fit'}")
        return trials[-1].fits

    extrapolated = at_limit = False
    size, upper = sizes[0], sizes[-1]
    with ChildTrials(workload, runtime, seed) as child:
        started = time.monotonic()  # once the model stands and samples are read
        deadline = started + budget
        while fits(child, size) and size < upper:
            following = _next_size(trials, limit, upper)
            seconds = (time.monotonic() - started) * following / size
            if at_limit := following == size:
                break
            if not runtime.all(time.monotonic() + seconds < deadline):
                extrapolated = True
                break
            size, started = following, time.monotonic()
    if len(trials) > 1 and (between := _size_between(trials[-2], trials[-1], limit)) is not None:
        with ChildTrials(workload, runtime, seed) as child:  # a fresh one, whose peak is its own
            fits(child, between)
    largest = max((trial.micro_batch_size for trial in trials if trial.fits), default=0)
    if extrapolated:
        largest = max(largest, _extrapolated_size(trials, limit, upper))
        extrapolated = largest > trials[-1].micro_batch_size
    trials.sort(key=lambda trial: trial.micro_batch_size)
    return _memory_limit(workload, largest, limit, upper, trials, extrapolated=extrapolated, at_limit=at_limit)


def _agreed_trial(runtime: Runtime, limit: int, size: int, peak: int | None) -> MemoryTrial:
    """Take the worst of the ranks, so that all go on with the same size."""
    if not runtime.all(peak is not None):
        return MemoryTrial(size, None, False)
    worst = int(runtime.max([peak or 0])[0])
    return MemoryTrial(size, worst, worst <= limit)


def _next_size(trials: list[MemoryTrial], limit: int, upper: int) -> int:
    """Double; near the limit go to where the straight line through the last two trials meets it."""
    size = trials[-1].micro_batch_size
    at_limit = _size_at_limit(trials[-2], trials[-1], limit) if len(trials) > 1 else None
    return max(size, min(2 * size, upper, 2 * size if at_limit is None else at_limit))


def _size_between(good: MemoryTrial, bad: MemoryTrial, limit: int) -> int | None:
    """Return a size to try between one that fits and one that does not; None where there is no such pair or size."""
    if bad.fits or not good.fits:
        return None
    first, last = good.micro_batch_size + 1, bad.micro_batch_size - 1
    on_line = _size_at_limit(good, bad, limit)
    size = round((first * last) ** 0.5) if on_line is None else on_line
    return min(max(size, first), last) if first <= last else None


def _extrapolated_size(trials: list[MemoryTrial], limit: int, upper: int) -> int:
    """Follow the straight line through the last two of several trials, not further than it can be trusted."""
    at_limit = _size_at_limit(trials[-2], trials[-1], limit) if len(trials) >= FEWEST_TO_EXTRAPOLATE else None
    return 0 if at_limit is None else min(at_limit, upper, FURTHEST_EXTRAPOLATION * trials[-1].micro_batch_size)


def _size_at_limit(before: MemoryTrial, last: MemoryTrial, limit: int) -> int | None:
    if before.peak_bytes is None or last.peak_bytes is None or last.peak_bytes <= before.peak_bytes:
        return None
    slope = (last.peak_bytes - before.peak_bytes) / (last.micro_batch_size - before.micro_batch_size)
    return int(last.micro_batch_size + (SAFETY * limit - last.peak_bytes) / slope)


def _memory_limit(
    workload: Workload,
    largest: int,
    limit: int,
    upper: int,
    trials: list[MemoryTrial],
    *,
    extrapolated: bool = False,
    at_limit: bool = False,
) -> MemoryLimit:
    if largest == 0:
        raise InputError(_too_small(trials[0], limit))
    limited_by: Literal["memory", "dataset", "search"] = "memory"
    reason = f"{largest} samples fit in {memory_size(limit)}"
    if largest >= upper and workload.num_samples is not None:
        limited_by = "dataset"
        reason = f"all {largest} samples of the training set fit at once in {memory_size(limit)}"
    elif all(trial.fits for trial in trials) and not extrapolated and not at_limit:
        limited_by = "search"
        reason += "; the search ended there, more may fit"
    if extrapolated:
        reason += (
            f"; tried to {trials[-1].micro_batch_size}, the rest follows the straight line through the last two trials"
        )
    return MemoryLimit(largest, limited_by, limit, extrapolated, tuple(trials), reason)


def _too_small(first: MemoryTrial, limit: int) -> str:
    what = "one sample" if first.micro_batch_size == 1 else f"{first.micro_batch_size} samples"
    needs = f"training on it takes {memory_size(first.peak_bytes)}" if first.peak_bytes else "it does not fit"
    return f"memory must hold {what}; got {memory_size(limit)}, and {needs}. Give more, or make the model smaller."
