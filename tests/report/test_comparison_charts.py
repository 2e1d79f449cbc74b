import math
from typing import Any

import pytest
from report.records import (
    comparison_record,
    diverged_comparison,
    empty_comparison,
    hostile_comparison,
    loss_comparison,
    partial_comparison,
)

from anybatch.report.comparison_charts import (
    COMPARISON_CHARTS,
    batch_size_chart,
    choices,
    distance_chart,
    samples_chart,
    updates_chart,
)
from anybatch.report.drawing import Edges, log_axis

RECORDS = [
    comparison_record(),
    comparison_record(lr_factors=(0.5, 1.0, 2.0)),
    comparison_record(recipes=("plain",), batch_sizes=(128,), seeds=1),
    comparison_record(recipes=[f"recipe {n}" for n in range(9)], batch_sizes=[2**n for n in range(7, 15)], seeds=1),
    partial_comparison(),
    diverged_comparison(),
    loss_comparison(),
    hostile_comparison(),
]


def trace(figure: Any, name: str, metric: str | None = None) -> Any:
    found = (trace for trace in figure.data if trace.name == name)
    return next(trace for trace in found if metric is None or trace.meta["metric"] == metric)


@pytest.mark.parametrize("draw", COMPARISON_CHARTS.values(), ids=COMPARISON_CHARTS)
@pytest.mark.parametrize("record", RECORDS)
def test_chart_draws_every_record(draw, record):
    figure: Any = draw(record)
    assert [trace for trace in figure.data if trace.visible is not False]
    assert all(math.isfinite(value) for trace in figure.data for value in (*trace.x, *trace.y))


@pytest.mark.parametrize("draw", COMPARISON_CHARTS.values(), ids=COMPARISON_CHARTS)
def test_chart_without_runs_is_empty(draw):
    assert not draw(empty_comparison()).data


def test_results_are_means_in_percent_with_their_standard_deviation():
    record = comparison_record()
    line = trace(batch_size_chart(record), "regime")
    rows = [row["metrics"]["eval_accuracy"] for row in record["table"] if row["recipe"] == "regime"]
    assert list(line.y) == [100 * row["mean"] for row in rows]
    assert list(line.error_y.array) == [100 * row["sd"] for row in rows]
    assert list(line.x) == pytest.approx([128, 512, 4096], rel=0.05)


def test_results_of_one_seed_have_no_bar():
    record = comparison_record(seeds=1)
    assert set(trace(batch_size_chart(record), "plain").error_y.array) == {0}
    assert not [trace for trace in samples_chart(record).data if trace.fill]


def test_results_of_several_rates_are_the_best_beside_the_untuned():
    record = comparison_record(lr_factors=(1.0, 2.0))
    best, untuned = (trace(batch_size_chart(record), name) for name in ("plain", "plain, untuned"))
    assert best.hovertext[-1].startswith("plain, batch size 4,096, rate 1.13")
    assert untuned.hovertext[-1].startswith("plain, batch size 4,096, rate 0.566")
    assert untuned.y[-1] < best.y[-1]


def test_divergence_is_a_cross_at_the_edge_with_words():
    figure: Any = batch_size_chart(diverged_comparison())
    cross = trace(figure, "plain: diverged")
    assert cross.y == (figure.layout.yaxis.range[0],)
    assert cross.hovertext[0].endswith("no result<br>3 diverged")
    assert len(trace(figure, "plain").x) == 2


def test_learning_curves_are_means_within_the_range_of_seeds():
    record = comparison_record()
    figure: Any = samples_chart(record)
    curves = [run["curve"] for run in record["runs"] if (run["recipe"], run["batch_size"]) == ("sqrt", 512)]
    line = trace(figure, "sqrt, batch size 512", "eval_loss")
    assert list(line.x) == [point["samples"] for point in curves[0]]
    assert line.y[3] == pytest.approx(sum(curve[3]["eval_loss"] for curve in curves) / 3)
    band = figure.data[figure.data.index(line) - 1]
    assert band.fill == "toself"
    assert band.y[3] == min(curve[3]["eval_loss"] for curve in curves)
    assert band.y[-4] == max(curve[3]["eval_loss"] for curve in curves)


