"""Which runs does a comparison consist of, and what is kept of each?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from anybatch.decide.distance_law import DistanceLaw, fit_distance_law
from anybatch.stats.weight_distance import log_spaced
from anybatch.train.comparison import Run
from anybatch.train.fingerprint import fingerprint, rates_by_epoch
from anybatch.train.plain import plain
from anybatch.train.recipes import Recipe, base_rate, plan_training
from anybatch.train.run import RunSettings
from anybatch.train.run_folder import RunFolder
from anybatch.train.runtime import Runtime
from anybatch.workload import Milestones, Workload

MIN_POINTS = 8  # of a fit


@dataclass(frozen=True)
class Cell:
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
class Job:
    """A run to be, with all that decides it and where it is kept."""

    cell: Cell
    config: Mapping[str, Any]
    folder: RunFolder

    @property
    def num_samples(self) -> int:
        """Samples that the run trains on."""
        return self.cell.num_updates * self.cell.settings.batch_size

    def __str__(self) -> str:
        cell = self.cell
        rate = "" if cell.lr_factor == 1 else f", rate x{cell.lr_factor:g}"
        return f"{cell.recipe.name} at {cell.settings.batch_size}, seed {cell.settings.seed}{rate}"

    def run(self, result: Mapping[str, Any], workload: Workload, first_rate: float) -> Run:
        """Return the run as a comparison shows it.

        Args:
            result: as it was saved.
            workload: what was trained.
            first_rate: from `epochs_of_first_rate`.

        Returns:
            The run, with the laws of its walk.
        """
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
        lines = _walk_at_first_rate(result, workload, cell, first_rate)
        names = lines[0]["tensors"] if lines else ()
        laws = {name: _fit(lines, [line["tensors"][name] for line in lines]) for name in names}
        return Run(
            recipe=cell.recipe.name,
            batch_size=cell.settings.batch_size,
            seed=cell.settings.seed,
            lr_factor=cell.lr_factor,
            key=self.folder.path.name,
            settings=settings,
            distance_law=_fit(lines, [line["distance"] for line in lines]),
            tensor_laws={name: law for name, law in laws.items() if law is not None},
            **result,
        )


def plan_jobs(
    workload: Workload,
    runtime: Runtime,
    recipes: Sequence[Recipe],
    optimizer: Optimizer,
    settings: Mapping[str, Any],
    *,
    takes_eval_loss: bool,
    tensorboard: bool,
) -> list[Job]:
    """Return the runs of a comparison, seed by seed, so that an early look shows every recipe once.

    Args:
        workload: what is trained.
        runtime: where.
        recipes: how.
        optimizer: the workload's own, of a model that is not trained.
        settings: of the comparison, by the names of `compare`'s arguments.
        takes_eval_loss: whether the loss is taken in eval mode too.
        tensorboard: whether metrics are written for TensorBoard too.

    Returns:
        One job per seed, batch size, recipe and factor on the rate.
    """
    print_ = runtime.broadcast(fingerprint(workload, runtime))
    jobs = []
    for cell in _cells(workload, recipes, optimizer, settings, takes_eval_loss):
        config = cell.config(print_, runtime)
        jobs.append(Job(cell, config, RunFolder(Path(settings["runs"]) / _key(cell, config), board=tensorboard)))
    return jobs


def _cells(
    workload: Workload,
    recipes: Sequence[Recipe],
    optimizer: Optimizer,
    settings: Mapping[str, Any],
    takes_eval_loss: bool,
) -> Iterator[Cell]:
    assert workload.epochs is not None
    stretch = settings["epochs"] / workload.epochs
    options = {name: settings[name] for name in ("micro_batch_size", "num_evaluations", "max_eval_samples")}
    sizes: list[int] = settings["batch_sizes"]
    factors: list[float] = settings["lr_factors"]
    for seed, batch_size, recipe, lr_factor in product(range(settings["seeds"]), sizes, recipes, factors):
        plan = plan_training(recipe, workload, batch_size, optimizer, lr_factor).stretched(stretch)
        run = RunSettings(batch_size, seed, plan, takes_eval_loss=takes_eval_loss, **options)
        yield Cell(recipe, lr_factor, base_rate(optimizer, plan), run, run.num_updates(workload))


def _key(cell: Cell, config: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
    return f"batch{cell.settings.batch_size}-seed{cell.settings.seed}-{digest}"


def epochs_of_first_rate(workload: Workload, runtime: Runtime) -> float:
    """Return for how many of the workload's epochs the rate stays as it begins; of a torch scheduler, whole ones.

    Args:
        workload: with epochs.
        runtime: whose device is used.

    Returns:
        Epochs, at least 0.
    """
    assert workload.epochs is not None
    if isinstance(workload.schedule, Milestones):
        return min([*workload.schedule.epochs, workload.epochs])
    rates = rates_by_epoch(workload, Runtime(runtime.device))
    return min([epoch for epoch, rate in enumerate(rates) if rate != rates[0]], default=workload.epochs + 1) - 1.0


Lines = Sequence[Mapping[str, Any]]


def _walk_at_first_rate(result: Mapping[str, Any], workload: Workload, cell: Cell, first_rate: float) -> Lines:
    """Return where a finished walk is fitted: after the warm-up and a thirtieth of the first rate, while it lasts."""
    assert workload.num_samples is not None
    updates_per_epoch = workload.num_samples / cell.settings.batch_size
    plan = cell.settings.plan
    last = first_rate * plan.stretch * updates_per_epoch
    first = max(10.0, last / 30, plan.warmup_epochs * updates_per_epoch)
    spaced = set(log_spaced(cell.num_updates))  # evaluations add points that would weigh late updates more
    lines = [line for line in result["distance"] if line["updates"] in spaced and first <= line["updates"] <= last]
    return lines if len(lines) >= MIN_POINTS and result["status"] == "done" else []


def _fit(lines: Lines, distances: Sequence[float]) -> DistanceLaw | None:
    """Fit one walk; None where there are no points or nothing moved."""
    moves = len(set(distances)) > 1
    return fit_distance_law([line["updates"] for line in lines], distances) if moves else None
