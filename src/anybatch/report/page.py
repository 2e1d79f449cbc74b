"""How does a probe become a page? One HTML file that needs no network, whatever the record holds."""

import json
from functools import cache
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from anybatch.report import summaries, wording
from anybatch.report.charts import CHARTS
from anybatch.report.wording import Record


def render_page(record: Record) -> str:
    """Render a probe's record as one self-contained HTML page.

    Args:
        record: what `ProbeResult.to_dict()` gives; any section may be null or missing.

    Returns:
        The whole page, with plotly.js inlined once; it loads nothing.
    """
    figures = {name: draw(record) for name, draw in CHARTS.items()}
    drawn = {name: figure for name, figure in figures.items() if figure.data}
    raw = json.dumps(record, indent=2, ensure_ascii=False)
    return (
        _environment()
        .get_template("probe.html.j2")
        .render(
            record=record,
            words=summaries,
            heights={name: figure.layout["height"] for name, figure in drawn.items()},
            figures=_script_json({name: json.loads(figure.to_json() or "{}") for name, figure in drawn.items()}),
            plotlyjs=Markup(get_plotlyjs()),
            raw=raw,
            download=f"data:application/json;charset=utf-8,{quote(raw)}",
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