def test_learning_curves_leave_out_what_did_not_finish_unless_nothing_did():
    figure: Any = samples_chart(partial_comparison())
    assert len(trace(figure, "regime, batch size 512").x) == 20
    assert len(trace(figure, "regime, batch size 4,096").x) == 6
    assert "1 done, 2 unfinished" in trace(figure, "regime, batch size 512").hovertemplate


def test_only_the_deciding_metric_is_drawn_until_another_is_picked():
    figure: Any = updates_chart(comparison_record())
    shown = {trace.meta["metric"] for trace in figure.data if trace.visible}
    assert shown == {"eval_accuracy"}
    axes = figure.layout.meta["metric"]
    assert list(axes) == ["eval_accuracy", "train_accuracy", "eval_loss", "train_loss"]
    assert axes["train_loss"]["title"]["text"] == "Train loss"
    assert tuple(axes["eval_accuracy"]["range"]) == figure.layout.yaxis.range


def test_colour_is_the_recipe_and_dash_the_batch_size():
    record = comparison_record()
    offered = choices(record)
    for figure in (samples_chart(record), distance_chart(record)):
        line = trace(figure, "ghost, batch size 4,096")
        assert line.line.color == offered["recipe"][2].colour
        assert line.line.dash.replace("px", "") == offered["batch_size"][2].dash
        assert (line.meta["recipe"], line.meta["batch_size"]) == ("ghost", "4096")


def test_progress_is_logarithmic_where_runs_differ_in_length():
    alike: Any = samples_chart(comparison_record(recipes=("plain", "sqrt")))
    longer: Any = samples_chart(comparison_record())
    assert (alike.layout.xaxis.type, longer.layout.xaxis.type) == (None, "log")


def test_fitted_law_runs_through_its_window():
    record = comparison_record(seeds=2)
    law = trace(distance_chart(record), "plain, fitted law")
    fits = [run["distance_law"] for run in record["runs"][:2]]
    intercept = sum(fit["intercept"] for fit in fits) / 2
    assert law.x == (20, 10_000)
    assert law.y[1] == pytest.approx(intercept + fits[0]["slope"] * math.log(10_000))


def test_distance_without_a_fit_is_drawn_alone():
    record = comparison_record()
    for run in record["runs"]:
        run["distance_law"] = None
    assert len(distance_chart(record).data) == 12


def with_tensors(*names):
    record = comparison_record(seeds=1)
    for run in record["runs"]:
        run["tensor_laws"] = {names[0]: run["distance_law"] | {"intercept": 0.0, "slope": 0.5}}
        for line in run["distance"]:
            line["tensors"] = {name: line["distance"] / (2 + index) for index, name in enumerate(names)}
    return record


def test_the_walk_of_one_tensor_can_be_chosen_with_its_own_law():
    record = with_tensors("first.weight", "last.weight")
    assert [choice.words for choice in choices(record)["weights"]] == ["all weights", "first.weight", "last.weight"]
    lines = [line for line in distance_chart(record).data if line.name == "plain, batch size 128"]
    assert [(line.meta["weights"], line.visible) for line in lines] == [("0", True), ("1", False), ("2", False)]
    assert lines[1].y == pytest.approx([value / 2 for value in lines[0].y])
    laws = [line for line in distance_chart(record).data if line.name == "plain, fitted law"]
    assert {line.meta["weights"] for line in laws} == {"0", "1"}
    assert next(line for line in laws if line.meta["weights"] == "1").y[1] == pytest.approx(0.5 * math.log(10_000))


def test_of_many_tensors_a_few_are_offered_the_ends_among_them():
    names = [f"layers.{n}.weight" for n in range(50)]
    words = [choice.words for choice in choices(with_tensors(*names))["weights"]]
    assert (words[1], words[-1], len(words)) == (names[0], names[-1], 9)
    assert words[1:] == sorted(words[1:], key=names.index)
    assert choices(comparison_record())["weights"] == []


@pytest.mark.parametrize(
    ("edges", "ticks"),
    [
        (Edges(0.04, 0.6), ["0.05", "0.1", "0.2", "0.5"]),
        (Edges(150, 70_000), ["1,000", "10,000"]),
        (Edges(1, 1e5), ["1", "10", "100", "1,000", "10,000", "100,000"]),
    ],
)
def test_logarithmic_axis_has_a_few_round_ticks(edges, ticks):
    assert log_axis(edges, 10)["ticktext"] == ticks
