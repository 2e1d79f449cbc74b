"""What does it look like? Accuracy over batch sizes, noise fractions over training, and their causes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from accuracy_claims import DET, DET_64, DET_256, SEG, SEG_256, SEG_1024, Found
from noise_claims import ORDER, RUN_16, RUN_256, RUN_AGVM

Noise = Mapping[str, Sequence[dict[str, Any]]]
STEPS = {"segmentation": {16: SEG, 256: SEG_256, 1024: SEG_1024}, "detection": {16: DET, 64: DET_64, 256: DET_256}}


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
    for row, task in zip(axes[1:], ("segmentation", "instances"), strict=True):
        columns = ((RUN_16, "small", "at 32"), (RUN_256, "large", "large batch"), (RUN_AGVM, "large", "large batch"))
        for axis, (name, column, words) in zip(row, columns, strict=True):
            _draw_noise(axis, noise.get(f"noise of {task}, {name}", ()), column)
            axis.set(title=f"{task}, {name}: noise {words}", xlabel="updates", ylim=(0, 1.5))
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
        if known:
            means = [statistics.mean(values) for values in known.values()]
            sds = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in known.values()]
            axis.errorbar(list(known), means, sds, label=recipe, capsize=3, marker="o")
    axis.set(xscale="log", xlabel="batch size", ylabel="points", title=task)
    axis.set_xticks(list(STEPS[task]), [str(size) for size in STEPS[task]])
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
