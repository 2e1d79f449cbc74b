"""Which runs does the study consist of, and how are their rates chosen and their costs foretold?"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from images import BATCH_SIZE, EPOCHS, RATE
from tuning import next_factor

from anybatch import Recipe, Workload
from anybatch.train.comparison import Run
from anybatch.train.evaluate import evaluate
from anybatch.train.jobs import Job, plan_jobs
from anybatch.train.loop import start_training, train
from anybatch.train.runtime import Runtime
from anybatch.train.shared_work import SharedWork

CHANCE = 10.0  # percent, what a run that diverged counts as
FACTORS = (0.3, 1.0, 3.0, 10.0)  # on the published rate, tried by every method
BEYOND = (0.1, 30.0)  # tried where the best is at the edge
Key = tuple[str, str]  # part and recipe


@dataclass(frozen=True)
class Part:
    """Some rows of the study.

    Attributes:
        recipes: tried.
        seeds: how many.
        is_decision: whether it belongs to what is asked first.
        is_tuned: whether rates are the best of `FACTORS`, and not the published one.
        rates_from: recipe -> the recipe whose rate it takes; others are tuned themselves.
        batch_size: samples per step.
        epochs: of the images trained on.
        num_evaluations: per run.
    """

    recipes: Sequence[Recipe]
    seeds: int = 5
    is_decision: bool = False
    is_tuned: bool = True
    rates_from: Mapping[str, str] = field(default_factory=dict)
    batch_size: int = BATCH_SIZE
    epochs: float = EPOCHS
    num_evaluations: int = 4

    def rate_owner(self, recipe: str) -> tuple[str, int]:
        """Return whose tuned rate a recipe takes: name and batch size."""
        return self.rates_from.get(recipe, recipe), self.batch_size


@dataclass(frozen=True)
class Cell:
    """The runs of a recipe in a part, by seed."""

    jobs: Mapping[int, Job]
    runs: Mapping[int, Run]

    @property
    def accuracies(self) -> dict[int, float]:
        """Percent by seed; that of guessing where a run diverged."""
        return {
            seed: 100 * run.metrics["eval_accuracy"] if run.status == "done" else CHANCE
            for seed, run in self.runs.items()
        }


@dataclass(frozen=True)
class Bench:
    """A workload with all that its runs have in common."""

    workload: Workload
    runs: Path
    max_eval_samples: int = 10_000
    runtime: Runtime = field(default_factory=lambda: Runtime.detect(None))

    def jobs(self, part: Part, recipes: Sequence[Recipe], seeds: int, factors: Sequence[float]) -> list[Job]:
        """Return the runs of some recipes at some rates, seed by seed."""
        settings = {
            "batch_sizes": [part.batch_size],
            "seeds": seeds,
            "lr_factors": factors,
            "epochs": part.epochs,
            "runs": str(self.runs),
            "micro_batch_size": None,
            "num_evaluations": part.num_evaluations,
            "max_eval_samples": self.max_eval_samples,
        }
        optimizer = start_training(self.workload, self.runtime, seed=0).optimizer
        options: Any = {"takes_eval_loss": True, "tensorboard": False}
        return plan_jobs(self.workload, self.runtime, recipes, optimizer, settings, **options)

    def do(self, jobs: Iterable[Job], *, finished_only: bool) -> dict[Path, Run]:
        """Train what is missing, shared with other processes, or read what is there; return runs by folder."""
        distinct = list({job.folder.path: job for job in jobs}.values())
        work = SharedWork(self.workload, self.runtime, distinct, 60.0, 0, _Lines())
        work.read() if finished_only or not distinct else work.do()
        return {job.folder.path: job.run(work.results[job.folder.path], self.workload, 0.0) for job in work.finished()}


class _Lines:
    """Progress as one line for each run that was finished here or elsewhere."""

    def __init__(self) -> None:
        self.latest = ""

    def __call__(self, stage: str, fraction: float, text: str = "") -> None:
        """Print what is new."""
        done = text.partition(";")[0]
        if done != self.latest:
            self.latest = done
            print(f"{fraction:4.0%} {text}", flush=True)


# rates


def tuning_jobs(bench: Bench, parts: Mapping[str, Part], factors: Sequence[float]) -> dict[tuple[str, int], list[Job]]:
    """Return the runs that rates are chosen by: one seed of every recipe that does not take another's rate."""
    found: dict[tuple[str, int], list[Job]] = {}
    for part in parts.values():
        own = [each for each in part.recipes if each.name not in part.rates_from and part.is_tuned]
        own = [each for each in own if part.rate_owner(each.name) not in found]
        if own:
            for job in bench.jobs(replace(part, num_evaluations=1), own, 1, factors):
                found.setdefault((job.cell.recipe.name, part.batch_size), []).append(job)
    return found


