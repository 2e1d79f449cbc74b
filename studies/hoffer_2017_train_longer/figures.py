"""Error against batch size, distance against updates, error against updates: figures 1 to 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from cells import cell_of_row, collect
from orderings import AT_1024, AT_4096, SMALL

from anybatch.train.comparison import Comparison


def draw(rows: Sequence[Mapping[str, Any]], comparisons: Mapping[str, Comparison], folder: Path) -> None:
    """Draw figure 1 of the paper from the rows, 2 and 3 from the runs, as far as they are there."""
    matplotlib.use("svg")
    results = {(r["part"], r["recipe"], r["batch_size"]): cell_of_row(r) for r in rows if r["lr_factor"] == 1}
    cells = {key[:3]: cell for key, cell in collect(comparisons).items() if key[3] == 1 and cell.runs}
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    for recipe in ("LB", "+LR", "+GBN", "+RA"):
        parts = ("adaptation at 1024", "adaptation at 4096") if recipe == "+RA" else (AT_1024, AT_4096)
        sizes = {128: SMALL, 1024: (parts[0], recipe, 1024), 4096: (parts[1], recipe, 4096)}
        known = [(size, results[key]) for size, key in sizes.items() if key in results]
        error = [100 - cell.mean("eval_accuracy") for _, cell in known]
        spread = [cell.sd("eval_accuracy") or 0 for _, cell in known]
        axes[0].errorbar([size for size, _ in known], error, spread, label=recipe, capsize=3, marker="o")
    axes[0].set(
        xscale="log",
        xticks=[128, 1024, 4096],
        xticklabels=["128", "1024", "4096"],
        xlabel="batch size",
        ylabel="error on the evaluation set (%)",
        title="Figure 1",
    )
    for (part, recipe, size), cell in cells.items():
        if part in (SMALL[0], AT_1024, AT_4096) and recipe != "noise":
            walk = [(line["updates"], line["distance"]) for line in cell.runs[0].distance]
            axes[1].plot(*zip(*walk, strict=True), label=f"{recipe} at {size}", lw=1.2)
        if recipe in ("SB", "+RA") and part in (SMALL[0], "adaptation at 1024", "adaptation at 4096"):
            curve = [(line["updates"], 100 - 100 * line["eval_accuracy"]) for line in cell.runs[0].curve]
            axes[2].plot(*zip(*curve, strict=True), label=f"{recipe} at {size}", lw=1.2)
    axes[0].minorticks_off()
    axes[1].set(xscale="log", xlabel="updates", ylabel="||w - w0||", title="Figure 2")
    axes[2].set(xlabel="updates", ylabel="error on the evaluation set (%)", title="Figure 3")
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8)
        axis.grid(alpha=0.25)
    figure.savefig(folder / "figures.svg", metadata={"Date": None})
    plt.close(figure)
