"""What did the trainings come to? One cell per step, recipe and rate, of all seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks import METRICS

from anybatch.train.comparison import Run


@dataclass(frozen=True)
class Cell:
    """The runs of one recipe at one rate: those that finished, and how many diverged.

    The rate may lie at the edge of those that were tried, so that a better one may lie beyond.
    """

    task: str
    runs: tuple[Run, ...]
    num_diverged: int = 0
    is_at_edge: bool = False

    def alone(self) -> Cell:
        """Return seed 0 by itself, to be set against what has no other."""
        runs = tuple(run for run in self.runs if run.seed == 0)
        return Cell(self.task, runs, int(not runs), self.is_at_edge)

    @property
    def values(self) -> list[float]:
        """The metric that counts, one per seed, in points of 100."""
        return [100 * run.metrics[METRICS[self.task]] for run in self.runs]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        first = self.runs[0] if self.runs else None
        return {
            "seeds": len(self.runs),
            "diverged": self.num_diverged,
            "at_edge": self.is_at_edge,
            "values": self.values,
            "mean": statistics.mean(self.values) if self.runs else None,
            "sd": statistics.stdev(self.values) if len(self.runs) > 1 else None,
            "lr": first and first.settings["lr"],
            "lr_factor": first and first.lr_factor,
            "updates": first and first.updates,
            "samples": first and first.samples,
            "minutes": statistics.mean(run.seconds for run in self.runs) / 60 if self.runs else None,
            "scales": first and final_scales(first),
        }


def final_scales(run: Run) -> dict[str, float]:
    """Return the scales that AGVM came to, by module; none of another recipe."""
    last = run.curve[-1]
    return {key.removeprefix("scale/"): value for key, value in last.items() if key.startswith("scale/")}


def make_cell(task: str, runs: Sequence[Run], *, is_at_edge: bool = False) -> Cell:
    """Join the runs of some seeds."""
    done = tuple(run for run in runs if run.status == "done")
    return Cell(task, done, len(runs) - len(done), is_at_edge)