def jobs_beyond(
    bench: Bench, parts: Mapping[str, Part], rates: Sequence[Mapping[str, Any]]
) -> dict[tuple[str, int], list[Job]]:
    """Return one run more for every recipe whose best rate is at the edge of those tried."""
    scores = {
        (row["recipe"], row["batch_size"]): {float(factor): score for factor, score in row["accuracies"].items()}
        for row in rates
    }
    further = {key: factor for key, each in scores.items() if (factor := next_factor(each, BEYOND)) is not None}
    found = tuning_jobs(bench, parts, sorted(set(further.values()))) if further else {}
    return {key: [job for job in found[key] if job.cell.lr_factor == factor] for key, factor in further.items()}


def choose_rates(jobs: Mapping[tuple[str, int], Sequence[Job]], runs: Mapping[Path, Run]) -> list[dict[str, Any]]:
    """Return, for every recipe, the accuracy on held-out images at each rate and the best one."""
    rows = []
    for (recipe, batch_size), tried in jobs.items():
        cells = [Cell({0: job}, {0: runs[job.folder.path]}) for job in tried if job.folder.path in runs]
        found = {cell.jobs[0].cell.lr_factor: cell.accuracies[0] for cell in cells}
        if found:
            best = max(found, key=lambda factor: (found[factor], -abs(factor - 1)))
            accuracies = {f"{factor:g}": accuracy for factor, accuracy in found.items()}
            rows.append({"recipe": recipe, "batch_size": batch_size, "best": best, "accuracies": accuracies})
    return rows


# runs


def final_jobs(bench: Bench, parts: Mapping[str, Part], rates: Sequence[Mapping[str, Any]]) -> dict[Key, list[Job]]:
    """Return the runs of every cell at its rate."""
    best = {(row["recipe"], row["batch_size"]): row["best"] for row in rates}
    cells: dict[Key, list[Job]] = {}
    for name, part in parts.items():
        factors = {
            each.name: best.get(part.rate_owner(each.name), 1.0) if part.is_tuned else 1.0 for each in part.recipes
        }
        for job in bench.jobs(part, part.recipes, part.seeds, sorted(set(factors.values()))):
            if job.cell.lr_factor == factors[job.cell.recipe.name]:
                cells.setdefault((name, job.cell.recipe.name), []).append(job)
    return cells


def seed_by_seed(cells: Mapping[Key, Sequence[Job]]) -> list[Job]:
    """Return all runs in the order of their seeds, so that an early look shows every cell."""
    return sorted((job for jobs in cells.values() for job in jobs), key=lambda job: job.cell.settings.seed)


def join_cells(cells: Mapping[Key, Sequence[Job]], runs: Mapping[Path, Run]) -> dict[Key, Cell]:
    """Return the cells with the runs that are finished."""
    return {
        key: Cell(
            {job.cell.settings.seed: job for job in jobs},
            {job.cell.settings.seed: runs[job.folder.path] for job in jobs if job.folder.path in runs},
        )
        for key, jobs in cells.items()
    }


def rate_of(run: Run) -> float:
    """Return the rate between the slow start and the first drop, for a batch of `BATCH_SIZE`."""
    return RATE * run.lr_factor


# costs


def estimate_seconds(bench: Bench, jobs: Iterable[Job]) -> float:
    """Return what unfinished runs will take on one core that is free, from a few steps and evaluations made now."""
    pending = {job.folder.path: job for job in jobs if job.folder.result() is None}
    per_step: dict[tuple[str, int], float] = {}
    per_image = _seconds_per_image(bench) if pending else 0.0
    total = 0.0
    for job in pending.values():
        settings = job.cell.settings
        kind = (str(getattr(settings.plan, "norm", "")) + _transition(settings.plan), settings.batch_size)
        if kind not in per_step:
            per_step[kind] = _seconds_per_step(bench, job)
        images = min(bench.max_eval_samples, len(bench.workload.eval_set))  # pyright: ignore[reportArgumentType]
        total += job.cell.num_updates * per_step[kind] + settings.num_evaluations * 2 * images * per_image
    return total


def _transition(plan: Any) -> str:
    return str(dict(getattr(plan, "norm_options", ())).get("transition", ""))


def _seconds_per_step(bench: Bench, job: Job) -> float:
    settings = job.cell.settings
    training = start_training(bench.workload, bench.runtime, seed=0, plan=settings.plan)
    steps = train(bench.workload, bench.runtime, training, batch_size=settings.batch_size, seed=0)
    return min(_timed(steps) for _ in range(5))


def _timed(steps: Iterator[Any]) -> float:
    start = time.process_time()
    next(steps)
    return time.process_time() - start


def _seconds_per_image(bench: Bench, num_images: int = 512) -> float:
    model = start_training(bench.workload, bench.runtime, seed=0).model
    start = time.process_time()
    evaluate(bench.workload, bench.runtime, model, batch_size=BATCH_SIZE, max_samples=num_images, with_loss=True)
    return (time.process_time() - start) / num_images
