"""What does each chart of a comparison show? One pure function per chart: a record in, a plotly figure out.

A figure without traces means that the record has nothing to draw. Colour is the recipe, dash the batch size. Traces
carry what the page's choices pick them by in `meta`, and a figure carries the axis of each metric.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any, Literal, NamedTuple

import plotly.graph_objects as go

from anybatch.report.comparison_rows import (
    batch_sizes,
    chosen_rows,
    eval_metric,
    mean_of,
    outcome_of,
    recipe_names,
    runs_of,
    sd_of,
    untuned_rows,
)
from anybatch.report.drawing import COLOURS, Edges, add_line, log_axis, log_edges, new_figure, short_name
from anybatch.report.wording import Record, compact, is_share, metric_label, number, score, spread

DASHES = ("solid", "8px,3px", "2px,3px", "9px,3px,2px,3px", "14px,4px", "14px,4px,2px,4px")
EARLY = 0.1
FARTHEST = 3.0
FALLEN = 8.0
DODGE = 0.035
MOST_TENSORS = 8  # that are drawn; the record has all

Along = Literal["samples", "updates"]
Rows = list[tuple[float, float]]


class Choice(NamedTuple):
    """One thing to show or hide on the page: the value that traces carry, its words and its look."""

    value: str
    words: str
    colour: str = "currentColor"
    dash: str = "none"


def choices(record: Record) -> dict[str, list[Choice]]:
    """Return what the reader may choose from: recipes with colours, batch sizes with dashes, metrics, weights."""
    recipes, sizes, tensors = recipe_names(record), batch_sizes(record), _drawn_tensors(record)
    walks = ["all weights", *tensors] if tensors else []
    return {
        "recipe": [Choice(name, name, colour=_colour(record, name)) for name in recipes],
        "batch_size": [Choice(str(n), number(n), dash=_svg_dash(_dash(record, n))) for n in sizes],
        "metric": [Choice(name, metric_label(name)) for name in _curve_metrics(record)],
        "weights": [Choice(str(place), name) for place, name in enumerate(walks)],
    }


def batch_size_chart(record: Record) -> go.Figure:
    """Return the metric against batch size, a line per recipe with the standard deviation over its seeds."""
    metric = eval_metric(record)
    figure = new_figure(metric_label(metric))
    rows, untuned = chosen_rows(record), untuned_rows(record)
    ends = [end for row in [*rows, *untuned] for end in _ends(row, metric)]
    if not ends:
        return figure
    edges = _padded(ends)
    for name in recipe_names(record):
        _add_results(figure, record, [row for row in rows if row["recipe"] == name], name)
        waiting = [row for row in untuned if row["recipe"] == name]
        dotted = {"line": {"width": 1.5, "dash": "dot"}, "marker": {"size": 8, "symbol": "circle-open"}}
        _add_results(figure, record, waiting, name, ", untuned", **dotted)
        _add_failures(figure, record, [row for row in rows if row["recipe"] == name], name, edges.low)
    sizes = log_edges(batch_sizes(record))
    figure.update_xaxes(log_axis(sizes, 2, "Batch size (samples)", batch_sizes(record)))
    return figure.update_yaxes(range=edges)


def samples_chart(record: Record) -> go.Figure:
    """Return the learning curves against the samples that were processed."""
    return _learning_curves(record, "samples", "Samples processed")


def updates_chart(record: Record) -> go.Figure:
    """Return the learning curves against the updates that were made."""
    return _learning_curves(record, "updates", "Updates")


def distance_chart(record: Record) -> go.Figure:
    """Return the distance from the initial weights against updates, on the logarithmic law that was fitted to it.

    Of all weights, and of some tensors by themselves, which are hidden until one is chosen.
    """
    figure = new_figure("Distance from the initial weights")
    places = [
        place
        for row in chosen_rows(record)
        for weights, tensor in enumerate([None, *_drawn_tensors(record)])
        for place in _add_walk(figure, record, row, tensor, meta=_meta(row) | {"weights": str(weights)})
    ]
    if places:
        figure.update_xaxes(log_axis(log_edges(places), 10, "Updates"))
        figure.update_yaxes(rangemode="tozero")
    return figure.update_layout(showlegend=False)


def _add_walk(figure: go.Figure, record: Record, row: Record, tensor: str | None, meta: dict[str, str]) -> list[float]:
    """Add a row's walk of one tensor or, without one, of all weights, on its law; return the updates it has."""
    runs = _drawn_runs(record, row, "distance")
    walks = [[_distance_of(line, tensor) for line in run["distance"]] for run in runs]
    line = [
        (place, fmean(values))
        for place, values in _over_seeds([{"distance": walk} for walk in walks], "distance", "updates", "distance")
    ]
    if line:
        fits = [run["distance_law"] if tensor is None else (run.get("tensor_laws") or {}).get(tensor) for run in runs]
        looks = {"meta": meta, "visible": tensor is None}
        _add_law(figure, record, row, [law for law in fits if law], **looks)
        _add_curve(figure, record, row, line, "distance %{y:.4g}<br>%{x:,.0f} updates", **looks)
    return [place for place, _ in line if place > 0]


