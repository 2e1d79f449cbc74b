"""How are the findings drawn, and written into the study's README?"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import findings
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from authors import CHECKPOINTS, CURVES
from matplotlib.axes import Axes
from promise_units import BOUNDS
from reporting import claims_section, rewrite_results
from units import Results, by_label
from verdicts import Claim

MOST_POINTS = 400
Table = tuple[Sequence[str], Iterable[Sequence[object]]]  # head, rows


def draw(results: Results, found: Mapping[str, Any], folder: Path) -> None:
    """Draw both figures of the paper with the authors' points, and what is behind them."""
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "papini 2017"
    figure, axes = plt.subplots(2, 3, figsize=(16, 9), layout="constrained")
    runs = by_label(results, "curve")
    for axis, number in zip(axes[0, :2], "12", strict=True):
        labels = [label for label in runs if number in CURVES[label].figure]
        _draw_curves(axis, {label: runs[label] for label in labels})
        axis.set(title=f"Figure {number}; dots: the authors", xlabel="trajectories", ylabel="closed-form performance")
    for label, own in runs.items():
        colour = _colour(label)
        size, step = own[0]["batch_size"], own[0]["step_size"]
        places = _thinned(len(size))
        total = np.cumsum(size)
        axes[0, 2].plot(total[places], np.array(size)[places], lw=1, color=colour)
        axes[1, 0].plot(total[places], np.array(step)[places], lw=1, color=colour)
    axes[0, 2].set(title="Batch size, colours as in figures 1 and 2", xlabel="trajectories", yscale="log")
    axes[1, 0].set(title="Step size, likewise", xlabel="trajectories", yscale="log")
    _draw_poles(axes[1, 1], by_label(results, "cart-pole"))
    _draw_failures(axes[1, 2], found["failures"])
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=7)
    figure.savefig(folder / "figures.svg", metadata={"Date": None})
    plt.close(figure)


def _colour(label: str) -> Any:
    return matplotlib.colormaps["tab20"](list(CURVES).index(label))


