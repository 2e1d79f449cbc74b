import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from plotly.offline import get_plotlyjs
from report.nulls import paths, with_null
from report.records import (
    complete_record,
    hostile_record,
    partial_record,
    single_point_record,
    undetermined_record,
)

from anybatch.report.charts import CHARTS
from anybatch.report.page import render_page

RECORDS = {
    "complete": complete_record,
    "partial": partial_record,
    "undetermined": undetermined_record,
    "single point": single_point_record,
    "hostile": hostile_record,
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


@pytest.mark.parametrize("name", RECORDS)
def test_page_loads_nothing(name):
    page = own_part(render_page(RECORDS[name]()))
    addresses = Addresses()
    addresses.feed(page)
    assert len(addresses.found) == 2
    assert all(address.startswith("data:") for address in addresses.found)
    assert not re.findall(r"https?://|@import|url\(|fetch\(|XMLHttpRequest", page)
    assert "default-src 'none'" in page


def test_page_has_every_chart_in_order():
    page = own_part(render_page(complete_record()))
    assert re.findall(r'class="chart" id="chart-([\w-]+)"', page) == list(CHARTS)
    assert list(figures_of(page)) == list(CHARTS)


def test_page_opens_with_the_recommendation_and_its_reasons():
    record = complete_record()
    page = own_part(render_page(record))
    headline = "Use a batch size of 32, in 2 micro-batches of 16, at 0.5 × the base learning rate."
    places = [page.index(text) for text in ("<h1>digits</h1>", headline, "16 to 48", 'id="prediction"')]
    assert places == sorted(places)
    for reason in record["recommendation"]["reasons"].values():
        assert reason[1:] in page[places[1] : places[-1]]


def test_page_holds_settings_warnings_costs_and_environment():
    record = complete_record()
    page = own_part(render_page(record))
    for code in record["recommendation"]["settings"].values():
        assert f"<code>{code.rstrip()}"[:40] in page
    for text in ("BatchNorm in train mode", "12%", "Accumulation</th>", "num_threads"):
        assert text in page


def test_download_is_the_record_itself():
    record = undetermined_record()
    link = re.search(r'download="probe.json" href="data:application/json;charset=utf-8,([^"]*)"', render_page(record))
    assert link
    assert json.loads(unquote(link[1])) == record


def test_user_text_is_escaped_everywhere():
    record = hostile_record()
    page = own_part(render_page(record))
    assert "<script>window.owned" not in page
    assert "<img" not in page
    assert page.count("</script>") == 3
    assert "&lt;script&gt;window.owned" in page
    names = [note["text"] for note in figures_of(page)["noise-modules"]["layout"]["annotations"]]
    assert any("&lt;img src=x" in name for name in names)


def test_interrupted_page_says_what_is_missing():
    page = own_part(render_page(partial_record()))
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
    page = own_part(render_page(undetermined_record()))
    assert "The noise scale is at least 24.9 samples" in page
    assert "at least 16" in page


def test_empty_record_renders():
    page = own_part(render_page({"partial": True}))
    assert "Missing: memory, throughput, noise scale, predicted time, devices, recommendation." in page
    assert figures_of(page) == {}


def test_any_entry_may_be_null(monkeypatch):
    monkeypatch.setattr("anybatch.report.page.get_plotlyjs", str)
    record = single_point_record()
    for path in paths(record):
        assert "</html>" in render_page(with_null(record, path)), path
