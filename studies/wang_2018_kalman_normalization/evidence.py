"""What do the runs hold for or against a claim? One difference per seed, above 0 where it holds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cells import CHANCE, Cell, Key
from images import DROPS, EPOCHS
from judging import Measured
from moments import per_seed
from verdicts import shown

from anybatch.train.comparison import Run


@dataclass(frozen=True)
class Found:
    """All that was measured.

    Attributes:
        cells: runs by part and recipe.
        rates: accuracies on held-out images at each tried rate.
        moments: errors of moments by layer, for each network that was looked at.
        statistics: accuracies by other running statistics, one entry per network and seed.
    """

    cells: Mapping[Key, Cell]
    rates: Sequence[Mapping[str, Any]] = ()
    moments: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    statistics: Sequence[Mapping[str, Any]] = ()

    def accuracies(self, key: Key) -> dict[int, float]:
        """Return percent by seed; empty where nothing is there."""
        return self.cells[key].accuracies if key in self.cells else {}

    def runs(self, key: Key) -> dict[int, Run]:
        """Return the runs by seed that did not diverge."""
        cell = self.cells.get(key)
        return {} if cell is None else {seed: run for seed, run in cell.runs.items() if run.status == "done"}


Measure = Callable[[Found], Measured | None]


def above(better: Key, worse: Key, margin: float = 0.0) -> Measure:
    """Judge that one cell is more accurate than another, less a margin in points."""
    return combined({better: 1.0, worse: -1.0}, margin)


def combined(weights: Mapping[Key, float], margin: float = 0.0) -> Measure:
    """Judge that a weighted sum of the cells' accuracies, and a margin in points, is above 0."""

    def measure(found: Found) -> Measured | None:
        known = {key: found.accuracies(key) for key in weights}
        seeds = sorted(set.intersection(*(set(each) for each in known.values())))
        if not seeds:
            return None
        differences = [sum(w * known[key][seed] for key, w in weights.items()) + margin for seed in seeds]
        means = [f"{recipe} {shown([known[part, recipe][seed] for seed in seeds])}" for part, recipe in weights]
        return Measured(", ".join(means), differences)

    return measure


def appears_at_drop(better: Key, worse: Key) -> Measure:
    """Judge that the lead at the end is larger than at the last evaluation before the first drop of the rate."""

    def measure(found: Found) -> Measured | None:
        first, second = found.runs(better), found.runs(worse)
        seeds = sorted(first.keys() & second.keys())
        if not seeds:
            return None
        before, after = (
            [100 * (look(first[seed]) - look(second[seed])) for seed in seeds] for look in (_before_drop, _at_end)
        )
        ours = f"lead of {better[1]} over {worse[1]}: {shown(before)} before the drop, {shown(after)} at the end"
        return Measured(ours, [late - early for early, late in zip(before, after, strict=True)])

    return measure


def sooner(faster: Key, slower: Key) -> Measure:
    """Judge that one cell needs fewer epochs to the other's final accuracy of the same seed."""

    def measure(found: Found) -> Measured | None:
        first, second = found.runs(faster), found.runs(slower)
        seeds = sorted(first.keys() & second.keys())
        if not seeds:
            return None
        targets = [_at_end(second[seed]) for seed in seeds]
        own = [epochs_to(first[seed], target) for seed, target in zip(seeds, targets, strict=True)]
        other = [epochs_to(second[seed], target) for seed, target in zip(seeds, targets, strict=True)]
        never = sum(each is None for each in own)
        longest = EPOCHS + 1.0  # stands for never, which is more
        differences = [(b or longest) - (a or longest) for a, b in zip(own, other, strict=True)]
        reached = [each for each in own if each is not None]
        words = f"{faster[1]} after {shown(reached)} epochs" if reached else f"{faster[1]} not at all"
        words += f" (never in {never} of {len(seeds)})" if never and reached else ""
        return Measured(
            f"{words}, {slower[1]} after {shown([each or longest for each in other])}", differences, "epochs"
        )

    return measure


def blend_is_closer(network: str, moment: str) -> Measure:
    """Judge that the posterior is nearer to the whole batch's moments than what the micro-batch shows."""

    def measure(found: Found) -> Measured | None:
        rows = found.moments.get(network, ())
        if not rows:
            return None
        names = {"observed": "observed", "prior": "prior", "posterior": "blend"}
        errors = {name: per_seed(rows, lambda row, i, n=name: row[f"{n}_{moment}"][i]) for name in names}
        words = [f"{word} {statistics.mean(errors[name]):.3f}" for name, word in names.items()]
        gains = per_seed(
            rows, lambda row, i: math.log(row[f"observed_{moment}"][i] / max(row[f"posterior_{moment}"][i], 1e-12))
        )
        return Measured(f"mean error over layers: {', '.join(words)}", gains, "in the log of the error")

    return measure


def epochs_to(run: Run, target: float) -> float | None:
    """Return the epochs to an accuracy, evaluations joined by straight lines; None where it is not reached."""
    before = (0.0, CHANCE / 100)
    for line in run.curve:
        here = (line["epochs"], line["eval_accuracy"])
        if here[1] >= target:
            share = (target - before[1]) / (here[1] - before[1]) if here[1] > before[1] else 1.0
            return before[0] + max(0.0, share) * (here[0] - before[0])
        before = here
    return None


def _at_end(run: Run) -> float:
    return run.metrics["eval_accuracy"]


def _before_drop(run: Run) -> float:
    share = DROPS[0] / EPOCHS * run.curve[-1]["epochs"]
    early = [line["eval_accuracy"] for line in run.curve if line["epochs"] <= share * 1.001]
    return early[-1] if early else run.curve[0]["eval_accuracy"]
