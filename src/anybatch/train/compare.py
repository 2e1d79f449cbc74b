"""Which recipe keeps a workload as good at a large batch as at its own?"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from anybatch.apply.sample_stream import StreamShares
from anybatch.decide.distance_law import DistanceLaw, fit_distance_law
from anybatch.errors import AnybatchError, InputError, RunError, StoppedError
from anybatch.stats.weight_distance import log_spaced
from anybatch.train.comparison import Comparison, RankedBy, Run, join_runs
from anybatch.train.environment import describe_environment
from anybatch.train.evaluate import evaluate
from anybatch.train.fingerprint import fingerprint, rates_by_epoch
from anybatch.train.loop import start_training
from anybatch.train.plain import plain
from anybatch.train.progress import Progress, silent
from anybatch.train.recipes import FAMILIES, Recipe, base_rate, find_recipes, large_regime, plan_training
from anybatch.train.run import RunSettings, run_training
from anybatch.train.run_folder import RunFolder
from anybatch.train.runtime import Runtime
from anybatch.train.stop import StopRequest
from anybatch.workload import Milestones, Workload

MIN_POINTS = 8  # of a fit
Autocast = Literal["bfloat16"]
SECONDS_BETWEEN_TRIES = 2.0  # to get a run that another process holds


def compare(
    workload: Workload,
    batch_sizes: Sequence[int],
    recipes: Sequence[str | Recipe] = ("plain", "sqrt", "regime"),
    *,
    seeds: int = 3,
    lr_factors: Sequence[float] = (1.0,),
    epochs: float | None = None,
    runs: str | Path = "runs",
    micro_batch_size: int | None = None,
    num_evaluations: int = 20,
    max_eval_samples: int = 10_000,
    checkpoint_seconds: float = 30.0,
    device: str | None = None,
    autocast: Autocast | None = None,
    num_workers: int = 0,
    tensorboard: bool = False,
    finished_only: bool = False,
    progress: Progress = silent,
) -> Comparison:
    """Train a workload by several recipes at several batch sizes and put the results side by side.

    Every run has a folder under `runs`, named after its batch size, seed and a digest of all that decides it. A run
    that is finished is read, one that was killed goes on from its checkpoint, and several processes given the same
    call share the work. Under torchrun every rank calls it, after `torch.distributed.init_process_group`.

    Args:
        workload: with `eval_set`, `base_batch_size` and `epochs`.
        batch_sizes: samples per step over all ranks.
        recipes: names of built-in recipes, `path/to/file.py:NAME`, or recipes.
        seeds: how many, from 0 on.
        lr_factors: factors on each recipe's rate that are all tried; the table marks the best and the untuned one.
        epochs: train so many at the base batch size instead of the workload's own; its schedule moves in proportion.
        runs: folder of all runs.
        micro_batch_size: at most so many samples per forward pass and rank; the rest is accumulated. None: no limit.
        num_evaluations: per run, equally spaced, on the evaluation set and on as many training samples.
        max_eval_samples: of a larger set so many are drawn.
        checkpoint_seconds: between two checkpoints.
        device: as torch names it; default: CUDA where there is one, else the CPU.
        autocast: precision of forward passes; None for full precision.
        num_workers: of the data loader.
        tensorboard: whether metrics are written for TensorBoard too.
        finished_only: whether only what is finished is shown, and nothing trained.
        progress: told how far each run is.

    Returns:
        The comparison; `.table`, `.runs`, `.to_json()`, `.to_html(path)`.

    Raises:
        InputError: an argument or the workload cannot be used; found before anything is trained.
        AnybatchError: a RunError where a folder cannot be written, a StoppedError of SIGTERM or Ctrl-C with the state
            saved. What is finished is the exception's `partial`.

    Example:
        >>> import anybatch, tempfile
        >>> from anybatch.workloads import load_workload
        >>> digits = load_workload("digits")
        >>> found = anybatch.compare(digits, [32, 64], ["plain"], seeds=1, epochs=0.5, runs=tempfile.mkdtemp())
        >>> [(row.batch_size, row.updates) for row in found.table]
        [(32, 22), (64, 11)]
    """
    if autocast is not None and autocast not in get_args(Autocast):
        raise InputError(f"autocast must be one of {', '.join(get_args(Autocast))}; got {autocast!r}.")
    runtime = Runtime.detect(device, getattr(torch, autocast) if autocast else None)
    chosen = find_recipes(recipes)
    settings = {
        "batch_sizes": [_as_int(batch_size) for batch_size in batch_sizes],
        "recipes": [recipe.name for recipe in chosen],
        "seeds": _as_int(seeds),
        "lr_factors": list(lr_factors),
        "base_batch_size": workload.base_batch_size,
        "epochs": workload.epochs if epochs is None else epochs,
        "micro_batch_size": _as_int(micro_batch_size),
        "num_evaluations": _as_int(num_evaluations),
        "max_eval_samples": _as_int(max_eval_samples),
        "autocast": autocast,
        "device": str(runtime.device),
        "runs": str(runs),
    }
    _check(workload, runtime, settings, chosen)
    assert workload.epochs is not None
    takes_eval_loss, warnings = _try_evaluation(workload, runtime)
    warnings = (
        *warnings,
        *_base_warnings(workload, settings),
        *_norm_warnings(workload, runtime, chosen, micro_batch_size),
        *_rule_warnings(workload, runtime, chosen, settings),
    )
    first_rate = _epochs_of_first_rate(workload, runtime)
    options = {name: settings[name] for name in ("micro_batch_size", "num_evaluations", "max_eval_samples")}
    options["takes_eval_loss"] = takes_eval_loss
    stretch = settings["epochs"] / workload.epochs
    print_ = runtime.broadcast(fingerprint(workload, runtime))
    jobs = []
    for cell in _cells(
        workload, runtime, chosen, settings["batch_sizes"], settings["seeds"], lr_factors, stretch, options
    ):
        config = cell.config(print_, runtime)
        jobs.append(_Job(cell, config, RunFolder(Path(runs) / _key(cell, config), board=tensorboard)))
    work = _Work(workload, runtime, jobs, checkpoint_seconds, num_workers, progress)

    def joined() -> Comparison:
        finished = tuple(job.run(work.results[job.folder.path], workload, first_rate) for job in work.finished())
        metric = _ranked_by(workload, finished)
        return Comparison(
            workload=workload.name,
            settings=settings,
            environment=describe_environment(runtime),
            metric=metric,
            recipes=chosen,
            runs=finished,
            table=join_runs(finished, metric),
            warnings=(*warnings, *_untrained(finished)),
            partial=len(finished) < len(jobs),
        )

    try:
        work.read() if finished_only else work.do()
    except AnybatchError as error:
        error.partial = joined()
        raise
    return joined()


@dataclass(frozen=True)
class _Cell:
    """A run to be: one recipe at one batch size, rate and seed."""

    recipe: Recipe
    lr_factor: float
    base_lr: float
    settings: RunSettings
    num_updates: int

    def config(self, workload: str, runtime: Runtime) -> dict[str, Any]:
        """Return all that decides the run; the recipe's name does not."""
        where = {"device": runtime.device.type, "world_size": runtime.world_size, "autocast": str(runtime.autocast)}
        return plain({"version": version("anybatch"), "workload": workload, **where, "settings": self.settings})


