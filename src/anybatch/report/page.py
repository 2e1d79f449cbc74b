"""How does a record become a page? One HTML file that needs no network, whatever the record holds."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from types import ModuleType
from typing import Any
from urllib.parse import quote

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from anybatch.report import (
    comparison_rows,
    comparison_summaries,
    comparison_tables,
    probe_summaries,
    safe_run_summaries,
    safe_run_tables,
    verification_rows,
    wording,
)
from anybatch.report.comparison_charts import COMPARISON_CHARTS, choices
from anybatch.report.probe_charts import PROBE_CHARTS
from anybatch.report.safe_run_charts import SAFE_RUN_CHARTS
from anybatch.report.verification_charts import VERIFICATION_CHARTS
from anybatch.report.wording import Record

Charts = Mapping[str, Callable[[Record], go.Figure]]

INDENTED: dict[str, Any] = {"indent": 2}
PACKED: dict[str, Any] = {"separators": (",", ":")}
SAFE = "{}[]:,/"


def render_probe(record: Record) -> str:
    """Render a probe's record as one self-contained HTML page.

    Args:
        record: what `ProbeResult.to_dict()` gives; any section may be null or missing.

    Returns:
        The whole page, with plotly.js inlined once; it loads nothing.
    """
    charts = {**VERIFICATION_CHARTS, **PROBE_CHARTS}
    return _render("probe", record, charts, probe_summaries, verification=verification_rows)


def render_comparison(record: Record) -> str:
    """Render a comparison's record as one self-contained HTML page.

    Args:
        record: what `Comparison.to_dict()` gives, whether all of its runs finished or not.

    Returns:
        The whole page, with plotly.js inlined once; it loads nothing.
    """
    more = {"rows": comparison_rows, "tables": comparison_tables, "choices": choices(record)}
    return _render("comparison", record, COMPARISON_CHARTS, comparison_summaries, **more)


def render_safe_run(record: Record) -> str:
    """Render the record of a safe policy gradient as one self-contained HTML page.

    Args:
        record: what `anybatch safe-pg --json` writes, of a run with an update or more.

    Returns:
        The whole page, with plotly.js inlined once; it loads nothing.
    """
    return _render("safe_run", record, SAFE_RUN_CHARTS, safe_run_summaries, tables=safe_run_tables)


def _render(kind: str, record: Record, charts: Charts, words: ModuleType, **more: Any) -> str:
    figures = {name: draw(record) for name, draw in charts.items()}
    drawn = {name: figure for name, figure in figures.items() if figure.data}
    raw, packed = (json.dumps(record, ensure_ascii=False, **style) for style in (INDENTED, PACKED))
    return (
        _environment()
        .get_template(f"{kind}.html.j2")
        .render(
            record=record,
            words=words,
            heights={name: figure.layout["height"] for name, figure in drawn.items()},
            figures=_script_json({name: json.loads(figure.to_json() or "{}") for name, figure in drawn.items()}),
            plotlyjs=Markup(get_plotlyjs()),
            raw=raw,
            download=f"data:application/json;charset=utf-8,{quote(packed, safe=SAFE)}",
            **more,
        )
    )


def _script_json(value: Any) -> Markup:
    """Return JSON that cannot end the script element it stands in."""
    return Markup(json.dumps(value).replace("<", "\\u003c"))


def _plain(value: Any) -> str:
    """Return a setting as it was given."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("anybatch", "report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": wording.number,
        "percent": wording.percent,
        "sentences": wording.sentences,
        "span": wording.span,
        "plain": _plain,
    }
    return environment
