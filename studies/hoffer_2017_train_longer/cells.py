"""What did the runs of one recipe at one batch size and rate come to?"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anybatch.decide import DistanceLaw
from anybatch.train.comparison import Comparison, Run


@dataclass(frozen=True)
class Cell:
    """One recipe at one batch size and rate: what its finished runs came to.

    Attributes:
        metrics: figure -> one value per run, accuracies in percent.
        laws: of the walk of all weights, of the runs that have one.
        first_laws: the same of the first tensor alone.
        runs: themselves; empty where a row of earlier results tells of them.
        num_diverged: runs without figures.
    """

    metrics: Mapping[str, Sequence[float]]
    laws: tuple[DistanceLaw, ...]
    first_laws: tuple[DistanceLaw, ...] = ()
    runs: tuple[Run, ...] = ()
    num_diverged: int = 0

    @property
    def num_finished(self) -> int:
        """Runs with figures."""
        return max(map(len, self.metrics.values()), default=0)

    def values(self, name: str) -> Sequence[float]:
        """Return a figure per seed."""
        return self.metrics[name]

    def mean(self, name: str) -> float:
        """Return its mean."""
        return statistics.mean(self.values(name))

    def sd(self, name: str) -> float | None:
        """Return its standard deviation over seeds; None of one."""
        return statistics.stdev(self.values(name)) if self.num_finished > 1 else None


Key = tuple[str, str, int, float]  # part, recipe, batch size, factor on the rate
Found = dict[Key, Cell]


def collect(comparisons: Mapping[str, Comparison]) -> Found:
    """Return what the runs came to."""
    found: dict[Key, list[Run]] = {}
    for name, comparison in comparisons.items():
        for run in comparison.runs:
            found.setdefault((name, run.recipe, run.batch_size, run.lr_factor), []).append(run)
    return {key: _cell_of_runs(runs) for key, runs in found.items()}


def _cell_of_runs(runs: Sequence[Run]) -> Cell:
    done = tuple(run for run in runs if run.status == "done")
    metrics = {
        name: [100 * run.metrics[name] if "accuracy" in name else run.metrics[name] for run in done]
        for name in (done[0].metrics if done else ())
    }
    laws, first_laws = (
        tuple(law for run in done if (law := law_of(run))) for law_of in (lambda run: run.distance_law, first_law)
    )
    return Cell(metrics, laws, first_laws, done, len(runs) - len(done))


def first_law(run: Run) -> DistanceLaw | None:
    return run.tensor_laws.get(next(iter(run.distance[0]["tensors"])))


def cell_of_row(row: Mapping[str, Any]) -> Cell:
    metrics = {name: figure["values"] for name, figure in row["metrics"].items()}
    laws, first_laws = (
        tuple(DistanceLaw(**law) for law in row.get(name, ()) if law) for name in ("distance", "distance_of_first")
    )
    return Cell(metrics, laws, first_laws, num_diverged=row["diverged"])
