import math
from typing import Any

import pytest
from report.records import complete_record, single_point_record, undetermined_record

from anybatch.report.probe_charts import (
    PROBE_CHARTS,
    curve_chart,
    devices_chart,
    memory_chart,
    noise_modules_chart,
    noise_training_chart,
    throughput_chart,
)


def trace(figure: Any, name: str) -> Any:
    return next(trace for trace in figure.data if trace.name == name)


def shapes(figure: Any) -> dict[str, Any]:
    return {shape.name: shape for shape in figure.layout.shapes}


@pytest.mark.parametrize("draw", PROBE_CHARTS.values(), ids=PROBE_CHARTS)
@pytest.mark.parametrize("record", [complete_record(), undetermined_record(), single_point_record()])
def test_chart_shows_all_of_its_dots(draw, record):
    figure: Any = draw(record)
    assert figure.data
    for axis in ("x", "y"):
        settings = figure.layout[f"{axis}axis"]
        if settings.type == "log":
            values = [v for trace in figure.data for v in trace[axis] if v is not None and trace.visible is None]
            low, high = (10**end for end in settings.range)
            assert low <= min(values) * 1.001
            assert max(values) <= high * 1.001


@pytest.mark.parametrize("draw", PROBE_CHARTS.values(), ids=PROBE_CHARTS)
def test_chart_of_nothing_is_empty(draw):
    assert not draw({}).data


def test_curve_draws_the_record_with_its_band_and_marks():
    record = complete_record()
    figure: Any = curve_chart(record)
    assert list(trace(figure, "training time").y) == [point["relative_time"] for point in record["curve"]]
    lows = [point["relative_time_low"] for point in record["curve"]]
    highs = [point["relative_time_high"] for point in record["curve"]]
    assert list(trace(figure, "training time, interval").y) == lows + highs[::-1]
    recommended = trace(figure, "recommended: 32")
    assert (recommended.x, recommended.y) == ((32,), (1.0,))
    assert shapes(figure)["largest that fits at once: 2,600"].x0 == 2600


def test_curve_without_upper_end_is_drawn_as_triangles():
    figure: Any = curve_chart(undetermined_record())
    assert set(trace(figure, "training time").marker.symbol) == {"triangle-up"}
    assert "(at least 2.35)" in trace(figure, "training time").hovertext[0]
    assert set(trace(curve_chart(complete_record()), "training time").marker.symbol) == {"circle"}


def test_throughput_draws_both_rates_and_the_knee():
    record = complete_record()
    figure: Any = throughput_chart(record)
    loader = [point["samples_per_second_with_loader"] for point in record["throughput"]]
    assert list(trace(figure, "with loader").y) == loader
    assert shapes(figure)["knee: 64"].x0 == 64
    assert figure.layout.yaxis.range[0] == 0


def test_memory_marks_what_does_not_fit_at_the_limit():
    record = complete_record()
    figure: Any = memory_chart(record)
    limit = record["memory"]["limit_bytes"] / 1e9
    failed = trace(figure, "does not fit")
    assert (failed.x, failed.y) == ((4096,), (limit,))
    assert failed.marker.symbol == "x"
    assert shapes(figure)["limit: 16 GB"].y0 == limit


def test_measured_noise_has_dots_and_no_arrow():
    record = complete_record()
    figure: Any = noise_training_chart(record)
    values = [point["value"] for point in record["noise_scale"]["points"]]
    assert list(trace(figure, "all modules").y) == values
    assert not [trace for trace in figure.data if "at least" in (trace.name or "")]


def test_modules_over_training_wait_for_a_click():
    record = complete_record()
    for point in record["noise_scale"]["points"]:
        point["modules"]["unknown"] = {"value": None, "low": None, "high": None, "verdict": "undetermined"}
    figure: Any = noise_training_chart(record)
    waiting = {trace.name for trace in figure.data if trace.visible == "legendonly"}
    assert waiting == {"features", "classifier"}


def test_undetermined_noise_is_an_arrow_from_its_lower_bound_to_the_edge():
    record = undetermined_record()
    figure: Any = noise_training_chart(record)
    top = 10 ** figure.layout.yaxis.range[1]
    assert trace(figure, "all modules: at least").y[0] == pytest.approx(top)
    bars = [trace.y for trace in figure.data if trace.mode == "lines" and trace.name is None]
    assert [bar[1] for bar in bars] == pytest.approx([top] * len(bars))
    assert [bar[0] for bar in bars] == [point["at_least"] for point in record["noise_scale"]["points"]]
    assert not [trace for trace in figure.data if trace.name == "all modules"]


def test_modules_are_named_beside_their_interval():
    figure: Any = noise_modules_chart(complete_record())
    notes = [note.text for note in figure.layout.annotations]
    assert notes[0] == "<b>all modules</b>  28.1 (24 to 33)"
    assert notes[-1] == "<b>norm</b>  at least 7.94"


def test_module_names_are_shortened_at_their_beginning():
    record = complete_record()
    record["noise_scale"]["modules"] = {"backbone.stages.3.blocks.11.attention": record["noise_scale"]}
    figure: Any = noise_modules_chart(record)
    assert figure.layout.annotations[1].text.startswith("<b>…s.3.blocks.11.attention</b>")


def test_devices_are_drawn_beside_perfect_scaling():
    figure: Any = devices_chart(complete_record())
    perfect = trace(figure, "perfect scaling")
    assert perfect.x == perfect.y == (1, 2, 4, 8, 16, 32)
    assert shapes(figure)["diminishing returns: 8"].x0 == 8
    assert figure.layout.xaxis.range[0] < math.log10(1)