def _distance_of(line: Record, tensor: str | None) -> Record:
    distance = line["distance"] if tensor is None else (line.get("tensors") or {}).get(tensor)
    return {"updates": line["updates"], "distance": distance}


def _drawn_tensors(record: Record) -> list[str]:
    """Return the tensors whose walk is drawn: the first, the last and some evenly between, in the model's order."""
    lines = [line for run in record["runs"] for line in run["distance"]]
    names = list((lines[0].get("tensors") or {}) if lines else {})
    most = min(MOST_TENSORS, len(names))
    return [names[round(place * (len(names) - 1) / max(most - 1, 1))] for place in range(most)]


COMPARISON_CHARTS: dict[str, Callable[[Record], go.Figure]] = {
    "batch-size": batch_size_chart,
    "samples": samples_chart,
    "updates": updates_chart,
    "distance": distance_chart,
}


def _colour(record: Record, recipe: str) -> str:
    return COLOURS[recipe_names(record).index(recipe) % len(COLOURS)]


def _dash(record: Record, batch_size: int) -> str:
    return DASHES[batch_sizes(record).index(batch_size) % len(DASHES)]


def _svg_dash(dash: str) -> str:
    return "none" if dash == "solid" else dash.replace("px", "")


def _shown(value: float, name: str) -> float:
    """Return a metric in the unit of its axis."""
    return 100 * value if is_share(name) else value


def _ends(row: Record, name: str) -> list[float]:
    mean, sd = mean_of(row, name), sd_of(row, name) or 0
    return [] if mean is None else [_shown(mean - sd, name), _shown(mean + sd, name)]


def _padded(values: Iterable[float]) -> Edges:
    known = list(values)
    room = 0.07 * (max(known) - min(known)) or 0.05 * abs(max(known)) or 1
    return Edges(min(known) - room, max(known) + room)


def _beside(record: Record, row: Record) -> float:
    """Return a batch size moved a little, so that the bars of several recipes do not hide each other."""
    names = recipe_names(record)
    return row["batch_size"] * 2 ** (DODGE * (names.index(row["recipe"]) - (len(names) - 1) / 2))


def _add_results(
    figure: go.Figure, record: Record, rows: Sequence[Record], name: str, suffix: str = "", **style: Any
) -> None:
    metric = eval_metric(record)
    known = [(row, mean) for row in rows if (mean := mean_of(row, metric)) is not None]
    if known:
        bars = [_shown(sd_of(row, metric) or 0, metric) for row, _ in known]
        style["error_y"] = {"array": bars, "thickness": 1.5, "width": 4}
        line = [(_beside(record, row), _shown(mean, metric)) for row, mean in known]
        texts = [_result_text(record, row) for row, _ in known]
        looks = {"marker": {"size": 8}, "cliponaxis": False} | style
        add_line(figure, line, short_name(name) + suffix, _colour(record, name), texts, **looks)


def _add_failures(figure: go.Figure, record: Record, rows: Sequence[Record], name: str, bottom: float) -> None:
    metric = eval_metric(record)
    failed = [row for row in rows if mean_of(row, metric) is None and runs_of(record, row, "diverged")]
    if failed:
        looks = {"mode": "markers", "marker": {"size": 10, "symbol": "x"}, "cliponaxis": False}
        texts = [_result_text(record, row) for row in failed]
        places = [(_beside(record, row), bottom) for row in failed]
        add_line(figure, places, f"{short_name(name)}: diverged", _colour(record, name), texts, **looks)


def _result_text(record: Record, row: Record) -> str:
    metric = eval_metric(record)
    mean, sd = mean_of(row, metric), sd_of(row, metric)
    value = "no result" if mean is None else score(mean, metric) + ("" if sd is None else f" ± {spread(sd, metric)}")
    return (
        f"{short_name(row['recipe'])}, batch size {number(row['batch_size'])}, rate {number(row['lr'])}"
        f"<br>{metric_label(metric)}: {value}<br>{outcome_of(record, row)}"
    )


def _curve_metrics(record: Record) -> list[str]:
    """Return what the learning curves hold, the metric that decides first."""
    name = record["metric"]["name"]
    held = {key for run in record["runs"] for point in run["curve"] for key in point}
    return [key for key in dict.fromkeys((f"eval_{name}", f"train_{name}", "eval_loss", "train_loss")) if key in held]


