import pytest
from report.browser import CHROMIUM, look_at
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
    undetermined_record,
)

from anybatch.report.comparison_charts import COMPARISON_CHARTS
from anybatch.report.page import render_comparison, render_probe
from anybatch.report.probe_charts import PROBE_CHARTS

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed to open the page in")


PROBE = (render_probe, complete_record, PROBE_CHARTS)
COMPARISON = (render_comparison, comparison_record, COMPARISON_CHARTS)


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize(("render", "record", "drawn"), [PROBE, COMPARISON], ids=["probe", "comparison"])
def test_page_draws_every_chart_and_fits_its_window(render, record, drawn, width, tmp_path):
    sight = look_at(render(record()), width, tmp_path)
    assert sight.console == []
    assert list(sight.page["charts"]) == [f"chart-{name}" for name in drawn]
    for name, chart in sight.page["charts"].items():
        assert chart["drawings"] > 0, name
        assert chart["traces"] > 0, name
        assert chart["right"] <= width, name
    assert sight.page["viewport"] == width
    assert sight.page["scroll_width"] <= width


def test_probe_copies_and_prints(tmp_path):
    sight = look_at(render_probe(complete_record()), 1200, tmp_path)
    assert sight.page["button"] == "Copied"
    assert sight.page["printed"] == {"is_open": True, "overhang": 0}
    assert sight.page["after"] == {"is_open": False, "overhang": 0}


def test_comparison_shows_what_is_picked_and_prints(tmp_path):
    sight = look_at(render_comparison(comparison_record()), 1200, tmp_path)
    eval_axis, distance_axis = "Eval accuracy (%)", "Distance from the initial weights"
    assert sight.page["fewer"] == [[4, eval_axis], [18, eval_axis], [18, eval_axis], [18, distance_axis]]
    assert sight.page["other"] == [[4, eval_axis], [18, "Train loss"], [18, "Train loss"], [18, distance_axis]]
    assert sight.page["printed"] == {"is_open": True, "overhang": 0}
    assert sight.page["after"] == {"is_open": False, "overhang": 0}


@pytest.mark.parametrize(
    "page", [render_probe(hostile_record()), render_comparison(hostile_comparison())], ids=["probe", "comparison"]
)
def test_hostile_names_run_no_script_and_fit_the_phone(page, tmp_path):
    sight = look_at(page, 360, tmp_path)
    assert sight.console == []
    assert not sight.page["is_owned"]
    assert sum(chart["foreign"] for chart in sight.page["charts"].values()) == 0
    assert sight.page["scroll_width"] <= 360


@pytest.mark.parametrize(
    ("render", "record"),
    [
        (render_probe, partial_record),
        (render_probe, undetermined_record),
        (render_comparison, partial_comparison),
        (render_comparison, diverged_comparison),
        (render_comparison, loss_comparison),
        (render_comparison, empty_comparison),
    ],
)
def test_incomplete_pages_open_without_an_error(render, record, tmp_path):
    sight = look_at(render(record()), 360, tmp_path)
    assert sight.console == []
    assert all(chart["traces"] > 0 for chart in sight.page["charts"].values())
    assert sight.page["scroll_width"] <= 360
