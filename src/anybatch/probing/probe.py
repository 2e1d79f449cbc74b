"""Which batch size does a workload deserve? Measures memory, speed and noise and joins them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch

from anybatch.decide.noise_scale import Target
from anybatch.errors import AnybatchError, InputError, RunError
from anybatch.probing.advice import advise
from anybatch.probing.input_check import check_input
from anybatch.probing.law import StepTimes
from anybatch.probing.memory import measure_memory_limit
from anybatch.probing.memory_trials import is_out_of_memory
from anybatch.probing.noise import (
    measure_noise_along_runs,
    measure_noise_at_checkpoint,
    run_batch_size,
)
from anybatch.probing.noise_meter import MicroBatchSizes
from anybatch.probing.normalization import NormalizationError, measure_normalization_error
from anybatch.probing.recommend import Objective
from anybatch.probing.result import ProbeResult
from anybatch.probing.stored_probe import probe_once
from anybatch.probing.throughput import measure_throughput
from anybatch.seeds import derive_seed
from anybatch.stats.geometry import geometry_of
from anybatch.stats.moments import Geometry
from anybatch.train.checkpoint import load_weights, put_weights
from anybatch.train.environment import describe_environment
from anybatch.train.loop import start_training
from anybatch.train.progress import Progress, silent
from anybatch.train.randomness import seeded
from anybatch.train.runtime import Autocast, Runtime
from anybatch.workload import Workload

DOING = {
    "check": "checking the input",
    "memory": "measuring memory",
    "throughput": "measuring throughput",
    "noise_scale": "measuring the noise scale",
    "recommend": "recommending",
}
SHARES = {"memory": 0.2, "throughput": 0.3, "noise_scale": 0.5}


class ProbeInterrupted(KeyboardInterrupt):
    """Ctrl-C during a probe; `partial` holds what was measured before."""

    def __init__(self, partial: ProbeResult) -> None:
        super().__init__("the probe was interrupted")
        self.partial = partial


@dataclass(frozen=True)
class ProbeSettings:
    """What a probe was asked for; see `probe`."""

    batch_size: int | None
    objective: Objective
    devices: tuple[int, ...]
    target: Target
    memory: int | None
    budget: float
    checkpoint: str | None
    autocast: Autocast | None
    num_workers: int
    seed: int


def probe(
    workload: Workload,
    *,
    batch_size: int | None = None,
    objective: Objective = "time",
    devices: Sequence[int] = (1, 8, 64, 512),
    target: Target = "training_set",
    memory: int | None = None,
    budget: float = 60.0,
    checkpoint: str | Path | None = None,
    device: str | None = None,
    autocast: Autocast | None = None,
    num_workers: int = 0,
    seed: int = 0,
    runs: str | Path | None = None,
    progress: Progress = silent,
) -> ProbeResult:
    """Measure a workload and recommend a batch size, with a reason for every number and intervals for the estimates.

    The noise scale is that of the optimizer's own steps: Adam's geometry for Adam, AdamW, NAdam and RAdam, the plain
    gradient for all others, and at a checkpoint.

    Under torchrun every rank calls it, after `torch.distributed.init_process_group`, and gets the same result.

    Args:
        workload: what is trained.
        batch_size: say how to make this batch size and what it costs; default: recommend one.
        objective: "time" to target; "samples" takes the fastest size among those that need few samples.
        devices: numbers of devices to predict the speed-up of.
        target: whose gradient the noise scale is about, "training_set" or "population"; see `estimate_noise_scale`.
        memory: bytes that training may use on a device; default: 80 % of what is free.
        budget: seconds for all measurements together, about.
        checkpoint: weights to measure the noise scale at, instead of along a short run.
        device: as torch names it; default: CUDA where there is one, else the CPU.
        autocast: precision of forward passes; None for full precision.
        num_workers: of the data loader.
        seed: of weights and samples.
        runs: folder to keep the result in; the same call on the same machine reads it there instead of measuring. The
            training set needs a length then.
        progress: told how far each stage is.

    Returns:
        The result; `.recommendation`, `.to_json()`, `.to_html(path)`.

    Raises:
        InputError: an argument or the workload cannot be used.
        RunError: training failed. What was measured before is the exception's `partial`.
        ProbeInterrupted: Ctrl-C; what was measured before is its `partial`.

    Example:
        >>> import anybatch
        >>> from anybatch.workloads import load_workload
        >>> result = anybatch.probe(load_workload("digits"), budget=4)
        >>> result.recommendation.accumulation_steps
        1
    """
    runtime = Runtime.detect(device, autocast)
    path = None if checkpoint is None else str(checkpoint)
    settings = ProbeSettings(
        batch_size, objective, tuple(devices), target, memory, budget, path, autocast, num_workers, seed
    )
    _check(settings, workload, runtime)
    measured = _Probe(workload, runtime, settings, progress)
    if runs is None:
        return measured.run()
    about = asdict(settings)
    if measured.geometry != "sgd":  # probes that were kept before there was another are of this one
        about["geometry"] = measured.geometry
    return probe_once(workload, runtime, runs, about, measured.run)


class _Probe:
    """The stages of a probe; `result` grows by one field a stage."""

    def __init__(self, workload: Workload, runtime: Runtime, settings: ProbeSettings, progress: Progress) -> None:
        self.workload = workload
        self.runtime = runtime
        self.settings = settings
        self.progress = progress
        self.result = ProbeResult(workload.name, asdict(settings), describe_environment(runtime))
        self.min_micro_batch_size = 1
        self.weights: dict[str, torch.Tensor] | None = None

    @cached_property
    def geometry(self) -> Geometry:
        """In which the noise is measured: the optimizer's own, unless weights come without its state."""
        if self.settings.checkpoint is not None:
            return "sgd"
        with _with_sentence("check"):
            return geometry_of(start_training(self.workload, Runtime(self.runtime.device), seed=0).optimizer)

    def run(self) -> ProbeResult:
        started = time.monotonic()
        stages = (self.check, self.memory, self.throughput, self.noise_scale, self.recommend)
        try:
            with seeded(self.runtime.device, derive_seed(self.settings.seed, "probe", self.runtime.rank)):
                for stage in stages:
                    with self._timed(stage.__name__):
                        stage()
        except AnybatchError as error:
            error.partial = self._partial()
            raise
        except KeyboardInterrupt as error:
            raise ProbeInterrupted(self._partial()) from error
        seconds = {**self.result.seconds, "total": time.monotonic() - started}
        return replace(self.result, seconds=seconds)

    def check(self) -> None:
        if self.settings.checkpoint is not None:
            self.weights = load_weights(self.settings.checkpoint)
            put_weights(start_training(self.workload, Runtime(self.runtime.device), seed=0).model, self.weights)
        found = check_input(self.workload, self.runtime, seed=self.settings.seed)
        self.min_micro_batch_size = found.min_micro_batch_size
        asked, least = self.settings.batch_size, self.runtime.world_size * found.min_micro_batch_size
        if asked is not None and asked < least:
            raise InputError(f"batch_size must be at least {least} for this model's batch norms; got {asked}.")
        self.result = replace(self.result, warnings=found.warnings)
        self.progress("check", 1.0, f"{len(found.warnings)} warnings" if found.warnings else "nothing to warn of")

    def memory(self) -> None:
        limit = measure_memory_limit(
            self.workload,
            self.runtime,
            min_micro_batch_size=self.min_micro_batch_size,
            memory=self.settings.memory,
            budget=SHARES["memory"] * self.settings.budget,
            seed=self.settings.seed,
            progress=self.progress,
        )
        self.result = replace(self.result, memory=limit)
        self.progress("memory", 1.0, f"{limit.max_micro_batch_size} samples fit")

    def throughput(self) -> None:
        assert self.result.memory is not None
        curve = measure_throughput(
            self.workload,
            self.runtime,
            max_micro_batch_size=self.result.memory.max_micro_batch_size,
            min_micro_batch_size=self.min_micro_batch_size,
            budget=SHARES["throughput"] * self.settings.budget,
            num_workers=self.settings.num_workers,
            seed=self.settings.seed,
            progress=self.progress,
        )
        self.result = replace(self.result, throughput=curve)
        self.progress("throughput", 1.0, f"knee at {curve.knee}")

    def noise_scale(self) -> None:
        assert self.result.memory is not None
        common: dict[str, Any] = {
            "micro_batch_sizes": MicroBatchSizes(self.min_micro_batch_size, self.result.memory.max_micro_batch_size),
            "samples_per_second": self._samples_per_second(),
            "budget": SHARES["noise_scale"] * self.settings.budget,
            "target": self.settings.target,
            "seed": self.settings.seed,
            "progress": self.progress,
        }
        if self.weights is not None:
            model = start_training(self.workload, self.runtime, seed=self.settings.seed).model
            put_weights(model, self.weights)
            noise = measure_noise_at_checkpoint(self.workload, self.runtime, model, **common)
        else:
            workers = self.settings.num_workers
            noise = measure_noise_along_runs(
                self.workload, self.runtime, num_workers=workers, geometry=self.geometry, **common
            )
        self.result = replace(self.result, noise=noise)

    def recommend(self) -> None:
        optimizer = start_training(self.workload, Runtime(self.runtime.device), seed=self.settings.seed).optimizer
        self.result = advise(
            self.result,
            self.workload,
            optimizer,
            world_size=self.runtime.world_size,
            min_micro_batch_size=self.min_micro_batch_size,
            batch_size=self.settings.batch_size,
            objective=self.settings.objective,
            devices=self.settings.devices,
        )
        self.result = replace(self.result, normalization=self._normalization())

    def _normalization(self) -> NormalizationError | None:
        assert self.result.recommendation is not None
        model = start_training(self.workload, Runtime(self.runtime.device), seed=self.settings.seed).model
        if self.weights is not None:
            put_weights(model, self.weights)
        size = self.result.recommendation.micro_batch_size
        found = measure_normalization_error(
            self.workload, self.runtime, model, micro_batch_size=size, seed=derive_seed(self.settings.seed, "norms")
        )
        return self.runtime.broadcast(found)

    def _samples_per_second(self) -> float:
        """Return what a run may expect while the machine is as busy as it was: budgets are of the wall clock."""
        batch_size = run_batch_size(self.workload, self.runtime, self.min_micro_batch_size)
        assert self.result.memory is not None
        assert self.result.throughput is not None
        times = StepTimes(self.result.throughput, self.result.memory.max_micro_batch_size)
        busy = median(one.samples_per_second_low / one.samples_per_second for one in self.result.throughput.points)
        return busy * batch_size / times.plan(-(-batch_size // self.runtime.world_size)).seconds

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        self.progress(stage, 0.0)
        started = time.monotonic()
        try:
            with _with_sentence(stage):
                yield
        finally:
            seconds = {**self.result.seconds, stage: time.monotonic() - started}
            self.result = replace(self.result, seconds=seconds)

    def _partial(self) -> ProbeResult:
        return replace(self.result, partial=True)


@contextmanager
def _with_sentence(stage: str) -> Iterator[None]:
    """Give what the user's code raises in a stage a sentence."""
    try:
        yield
    except AnybatchError:
        raise
    except Exception as error:
        what = "memory ran out" if is_out_of_memory(error) else type(error).__name__
        raise RunError(f"{what} in {DOING[stage]}: {_first_line(error)}") from error


def _check(settings: ProbeSettings, workload: Workload, runtime: Runtime) -> None:
    for name, choices in (("objective", Objective), ("target", Target)):
        if (value := getattr(settings, name)) not in get_args(choices):
            raise InputError(f"{name} must be one of {', '.join(get_args(choices))}; got {value!r}.")
    if not 0 < settings.budget < float("inf"):
        raise InputError(f"budget must be a positive number of seconds; got {settings.budget}.")
    if any(count < 1 for count in settings.devices):
        raise InputError(f"devices must be numbers of at least 1; got {list(settings.devices)}.")
    size, ranks = workload.num_samples, runtime.world_size
    if size is not None and size < 2 * ranks:
        raise InputError(f"the training set must have 2 samples per rank; got {size} for {ranks} ranks.")
    batches = {"batch_size": settings.batch_size, "base_batch_size of the workload": workload.base_batch_size}
    for name, value in batches.items():
        if value is not None and size is not None and value > size:
            raise InputError(f"{name} must be at most the training set's {size} samples; got {value}.")
    if settings.batch_size is not None and settings.batch_size < ranks:
        raise InputError(f"batch_size must be at least the number of ranks, {ranks}; got {settings.batch_size}.")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
