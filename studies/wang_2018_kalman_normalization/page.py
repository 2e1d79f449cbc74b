"""How are the results written: as JSON, and as the generated part of the README?"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cells import Cell, rate_of
from evidence import Found, epochs_to
from reporting import Section, claims_section, rewrite_results
from verdicts import Claim

TARGET = "micro", "BN at 128"


def rows_of(found: Found) -> list[dict[str, Any]]:
    """Return one row for each cell that has runs."""
    accuracies = found.accuracies(TARGET)
    target = statistics.mean(accuracies.values()) / 100 if accuracies else None
    return [
        {"part": part, "recipe": recipe, **_row(cell, target)}
        for (part, recipe), cell in found.cells.items()
        if cell.runs
    ]


def _row(cell: Cell, target: float | None) -> dict[str, Any]:
    runs = [cell.runs[seed] for seed in sorted(cell.runs)]
    done = [run for run in runs if run.status == "done"]
    reached = [epochs_to(run, target) for run in done] if target is not None else []
    return {
        "batch_size": runs[0].batch_size,
        "rate": rate_of(runs[0]),
        "seeds": len(runs),
        "diverged": len(runs) - len(done),
        "updates": max(run.updates for run in runs),
        "eval_accuracy": _spread(list(cell.accuracies.values())),
        "train_accuracy": _spread([100 * run.metrics["train_accuracy"] for run in done]),
        "epochs_to_bn_at_128": reached,
        "minutes": statistics.mean(run.seconds for run in runs) / 60,
        "curve": [
            {
                "epochs": line[0]["epochs"],
                "eval_accuracy": statistics.mean(100 * each["eval_accuracy"] for each in line),
            }
            for line in zip(*(run.curve for run in done), strict=True)
        ],
    }


def _spread(values: list[float]) -> dict[str, Any]:
    return {
        "mean": statistics.mean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "values": values,
    }


def line_of(row: Mapping[str, Any]) -> str:
    """Return a row as one line of text."""
    return (
        f"{row['part']}: {row['recipe']}, rate {row['rate']:.3g}, {row['seeds']} seeds: "
        f"{_shown(row['eval_accuracy'])} % (training {_shown(row['train_accuracy'])} %)"
    )


def results_of(found: Found, rows: Sequence[dict[str, Any]], missing: Sequence[str]) -> dict[str, Any]:
    """Return all of results.json but the claims."""
    environments = [run.environment for cell in found.cells.values() for run in cell.runs.values()]
    return {
        "environment": environments[0] if environments else None,
        "incomplete": list(missing),
        "rates": list(found.rates),
        "rows": list(rows),
        "moments": {network: list(layers) for network, layers in found.moments.items()},
        "statistics": list(found.statistics),
    }


def write_readme(path: Path, results: Mapping[str, Any], claims: Sequence[Claim]) -> None:
    """Rewrite the generated part of the study's README."""
    moments = [_moments(results, "Errors", ""), _moments(results, "Scatter", "_scatter")]
    sections = [claims_section(claims), _runs(results), _rates(results), *moments, _statistics(results)]
    rewrite_results(path, [section for section in sections if section[2]])


def _runs(results: Mapping[str, Any]) -> Section:
    head = ["part", "recipe", "batch", "rate", "seeds", "diverged", "updates", "eval (%)", "train (%)",
            "epochs to BN at 128", "minutes"]  # fmt: skip
    return "Runs", head, [
        (row["part"], row["recipe"], row["batch_size"], f"{row['rate']:.3g}", row["seeds"], row["diverged"],
         row["updates"], _shown(row["eval_accuracy"]), _shown(row["train_accuracy"]), _reached(row),
         f"{row['minutes']:.1f}")
        for row in results["rows"]
    ]  # fmt: skip


def _rates(results: Mapping[str, Any]) -> Section:
    factors = sorted({factor for row in results["rates"] for factor in row["accuracies"]}, key=float)
    rows = [
        (
            row["recipe"],
            row["batch_size"],
            *(f"{row['accuracies'][factor]:.2f}" if factor in row["accuracies"] else "" for factor in factors),
            f"{row['best']:g}",
        )
        for row in results["rates"]
    ]
    head = ["recipe", "batch", *(f"rate x {factor} (%)" for factor in factors), "chosen"]
    return "Rates, by held-out images, one seed", head, rows


def _moments(results: Mapping[str, Any], what: str, suffix: str) -> Section:
    names = [f"{which}_{moment}{suffix}" for which in ("observed", "prior", "posterior") for moment in ("mean", "var")]
    rows = [
        (
            network,
            row["layer"],
            " / ".join(f"{statistics.mean(row[name]):.3f}" for name in names[:2]),
            " / ".join(f"{statistics.mean(row[name]):.3f}" for name in names[2:4]),
            " / ".join(f"{statistics.mean(row[name]):.3f}" for name in names[4:]),
            f"{statistics.mean(row['prior_weight']):.2f}",
            len(row["seeds"]),
        )
        for network, layers in results["moments"].items()
        for row in layers
    ]
    head = ["network", "layer", "observed", "prior", "blend", "weight of the prior", "seeds"]
    return f"{what} of moments: mean in pooled standard deviations / log of variance", head, rows


def _statistics(results: Mapping[str, Any]) -> Section:
    found: dict[tuple[str, str], list[float]] = {}
    for entry in results["statistics"]:
        for name, accuracy in entry["accuracies"].items():
            found.setdefault((entry["recipe"], name), []).append(accuracy)
    rows = [(*key, _shown(_spread(values)), len(values)) for key, values in found.items()]
    return "Other running statistics, same weights", ["recipe", "statistics", "eval (%)", "seeds"], rows


def _reached(row: Mapping[str, Any]) -> str:
    reached = [each for each in row["epochs_to_bn_at_128"] if each is not None]
    if not row["epochs_to_bn_at_128"]:
        return ""
    mean = f"{statistics.mean(reached):.2f}" if reached else "never"
    return mean if len(reached) == len(row["epochs_to_bn_at_128"]) else f"{mean} ({len(reached)} seeds)"


def _shown(spread: Mapping[str, Any]) -> str:
    if spread["mean"] is None:
        return "none"
    return f"{spread['mean']:.2f}" + ("" if spread["sd"] is None else f" ± {spread['sd']:.2f}")
