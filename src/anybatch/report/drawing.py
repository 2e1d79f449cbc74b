"""How is a figure with its uncertainty drawn? The lines, bands, intervals and marks that all charts share."""

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any, Literal, NamedTuple

import plotly.graph_objects as go

from anybatch.report.wording import Bounds, Record, bounds_of, number

Axis = Literal["x", "y"]

BLUE, VERMILION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#808080"
RED, BLACK = "#C8102E", "#404040"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, "#E69F00", "#56B4E9", GREY)
FONT = "system-ui, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"
LONGEST_NAME = 24
MOST_TICKS = 7


class Edges(NamedTuple):
    """Where an axis ends."""

    low: float
    high: float

    def clip(self, value: float | None, otherwise: float) -> float:
        """Return a value inside of the edges, or `otherwise` if there is none."""
        return otherwise if value is None else min(max(value, self.low), self.high)


class Interval(NamedTuple):
    """An estimate at its place on the other axis, with the words shown beside the pointer."""

    place: float
    estimate: Bounds
    text: str


def new_figure(y_title: str, height: int = 350) -> go.Figure:
    """Return an empty figure in the style of the page."""
    axis = {"fixedrange": True, "gridcolor": "rgba(128,128,128,0.2)", "zeroline": False, "automargin": True}
    ticks = {"ticks": "outside", "ticklen": 4, "tickcolor": GREY, "showline": True, "linecolor": GREY}
    return go.Figure(
        layout={
            "template": "none",
            "height": height,
            "font": {"family": FONT, "size": 12.5},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 44, "r": 12, "t": 12, "b": 44},
            "xaxis": {**axis, **ticks, "showgrid": False, "title": {"standoff": 8, "font": {"size": 12.5}}},
            "yaxis": {**axis, "title": {"text": y_title, "standoff": 8, "font": {"size": 12.5}}},
            "legend": {"orientation": "h", "x": 0, "y": 1.03, "yanchor": "bottom", "font": {"size": 12}},
            "showlegend": True,
            "dragmode": False,
            "hoverlabel": {
                "bgcolor": "#222",
                "bordercolor": "#222",
                "font": {"color": "#fff", "family": FONT},
            },
        }
    )


def short_name(name: str) -> str:
    """Return a module's name as a chart may show it: its end if it is long, and never as markup."""
    return escape(name if len(name) <= LONGEST_NAME else f"\N{HORIZONTAL ELLIPSIS}{name[1 - LONGEST_NAME :]}")


def log_edges(values: Iterable[float | None]) -> Edges:
    """Return where a logarithmic axis ends that shows all values, with some room."""
    positive = [value for value in values if value is not None and value > 0] or [1.0]
    room = max(1.25, (max(positive) / min(positive)) ** 0.06)
    return Edges(min(positive) / room, max(positive) * room)


def set_log_axis(figure: go.Figure, axis: Axis, edges: Edges, base: Literal[2, 10], title: str | None = None) -> None:
    """Make an axis logarithmic, with a few round ticks."""
    figure.update_layout({f"{axis}axis": log_axis(edges, base, title)})


def log_axis(
    edges: Edges,
    base: Literal[2, 10],
    title: str | None = None,
    ticks: Sequence[float] | None = None,
    words: Callable[[float], str] = number,
) -> dict[str, Any]:
    """Return the settings of a logarithmic axis, with a few round ticks unless they are given."""
    within = [tick for tick in ticks or _round_numbers(edges, base) if edges.low <= tick <= edges.high]
    settings: dict[str, Any] = {"type": "log", "range": [math.log10(edge) for edge in edges]}
    if within:
        settings |= {"tickvals": within, "ticktext": [words(tick) for tick in within]}
    if title:
        settings["title"] = {"text": title}
    return settings


def _round_numbers(edges: Edges, base: Literal[2, 10]) -> list[float]:
    """Return powers of the base; of 10 also twice and five times them, as long as they are few."""
    first, last = (math.floor(math.log(edge, base)) for edge in edges)
    stride = math.ceil((last - first + 1) / MOST_TICKS)
    powers = [float(base) ** power for power in range(first, last + 1, stride)]
    finer = [step * power for power in powers for step in (1, 2, 5)]
    are_few = sum(edges.low <= tick <= edges.high for tick in finer) <= MOST_TICKS
    return finer if base == 10 and stride == 1 and are_few else powers