@dataclass(frozen=True)
class _Job:
    cell: _Cell
    config: Mapping[str, Any]
    folder: RunFolder

    @property
    def num_samples(self) -> int:
        return self.cell.num_updates * self.cell.settings.batch_size

    def __str__(self) -> str:
        cell = self.cell
        rate = "" if cell.lr_factor == 1 else f", rate x{cell.lr_factor:g}"
        return f"{cell.recipe.name} at {cell.settings.batch_size}, seed {cell.settings.seed}{rate}"

    def run(self, result: Mapping[str, Any], workload: Workload, first_rate: float) -> Run:
        cell, plan = self.cell, self.cell.settings.plan
        assert workload.epochs is not None
        schedule = workload.schedule
        milestones = schedule.epochs if isinstance(schedule, Milestones) else ()
        settings = {
            **plain(plan),
            "lr": cell.base_lr * plan.lr_scale,
            "epochs": workload.epochs * plan.stretch,
            "milestones": [epoch * plan.stretch for epoch in milestones if epoch < workload.epochs],
        }
        return Run(
            recipe=cell.recipe.name,
            batch_size=cell.settings.batch_size,
            seed=cell.settings.seed,
            lr_factor=cell.lr_factor,
            key=self.folder.path.name,
            settings=settings,
            distance_law=_distance_law(result, workload, cell, first_rate),
            **result,
        )


