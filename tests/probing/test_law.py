"""Samples and seconds over batch size, by hand."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from probing.made_up import curve_of, law_of, noise_of

from anybatch.probing.law import SampleLaw, StepPlan, StepTimes


def affine(size):
    return 0.002 + 0.0005 * size


def times_of(seconds, sizes=(1, 2, 4, 8, 16), largest=16, optimizer_seconds=0.0):
    return StepTimes(curve_of(seconds, sizes, optimizer_seconds), largest)


# samples


def test_samples_double_at_the_critical_batch_size():
    law = law_of(50, low=25, high=100)
    assert law.samples(50) == (2.0, 3.0, 1.5)
    assert law.samples(5) == pytest.approx((1.1, 1.2, 1.05))


def test_an_open_interval_has_open_ends():
    assert law_of(50, low=0.0, high=None).samples(50) == (2.0, math.inf, 1.0)


def test_a_measured_noise_scale_is_the_critical_batch_size():
    law = SampleLaw.from_noise_scale(noise_of(28.0, 24.0, 33.0))
    assert (law.critical_batch_size, law.low, law.high) == (28.0, 24.0, 33.0)


@pytest.mark.parametrize(("low", "at_least", "critical"), [(20.0, 25.0, 25.0), (20.0, None, 20.0)])
def test_an_undetermined_noise_scale_gives_its_lower_limit(low, at_least, critical):
    law = SampleLaw.from_noise_scale(noise_of(None, low, at_least=at_least))
    assert (law.critical_batch_size, law.low, law.high) == (critical, low, None)
    assert "lean towards small batches" in law.reason


@pytest.mark.parametrize("at_least", [None, 0.0])
def test_a_noise_scale_without_any_limit_finds_no_batch_too_large(at_least):
    law = SampleLaw.from_noise_scale(noise_of(None, 0.0, at_least=at_least))
    assert law.samples(10**6)[0] == pytest.approx(1.0, rel=1e-5)
    assert "no batch is too large" in law.reason


@given(st.floats(0.1, 1e5), st.floats(0.1, 1e5), st.floats(0.1, 1e5), st.integers(1, 10**6))
def test_the_estimate_lies_within_its_band(first, second, third, size):
    low, middle, high = sorted((first, second, third))
    at_middle, at_low, at_high = law_of(middle, low, high).samples(size)
    assert at_high <= at_middle <= at_low


# seconds


def test_seconds_between_measured_sizes_lie_on_straight_lines():
    seconds = {1: 0.01, 4: 0.01, 8: 0.03}
    times = times_of(seconds.__getitem__, sizes=(1, 4, 8), largest=16)
    assert times.plan(1).seconds == pytest.approx(0.01)
    assert times.plan(2).seconds == pytest.approx(0.01)
    assert times.plan(6).seconds == pytest.approx(0.02)
    assert times.plan(8).seconds == pytest.approx(0.02)  # two parts of 4 are faster than 0.03


def test_seconds_beyond_the_last_size_are_never_less_per_sample_than_the_best_measured():
    times = times_of(affine, sizes=(1, 2, 4), largest=16)
    assert times.plan(10) == StepPlan(10, 1, pytest.approx(affine(4) / 4 * 10))  # never faster per sample than measured


def test_more_samples_never_take_less_beyond_the_last_size():
    seconds = {1: 0.01, 2: 0.03, 4: 0.02}
    times = times_of(seconds.__getitem__, sizes=(1, 2, 4), largest=16)
    assert times.plan(16).seconds >= 0.02


def test_a_single_measured_size_scales_with_the_samples():
    times = times_of(lambda size: 0.004, sizes=(4,), largest=64)
    assert times.plan(2).seconds == pytest.approx(0.004)
    assert times.plan(8) == StepPlan(8, 1, pytest.approx(0.008))


def test_a_share_that_fits_goes_through_whole_where_parts_save_nothing():
    assert times_of(affine).plan(12) == StepPlan(12, 1, pytest.approx(affine(12)))


@pytest.mark.parametrize(
    ("seconds_of_8", "parts"),
    [(0.010, 1), (0.0205, 1), (0.0215, 2), (0.040, 2)],  # two parts of 4 take 0.020
)
def test_parts_are_advised_only_where_they_save_five_percent(seconds_of_8, parts):
    seconds = {4: 0.010, 8: seconds_of_8}
    plan = times_of(seconds.__getitem__, sizes=(4, 8), largest=8).plan(8)
    assert plan.accumulation_steps == parts
    assert plan.micro_batch_size == 8 // parts


def test_a_share_that_does_not_fit_is_cut_into_equal_parts_where_up_to_twice_as_many_allow_it():
    plan = times_of(affine).plan(100)
    assert (plan.micro_batch_size, plan.accumulation_steps) == (10, 10)
    assert plan.micro_batch_size * plan.accumulation_steps == 100


def test_a_share_that_cannot_be_halved_further_is_cut_into_the_fewest_near_equal_parts():
    plan = times_of(affine).plan(101)
    assert (plan.micro_batch_size, plan.accumulation_steps) == (15, 7)  # 15 15 15 14 14 14 14
    assert plan.seconds == pytest.approx(3 * affine(15) + 4 * affine(14))


def test_the_optimizer_is_paid_once_per_step():
    plan = times_of(affine, optimizer_seconds=0.001).plan(64)
    assert plan.accumulation_steps == 4
    assert plan.seconds == pytest.approx(4 * (affine(16) - 0.001) + 0.001)


def test_a_share_that_does_not_fit_takes_the_fastest_parts():
    def slow_when_full(size):
        return affine(size) * (3 if size == 16 else 1)

    plan = times_of(slow_when_full).plan(64)
    assert plan.micro_batch_size == 8


@given(share=st.integers(1, 5000), largest=st.sampled_from([1, 3, 16, 100]), overhead=st.floats(0, 0.1))
def test_a_plan_holds_its_share_in_parts_that_fit(share, largest, overhead):
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size < largest] + [largest]
    plan = times_of(lambda size: overhead + 0.001 * size, sizes, largest, overhead / 2).plan(share)
    assert plan.micro_batch_size <= largest
    assert plan.accumulation_steps * plan.micro_batch_size >= share
    assert (plan.accumulation_steps - 1) * plan.micro_batch_size < share
    assert plan.seconds > 0


def test_an_optimizer_that_dwarfs_the_passes_never_makes_seconds_negative():
    seconds = {1: 0.100, 2: 0.095, 4: 0.097, 8: 0.100}
    times = times_of(seconds.__getitem__, sizes=(1, 2, 4, 8), largest=8, optimizer_seconds=0.0995)
    for share in (1, 3, 8, 64, 1000):
        assert times.plan(share).seconds > 0.09


def test_a_single_measured_size_gives_no_reason_to_accumulate():
    times = times_of({1: 0.14}.__getitem__, sizes=(1,), largest=256, optimizer_seconds=0.043)
    assert times.plan(256).accumulation_steps == 1
    assert times.plan(256).seconds == pytest.approx(0.043 + 256 * (0.14 - 0.043))


def test_a_huge_share_is_planned_at_once():
    started = time.monotonic()
    times_of(affine, largest=16).plan(2**20)
    assert time.monotonic() - started < 0.5
