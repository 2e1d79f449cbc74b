"""What does each chart of a probe show? One pure function per chart: a record in, a plotly figure out.

A figure without traces means that the record has nothing to draw.
"""

from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go

from anybatch.report.drawing import (
    BLUE,
    COLOURS,
    GREY,
    VERMILION,
    Edges,
    Interval,
    add_estimates,
    add_intervals,
    add_line,
    add_mark,
    log_edges,
    new_figure,
    set_log_axis,
    short_name,
)
from anybatch.report.wording import Record, bounds_of, in_words, memory_size, noise_bounds, number, percent

ENDS = ("", "_low", "_high")


def curve_chart(record: Record) -> go.Figure:
    """Return predicted time and samples, relative to the recommended batch, over batch sizes."""
    points = _sorted(record.get("curve"), "batch_size")
    figure = new_figure("Ratio to the recommended batch")
    if not points:
        return figure
    lines = (("relative_time", "training time", BLUE), ("relative_samples", "samples", VERMILION))
    edges = log_edges(point.get(name + end) for point in points for name, _, _ in lines for end in ENDS)
    for name, words, colour in lines:
        texts = [_curve_text(point, name, words) for point in points]
        add_estimates(figure, points, "batch_size", name, words, colour, texts)
    largest = (record.get("memory") or {}).get("max_micro_batch_size")
    _mark_recommended(figure, points, (record.get("recommendation") or {}).get("batch_size"))
    if largest is not None:
        add_mark(figure, "x", largest, f"largest that fits at once: {number(largest)}")
    sizes = log_edges([*(point["batch_size"] for point in points), largest])
    set_log_axis(figure, "x", sizes, 2, "Batch size (samples)")
    set_log_axis(figure, "y", edges, 10)
    return figure


def throughput_chart(record: Record) -> go.Figure:
    """Return samples per second, with and without the loader, over micro-batch sizes."""
    points = _sorted(record.get("throughput"), "micro_batch_size")
    figure = new_figure("Throughput (samples per second)")
    if not points:
        return figure
    lines = (
        ("samples_per_second", "model alone", BLUE),
        ("samples_per_second_with_loader", "with loader", VERMILION),
    )
    rates = [point.get(name + end) or 0 for point in points for name, _, _ in lines for end in ENDS]
    edges = Edges(0, 1.06 * max(rates) or 1)
    for name, words, colour in lines:
        if any(point.get(name) is not None for point in points):
            texts = [_throughput_text(point, name, words) for point in points]
            add_estimates(figure, points, "micro_batch_size", name, words, colour, texts)
    knee = (record.get("knee") or {}).get("micro_batch_size")
    if knee is not None:
        add_mark(figure, "x", knee, f"knee: {number(knee)}", dash="dot")
    sizes = log_edges([*(point["micro_batch_size"] for point in points), knee])
    set_log_axis(figure, "x", sizes, 2, "Micro-batch size (samples)")
    return figure.update_yaxes(range=edges, nticks=7)


def memory_chart(record: Record) -> go.Figure:
    """Return peak memory over micro-batch sizes, with the limit and the trials that did not fit."""
    memory = record.get("memory") or {}
    trials, limit = _sorted(memory.get("trials"), "micro_batch_size"), memory.get("limit_bytes")
    known = [size for size in (limit, *(trial.get("peak_bytes") for trial in trials)) if size]
    unit, scale = ("GB", 1e9) if max(known, default=0) >= 1e9 else ("MB", 1e6)
    figure = new_figure(f"Peak memory ({unit})")
    if not trials:
        return figure
    edges = log_edges(size / scale for size in known)
    _add_trials(figure, [trial for trial in trials if trial.get("fits")], "fits", BLUE, scale, edges.high)
    crosses = {"mode": "markers", "marker": {"size": 10, "symbol": "x"}}
    failed = [trial for trial in trials if not trial.get("fits")]
    top = limit / scale if limit else edges.high
    _add_trials(figure, failed, "does not fit", VERMILION, scale, top, **crosses)
    if limit is not None:
        add_mark(figure, "y", limit / scale, f"limit: {memory_size(limit)}")
    sizes = log_edges(trial["micro_batch_size"] for trial in trials)
    set_log_axis(figure, "x", sizes, 2, "Micro-batch size (samples)")
    set_log_axis(figure, "y", edges, 10)
    return figure


def noise_training_chart(record: Record) -> go.Figure:
    """Return the noise scale with its interval over training; modules are drawn on a click."""
    points = _sorted((record.get("noise_scale") or {}).get("points"), "samples")
    intervals = [Interval(point["samples"], noise_bounds(point), _training_text(point)) for point in points]
    figure = new_figure("Noise scale (samples)")
    if all(interval.estimate.is_empty for interval in intervals):
        return figure
    lines = _module_lines(points)
    values = [value for rows in lines.values() for _, value in rows]
    edges = log_edges([*values, *(end for interval in intervals for end in interval.estimate)])
    trend = [(interval.place, interval.estimate.value) for interval in intervals]
    add_line(figure, trend, "trend", BLUE, line={"width": 1}, showlegend=False)
    add_intervals(figure, intervals, edges, "y", "all modules", BLUE)
    for (name, rows), colour in zip(lines.items(), COLOURS[1:], strict=False):
        texts = [f"{short_name(name)}: {number(value)} samples" for _, value in rows]
        add_line(figure, rows, short_name(name), colour, texts, visible="legendonly")
    set_log_axis(figure, "y", edges, 10)
    last = max(interval.place for interval in intervals) or 1
    return figure.update_xaxes(title={"text": "Training (samples processed)"}, range=[-0.06 * last, 1.06 * last])


