"""What do trained networks show beside their accuracy? Errors of their moments, and other running statistics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import product
from typing import Any

from cells import Bench, Cell, Key
from moments import evaluate_with_other_statistics, moment_errors
from parts import BN, KN

from anybatch.train.jobs import Job
from anybatch.train.plain import plain
from anybatch.train.run_folder import RunFolder


def examine(bench: Bench, cells: Mapping[Key, Cell], num_batches: int, num_forgetting: int) -> dict[str, Any]:
    """Return errors of moments, and accuracies by other running statistics, of the networks that are trained."""
    moments = {}
    for recipe, (when, is_trained) in product(("KN", "KN published"), (("fresh", False), ("trained", True))):
        jobs = _finished(cells.get(("micro", recipe)))
        if jobs:
            settings = {"is_trained": is_trained, "num_batches": num_batches}
            moments[f"{recipe}, {when}"] = _once(
                bench, "errors-and-scatter", jobs.values(), settings, partial(moment_errors, bench, jobs, **settings)
            )
    by_statistics = [
        {
            "recipe": recipe,
            "seed": seed,
            "accuracies": _once(
                bench,
                "statistics",
                [job],
                {"kinds": kinds, "num_batches": num_forgetting},
                partial(evaluate_with_other_statistics, bench, job, kinds, num_forgetting),
            ),
        }
        for recipe, kinds in STATISTICS.items()
        for seed, job in _finished(cells.get(("micro", recipe))).items()
    ]
    return {"moments": moments, "statistics": by_statistics}


def _once(bench: Bench, what: str, jobs: Iterable[Job], settings: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
    """Return what was measured of finished networks, which are gone where their runs came along without weights."""
    config = plain({"what": what, "networks": [job.folder.path.name for job in jobs], **settings})
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
    folder = RunFolder(bench.runs / f"{what}-{digest}")
    if folder.result() is None:
        folder.claim(config)
        folder.finish({"found": measure()})
    return (folder.result() or {})["found"]


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
