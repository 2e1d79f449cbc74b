"""The loss that runs are timed to: below the start, above the plateau, and not moved by one noisy point."""

import math

import pytest

from anybatch import InputError, RunError
from anybatch.probing.target import LossPoint, LossTarget, crossing_of, decide_target, samples_to, samples_to_judge_by


def falling(start=2.3, end=0.1, rate=0.01, scatter=0.0, num_points=101, step=10):
    places = [step * index for index in range(num_points)]
    return [
        LossPoint(n, n / 1000, end + (start - end) * math.exp(-rate * n) + (scatter * math.sin(7 * n) if n else 0.0))
        for n in places
    ]


def test_a_twentieth_of_the_way_down_is_left():
    target = decide_target(falling(rate=0.05), 8)
    assert target.loss == pytest.approx(0.1 + 0.05 * 2.2)
    assert target.start_loss == 2.3
    assert target.samples == pytest.approx(math.log(20) / 0.05, rel=0.02)
    assert "1000 samples at batch 8" in target.reason


def test_it_is_reached_well_before_the_run_levels_off():
    curve = falling()
    target = decide_target(curve, 8)
    assert target.samples < 0.5 * curve[-1].samples


@pytest.mark.parametrize("noisy_at", [85, 100])
def test_one_noisy_point_does_not_move_it(noisy_at):
    curve = falling(rate=0.05)
    moved = [*curve]
    moved[noisy_at] = LossPoint(curve[noisy_at].samples, 0.0, 0.3)
    assert decide_target(moved, 8).loss == pytest.approx(decide_target(curve, 8).loss, rel=1e-6)


def test_losses_may_be_negative():
    curve = [LossPoint(point.samples, point.seconds, point.loss - 10) for point in falling(rate=0.05)]
    assert decide_target(curve, 8).loss == pytest.approx(0.1 + 0.05 * 2.2 - 10)


def test_a_loss_that_is_asked_for_is_taken():
    target = decide_target(falling(rate=0.01), 8, wanted=1.2)
    assert (target.loss, target.reason) == (1.2, "it was asked for")
    assert target.samples == pytest.approx(math.log(2) / 0.01, rel=0.01)


def test_a_loss_that_the_small_run_does_not_reach_is_refused():
    message = r"the target loss, 0\.01, was not reached by the small-batch run: 1000 samples at batch 8 came to 0\.1"
    with pytest.raises(RunError, match=message):
        decide_target(falling(), 8, wanted=0.01)


@pytest.mark.parametrize("wanted", [2.3, 5.0, math.nan])
def test_a_loss_that_is_not_below_the_start_is_refused(wanted):
    with pytest.raises(InputError, match=r"target loss must lie below the loss at the start, 2\.3; got "):
        decide_target(falling(), 8, wanted=wanted)


@pytest.mark.parametrize("curve", [falling(start=0.1), falling(start=0.2, scatter=0.2), falling(num_points=3)])
def test_a_run_that_does_not_come_down_sets_no_target(curve):
    with pytest.raises(RunError, match=r"the small-batch run must lower the loss to set a target; it went from"):
        decide_target(curve, 8)


def test_the_first_crossing_counts_and_lies_between_two_points():
    curve = [LossPoint(0, 0.0, 2.0), LossPoint(10, 1.0, 1.0), LossPoint(20, 2.0, 1.5), LossPoint(30, 3.0, 0.0)]
    assert crossing_of(curve, 1.25) == pytest.approx((7.5, 0.75))
    assert samples_to(curve, 0.75) == pytest.approx(25.0)
    assert samples_to(curve, -1.0) is None
    assert crossing_of(curve, 3.0) == (0.0, 0.0)


def test_a_loss_that_is_no_number_is_no_crossing():
    assert samples_to([LossPoint(0, 0.0, 2.0), LossPoint(10, 1.0, math.nan)], 1.0) is None


def target_of(loss):
    return LossTarget(loss, 2.3, 64.0, "made up")


def test_a_target_far_down_judges():
    known = [falling(), falling()[:50]]
    assert samples_to_judge_by(target_of(0.2), 1000, known, whole=3000) is None


def test_a_target_barely_below_the_start_needs_a_run_to_half_the_way_that_is_known():
    needed = samples_to_judge_by(target_of(2.25), 20, [falling(), falling()[:5]], whole=1000)
    assert needed == pytest.approx(75, rel=0.1)  # exp(-0.01 n) = 1 - 0.5 / 0.95
    target = decide_target([point for point in falling() if point.samples <= 1.1 * needed], 8)
    assert samples_to_judge_by(target, needed, [falling()], whole=1000) is None


def test_a_target_needs_a_part_of_the_epochs_however_far_down_it_lies_of_what_is_known():
    known = [falling(rate=0.05)]
    assert samples_to_judge_by(target_of(0.2), 1000, known, whole=10**6) == 20_000


def test_a_run_that_was_long_enough_for_others_is_doubled_at_least():
    assert samples_to_judge_by(target_of(2.25), 900, [falling()], whole=1000) == 1800


def test_a_loss_that_is_lost_is_no_way_down():
    lost = [LossPoint(0, 0.0, 2.3), LossPoint(10, 0.0, math.nan), LossPoint(20, 0.0, -math.inf)]
    assert samples_to_judge_by(target_of(0.2), 1000, [falling(), lost], whole=3000) is None
