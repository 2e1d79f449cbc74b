"""What does results.json hold, and README of it?"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cells import Cell, Key, cell_of_row, collect, first_law
from orderings import judge_orderings
from parts import FULL
from reporting import claims_section, rewrite_results
from verdicts import Claim
from walks import judge_laws

from anybatch.train.comparison import Comparison, Run
from anybatch.train.plain import plain


def join_results(
    comparisons: Mapping[str, Comparison], earlier: Mapping[str, Any], more: Sequence[Claim] = ()
) -> dict[str, Any]:
    """Return what results.json holds: what the runs came to, and earlier rows that as many runs do not replace.

    Args:
        comparisons: by part.
        earlier: what results.json held before; empty for nothing.
        more: claims that no row tells of.

    Returns:
        Plain values; claims are judged over all rows, and earlier ones stay where that takes more than rows.
    """
    found = collect(comparisons)
    rows = {key: _row_of(key, cell) for key, cell in found.items() if cell.runs}
    for row in earlier.get("rows", ()):
        key = (row["part"], row["recipe"], row["batch_size"], row["lr_factor"])
        cell = found.get(key)
        is_replaced = cell is not None and cell.num_finished + cell.num_diverged >= row["seeds"] + row["diverged"]
        if row["part"] in FULL and not is_replaced:
            rows[key], found[key] = row, cell_of_row(row)
    claims = {claim.id: plain(claim) for claim in [*judge_orderings(found), *judge_laws(found), *more]}
    environments = [run.environment for cell in found.values() for run in cell.runs]
    missing = set(earlier.get("incomplete", ())) - comparisons.keys()
    missing |= {name for name, comparison in comparisons.items() if comparison.partial}
    return {
        "environment": next(iter(environments), earlier.get("environment")),
        "incomplete": [name for name in FULL if name in missing],
        "rows": sorted(rows.values(), key=lambda row: list(FULL).index(row["part"])),
        "claims": list({**claims, **{c["id"]: c for c in earlier.get("claims", ()) if c["id"] not in claims}}.values()),
    }


def _row_of(key: Key, cell: Cell) -> dict[str, Any]:
    part, recipe, batch_size, lr_factor = key
    first = cell.runs[0]
    return {
        "part": part,
        "recipe": recipe,
        "batch_size": batch_size,
        "lr_factor": lr_factor,
        "lr": first.settings["lr"],
        "seeds": cell.num_finished,
        "diverged": cell.num_diverged,
        "updates": first.updates,
        "samples": first.samples,
        "first_updates": first.curve[0]["updates"],
        "first_loss": statistics.mean(run.curve[0]["loss"] for run in cell.runs),
        "first_distance": statistics.mean(_distance_at(run, run.curve[0]["updates"]) for run in cell.runs),
        "minutes": statistics.mean(run.seconds for run in cell.runs) / 60,
        "metrics": {
            name: {"mean": cell.mean(name), "sd": cell.sd(name), "values": list(values)}
            for name, values in cell.metrics.items()
        },
        "distance": [plain(run.distance_law) for run in cell.runs],
        "distance_of_first": [plain(first_law(run)) for run in cell.runs],
    }


def _distance_at(run: Run, update: int) -> float:
    return next(line["distance"] for line in run.distance if line["updates"] == update)


def write_readme(path: Path, rows: Sequence[dict[str, Any]], claims: Sequence[Claim]) -> None:
    """Rewrite the generated part of the study's README."""
    head = ["part", "recipe", "batch", "rate", "seeds", "updates", "eval (%)", "train (%)", "gap"]
    rewrite_results(path, [claims_section(claims), ("Runs", head, map(_cells_of, rows))])


def _cells_of(row: dict[str, Any]) -> tuple[object, ...]:
    shown, means = [], []
    for name in ("eval_accuracy", "train_accuracy"):
        figure = row["metrics"][name]
        means.append(figure["mean"])
        shown.append(f"{figure['mean']:.2f}" + ("" if figure["sd"] is None else f" ± {figure['sd']:.2f}"))
    about = (row["part"], row["recipe"], row["batch_size"], f"{row['lr']:.3g}", row["seeds"], row["updates"])
    return (*about, *shown, f"{means[1] - means[0]:.2f}")


def read_earlier(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the full study found before, where it is about to be written; empty for nothing."""
    is_there = arguments.size == "full" and arguments.json and arguments.json.exists()
    return json.loads(arguments.json.read_text()) if is_there else {}
