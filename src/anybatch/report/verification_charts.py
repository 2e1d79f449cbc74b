"""What does each chart of a verification show? Measured time and samples over the prediction."""

import math
from typing import Any

import plotly.graph_objects as go

from anybatch.report.drawing import (
    BLACK,
    BLUE,
    GREEN,
    RED,
    add_estimates,
    add_line,
    add_mark,
    log_edges,
    new_figure,
    set_log_axis,
)
from anybatch.report.verification_rows import measured_points, verification_of
from anybatch.report.wording import Record, bounds_of, in_words, number

ENDS = ("", "_low", "_high")


def measured_time_chart(record: Record) -> go.Figure:
    """Return measured seconds to the target over the predicted ones, with the recommended and the largest size."""
    figure = _chart(record, "seconds", "Time to target (seconds)", 440)
    found = verification_of(record)
    if figure.data and found.get("largest") is not None:
        add_mark(figure, "x", found["largest"], f"largest that fits: {number(found['largest'])}", colour=RED)
    _ring(figure, record, found.get("recommended"), "recommended", BLUE)
    _ring(figure, record, found.get("largest"), "largest that fits", RED)
    return figure


def measured_samples_chart(record: Record) -> go.Figure:
    """Return measured samples to the target over the predicted ones, and the law fitted to them."""
    figure = _chart(record, "samples", "Samples to target", 350)
    law = verification_of(record).get("law") or {}
    sizes = _sizes(record)
    if figure.data and None not in (law.get("examples"), law.get("critical_batch_size")):
        rows = [(size, law["examples"] * (1 + size / law["critical_batch_size"])) for size in sizes]
        add_line(figure, rows, "law fitted to the measured", GREEN, line={"dash": "dash", "width": 1.5})
    return figure


VERIFICATION_CHARTS = {"measured-time": measured_time_chart, "measured-samples": measured_samples_chart}


def _chart(record: Record, name: str, title: str, height: int) -> go.Figure:
    figure = new_figure(title, height)
    points = [point for point in measured_points(record) if point.get(name) is not None]
    if not points:
        return figure
    predicted = _predicted(record)
    texts = [_text(point, name, "predicted") for point in predicted]
    add_estimates(figure, predicted, "batch_size", name, "predicted", BLUE, texts)
    rows = [(point["batch_size"], point[name]) for point in points]
    bars = {"type": "data", "symmetric": False, "thickness": 1.5, "width": 4, "color": BLACK}
    bars |= {
        "array": [_above(point, name) for point in points],
        "arrayminus": [_below(point, name) for point in points],
    }
    texts = [_text(point, name, "measured") for point in points]
    add_line(figure, rows, "measured", BLACK, texts, mode="markers", marker={"size": 9}, error_y=bars)
    values = [point.get(name + end) for point in (*predicted, *points) for end in ENDS]
    set_log_axis(figure, "x", log_edges(_sizes(record)), 2, "Batch size (samples)")
    set_log_axis(figure, "y", log_edges(values), 10)
    return figure


def _predicted(record: Record) -> list[Record]:
    """Return the prediction over the sizes measured and one on each side, and up to the largest that fits."""
    points = verification_of(record).get("predicted") or []
    known = [point for point in points if point and point.get("batch_size") is not None]
    measured = [point["batch_size"] for point in measured_points(record)]
    if not measured:
        return []
    largest = max([*measured, verification_of(record).get("largest") or 0])
    return [point for point in known if min(measured) / 2 <= point["batch_size"] <= max(largest, 2 * max(measured))]


def _sizes(record: Record) -> list[float]:
    found = verification_of(record)
    sizes = [point["batch_size"] for point in (*_predicted(record), *measured_points(record))]
    return sorted({*sizes, *(size for size in [found.get("largest")] if size is not None)})


def _above(point: Record, name: str) -> float:
    return (point.get(f"{name}_high") or point[name]) - point[name]


def _below(point: Record, name: str) -> float:
    return point[name] - (point.get(f"{name}_low") or point[name])


def _text(point: Record, name: str, words: str) -> str:
    return f"batch size {number(point['batch_size'])}<br>{words} {name}: {in_words(bounds_of(point, name))}"


def _ring(figure: go.Figure, record: Record, size: int | None, words: str, colour: str) -> None:
    """Mark a measured size by a ring and its time."""
    point = next((one for one in measured_points(record) if one["batch_size"] == size), None)
    if point is None or point.get("seconds") is None:
        return
    ring: dict[str, Any] = {"symbol": "circle-open", "size": 19, "line": {"width": 3}}
    rows = [(point["batch_size"], point["seconds"])]
    add_line(figure, rows, f"{words}: {number(size)}", colour, mode="markers", marker=ring, showlegend=colour == BLUE)
    figure.add_annotation(
        x=math.log10(point["batch_size"]),
        y=math.log10(point["seconds"]),
        text=f"<b>{number(point['seconds'])} s</b>",
        font={"color": colour, "size": 14},
        showarrow=False,
        yshift=-26 if colour == BLUE else 0,
        xshift=0 if colour == BLUE else -44,
    )
