"""What does each chart of a safe run show? One pure function per chart: a record in, a plotly figure out.

A figure without traces means that the record has nothing to draw. All charts share their axis, the trajectories so far.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import plotly.graph_objects as go

from anybatch.report.drawing import BLUE, GREEN, GREY, PURPLE, RED, VERMILION, add_line, log_axis, log_edges, new_figure
from anybatch.report.safe_run_summaries import is_exact, shares_a_scale
from anybatch.report.wording import Record, number

MOST_POINTS = 600
SHORT = 40
Points = list[tuple[float, float | None]]


def measured_chart(record: Record) -> go.Figure:
    """Return the measured return with two standard errors, above what the updates before it guarantee."""
    figure = new_figure("Return")
    updates = _thinned(record)
    edges = [(x, u["measured_performance"] - 2 * u["measured_std_error"]) for x, u in updates]
    edges += [(x, u["measured_performance"] + 2 * u["measured_std_error"]) for x, u in updates[::-1]]
    looks = {"fill": "toself", "fillcolor": BLUE, "opacity": 0.18, "line": {"width": 0}, "showlegend": False}
    add_line(figure, edges, "two standard errors", BLUE, **looks)
    _add(figure, record, "measured_performance", "measured, ± 2 standard errors", BLUE)
    if is_exact(record) and shares_a_scale(record):
        _add(figure, record, "performance", "exact", GREEN)
    if lows := _guaranteed(record):
        add_line(figure, lows, "guaranteed lower bound", VERMILION, line={"width": 2, "dash": "dash"})
    return _along(figure, record)


def closed_form_chart(record: Record) -> go.Figure:
    """Return the environment's own performance, where it is on another scale than the measured one."""
    figure = new_figure("Performance")
    if not is_exact(record) or shares_a_scale(record):
        return figure
    _add(figure, record, "performance", "closed form of the environment", GREEN)
    return _along(figure, record).update_layout(showlegend=False)


def batch_size_chart(record: Record) -> go.Figure:
    """Return the trajectories of each update."""
    figure = new_figure("Trajectories of an update")
    _add(figure, record, "batch_size", "batch", BLUE)
    _log_y(figure, [u["batch_size"] for u in record["iterations"]])
    return _along(figure, record).update_layout(showlegend=False)


def step_size_chart(record: Record) -> go.Figure:
    """Return the factor on the gradient of each update; what did not move the policy is a cross at 0."""
    figure = new_figure("Step size")
    if any(update["step_size"] for update in record["iterations"]):
        _add(figure, record, "step_size", "step", BLUE, keep=lambda update: update["step_size"] > 0)
    waits = [(x, 0.0) for x, update in _thinned(record) if not update["step_size"]]
    if waits:
        add_line(figure, waits, "no step", RED, ["no step"] * len(waits), mode="markers", marker={"symbol": "x"})
    figure.update_yaxes(rangemode="tozero", exponentformat="power")
    return _along(figure, record)


def error_chart(record: Record) -> go.Figure:
    """Return the bound on the error beside the gradient that it must stay below."""
    figure = new_figure("Gradient")
    moves_one = record["iterations"][0]["coordinate"] is not None
    norm = "max_gradient" if moves_one else "gradient_norm"
    known = [u[key] for u in record["iterations"] for key in (norm, "error") if u[key]]
    if known:
        _add(figure, record, norm, "largest coordinate" if moves_one else "norm of the gradient", BLUE)
        _add(figure, record, "error", "bound on its error", VERMILION)
        _log_y(figure, known)
    return _along(figure, record)


def probability_chart(record: Record) -> go.Figure:
    """Return the probability of failure that is spent, by each update and by all so far."""
    figure = new_figure("Probability of failure")
    _add(figure, record, "failure_probability_so_far", "some update so far (union bound)", PURPLE)
    _add(figure, record, "failure_probability", "this update", GREY)
    figure.update_yaxes(range=[0, 1.04])
    return _along(figure, record)


SAFE_RUN_CHARTS: dict[str, Callable[[Record], go.Figure]] = {
    "measured": measured_chart,
    "closed-form": closed_form_chart,
    "batch-size": batch_size_chart,
    "step-size": step_size_chart,
    "error": error_chart,
    "probability": probability_chart,
}


def _thinned(record: Record) -> list[tuple[float, Record]]:
    """Return at most so many updates with their place, the first and the last among them."""
    updates = record["iterations"]
    stride = -(-len(updates) // MOST_POINTS)
    kept = updates[::stride]
    if kept[-1] is not updates[-1]:
        kept = [*kept, updates[-1]]
    return [(update["num_trajectories"], update) for update in kept]


def _add(
    figure: go.Figure,
    record: Record,
    key: str,
    name: str,
    colour: str,
    keep: Callable[[Record], bool] = lambda update: True,
) -> None:
    updates = [(x, u) for x, u in _thinned(record) if u[key] is not None and keep(u)]
    texts = [_text(u, name, u[key]) for _, u in updates]
    mode = "lines+markers" if len(updates) <= SHORT else "lines"
    add_line(figure, [(x, u[key]) for x, u in updates], name, colour, texts, mode=mode)


def _text(update: Record, name: str, value: float) -> str:
    return f"update {number(update['iteration'])}: {name} {value:.5g}<br>batch {number(update['batch_size'])}"


def _guaranteed(record: Record) -> Points:
    """Return the first measured return, less two standard errors, plus the gains guaranteed since, until it is void."""
    updates = record["iterations"]
    gains = accumulate((update["guaranteed_gain"] or 0.0 for update in updates), initial=0.0)
    lows = dict(zip((update["iteration"] for update in updates), gains, strict=False))
    first = updates[0]["measured_performance"] - 2 * updates[0]["measured_std_error"]
    return [(x, first + lows[u["iteration"]]) for x, u in _thinned(record) if u["guarantee"] != "void"]


def _log_y(figure: go.Figure, values: Sequence[float]) -> None:
    title = figure.layout.yaxis.title.text  # pyright: ignore[reportAttributeAccessIssue]
    figure.update_yaxes(log_axis(log_edges(values), 10, title, words=lambda tick: f"{tick:,.10g}"))


def _along(figure: go.Figure, record: Record) -> go.Figure:
    last = record["iterations"][-1]["num_trajectories"]
    axis = {"range": [0, 1.02 * last], "tickformat": "~s", "title": {"text": "Trajectories"}}
    return figure.update_xaxes(axis)
