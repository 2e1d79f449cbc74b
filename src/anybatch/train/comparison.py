"""What did recipes over batch sizes come to? The values of a comparison, and how runs become rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

from anybatch.decide.distance_law import DistanceLaw
from anybatch.train.plain import Exportable, plain
from anybatch.train.recipes import Recipe


@dataclass(frozen=True)
class RankedBy:
    """The figure that rows are ranked by.

    Attributes:
        name: without eval_ or train_.
        higher_is_better: so it is for every metric of a workload, and not for the loss.
    """

    name: str
    higher_is_better: bool


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        recipe: name of its recipe.
        batch_size: samples per step.
        seed: of everything drawn.
        lr_factor: tried factor on the recipe's rate.
        key: name of its folder.
        settings: rate, epochs and what else the recipe came to.
        status: "done", or "diverged".
        reason: one sentence where it diverged.
        metrics: the last evaluation's figures, eval_ and train_.
        updates: optimizer steps taken.
        samples: seen.
        seconds: of training, over all parts of an interrupted run.
        curve: one entry per evaluation.
        distance: one entry per measurement of ||w - w0||.
        distance_law: how it grows, before the first drop of the rate; None where too few points are.
        tensor_laws: the same for each parameter tensor that has one, by name.
        environment: of the process that finished it.
    """

    recipe: str
    batch_size: int
    seed: int
    lr_factor: float
    key: str
    settings: Mapping[str, Any]
    status: str
    reason: str | None
    metrics: Mapping[str, float]
    updates: int
    samples: int
    seconds: float
    curve: Sequence[Mapping[str, Any]]
    distance: Sequence[Mapping[str, Any]]
    distance_law: DistanceLaw | None
    tensor_laws: Mapping[str, DistanceLaw]
    environment: Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Attributes:
        mean: over the seeds that did not diverge.
        sd: sample standard deviation; None of one seed.
        values: one per seed.
    """

    mean: float
    sd: float | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """All seeds of one recipe, batch size and rate.

    Attributes:
        recipe: name.
        batch_size: samples per step.
        lr_factor: tried factor on the recipe's rate.
        lr: the rate of the first parameter group, after warm-up and before the first drop.
        num_seeds: runs.
        num_diverged: how many of them diverged; they have no figures.
        metrics: figure by name, of those that are numbers for every seed.
        updates: of a whole run, as far as one did not diverge.
        samples: of the same.
        seconds: mean over the same.
        is_untuned: whether the rate is the recipe's own.
        is_best: whether no other tried rate of the recipe and batch size has a better mean.
    """

    recipe: str
    batch_size: int
    lr_factor: float
    lr: float
    num_seeds: int
    num_diverged: int
    metrics: Mapping[str, Spread]
    updates: float
    samples: float
    seconds: float
    is_untuned: bool
    is_best: bool


@dataclass(frozen=True)
class Comparison(Exportable):
    """Recipes over batch sizes.

    Attributes:
        workload: its name.
        settings: what was asked for.
        environment: versions, device, threads, ranks of this call.
        metric: the figure that rows are ranked by.
        recipes: what was combined.
        runs: one per batch size, recipe, rate and seed, that is finished.
        table: runs joined over seeds.
        warnings: what to know before trusting the table.
        partial: whether runs are missing.
    """

    workload: str
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    metric: RankedBy
    recipes: tuple[Recipe, ...]
    runs: tuple[Run, ...]
    table: tuple[Row, ...]
    warnings: tuple[str, ...] = ()
    partial: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; what is not finite is None."""
        return plain(
            {"version": version("anybatch"), **{name: getattr(self, name) for name in self.__dataclass_fields__}}
        )

    def to_page(self) -> str:
        """Return one self-contained HTML page that needs no network."""
        from anybatch.report.page import render_comparison  # plotly takes a second to import

        return render_comparison(self.to_dict())


def join_runs(runs: Sequence[Run], metric: RankedBy) -> tuple[Row, ...]:
    """Join seeds to rows and mark, of the tried rates of each recipe and batch size, the best.

    Args:
        runs: in any order.
        metric: what "best" is about.

    Returns:
        Rows in the order in which their first runs come.
    """
    cells: dict[tuple[str, int, float], list[Run]] = {}
    for run in runs:
        cells.setdefault((run.recipe, run.batch_size, run.lr_factor), []).append(run)
    rows = [_row(*cell, members) for cell, members in cells.items()]
    return tuple(_marked(row, rows, metric) for row in rows)


def _row(recipe: str, batch_size: int, lr_factor: float, runs: Sequence[Run]) -> Row:
    finished = [run for run in runs if run.status == "done"]
    whole = finished or runs
    names = [name for name in (finished[0].metrics if finished else ()) if _is_known(name, finished)]
    return Row(
        recipe=recipe,
        batch_size=batch_size,
        lr_factor=lr_factor,
        lr=runs[0].settings["lr"],
        num_seeds=len(runs),
        num_diverged=len(runs) - len(finished),
        metrics={name: _spread([run.metrics[name] for run in finished]) for name in names},
        updates=statistics.mean(run.updates for run in whole),
        samples=statistics.mean(run.samples for run in whole),
        seconds=statistics.mean(run.seconds for run in whole),
        is_untuned=lr_factor == 1,
        is_best=False,
    )


def _is_known(name: str, runs: Sequence[Run]) -> bool:
    """Return whether a figure is a number in every run."""
    return all(run.metrics[name] is not None for run in runs)


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None, tuple(values))


def _marked(row: Row, rows: Sequence[Row], metric: RankedBy) -> Row:
    scores = {
        other.lr_factor: _score(other, metric)
        for other in rows
        if (other.recipe, other.batch_size) == (row.recipe, row.batch_size)
    }
    best = max(scores, key=lambda factor: scores[factor])
    return replace(row, is_best=row.lr_factor == best and scores[best] > -math.inf)


def _score(row: Row, metric: RankedBy) -> float:
    """Return what to maximize; a rate that any seed diverged at is out."""
    if row.num_diverged or f"eval_{metric.name}" not in row.metrics:
        return -math.inf
    mean = row.metrics[f"eval_{metric.name}"].mean
    return mean if metric.higher_is_better else -mean
