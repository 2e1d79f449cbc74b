"""What does it look like? Accuracy over batch sizes, noise fractions over training, and their causes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from accuracy_claims import (
    DET,
    DET_64,
    DET_FEW_16,
    SCALED,
    SEG,
    SEG_64,
    SEG_256,
    SEG_FEW_16,
    SEG_FEW_64,
    Found,
)
from noise_claims import ORDER, RUN_16, RUN_256, RUN_AGVM

Noise = Mapping[str, Sequence[dict[str, Any]]]
FEW = {
    "segmentation, 192 updates": {16: SEG_FEW_16, 64: SEG_FEW_64, 256: SEG_256},
    "detection, 256 updates": {16: DET_FEW_16, 64: DET_64},
}
STEPS = {"segmentation": {16: SEG, 64: SEG_64, 256: SEG_256}, "detection": {16: DET, 64: DET_64}}


def draw(found: Found, noise: Noise, folder: Path) -> None:
    """Draw what is there.

    Args:
        found: (step, recipe) -> its runs.
        noise: step -> its points.
        folder: where `figures.svg` goes.
    """
    matplotlib.use("svg")
    figure, axes = plt.subplots(3, 3, figsize=(15, 12), layout="constrained")
    for axis, task in zip(axes[0], STEPS, strict=False):
        _draw_accuracy(axis, found, task)
    _draw_proposals(axes[0][2], noise)
    panels = [
        *(("segmentation", *panel) for panel in ((RUN_16, "small"), (RUN_256, "large"), (RUN_AGVM, "large"))),
        *(("instances", RUN_16, column) for column in ("small", "large")),
    ]
    for axis, (task, name, column) in zip(axes.flat[3:], panels, strict=False):
        _draw_noise(axis, noise.get(f"noise of {task}, {name}", ()), column)
        words = {"small": "at 32", "large": "at a large batch"}[column]
        axis.set(title=f"{task}, {name}: noise {words}", xlabel="updates", ylim=(0, 1.5))
    _draw_few_updates(axes[2][2], found)
    for axis in axes.flat:
        if axis.has_data():
            axis.legend(frameon=False, fontsize=8)
            axis.grid(alpha=0.25)
        else:
            axis.set_axis_off()
            axis.text(0.5, 0.5, "not run yet", ha="center", transform=axis.transAxes)
    figure.savefig(folder / "figures.svg", metadata={"Date": None})
    plt.close(figure)


def _draw_accuracy(axis: Any, found: Found, task: str) -> None:
    for recipe in ("plain scaling", "AGVM"):
        keys = {size: (step, "SGD" if size == 16 else recipe) for size, step in STEPS[task].items()}
        known = {size: found[key].values for size, key in keys.items() if key in found}
        _draw_cells(axis, known, recipe)
    axis.set(xscale="log", xlabel="batch size", ylabel="points", title=task)
    axis.set_xticks(list(STEPS[task]), [str(size) for size in STEPS[task]])
    axis.minorticks_off()


def _draw_cells(axis: Any, values: Mapping[int, Sequence[float]], label: str) -> None:
    if values:
        sds = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values.values()]
        axis.errorbar(list(values), [statistics.mean(each) for each in values.values()], sds, label=label, capsize=3,
                      marker="o")  # fmt: skip


def _draw_few_updates(axis: Any, found: Found) -> None:
    for words, steps in FEW.items():
        known = {size: found[step, SCALED].values for size, step in steps.items() if (step, SCALED) in found}
        _draw_cells(axis, known, words)
    axis.set(xscale="log", xlabel="batch size", ylabel="points", title="plain scaling, as many updates at each size")
    axis.set_xticks([16, 64, 256], ["16", "64", "256"])
    axis.minorticks_off()


def _draw_noise(axis: Any, points: Sequence[dict[str, Any]], column: str) -> None:
    names = [name for name in ORDER if points and name in points[0][column]]
    for name in names:
        known = [(point["updates"], point[column][name]) for point in points if point[column][name] is not None]
        if known:
            axis.plot(*zip(*known, strict=True), label=name, marker=".")


def _draw_proposals(axis: Any, noise: Noise) -> None:
    points = noise.get("cause: proposals", ())
    for name in ORDER if points else ():
        if name in points[0]["large"]:
            counts, values = [p["proposals"] for p in points], [p["large"][name] for p in points]
            axis.plot(counts, values, label=name, marker="o")
    axis.set(xscale="log", xlabel="proposals per image", title="noise fraction, same weights")
