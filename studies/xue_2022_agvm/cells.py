"""What did the trainings come to? One cell per step, recipe and rate, of all seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tasks import CHANCE, METRICS
from verdicts import shown

from anybatch.train.comparison import Run


@dataclass(frozen=True)
class Cell:
    """The runs of one recipe at one rate, one per seed, with those that diverged.

    The rate may lie at the edge of those that were tried, so that a better one may lie beyond.
    """

    task: str
    runs: tuple[Run, ...]
    is_at_edge: bool = False

    def alone(self) -> Cell:
        """Return seed 0 by itself, to be set against what has no other."""
        return replace(self, runs=tuple(run for run in self.runs if run.seed == 0))

    @property
    def finished(self) -> list[Run]:
        """The runs that did not diverge."""
        return [run for run in self.runs if run.status == "done"]

    @property
    def num_diverged(self) -> int:
        """How many did."""
        return len(self.runs) - len(self.finished)

    @property
    def values(self) -> list[float]:
        """The metric that counts, one per seed, in points of 100; of one that diverged what chance comes to."""
        return [
            100 * run.metrics[METRICS[self.task]] if run.status == "done" else CHANCE[self.task] for run in self.runs
        ]

    def __str__(self) -> str:
        """Return mean and spread, and how many of the seeds diverged."""
        diverged = f" ({self.num_diverged} of {len(self.runs)} seeds diverged)" if self.num_diverged else ""
        return shown(self.values) + diverged

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        first = next(iter(self.finished), None)
        return {
            "seeds": len(self.runs),
            "diverged": self.num_diverged,
            "at_edge": self.is_at_edge,
            "values": self.values,
            "mean": statistics.mean(self.values),
            "sd": statistics.stdev(self.values) if len(self.runs) > 1 else None,
            "lr": first and first.settings["lr"],
            "lr_factor": first and first.lr_factor,
            "updates": first and first.updates,
            "samples": first and first.samples,
            "minutes": statistics.mean(run.seconds for run in self.finished) / 60 if first else None,
            "scales": first and final_scales(first),
        }


def final_scales(run: Run) -> dict[str, float]:
    """Return the scales that AGVM came to, by module; none of another recipe."""
    last = run.curve[-1]
    return {key.removeprefix("scale/"): value for key, value in last.items() if key.startswith("scale/")}


def make_cell(task: str, runs: Sequence[Run], *, is_at_edge: bool = False) -> Cell:
    """Join the runs of some seeds."""
    return Cell(task, tuple(runs), is_at_edge)
