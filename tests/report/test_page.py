import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from plotly.offline import get_plotlyjs
from report.nulls import paths, with_null
from report.records import (
    comparison_record,
    complete_record,
    diverged_comparison,
    empty_comparison,
    hostile_comparison,
    hostile_record,
    loss_comparison,
    partial_comparison,
    partial_record,
    single_point_record,
    undetermined_record,
)

from anybatch.report.comparison_charts import COMPARISON_CHARTS
from anybatch.report.page import render_comparison, render_probe
from anybatch.report.probe_charts import PROBE_CHARTS

PROBES = (complete_record, partial_record, undetermined_record, single_point_record, hostile_record)
COMPARISONS = (
    comparison_record,
    partial_comparison,
    diverged_comparison,
    loss_comparison,
    empty_comparison,
    hostile_comparison,
)
PAGES = {record.__name__: (render_probe, record) for record in PROBES} | {
    record.__name__: (render_comparison, record) for record in COMPARISONS
}


def own_part(page: str) -> str:
    """Return a page without plotly.js."""
    script = get_plotlyjs()
    assert page.count(script) == 1
    return page.replace(script, "")


def figures_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert found
    assert "<" not in found[1]
    return json.loads(found[1])


class Addresses(HTMLParser):
    """Collects every address that the tags of a page name."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "srcset", "href", "action", "data")]


@pytest.mark.parametrize(("render", "record"), PAGES.values(), ids=PAGES)
def test_page_loads_nothing(render, record):
    page = own_part(render(record()))
    addresses = Addresses()
    addresses.feed(page)
    assert len(addresses.found) == 2
    assert all(address.startswith("data:") for address in addresses.found)
    assert not re.findall(r"https?://|@import|url\(|fetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("page", "charts"),
    [
        (render_probe(complete_record()), PROBE_CHARTS),
        (render_comparison(comparison_record()), COMPARISON_CHARTS),
    ],
    ids=["probe", "comparison"],
)
def test_page_has_every_chart_in_order(page, charts):
    page = own_part(page)
    assert re.findall(r'class="chart" id="chart-([\w-]+)"', page) == list(charts)
    assert list(figures_of(page)) == list(charts)


def test_page_opens_with_the_recommendation_and_its_reasons():
    record = complete_record()
    page = own_part(render_probe(record))
    headline = "Use a batch size of 32, in 2 micro-batches of 16, at 0.5 × the base learning rate."
    places = [page.index(text) for text in ("<h1>digits</h1>", headline, "16 to 48", 'id="prediction"')]
    assert places == sorted(places)
    for reason in record["recommendation"]["reasons"].values():
        assert reason[1:] in page[places[1] : places[-1]]


def test_page_holds_settings_warnings_costs_and_environment():
    record = complete_record()
    page = own_part(render_probe(record))
    for code in record["recommendation"]["settings"].values():
        assert f"<code>{code.rstrip()}"[:40] in page
    for text in ("BatchNorm in train mode", "12%", "Accumulation</th>", "num_threads"):
        assert text in page


@pytest.mark.parametrize(
    ("render", "record", "name"),
    [(render_probe, undetermined_record, "probe"), (render_comparison, diverged_comparison, "comparison")],
)
def test_download_is_the_record_itself(render, record, name):
    page = render(record())
    link = re.search(rf'download="{name}.json" href="data:application/json;charset=utf-8,([^"]*)"', page)
    assert link
    assert json.loads(unquote(link[1])) == record()


def test_user_text_is_escaped_everywhere():
    record = hostile_record()
    page = own_part(render_probe(record))
    assert "<script>window.owned" not in page
    assert "<img" not in page
    assert page.count("</script>") == 3
    assert "&lt;script&gt;window.owned" in page
    names = [note["text"] for note in figures_of(page)["noise-modules"]["layout"]["annotations"]]
    assert any("&lt;img src=x" in name for name in names)


def test_interrupted_page_says_what_is_missing():
    page = own_part(render_probe(partial_record()))
    assert "This run was interrupted. Missing: throughput, noise scale, predicted time" in page
    for sentence in (
        "This run gives no recommendation.",
        "Throughput was not measured in this run.",
        "The noise scale was not measured in this run.",
        "No prediction was made for other numbers of devices.",
    ):
        assert sentence in page
    assert list(figures_of(page)) == ["memory"]


def test_undetermined_page_says_at_least():
    page = own_part(render_probe(undetermined_record()))
    assert "The noise scale is at least 24.9 samples" in page
    assert "at least 16" in page


def test_empty_record_renders():
    page = own_part(render_probe({"partial": True}))
    assert "Missing: memory, throughput, noise scale, predicted time, devices, recommendation." in page
    assert figures_of(page) == {}


def test_any_entry_may_be_null(monkeypatch):
    monkeypatch.setattr("anybatch.report.page.get_plotlyjs", str)
    record = single_point_record()
    for path in paths(record):
        assert "</html>" in render_probe(with_null(record, path)), path


def test_comparison_opens_with_its_headline_and_its_table():
    page = own_part(render_comparison(comparison_record()))
    headline = (
        "At batch size 4,096, regime reaches an eval accuracy of 88.77% (sd 0.24, 3 seeds), plain 83.29% (sd 0.23)."
    )
    texts = ("<h1>fashion_mnist</h1>", headline, "36 runs: 36 done", "89.81 ± 0.22", 'id="chart-batch-size"')
    places = [page.index(text) for text in texts]
    assert places == sorted(places)
    assert page.count('<tr class="marked">') == 3


def test_comparison_offers_every_recipe_batch_size_and_curve_once():
    page = own_part(render_comparison(comparison_record()))
    offered = re.findall(r'<input type="\w+" name="(\w+)" value="(\w+)"', page)
    assert [value for name, value in offered if name == "recipe"] == ["plain", "sqrt", "ghost", "regime"]
    assert [value for name, value in offered if name == "batch_size"] == ["128", "512", "4096"]
    curves = ["eval_accuracy", "train_accuracy", "eval_loss", "train_loss"]
    assert [value for name, value in offered if name == "metric"] == curves


def test_comparison_holds_recipes_settings_rates_and_runs():
    page = own_part(render_comparison(comparison_record(lr_factors=(0.5, 1.0, 2.0))))
    for text in (
        "What ghost does to the base rate.",
        "<code>lr_rule = sqrt</code>",
        "What each recipe set at each batch size",
        "Every rate",
        "× 2, best",
        "Every run",
        "num_threads",
        "The epochs of a batch of 4096 hold 14 updates only.",
    ):
        assert text in page
    assert "Every rate" not in own_part(render_comparison(comparison_record()))


def test_comparison_says_what_diverged_and_what_did_not_finish():
    page = own_part(render_comparison(partial_comparison()))
    for text in (
        "This comparison was interrupted: 5 of 36 runs did not finish.",
        "36 runs: 30 done, 1 diverged, 5 unfinished;",
        "<td>2 done, 1 diverged</td>",
        '<td class="num">unfinished</td>',
        "diverged: the training loss is not finite after 14 updates",
    ):
        assert text in page


def test_comparison_without_a_run_says_so():
    page = own_part(render_comparison(empty_comparison()))
    for text in ("No run has finished.", "This comparison was interrupted before its first run.", "No result to draw."):
        assert text in page
    assert figures_of(page) == {}
    assert 'class="choices"' not in page


def test_names_of_a_comparison_are_escaped_everywhere():
    page = own_part(render_comparison(hostile_comparison()))
    assert "<script>window.owned" not in page
    assert "<img" not in page
    assert "<b>plain" not in page
    assert page.count("</script>") == 3
    names = {trace["name"] for figure in figures_of(page).values() for trace in figure["data"]}
    assert any("&lt;b&gt;plain" in name for name in names)
    assert not [name for name in names if "<" in name]
