import pytest
from report.browser import CHROMIUM, look_at
from report.records import complete_record, hostile_record, partial_record, undetermined_record

from anybatch.report.charts import CHARTS
from anybatch.report.page import render_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed to open the page in")


@pytest.mark.parametrize("width", [360, 1200])
def test_page_draws_every_chart_and_fits_its_window(width, tmp_path):
    sight = look_at(render_page(complete_record()), width, tmp_path)
    assert sight.console == []
    assert list(sight.page["charts"]) == [f"chart-{name}" for name in CHARTS]
    for name, chart in sight.page["charts"].items():
        assert chart["drawings"] > 0, name
        assert chart["traces"] > 0, name
        assert chart["right"] <= width, name
    assert sight.page["viewport"] == width
    assert sight.page["scroll_width"] <= width


def test_page_copies_and_prints(tmp_path):
    sight = look_at(render_page(complete_record()), 1200, tmp_path)
    assert sight.page["button"] == "Copied"
    assert sight.page["printed"] == {"is_open": True, "overhang": 0}
    assert sight.page["after"] == {"is_open": False, "overhang": 0}


def test_hostile_names_run_no_script_and_fit_the_phone(tmp_path):
    sight = look_at(render_page(hostile_record()), 360, tmp_path)
    assert sight.console == []
    assert not sight.page["is_owned"]
    assert sum(chart["foreign"] for chart in sight.page["charts"].values()) == 0
    assert sight.page["scroll_width"] <= 360


@pytest.mark.parametrize("record", [partial_record(), undetermined_record()], ids=["partial", "undetermined"])
def test_incomplete_pages_open_without_an_error(record, tmp_path):
    sight = look_at(render_page(record), 360, tmp_path)
    assert sight.console == []
    assert all(chart["traces"] > 0 for chart in sight.page["charts"].values())
    assert sight.page["scroll_width"] <= 360