def noise_modules_chart(record: Record) -> go.Figure:
    """Return the noise scale of every module with its interval, an open one as an arrow."""
    noise = record.get("noise_scale") or {}
    modules = {"all modules": noise, **(noise.get("modules") or {})}
    estimates = {name: noise_bounds(estimate) for name, estimate in modules.items()}
    figure = new_figure("", height=64 + 46 * len(estimates))
    if all(bounds.is_empty for bounds in estimates.values()):
        return figure
    edges = log_edges(end for bounds in estimates.values() for end in bounds)
    for row, (name, bounds) in enumerate(estimates.items()):
        text = f"<b>{short_name(name)}</b>  {in_words(bounds)}"
        colour = VERMILION if row else BLUE
        add_intervals(figure, [Interval(-row, bounds, text)], edges, "x", short_name(name), colour)
        place: dict[str, Any] = {"xref": "paper", "x": 0, "y": -row, "xanchor": "left", "yshift": 17}
        figure.add_annotation(text=text, showarrow=False, **place)
    set_log_axis(figure, "x", edges, 10, "Noise scale (samples)")
    figure.update_yaxes(visible=False, range=[0.5 - len(estimates), 0.7])
    return figure.update_layout(showlegend=False, margin={"l": 12})


def devices_chart(record: Record) -> go.Figure:
    """Return the predicted speed-up over numbers of devices, beside perfect scaling."""
    points = _sorted(record.get("devices"), "devices")
    figure = new_figure("Speed-up (ratio to one device)")
    if not points:
        return figure
    counts = [point["devices"] for point in points]
    edges = log_edges([*counts, *(point.get("speedup" + end) for point in points for end in ENDS)])
    add_line(
        figure,
        [(count, count) for count in counts],
        "perfect scaling",
        GREY,
        line={"dash": "dash", "width": 1.5},
    )
    texts = [_devices_text(point) for point in points]
    add_estimates(figure, points, "devices", "speedup", "predicted", BLUE, texts)
    last = (record.get("diminishing_devices") or {}).get("devices")
    if last is not None:
        add_mark(figure, "x", last, f"diminishing returns: {number(last)}", dash="dot")
    set_log_axis(figure, "x", log_edges([*counts, last]), 2, "Number of devices")
    set_log_axis(figure, "y", edges, 2)
    return figure


PROBE_CHARTS: dict[str, Callable[[Record], go.Figure]] = {
    "curve": curve_chart,
    "throughput": throughput_chart,
    "memory": memory_chart,
    "noise-training": noise_training_chart,
    "noise-modules": noise_modules_chart,
    "devices": devices_chart,
}


def _sorted(points: Sequence[Record] | None, key: str) -> list[Record]:
    return sorted((point for point in points or [] if point.get(key) is not None), key=lambda point: point[key])


def _module_lines(points: Sequence[Record]) -> dict[str, list[tuple[float, float | None]]]:
    names = dict.fromkeys(name for point in points for name in point.get("modules") or {})
    lines = {name: [(p["samples"], _module_value(p, name)) for p in points] for name in names}
    return {name: rows for name, rows in lines.items() if any(value is not None for _, value in rows)}


def _module_value(point: Record, name: str) -> float | None:
    return noise_bounds((point.get("modules") or {}).get(name)).value


def _mark_recommended(figure: go.Figure, points: Sequence[Record], batch_size: float | None) -> None:
    rows = [(p["batch_size"], p.get("relative_time")) for p in points if p["batch_size"] == batch_size]
    ring = {"symbol": "circle-open", "size": 17, "line": {"width": 3}}
    if rows:
        add_line(figure, rows, f"recommended: {number(batch_size)}", BLUE, mode="markers", marker=ring)


def _add_trials(
    figure: go.Figure,
    trials: Sequence[Record],
    words: str,
    colour: str,
    scale: float,
    otherwise: float,
    **style: Any,
) -> None:
    rows = [(t["micro_batch_size"], t["peak_bytes"] / scale if t.get("peak_bytes") else otherwise) for t in trials]
    texts = [f"{number(t['micro_batch_size'])} samples {words}: {memory_size(t.get('peak_bytes'))}" for t in trials]
    if trials:
        add_line(figure, rows, words, colour, texts, **style)


def _curve_text(point: Record, name: str, words: str) -> str:
    steps, micro = number(point.get("accumulation_steps")), number(point.get("micro_batch_size"))
    return (
        f"batch size {number(point['batch_size'])} = {steps} × {micro}"
        f"<br>relative {words}: {in_words(bounds_of(point, name))}"
    )


def _throughput_text(point: Record, name: str, words: str) -> str:
    seconds = number(point.get("seconds_per_step"))
    return (
        f"micro-batch {number(point['micro_batch_size'])}, {words}"
        f"<br>{in_words(bounds_of(point, name))} samples/s<br>{seconds} s per step"
    )


def _training_text(point: Record) -> str:
    return (
        f"after {number(point['samples'])} samples, loss {number(point.get('loss'))}"
        f"<br>noise scale: {in_words(noise_bounds(point))}"
    )


def _devices_text(point: Record) -> str:
    return (
        f"{number(point['devices'])} devices, batch size {number(point.get('batch_size'))}"
        f"<br>speed-up {in_words(bounds_of(point, 'speedup'))}, efficiency {percent(point.get('efficiency'))}"
    )