class _Work:
    """Do each job once, whoever does it."""

    def __init__(
        self,
        workload: Workload,
        runtime: Runtime,
        jobs: Sequence[_Job],
        checkpoint_seconds: float,
        num_workers: int,
        progress: Progress,
    ) -> None:
        self.workload = workload
        self.runtime = runtime
        self.jobs = jobs
        self.checkpoint_seconds = checkpoint_seconds
        self.num_workers = num_workers
        self.progress = progress
        self.results: dict[Path, dict[str, Any]] = {}
        self.failures: dict[Path, RunError] = {}

    def finished(self) -> list[_Job]:
        return [job for job in self.jobs if job.folder.path in self.results]

    def read(self) -> None:
        """Take what results there are."""
        found = {job.folder.path: job.folder.result() for job in self.jobs} if self.runtime.rank == 0 else {}
        self.results = {path: result for path, result in self.runtime.broadcast(found).items() if result is not None}

    def do(self) -> None:
        """Go round the jobs until each has ended; what another process holds is asked for again later."""
        with StopRequest() as stop:
            while pending := [job for job in self.jobs if job.folder.path not in {**self.results, **self.failures}]:
                if not sum(self._try(job, stop) for job in pending):
                    self._tell("waiting for the runs of another process")
                    time.sleep(SECONDS_BETWEEN_TRIES)
                    self._leave(stop)
        if self.failures:
            first = next(iter(self.failures.values()))
            others = len(self.failures) - 1
            raise RunError(f"{first}" + (f" So did {others} other run(s)." if others else "")) from first.__cause__

    def _try(self, job: _Job, stop: StopRequest) -> bool:
        with ExitStack() as held:
            is_ours, result = self.runtime.broadcast(self._reserve(job, held) if self.runtime.rank == 0 else None)
            if not is_ours:
                return False
            if result is None:
                self._leave(stop)
                self._tell(str(job))
                result = self._train(job, stop)
            if result is not None:
                self.results[job.folder.path] = result
            return True

    def _reserve(self, job: _Job, held: ExitStack) -> tuple[bool, dict[str, Any] | None]:
        """Return whether the job is ours, and its result if it is there."""
        if (result := job.folder.result()) is not None:
            return True, result
        return held.enter_context(job.folder.lock()), job.folder.result()

    def _train(self, job: _Job, stop: StopRequest) -> dict[str, Any] | None:
        """Return the result; None of a run that failed while others can go on, which several ranks cannot."""
        if self.runtime.rank == 0:
            job.folder.claim(job.config)
        try:
            return run_training(
                self.workload,
                self.runtime,
                job.cell.settings,
                job.folder,
                stop=stop,
                checkpoint_seconds=self.checkpoint_seconds,
                num_workers=self.num_workers,
                tell=lambda fraction, text: self._tell(f"{job}: {text}", fraction * job.num_samples),
            )
        except AnybatchError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {str(error).partition(chr(10))[0].rstrip('.')}"
            hint = " Try --micro-batch-size." if isinstance(error, torch.OutOfMemoryError) else ""
            failure = RunError(f"{job} failed: {what}.{hint}")
            failure.__cause__ = error
            if self.runtime.world_size > 1:
                raise failure from error
            self.failures[job.folder.path] = failure
            return None

    def _leave(self, stop: StopRequest) -> None:
        number = int(self.runtime.max([float(stop.signal or 0)])[0])
        if number:
            name = signal.Signals(number).name
            raise StoppedError(f"stopped by {name} between two runs; call again to go on.", number)

    def _tell(self, text: str, num_samples: float = 0.0) -> None:
        done = self.finished()
        fraction = (sum(job.num_samples for job in done) + num_samples) / sum(job.num_samples for job in self.jobs)
        self.progress("comparison", fraction, f"{len(done)} of {len(self.jobs)} runs done; {text}")


