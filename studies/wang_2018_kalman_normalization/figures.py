"""What do the runs look like? Accuracy over epochs, against micro-batch size, by prior; errors of moments by layer."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from cells import Key
from evidence import Found
from matplotlib.axes import Axes


def draw(found: Found, sizes: Sequence[int], folder: Path) -> None:
    """Draw what is there."""
    matplotlib.use("svg")
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    _curves(axes[0, 0], found)
    _sizes(axes[0, 1], found, sizes)
    _priors(axes[1, 0], found)
    _moments(axes[1, 1], found)
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(frameon=False, fontsize=8)
    figure.savefig(folder / "figures.svg", metadata={"Date": None})
    plt.close(figure)


def _curves(axis: Axes, found: Found) -> None:
    for (part, recipe), _ in found.cells.items():
        runs = list(found.runs((part, recipe)).values())
        if part == "micro" and runs:
            lines = list(zip(*(run.curve for run in runs), strict=True))
            error = [100 - 100 * statistics.mean(each["eval_accuracy"] for each in line) for line in lines]
            axis.plot([line[0]["epochs"] for line in lines], error, marker=".", label=recipe)
    axis.set(xlabel="epochs", ylabel="error on the test set (%)", title="Micro-batches of 2", yscale="log")
    for formatted in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        formatted("{x:g}")


def _sizes(axis: Axes, found: Found, sizes: Sequence[int]) -> None:
    for recipe in ("BN", "KN"):
        keys: dict[int, Key] = {size: ("sizes", f"{recipe} at {size}") for size in sizes}
        keys |= {2: ("micro", recipe)} | ({128: ("micro", "BN at 128")} if recipe == "BN" else {})
        known = {size: list(found.accuracies(key).values()) for size, key in sorted(keys.items())}
        _with_spread(axis, {size: values for size, values in known.items() if values}, recipe)
    group = list(found.accuracies(("micro", "GN")).values())
    if group:
        axis.axhline(statistics.mean(group), color="C2", label="GN", lw=1.2)
    axis.set(xscale="log", xlabel="samples normalized together", ylabel="accuracy (%)", title="Size of micro-batches")


def _with_spread(axis: Axes, values: dict[int, list[float]], label: str) -> None:
    means = [statistics.mean(each) for each in values.values()]
    spreads = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values.values()]
    axis.errorbar(list(values), means, spreads, label=label, capsize=3, marker="o")


def _priors(axis: Axes, found: Found) -> None:
    keys: dict[str, Key] = {"BN": ("micro", "BN"), "KN": ("micro", "KN"), "KN published": ("micro", "KN published")}
    keys |= {recipe.partition(": ")[2] or recipe: (part, recipe) for part, recipe in found.cells
             if part in ("priors", "reasons", "spaces")}  # fmt: skip
    known = {name: list(found.accuracies(key).values()) for name, key in keys.items()}
    for place, (name, values) in enumerate((name, values) for name, values in known.items() if values):
        axis.plot(values, [place] * len(values), "o", alpha=0.6, color="C0")
        axis.annotate(name, (min(values), place), xytext=(-6, -3), textcoords="offset points", ha="right", fontsize=8)
    axis.set(xlabel="accuracy (%), a point per seed", title="What the prior is", yticks=[])
    axis.margins(x=0.5)


def _moments(axis: Axes, found: Found) -> None:
    rows = found.moments.get("KN, trained", ())
    for name, colour in (("observed", "C0"), ("prior", "C1"), ("posterior", "C2")):
        for moment, style in (("mean", "-"), ("var", "--")):
            errors = [statistics.mean(row[f"{name}_{moment}"]) for row in rows]
            label = f"{'blend' if name == 'posterior' else name}, {moment}"
            axis.plot(errors, style, color=colour, marker=".", label=label)
    axis.set(xticks=range(len(rows)), ylabel="error against the pooled batch", title="Moments of KN, trained")
    axis.set_yscale("log" if rows else "linear")
    axis.set_xticks(range(len(rows)), [row["layer"] for row in rows], rotation=30, ha="right", fontsize=7)
