"""How are the results shown: tables of the README, and the figure?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from averages import NAMES
from finders import SOURCES
from matplotlib.axes import Axes
from reporting import Section, claims_section
from verdicts import Claim

COLOURS = {"Lightning": "C1", "Accelerate": "C4", "largest": "C3"}


def sections(found: Mapping[str, Any], claims: Sequence[Claim]) -> list[Section]:
    """Return what the README's generated part holds."""
    parts = found["workloads"]
    averages = [row for name, part in parts.items() for row in _average_rows(name, part)]
    return [
        ("What was run", ["command", "when", "where", "not run"], [_run_row(found)]),
        claims_section(claims),
        ("Advice", ["workload", "who", "size", "time to target over the best"], list(_advice_rows(found))),
        ("Sizes", ["workload", "batch", "rate", "samples to target", "seconds"], list(_size_rows(parts))),
        (
            "Averages of the noise scale",
            ["workload", "geometry", "loss", "measured B_crit", "with all sizes", *NAMES],
            averages,
        ),
        ("Rules", ["tool", "rule"], list(SOURCES.items())),
    ]


def _run_row(found: Mapping[str, Any]) -> Sequence[object]:
    about = found["environment"]
    threads = f"{about['num_threads']} thread{'s' if about['num_threads'] > 1 else ''}"
    where = f"{about['device']}, {threads}, torch {about['torch']}"
    return f"`run.py --{found['size']}`", about["date"], where, ", ".join(found["incomplete"]) or "nothing is missing"


def _advice_rows(found: Mapping[str, Any]) -> Iterable[Sequence[object]]:
    for name, part in found["workloads"].items():
        best = min(row["seconds"] for row in part["sizes"])
        for probe, (regret, is_measured) in zip(part["probes"], part["regrets"], strict=True):
            band = f"{probe['recommended']} ({probe['recommended_low']} to {probe['recommended_high']})"
            yield name, f"the probe, seed {probe['seed']}", band, f"{regret:.2f}" + _by_law(is_measured)
        for rule, (seconds, is_measured) in found["times_of_rules"][name].items():
            yield name, rule, part["advised"][rule], f"{seconds / best:.2f}" + _by_law(is_measured)


def _by_law(is_measured: bool) -> str:
    return "" if is_measured else ", by the law"


def _size_rows(parts: Mapping[str, Any]) -> Iterable[Sequence[object]]:
    for name, part in parts.items():
        for row in part["sizes"]:
            samples = f"{', '.join(f'{each:.0f}' for each in row['samples'])}"
            rate = f"x{row['lr_scale']:g}" + ("" if row["is_bracketed"] else ", not bracketed")
            yield name, row["batch_size"], rate, samples, f"{row['seconds']:.3g}"


def _average_rows(name: str, part: Mapping[str, Any]) -> Iterable[Sequence[object]]:
    for row in part["by_loss"]:
        measured = [_critical(row[law]) for law in ("law", "law_of_all_sizes")]
        for geometry, values in row["averages"].items():
            yield name, geometry, f"{row['loss']:.3g}", *measured, *(f"{values[average]:.3g}" for average in NAMES)


def _critical(law: Mapping[str, Any]) -> str:
    value, high = law["critical_batch_size"], law["high"]
    ends = f"({law['low']:.3g} to {'no end' if high is None else f'{high:.3g}'})"
    return f"{'none' if value is None else f'{value:.3g}'} {ends}"


def draw(found: Mapping[str, Any], folder: Path) -> None:
    """Draw time over batch size with everybody's advice, and B_crit against the loss with every average."""
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "anybatch"
    parts = found["workloads"]
    figure, axes = plt.subplots(
        2, max(len(parts), 1), figsize=(5 * max(len(parts), 1), 8), layout="constrained", squeeze=False
    )
    for column, (name, part) in enumerate(parts.items()):
        _draw_times(axes[0][column], part, found["times_of_rules"][name])
        _draw_critical(axes[1][column], part)
        axes[0][column].set_title(name)
    figure.savefig(folder / "figures.svg", metadata={"Date": None})
    plt.close(figure)


def _draw_times(axis: Axes, part: Mapping[str, Any], rules: Mapping[str, tuple[float, bool]]) -> None:
    sizes = [row["batch_size"] for row in part["sizes"]]
    best = min(row["seconds"] for row in part["sizes"])
    times = [row["seconds"] / best for row in part["sizes"]]
    spread = [[abs(sample * row["seconds_per_sample"] - row["seconds"]) / best for sample in
               (min(row["samples"]), max(row["samples"]))] for row in part["sizes"]]  # fmt: skip
    axis.errorbar(sizes, times, list(zip(*spread, strict=True)), color="black", marker="o", capsize=3, label="measured")
    for number, (probe, (regret, _)) in enumerate(zip(part["probes"], part["regrets"], strict=True)):
        label = "recommended, each seed" if not number else None
        axis.plot(probe["recommended"], regret, "C2*", ms=16, alpha=0.6, label=label)
    for rule, (seconds, is_measured) in rules.items():
        label = f"{rule}: {part['advised'][rule]}" + _by_law(is_measured)
        axis.plot(part["advised"][rule], seconds / best, "D", color=COLOURS[rule], ms=8, label=label)
    axis.set(xscale="log", yscale="log", xlabel="batch size", ylabel="time to target over the best")
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.25)


def _draw_critical(axis: Axes, part: Mapping[str, Any]) -> None:
    rows = [row for row in part["by_loss"] if row["law"]["critical_batch_size"]]
    if not rows:
        axis.text(0.5, 0.5, "samples do not grow with the batch: no B_crit", ha="center", transform=axis.transAxes)
        return
    losses = [row["loss"] for row in rows]
    measured = [row["law"]["critical_batch_size"] for row in rows]
    low = [value - row["law"]["low"] for value, row in zip(measured, rows, strict=True)]
    high = [(row["law"]["high"] or value) - value for value, row in zip(measured, rows, strict=True)]
    axis.errorbar(losses, measured, [low, high], color="black", marker="o", capsize=3, label="measured, 95%")
    geometry = list(rows[0]["averages"])[-1]
    for name in NAMES:
        if not name.endswith("whole run"):
            axis.plot(losses, [row["averages"][geometry][name] for row in rows], ".--", lw=1, label=name)
    for probe in part["probes"]:
        if probe["critical_batch_size"]:
            axis.plot(rows[-1]["loss"], probe["critical_batch_size"], "C2*", ms=12, alpha=0.6)
    axis.set(xscale="log", yscale="log", xlabel="loss", ylabel=f"B_crit (averages in geometry {geometry})")
    axis.set_xticks(losses, [f"{loss:.3g}" for loss in losses])
    axis.minorticks_off()
    axis.invert_xaxis()
    axis.legend(frameon=False, fontsize=8)
    axis.grid(alpha=0.25, which="both")