def _draw_curves(axis: Axes, runs: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    for label in sorted(runs, key=list(CURVES).index):
        own, colour = runs[label], _colour(label)
        last = min(sum(run["batch_size"]) for run in own)
        grid = np.linspace(0, last, MOST_POINTS)
        lines = np.array([[findings.performance_at(run, int(place)) for place in grid] for run in own])
        axis.plot(grid, lines.mean(0), lw=1.4, color=colour, label=CURVES[label].label)
        axis.fill_between(grid, lines.min(0), lines.max(0), color=colour, alpha=0.2)
        known = [pair for pair in zip(CHECKPOINTS, CURVES[label].performances, strict=True) if pair[0] <= last]
        axis.plot([x for x, _ in known], [y for _, y in known], ".", color=colour)


def _draw_poles(axis: Axes, runs: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    for colour, (kind, own) in enumerate(runs.items()):
        for place, run in enumerate(own):
            name = kind if place == 0 else None
            total = np.cumsum(run["batch_size"])
            axis.plot(total, run["measured_performance"], lw=0.8, color=f"C{colour}", alpha=0.7, label=name)
    axis.set(title="Cart-pole, the pole twice as long", xlabel="trajectories", ylabel="return")


def _draw_failures(axis: Axes, rows: Iterable[Mapping[str, Any]]) -> None:
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        is_shown = row["bound"] in BOUNDS if row["estimator"] == "gpomdp" else row["bound"] == "chebyshev"
        if row["delta"] == 0.25 and is_shown:
            name = row["bound"] if row["estimator"] == "gpomdp" else f"{row['estimator']}, {row['bound']}"
            lines.setdefault(name, []).append((row["divisor"], row["share_over_delta"]))
    for name, points in lines.items():
        axis.plot(*zip(*points, strict=True), marker=".", lw=1.2, label=name)
    axis.axhline(1, color="black", lw=1, ls="--")
    axis.set(title="Failures over delta = 0.25", xlabel="the error is divided by", xscale="log")


def _thinned(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).astype(int))


def write_readme(path: Path, found: Mapping[str, Any]) -> None:
    """Rewrite the generated part of the study's README."""
    parts = {
        "Curves": _curves(found["curves"]),
        "Improvement rates": _rates(found["improvement_rates"]),
        "Cart-pole": _poles(found["cart_pole"]),
        "Failures over delta": _failures(found["failures"]),
        "Updates that moved the policy, and of these the ones that made it worse": _moved(found["failures"]),
        "Whole runs of the 2022 rule": _runs(found["failures_of_runs"]),
        "The price of the guarantee, along the curves": _prices(found["price"]),
        "The batch that is asked for at the first policy": _prices_at_start(found["price_at_start"]),
    }
    claims = claims_section(Claim(**claim) for claim in found["claims"])
    rewrite_results(path, [claims, *((title, *table) for title, table in parts.items())])


def _curves(rows: Sequence[Mapping[str, Any]]) -> Table:
    heads = ("curve", "average return", "final J", "updates", "batch, median", "least", "most", "step, median",
             "worse", "seconds")  # fmt: skip
    cells = (
        (
            CURVES[row["curve"]].label, f"{row['average_return']:.4f}", f"{row['final_performance']:.3f}",
            f"{row['updates']:.0f}", f"{row['batch_size']['median']:.0f}", row["batch_size"]["min"],
            row["batch_size"]["max"], f"{row['step_size']:.3e}", row["num_worse"], f"{row['seconds']:.0f}",
        )
        for row in rows
    )  # fmt: skip
    return (heads, cells)


def _rates(rows: Sequence[Mapping[str, Any]]) -> Table:
    cells = (
        (f"{row['std']:g}", row["batch_size"], f"{row['step_size']:g}", f"{row['paper']:.2f}",
         _mean(row["closed_form"]), _mean(row["exact"]))
        for row in rows
    )  # fmt: skip
    return (("std", "batch", "step", "theirs (%)", "ours (%)", "exact performance raised (%)"), cells)


def _poles(rows: Sequence[Mapping[str, Any]]) -> Table:
    cells = (
        (row["method"], *(_mean(row[name]) for name in ("first", "last", "average")), f"{row['batch_size']:.0f}",
         " to ".join(f"{step:.2e}" for step in row["step_sizes"]))
        for row in rows
    )  # fmt: skip
    return (("method", "first batch", "last batch", "average", "batch, median", "steps"), cells)


def _failures(rows: Sequence[Mapping[str, Any]]) -> Table:
    divisors = sorted({row["divisor"] for row in rows})
    keys = list(dict.fromkeys((row["estimator"], row["bound"], row["delta"]) for row in rows))
    shares = {(row["estimator"], row["bound"], row["delta"], row["divisor"]): row["share_over_delta"] for row in rows}
    cells = (
        [*key[:2], f"{key[2]:g}", *(f"{shares[*key, d]:.3f}" if (*key, d) in shares else "" for d in divisors)]
        for key in keys
    )
    return (("estimator", "bound", "delta", *(f"error / {d:g}" for d in divisors)), cells)


def _moved(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a row per bound, its error as it is: how many updates moved the policy, and how many made it worse."""
    parted = [(row, findings.moved_by_start(row["starts"])) for row in rows if row["divisor"] == 1]
    names = list(parted[0][1]) if parted else []
    cells = (
        [row["estimator"], row["bound"], f"{row['delta']:g}", row["num_updates"], row["num_steps"], row["num_worse"],
         "" if row["share_of_steps"] is None else f"{100 * row['share_of_steps']:.2f}",
         *(f"{starts[name][1]} of {starts[name][0]}, {starts[name][2]} worse" for name in names)]
        for row, starts in parted
    )  # fmt: skip
    heads = ("estimator", "bound", "delta", "updates", "moved", "worse", "worse of moved (%)")
    return ((*heads, *names), cells)


def _runs(rows: Sequence[Mapping[str, Any]]) -> Table:
    heads = (
        "bound",
        "delta",
        "error divided by",
        "runs",
        "runs that moved",
        "failed",
        "over delta",
        "updates",
        "moved",
    )
    cells = (
        (row["bound"], f"{row['delta']:g}", f"{row['divisor']:g}", row["num_runs"], row["num_moved"], row["num_failed"],
         f"{row['share_over_delta']:.3f}", row["num_updates"], row["num_steps"])
        for row in rows
    )  # fmt: skip
    return (heads, cells)


def _prices(rows: Sequence[Mapping[str, Any]]) -> Table:
    names = ("true_variance", "sign", "sign_at_delta")
    heads = ("curve", "trajectories", "over true variance", "over sign, 0.95", "over sign, 1 - delta")
    cells = (
        (CURVES[row["curve"]].label, row["used"], *(f"{row[f'over_{name}']:.1f}" for name in names)) for row in rows
    )
    return (heads, cells)


def _prices_at_start(rows: Sequence[Mapping[str, Any]]) -> Table:
    names = [name for name in rows[0] if name not in ("estimator", "delta")] if rows else []
    cells = ([row["estimator"], f"{row['delta']:g}", *(row[name] for name in names)] for row in rows)
    return (("estimator", "delta", *(f"{name}" for name in names)), cells)


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"
