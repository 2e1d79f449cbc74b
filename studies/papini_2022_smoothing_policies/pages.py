"""How are the findings drawn, and written into the study's README?"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from authors import CART_POLE, CHECKPOINTS, LQ
from matplotlib.axes import Axes
from reporting import Section, claims_section, rewrite_results
from verdicts import Claim

LQ_COLUMNS = ("num_updates", "mean_batch", "first_batch", "last_batch", "mean_return", "end_return",
              "final_performance", "theta", "num_steps", "num_unpromised", "num_worse", "seconds")  # fmt: skip
POLE_COLUMNS = (
    "num_updates",
    "mean_batch",
    "mean_return",
    "end_return",
    "margin",
    "least_share",
    "num_void",
    "seconds",
)


def draw(found: Mapping[str, Any], folder: Path) -> None:
    """Draw returns and batches along the runs, with what is known of the authors'."""
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "papini 2022"
    figure, axes = plt.subplots(2, 2, figsize=(13, 9), layout="constrained")
    for row, (task, rows) in zip(axes, (("LQ", found["lq"]), ("Cart-pole", found["cart_pole"])), strict=True):
        for axis, column, name in ((row[0], 1, "discounted return"), (row[1], 2, "batch size")):
            _draw_runs(axis, rows, column)
            axis.set(title=f"{task}: {name}", xlabel="trajectories")
        row[1].set_yscale("log")
        place = row[1] if task == "LQ" else row[0]  # where no curve is
        place.legend(*row[0].get_legend_handles_labels(), frameon=False, fontsize=7, loc="lower right")
    for colour, label in enumerate(found["lq"]):
        if label in LQ and LQ[label].returns:
            axes[0, 0].plot(CHECKPOINTS, LQ[label].returns, ".", color=f"C{colour}")
    for colour, label in enumerate(found["cart_pole"]):
        if label in CART_POLE:
            axes[1, 0].plot([2e6], [CART_POLE[label].end_return], ".", color=f"C{colour}")
    figure.savefig(folder / "figures.svg", metadata={"Date": None})
    plt.close(figure)


def _draw_runs(axis: Axes, rows: Mapping[str, Mapping[str, Any]], column: int) -> None:
    for colour, (label, row) in enumerate(rows.items()):
        curves = [np.array(curve).T for curve in row["curve"]]
        grid = np.linspace(max(curve[0][0] for curve in curves), min(curve[0][-1] for curve in curves), 200)
        lines = np.array([np.interp(grid, curve[0], curve[column]) for curve in curves])
        axis.plot(grid, lines.mean(0), lw=1.3, color=f"C{colour}", label=label)
        axis.fill_between(grid, lines.min(0), lines.max(0), color=f"C{colour}", alpha=0.2)
    axis.grid(alpha=0.25)


def write_readme(path: Path, found: Mapping[str, Any]) -> None:
    """Rewrite the generated part of the study's README."""
    claims = claims_section(Claim(**claim) for claim in found["claims"])
    tables = [_table("LQ", found["lq"], LQ_COLUMNS), _table("Cart-pole", found["cart_pole"], POLE_COLUMNS)]
    rewrite_results(path, [claims, *tables])


def _table(title: str, rows: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> Section:
    cells = [[label, *(_shown(row.get(column)) for column in columns)] for label, row in rows.items()]
    return title, ["method", *(column.replace("_", " ") for column in columns)], cells


def _shown(values: Sequence[float] | None) -> str:
    if values is None:
        return ""
    mean = statistics.mean(values)
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 and statistics.stdev(values) else ""
    return f"{mean:.0f}{spread}" if abs(mean) >= 100 else f"{mean:.4g}{spread}"