def _drawn_runs(record: Record, row: Record, key: Literal["curve", "distance"]) -> list[Record]:
    """Return the finished runs of a row that have something to draw; the others if none has finished."""
    runs = [run for run in runs_of(record, row) if run[key]]
    return [run for run in runs if run["status"] == "done"] or runs


def _over_seeds(runs: Sequence[Record], key: str, along: str, name: str) -> list[tuple[float, list[float]]]:
    """Return the values of all runs at every place that all of them reached."""
    lines = [{p[along]: p[name] for p in run[key] if p.get(name) is not None} for run in runs]
    shared = [place for place in lines[0] if all(place in line for line in lines)] if lines else []
    return [(place, [line[place] for line in lines]) for place in shared]


def _learning_curves(record: Record, along: Along, title: str) -> go.Figure:
    metrics = _curve_metrics(record)
    figure = new_figure("").update_layout(showlegend=False)
    axes: dict[str, dict[str, Any]] = {}
    reached: list[float] = []
    for name in metrics:
        looks = {"visible": name == metrics[0]}
        added = [_add_metric(figure, record, row, along, name, **looks) for row in chosen_rows(record)]
        lines = [line for line in added if line]
        reached += [line[-1][0] for line in lines]
        settings = _metric_axis(name, [value for line in lines for value in _late(line)])
        axes[name] = go.layout.YAxis(figure.layout["yaxis"]).update(settings).to_plotly_json()
    if reached:
        figure.update_layout(yaxis=axes[metrics[0]], meta={"metric": axes})
        figure.update_xaxes(_progress_axis(record, along, title, reached))
    return figure


def _add_metric(figure: go.Figure, record: Record, row: Record, along: Along, name: str, **style: Any) -> Rows:
    places = _over_seeds(_drawn_runs(record, row, "curve"), "curve", along, name)
    spans = [(place, [_shown(value, name) for value in values]) for place, values in places]
    line = [(place, fmean(values)) for place, values in spans]
    if not line:
        return line
    style["meta"] = _meta(row) | {"metric": name}
    if len(spans[0][1]) > 1:
        outline = [(place, min(values)) for place, values in spans] + [(x, max(values)) for x, values in spans[::-1]]
        colour = _colour(record, row["recipe"])
        add_line(figure, outline, "", colour, fill="toself", fillcolor=colour, opacity=0.14, line={"width": 0}, **style)
    _add_curve(figure, record, row, line, f"{metric_label(name)}: %{{y:.4g}}<br>%{{x:,.0f}} {along}", **style)
    return line


def _meta(row: Record) -> dict[str, str]:
    return {"recipe": row["recipe"], "batch_size": str(row["batch_size"])}


def _add_curve(figure: go.Figure, record: Record, row: Record, line: Rows, text: str, **style: Any) -> None:
    who = f"{short_name(row['recipe'])}, batch size {number(row['batch_size'])}"
    words = f"{who}<br>{text}<br>{outcome_of(record, row)}<extra></extra>"
    looks = {"line": {"width": 2, "dash": _dash(record, row["batch_size"])}, "hoverinfo": "all", "hovertemplate": words}
    mode = "lines" if len(line) > 1 else "markers"
    add_line(figure, line, who, _colour(record, row["recipe"]), mode=mode, **looks, **style)


def _add_law(figure: go.Figure, record: Record, row: Record, laws: Sequence[Record], **style: Any) -> None:
    """Add the mean of the fitted laws, a + b ln t, as a broad pale stroke over the window that they share."""
    if not laws:
        return
    window = max(law["first_update"] for law in laws), min(law["last_update"] for law in laws)
    intercept, slope = (fmean(law[name] for law in laws) for name in ("intercept", "slope"))
    line = [(place, intercept + slope * math.log(place)) for place in window]
    looks = {"line": {"width": 6}, "opacity": 0.3} | style
    add_line(figure, line, f"{short_name(row['recipe'])}, fitted law", _colour(record, row["recipe"]), **looks)


def _late(line: Rows) -> list[float]:
    """Return the values after the first tenth of a run, where recipes differ."""
    return [value for place, value in line if place >= EARLY * line[-1][0]]


def _metric_axis(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Return the axis of a metric: logarithmic for a loss that falls far."""
    if name.endswith("loss") and max(values) > FALLEN * min(values) > 0:
        return log_axis(log_edges(values), 10, metric_label(name))
    return {"type": "linear", "range": _padded(values), "title": {"text": metric_label(name)}}


def _progress_axis(record: Record, along: Along, title: str, reached: Sequence[float]) -> dict[str, Any]:
    """Return the axis of training's progress: logarithmic if some runs are much longer than others."""
    places = [point[along] for run in record["runs"] for point in run["curve"]]
    if max(reached) > FARTHEST * min(reached):
        return log_axis(log_edges(places), 10, title, words=compact)
    return {"range": [0, 1.02 * max(reached)], "tickformat": "~s", "title": {"text": title}}
