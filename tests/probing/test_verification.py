"""From measured sizes to a prediction laid beside them, a ratio, a verdict and a sentence."""

import pytest
from probing.made_up import law_of

from anybatch.probing.sweep import MeasuredSize, SizePlan
from anybatch.probing.target import LossTarget
from anybatch.probing.target_runs import Limits, RunRecord
from anybatch.probing.verification import REACH, join_measured, measured_point, points_to_fit

TARGET = LossTarget(0.1, 2.3, 3000.0, "made up")


def record_of(samples, speed=10_000.0, status="reached"):
    return RunRecord(status, samples, samples / speed, 1.0, Limits(1e9, 1e9), ())


def plan_of(size, critical=30.0):
    return SizePlan(size, size, 1e-4, 1 + size / critical)


def measured(size, critical=30.0, scatter=0.02, examples=1000.0, speed=10_000.0, num_runs=3):
    samples = examples * (1 + size / critical)
    one = MeasuredSize(plan_of(size), rates={k: record_of(samples * (1 + 0.2 * abs(k))) for k in (-2, -1, 0, 1)})
    spreads = (1 - scatter, 1.0, 1 + scatter)
    one.runs = {seed + 1: record_of(samples * spreads[seed], speed) for seed in range(num_runs)}
    return one


def joined(sizes=(8, 32, 128), predicted=30.0, recommended=32, largest=512, skipped=None, objection=None, **changes):
    return join_measured(
        TARGET,
        {size: measured(size, **changes) for size in sizes},
        skipped or {},
        {size: plan_of(size) for size in (4, 8, 32, 128, 512)},
        law_of(predicted, 0.8 * predicted, 1.3 * predicted),
        whole_critical_batch_size=2 * predicted,
        recommended=recommended,
        largest=largest,
        budget=60.0,
        spent=20.0,
        objection=objection,
    )


def test_a_point_has_the_mean_and_the_ends_of_its_runs():
    point = measured_point(measured(30, scatter=0.1))
    assert point.samples == pytest.approx(2000, rel=0.01)
    assert (point.samples_low, point.samples_high) == pytest.approx((1800, 2200))
    assert (point.seconds_low, point.seconds_high) == pytest.approx((0.18, 0.22))
    assert (point.num_runs, point.lr_scale, point.is_bracketed) == (3, 1.0, True)
    assert [trial.lr_scale for trial in point.rates] == [0.25, 0.5, 1.0, 2.0]


def test_a_right_prediction_is_confirmed_and_lies_on_the_points():
    found = joined()
    assert found.verdict == "confirmed"
    assert found.ratio == pytest.approx(1.0, rel=0.05)
    by_size = {point.batch_size: point for point in found.predicted}
    for point in found.points:
        assert by_size[point.batch_size].samples == pytest.approx(point.samples, rel=0.02)
        assert by_size[point.batch_size].seconds == pytest.approx(point.seconds, rel=0.02)
    assert all(point.samples_low <= point.samples <= point.samples_high for point in found.predicted)


@pytest.mark.parametrize(
    ("predicted", "verdict"), [(16.0, "confirmed"), (58.0, "confirmed"), (13.0, "refuted"), (70.0, "refuted")]
)
def test_a_factor_two_decides(predicted, verdict):
    found = joined(predicted=predicted)
    assert found.verdict == verdict
    assert found.ratio == pytest.approx(predicted / 30, rel=0.05)
    assert ("within" if verdict == "confirmed" else "beyond") + " a factor 2" in found.reason
    assert f"over the probe's whole runs it is {2 * predicted:.3g}" in found.reason


def test_a_size_far_beyond_the_recommended_is_timed_but_not_fitted():
    sizes = {**{size: measured(size) for size in (8, 32, 128)}, 4096: measured(4096, critical=3.0)}
    plans = {size: plan_of(size) for size in sizes}
    found = join_measured(
        TARGET, sizes, {}, plans, law_of(30.0), whole_critical_batch_size=30.0, recommended=32, largest=4096,
        budget=60.0, spent=20.0,
    )  # fmt: skip
    assert found.law.critical_batch_size == pytest.approx(30.0, rel=0.05)
    assert found.points[-1].batch_size == 4096
    assert found.time_of_largest is not None
    assert found.time_of_largest.value > 100
    assert found.slowdown == pytest.approx(1.0, rel=0.01)  # its samples are off, not the machine's pace


def test_two_sizes_are_fitted_however_far_apart():
    near, far = measured_point(measured(32)), measured_point(measured(32 * int(REACH) + 1))
    assert list(points_to_fit([near, far], 32)) == [near, far]
    assert list(points_to_fit([near, measured_point(measured(64)), far], 32))[-1] is not far


def test_a_wrong_prediction_is_off_at_both_ends():
    found = joined(predicted=120.0)
    ratios = [
        next(one.samples for one in found.predicted if one.batch_size == point.batch_size) / point.samples
        for point in found.points
    ]
    assert ratios[0] > 1.2
    assert ratios[-1] < 0.8


def test_points_without_a_bend_decide_nothing():
    found = joined(critical=1e9)
    assert (found.verdict, found.ratio) == ("undetermined", None)
    assert found.reason.startswith("the measured sizes do not determine the critical batch size")


def test_a_target_too_near_the_start_decides_nothing_however_far_off_the_prediction_is():
    found = joined(predicted=120.0, objection="the target is too near the start")
    assert (found.verdict, found.ratio) == ("undetermined", None)
    assert found.reason == "the target is too near the start"
    assert found.points
    assert found.sentence


def test_a_law_with_an_open_interval_is_drawn_all_the_same():
    found = join_measured(
        TARGET,
        {size: measured(size) for size in (8, 128)},
        {},
        {size: plan_of(size) for size in (8, 128)},
        law_of(30.0, 0.0, None),
        whole_critical_batch_size=30.0,
        recommended=8,
        largest=128,
        budget=60.0,
        spent=1.0,
    )
    for point in found.predicted:
        assert 0 < point.samples_low <= point.samples <= point.samples_high < 1e9


def test_the_sentence_has_the_figures_of_the_runs():
    found = joined(largest=128)
    assert found.time_of_largest.value == pytest.approx((1 + 128 / 30) / (1 + 32 / 30), rel=0.01)
    assert found.sentence == "Recommended 32: 0.21 s to target; the largest that fits, 128: 2.5x slower."
    assert (found.fastest, found.time_of_recommended) == (8, pytest.approx(2.0667 / 1.2667, rel=0.01))


def test_a_largest_size_that_was_not_measured_is_said_to_be_predicted():
    found = joined(skipped={512: "it would take about 99 s"})
    assert found.time_of_largest is None
    assert found.sentence.endswith("the largest that fits, 512, was not measured: predicted 8.7x slower.")
    assert [(one.batch_size, one.reason) for one in found.skipped] == [(512, "it would take about 99 s")]


def test_a_busy_machine_shows_in_the_slowdown_and_not_in_the_ratio():
    busy = joined(speed=2_500.0, skipped={512: "too slow"})
    assert busy.slowdown == pytest.approx(4.0, rel=0.02)
    assert busy.ratio == joined().ratio
    assert busy.sentence.endswith("predicted 8.7x slower.")


def test_a_recommended_size_that_is_the_largest_is_said_to_be():
    assert joined(recommended=128, largest=128).sentence == (
        "Recommended 128: 0.53 s to target; it is the largest that fits."
    )