def _check(workload: Workload, runtime: Runtime, settings: Mapping[str, Any], recipes: Sequence[Recipe]) -> None:
    if workload.eval_set is None:
        raise InputError(f"workload {workload.name!r} must have an eval_set to compare recipes on; got none.")
    if workload.num_samples is None or workload.epochs is None or workload.base_batch_size is None:
        raise InputError(
            f"workload {workload.name!r} must have a train_set with a length, epochs and base_batch_size, which "
            "recipes start from."
        )
    for name, whole in (("batch_sizes", True), ("lr_factors", False)):
        values = settings[name]
        if not values or len(set(values)) < len(values) or not all(_is_positive(value, whole) for value in values):
            raise InputError(f"{name} must be positive and different numbers, at least one; got {list(values)}.")
    for batch_size in settings["batch_sizes"]:
        StreamShares(workload.num_samples, batch_size, runtime.rank, runtime.world_size)
    for name, whole in COUNTS.items():
        value = settings[name]
        if value is not None and not _is_positive(value, whole):
            raise InputError(f"{name} must be positive; got {value}.")

    for recipe in recipes:
        ghost, largest = recipe.ghost_batch_size, max(settings["batch_sizes"])
        if isinstance(ghost, int) and ghost > largest:
            raise InputError(
                f"ghost_batch_size must be at most the batch; got {ghost} for a batch of {largest} in recipe "
                f"{recipe.name!r}. Choose a smaller one, or compare a larger batch."
            )


COUNTS = {"seeds": True, "epochs": False, "micro_batch_size": True, "num_evaluations": True, "max_eval_samples": True}


def _as_int(value: Any) -> Any:
    """Return a plain int of whatever stands for one; anything else as it is, to be refused."""
    is_number = not isinstance(value, bool | str | None)
    return int(value) if is_number and math.isfinite(value) and value == int(value) else value


def _is_positive(value: Any, whole: bool) -> bool:
    if isinstance(value, bool | str):
        return False
    return math.isfinite(value) and value > 0 and (not whole or value == int(value))


def _cells(
    workload: Workload,
    runtime: Runtime,
    recipes: Sequence[Recipe],
    batch_sizes: Sequence[int],
    seeds: int,
    lr_factors: Sequence[float],
    stretch: float,
    options: Mapping[str, Any],
) -> Iterator[_Cell]:
    """Yield the runs, seed by seed, so that an early look shows every recipe once."""
    optimizer = start_training(workload, Runtime(runtime.device), seed=0).optimizer
    base_lr = base_rate(optimizer)
    for seed, batch_size, recipe, lr_factor in product(range(seeds), batch_sizes, recipes, lr_factors):
        plan = plan_training(recipe, workload, batch_size, optimizer, lr_factor)
        plan = replace(plan, stretch=plan.stretch * stretch, warmup_epochs=plan.warmup_epochs * stretch)
        settings = RunSettings(batch_size, seed, plan, **options)
        yield _Cell(recipe, lr_factor, base_lr, settings, settings.num_updates(workload))


