"""What the page and the terminal show of a checked prediction."""

import io
import re
from typing import Any

import pytest
from report.nulls import paths, with_null
from report.records import complete_record
from report.verified_records import verified_record
from rich.console import Console

from anybatch.report.drawing import BLUE, RED
from anybatch.report.page import render_probe
from anybatch.report.terminal import print_probe
from anybatch.report.verification_charts import VERIFICATION_CHARTS, measured_samples_chart, measured_time_chart
from anybatch.report.verification_rows import sizes_table, target_summary, verdict_summary


def trace(figure: Any, name: str) -> Any:
    return next(trace for trace in figure.data if trace.name == name)


def printed(record):
    pipe = io.StringIO()
    print_probe(record, Console(file=pipe, width=80))
    return pipe.getvalue()


@pytest.fixture
def without_plotly(monkeypatch):
    monkeypatch.setattr("anybatch.report.page.get_plotlyjs", str)


def test_time_is_drawn_over_the_prediction_with_its_spread():
    record = verified_record()
    figure: Any = measured_time_chart(record)
    points = record["verification"]["points"]
    measured = trace(figure, "measured")
    assert list(measured.y) == [point["seconds"] for point in points]
    assert list(measured.error_y.array) == pytest.approx([0.2 * point["seconds"] for point in points])
    assert list(measured.error_y.arrayminus) == pytest.approx([0.1 * point["seconds"] for point in points])
    predicted = {point["batch_size"]: point["seconds"] for point in record["verification"]["predicted"]}
    drawn = trace(figure, "predicted")
    assert [predicted[size] for size in drawn.x] == list(drawn.y)
    assert min(drawn.x) == 4
    assert trace(figure, "predicted, interval").fill == "toself"


def test_the_recommended_size_is_ringed_and_the_largest_is_red():
    figure: Any = measured_time_chart(verified_record())
    recommended, largest = trace(figure, "recommended: 32"), trace(figure, "largest that fits: 2,600")
    assert (recommended.x, recommended.marker.color) == ((32,), BLUE)
    assert (largest.x, largest.marker.color) == ((2600,), RED)
    (mark,) = figure.layout.shapes
    assert (mark.x0, mark.line.color) == (2600, RED)


def test_a_largest_size_that_was_not_measured_is_marked_without_a_ring():
    figure: Any = measured_time_chart(verified_record(skipped=2600))
    assert figure.layout.shapes[0].x0 == 2600
    assert not [one for one in figure.data if one.marker.color == RED]
    assert 10 ** figure.layout.xaxis.range[1] > 2600


def test_samples_are_drawn_with_the_fitted_law():
    figure: Any = measured_samples_chart(verified_record())
    law = trace(figure, "law fitted to the measured")
    assert dict(zip(law.x, law.y, strict=True))[32] == pytest.approx(1000 * (1 + 32 / 24.2))


@pytest.mark.parametrize("draw", VERIFICATION_CHARTS.values(), ids=VERIFICATION_CHARTS)
@pytest.mark.parametrize("record", [{}, complete_record(), verified_record() | {"verification": {"points": []}}])
def test_chart_of_nothing_is_empty(draw, record):
    assert not draw(record).data


def test_the_page_opens_with_the_sentence_the_picture_and_the_verdict(without_plotly):
    page = render_probe(verified_record())
    texts = (
        "Use a batch size of 32",
        "Recommended 32: 0.36 s to target; the largest that fits, 2600: 9.2x slower.",
        'id="chart-measured-time"',
        "Confirmed: on the way to this loss",
        "All runs go to a loss of 0.177",
        "× 0.5, at the edge",
        'id="chart-measured-samples"',
        'id="recommendation"',
    )
    places = [page.index(text) for text in texts]
    assert places == sorted(places)
    assert page.count('<tr class="marked">') == 1 + render_probe(complete_record()).count('<tr class="marked">')


def test_a_page_without_verification_says_nothing_of_it(without_plotly):
    assert "verification" not in re.sub(r"<style>.*?</style>", "", render_probe(complete_record()), flags=re.S)


def test_the_terminal_ends_with_the_sentence():
    text = printed(verified_record())
    assert "Verification" in text
    assert re.search(r"Recommended 32: 0\.36 s to target; the largest that fits, 2600: 9\.2x", text)
    assert text.index("Verification") < text.index("Recommended 32")
    assert "Verification" not in printed(complete_record())


def test_what_was_skipped_is_said_with_its_reason():
    told = verdict_summary(verified_record(skipped=128))
    assert "Not measured: 128 (it would take about 99 s, and 12 s are left of the budget)." in told
    assert "meets the 5 sizes that it is fitted to within 2%" in told
    assert [row[0] for row in sizes_table(verified_record(skipped=128)).rows] == ["8", "16", "32", "64", "2,600"]


def test_a_machine_that_was_busy_is_said():
    record = verified_record()
    assert "the runs took" not in verdict_summary(record)
    record["verification"]["slowdown"] = 2.5
    assert "Over all sizes the runs took 2.5 times the seconds predicted" in verdict_summary(record)


def test_sentences_of_nothing_are_empty():
    assert verdict_summary({}) == target_summary({}) == ""


def test_any_entry_may_be_null(without_plotly):
    record = verified_record(skipped=128)
    for path in paths(record["verification"], ("verification",)):
        changed = with_null(record, path)
        for draw in VERIFICATION_CHARTS.values():
            draw(changed)
        assert isinstance(verdict_summary(changed) + target_summary(changed), str), path
        assert all(isinstance(cell, str) for row in sizes_table(changed).rows for cell in row), path
    for name in record["verification"]:
        assert "</html>" in render_probe(with_null(record, ("verification", name))), name
