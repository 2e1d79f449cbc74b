"""What do trained networks show beside their accuracy? Errors of their moments, and other running statistics."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

from cells import Bench, Cell, Key
from moments import evaluate_with_other_statistics, moment_errors
from parts import BN, KN

from anybatch.train.jobs import Job


def examine(bench: Bench, cells: Mapping[Key, Cell], num_batches: int, num_forgetting: int) -> dict[str, Any]:
    """Return errors of moments, and accuracies by other running statistics, of the networks that are trained."""
    moments = {}
    for recipe, (when, is_trained) in product(("KN", "KN published"), (("fresh", False), ("trained", True))):
        jobs = _finished(cells.get(("micro", recipe)))
        if jobs:
            rows = moment_errors(bench, jobs, is_trained=is_trained, num_batches=num_batches)
            moments[f"{recipe}, {when}"] = rows
    by_statistics = [
        {
            "recipe": recipe,
            "seed": seed,
            "accuracies": evaluate_with_other_statistics(bench, job, kinds, num_forgetting),
        }
        for recipe, kinds in STATISTICS.items()
        for seed, job in _finished(cells.get(("micro", recipe))).items()
    ]
    return {"moments": moments, "statistics": by_statistics}


def _finished(cell: Cell | None) -> dict[int, Job]:
    """Return the jobs by seed that did not diverge."""
    return {} if cell is None else {seed: cell.jobs[seed] for seed, run in cell.runs.items() if run.status == "done"}


def _kalman_plan(**options: Any) -> dict[str, Any]:
    return {"norm": "kalman", "norm_options": tuple(sorted({"micro_batch_size": 2, **options}.items()))}


STATISTICS = {
    "BN": {
        "mean of micro-batches": {"norm": BN.norm, "norm_options": tuple(sorted(BN.norm_options.items()))},
        "pooled over micro-batches": _kalman_plan(gain="fixed", prior_weight=0.0),
        "first micro-batch alone (published)": _kalman_plan(gain="fixed", prior_weight=0.0, running_splits="first"),
    },
    "KN": {
        "pooled over micro-batches": {"norm_options": tuple(sorted(KN.norm_options.items()))},
        "first micro-batch alone (published)": {
            "norm_options": tuple(sorted({**KN.norm_options, "running_splits": "first"}.items()))
        },
    },
}