def add_line(
    figure: go.Figure,
    rows: Sequence[tuple[float, float | None]],
    name: str,
    colour: str,
    texts: Sequence[str] | None = None,
    **style: Any,
) -> None:
    """Add a line, with a dot and a hover text for every point if there are texts."""
    hover = {"hovertext": texts, "hoverinfo": "text"} if texts else {"hoverinfo": "skip"}
    looks: dict[str, Any] = {"mode": "lines+markers" if texts else "lines", "marker": {"size": 6}}
    looks |= {"line": {"width": 2}} | style
    looks |= {part: {"color": colour, **looks[part]} for part in ("line", "marker")}
    figure.add_scatter(x=[x for x, _ in rows], y=[y for _, y in rows], name=name, **(hover | looks))


def add_estimates(
    figure: go.Figure, points: Sequence[Record], x: str, y: str, name: str, colour: str, texts: Sequence[str]
) -> None:
    """Add the line of a quantity with its band; a triangle marks a point that has no upper end."""
    estimates = [(point[x], bounds_of(point, y)) for point in points]
    known = [(place, bounds) for place, bounds in estimates if bounds.value is not None]
    outline = [(place, bounds.value if bounds.low is None else bounds.low) for place, bounds in known]
    outline += [(place, bounds.value if bounds.high is None else bounds.high) for place, bounds in known[::-1]]
    looks = {
        "fill": "toself",
        "fillcolor": colour,
        "opacity": 0.18,
        "line": {"width": 1},
        "showlegend": False,
    }
    add_line(figure, outline, f"{name}, interval", colour, **looks)
    opened = [bounds.high is None and bounds.low is not None for _, bounds in estimates]
    marker = {
        "symbol": ["triangle-up" if is_open else "circle" for is_open in opened],
        "size": [10 if is_open else 6 for is_open in opened],
        "line": {"width": 0},
        "opacity": 1,
    }
    add_line(figure, [(place, bounds.value) for place, bounds in estimates], name, colour, texts, marker=marker)


def add_mark(figure: go.Figure, axis: Axis, value: float, name: str, dash: str = "dash", colour: str = GREY) -> None:
    """Mark one value of an axis by a line across the chart, named in the legend."""
    across = "y" if axis == "x" else "x"
    ends = {f"{axis}0": value, f"{axis}1": value, f"{across}0": 0, f"{across}1": 1, f"{across}ref": "paper"}
    line = {"color": colour, "width": 1.5, "dash": dash}
    figure.add_shape(type="line", line=line, layer="below", name=name, showlegend=True, **ends)


def add_intervals(
    figure: go.Figure, intervals: Sequence[Interval], edges: Edges, axis: Axis, name: str, colour: str
) -> None:
    """Add dots with bars along an axis; a bar without an upper end runs to the edge as an arrow."""
    known = [interval for interval in intervals if not interval.estimate.is_empty]
    closed = [interval for interval in known if interval.estimate.value is not None]
    opened = [interval for interval in known if interval.estimate.high is None]
    for place, (_, low, high), _ in known:
        bar = [edges.clip(low, edges.low), edges.clip(high, edges.high)]
        _add_dots(figure, axis, bar, [place, place], mode="lines", line={"color": colour, "width": 2}, opacity=0.6)
    if closed:
        values = [interval.estimate.value for interval in closed]
        _add_dots(
            figure,
            axis,
            values,
            *_captions(closed),
            name=name,
            mode="markers",
            marker={"color": colour, "size": 9},
        )
    if opened:
        looks: dict[str, Any] = {
            "color": colour,
            "size": 12,
            "symbol": f"triangle-{'up' if axis == 'y' else 'right'}",
        }
        ends = [edges.high] * len(opened)
        _add_dots(figure, axis, ends, *_captions(opened), name=f"{name}: at least", mode="markers", marker=looks)


def _captions(intervals: Sequence[Interval]) -> tuple[list[float], list[str]]:
    return [interval.place for interval in intervals], [interval.text for interval in intervals]


def _add_dots(
    figure: go.Figure,
    axis: Axis,
    values: Sequence[float | None],
    places: Sequence[float],
    texts: Sequence[str] | None = None,
    **looks: Any,
) -> None:
    hover: dict[str, Any] = {"hovertext": texts, "hoverinfo": "text"} if texts else {"hoverinfo": "skip"}
    across = "y" if axis == "x" else "x"
    figure.add_scatter(**{axis: values, across: places}, showlegend=bool(texts), cliponaxis=False, **hover, **looks)