def _key(cell: _Cell, config: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
    return f"batch{cell.settings.batch_size}-seed{cell.settings.seed}-{digest}"


def _epochs_of_first_rate(workload: Workload, runtime: Runtime) -> float:
    """Return for how many of the workload's epochs the rate stays as it begins; of a torch scheduler, whole ones."""
    assert workload.epochs is not None
    if isinstance(workload.schedule, Milestones):
        return min([*workload.schedule.epochs, workload.epochs])
    rates = rates_by_epoch(workload, Runtime(runtime.device))
    return min([epoch for epoch, rate in enumerate(rates) if rate != rates[0]], default=workload.epochs + 1) - 1.0


def _distance_law(result: Mapping[str, Any], workload: Workload, cell: _Cell, first_rate: float) -> DistanceLaw | None:
    """Fit the walk of the weights at the first rate: after the warm-up and a thirtieth of it, as long as it lasts."""
    assert workload.num_samples is not None
    updates_per_epoch = workload.num_samples / cell.settings.batch_size
    plan = cell.settings.plan
    last = first_rate * plan.stretch * updates_per_epoch
    first = max(10.0, last / 30, plan.warmup_epochs * updates_per_epoch)
    spaced = set(log_spaced(cell.num_updates))  # evaluations add points that would weigh late updates more
    lines = [line for line in result["distance"] if line["updates"] in spaced and first <= line["updates"] <= last]
    points = [(line["updates"], line["distance"]) for line in lines]
    moves = len({distance for _, distance in points}) > 1
    if len(points) < MIN_POINTS or result["status"] != "done" or not moves:
        return None
    return fit_distance_law(*zip(*points, strict=True))


def _ranked_by(workload: Workload, runs: Sequence[Run]) -> RankedBy:
    names = [name.removeprefix("eval_") for run in runs for name in run.metrics if name.startswith("eval_")]
    first = next((name for name in names if name != "loss"), None)
    if workload.metric is None or first is None:
        return RankedBy("loss", False)
    return RankedBy(first, getattr(workload.metric(), "higher_is_better", True))


def _try_evaluation(workload: Workload, runtime: Runtime) -> tuple[bool, tuple[str, ...]]:
    """Try the metric, and return whether the loss works in eval mode too, which that of a detector may not."""
    alone = Runtime(runtime.device, autocast=runtime.autocast)
    model = start_training(workload, alone, seed=0).model
    try:
        evaluate(workload, alone, model, batch_size=2, max_samples=2)
    except Exception as error:
        raise InputError(f"metric of the workload failed on its eval_set: {type(error).__name__}: {error}") from error
    try:
        evaluate(replace(workload, metric=None), alone, model, batch_size=2, max_samples=2, with_loss=True)
    except Exception as error:
        if workload.metric is None:
            raise InputError(f"loss of the workload failed on its eval_set: {type(error).__name__}: {error}") from error
        return False, (f"The loss fails in eval mode ({type(error).__name__}), so only the metric is compared.",)
    return True, ()


def _untrained(runs: Sequence[Run]) -> list[str]:
    """Name the runs that ended no better than their first evaluation, which a rate that is too high does."""
    lost = {
        f"{run.recipe} at {run.batch_size} with rate {run.settings['lr']:.3g}": None
        for run in runs
        if run.status == "done" and len(run.curve) > 1 and run.curve[-1]["loss"] >= run.curve[0]["loss"]
    }
    if not lost:
        return []
    return [f"The loss did not fall in {', '.join(lost)}. Their rate may be too high: try --lr-factors 0.5,1 too."]


def _base_warnings(workload: Workload, settings: Mapping[str, Any]) -> list[str]:
    if workload.base_batch_size in settings["batch_sizes"]:
        return []
    return [f"The workload's own batch size, {workload.base_batch_size}, is not among the sizes compared."]


def _rule_warnings(
    workload: Workload, runtime: Runtime, recipes: Sequence[Recipe], settings: Mapping[str, Any]
) -> list[str]:
    """Say where the rule of an Adam-like optimizer is beyond its range; for SGD that needs a critical batch size."""
    optimizer = start_training(workload, Runtime(runtime.device), seed=0).optimizer
    warnings = []
    for recipe in recipes:
        if recipe.lr_rule == "none" or FAMILIES.get(type(optimizer).__name__) == "sgd":
            continue
        for batch_size in settings["batch_sizes"]:
            scale = large_regime(recipe, workload, batch_size, optimizer).lr_scale
            if not scale.holds:
                warnings.append(f"{recipe.name} at {batch_size}: {scale.reason}.")
    return warnings


def _norm_warnings(
    workload: Workload, runtime: Runtime, recipes: Sequence[Recipe], micro_batch_size: int | None
) -> list[str]:
    """Say where batch norm sees other samples than the batch's, or none are normalized at all."""
    model = start_training(workload, Runtime(runtime.device), seed=0).model
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    names = [recipe.name for recipe in recipes if recipe.ghost_batch_size is not None]
    if not norms:
        return [f"The model has no batch norm, so ghost batches change nothing in {', '.join(names)}."] if names else []
    warnings = []
    if runtime.world_size > 1 and not all(isinstance(norm, nn.SyncBatchNorm) for norm in norms):
        warnings.append(
            "Batch norm sees each rank's share of a batch, so results differ from one process at the same batch size; "
            "convert the model with torch.nn.SyncBatchNorm, or use ghost batches that divide a rank's share."
        )
    if micro_batch_size is not None:
        warnings.append(f"Batch norm, ghost batches too, sees at most the {micro_batch_size} samples of a micro-batch.")
    return warnings
