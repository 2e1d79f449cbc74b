"""Which batch size follows, as pure functions of made-up measurements."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from probing.made_up import law_of, noise_of, setup_of

from anybatch.probing.frameworks import settings_to_copy
from anybatch.probing.law import SampleLaw, StepPlan
from anybatch.probing.recommend import (
    candidate_sizes,
    choose_batch_size,
    device_table,
    diminishing_devices,
    plan_step,
    predicted_curve,
    sizes_close_to,
)


def flat(size):
    """Each sample takes as long at any size."""
    return 0.001 * size


def free(size):
    """A step takes as long at any size."""
    return 0.01


def affine(size):
    return 0.016 + 0.001 * size


def cost(setup, size, end=0):
    """Seconds to target over E, by the formula."""
    share = -(-size // setup.world_size)
    return setup.law.samples(size)[end] * setup.times.plan(share).seconds / size


# one device


def test_flat_throughput_deserves_the_smallest_batch():
    assert choose_batch_size(setup_of(flat, law_of(64)), "time")[0] == 1


def test_steps_that_cost_the_same_at_any_size_deserve_the_largest_batch():
    assert choose_batch_size(setup_of(free, law_of(64)), "time")[0] == 4096


@pytest.mark.parametrize("critical", [4, 64, 1024])
def test_a_fixed_cost_per_step_deserves_the_root_of_its_product_with_the_critical_batch(critical):
    # (1 + B/C) (a + c B) / B is least at B = sqrt(a C / c), here sqrt(16 C)
    size, low, high = choose_batch_size(setup_of(affine, law_of(critical)), "time")
    best = math.sqrt(16 * critical)
    assert best / math.sqrt(2) <= size <= best * math.sqrt(2)
    assert low <= size <= high


@given(
    overhead=st.floats(0, 0.1),
    critical=st.floats(0.5, 5000),
    num_samples=st.none() | st.integers(2, 20_000),
    largest=st.sampled_from([2, 13, 256]),
    world_size=st.integers(1, 4),
)
def test_the_choice_is_the_cheapest_of_the_candidates(overhead, critical, num_samples, largest, world_size):
    num_samples = None if num_samples is None else max(num_samples, largest * world_size)
    setup = setup_of(
        lambda size: overhead + 0.001 * size, law_of(critical), largest=largest, num_samples=num_samples,
        world_size=world_size, optimizer_seconds=overhead / 2,
    )  # fmt: skip
    sizes = candidate_sizes(setup)
    assert sizes == sorted(set(sizes))
    assert all(world_size <= size and (num_samples is None or size <= num_samples) for size in sizes)
    size, _, _ = choose_batch_size(setup, "time")
    assert cost(setup, size) == min(cost(setup, other) for other in sizes)


def test_the_ends_of_the_interval_give_the_ends_of_the_choice():
    setup = setup_of(affine, law_of(64, low=4, high=1024))
    size, low, high = choose_batch_size(setup, "time")
    assert low == choose_batch_size(setup_of(affine, law_of(4)), "time")[0]
    assert high == choose_batch_size(setup_of(affine, law_of(1024)), "time")[0]
    assert low < size < high


def test_an_open_interval_ends_where_samples_cost_nothing_or_all():
    _, low, high = choose_batch_size(setup_of(affine, law_of(64, low=0.0, high=None)), "time")
    assert low == 1  # where every further sample is wasted
    assert high == 4096  # where none is


def test_an_undetermined_noise_scale_uses_the_lower_limit():
    law = SampleLaw.from_noise_scale(noise_of(None, 50.0, at_least=64.0))
    assert (
        choose_batch_size(setup_of(affine, law), "time")[0]
        == choose_batch_size(setup_of(affine, law_of(64)), "time")[0]
    )


def test_the_objective_samples_takes_the_fastest_of_the_sizes_that_need_few():
    law = law_of(100)
    assert choose_batch_size(setup_of(affine, law), "samples")[0] == 8  # at most 10 % more than at batch 1: 11
    assert choose_batch_size(setup_of(flat, law), "samples")[0] == 1
    assert choose_batch_size(setup_of(free, law_of(1e6)), "samples")[0] == 4096


def test_candidates_reach_what_fits_and_four_critical_batches_but_not_beyond_the_data():
    assert candidate_sizes(setup_of(flat, law_of(3), largest=100)) == [1, 2, 4, 8, 16, 32, 64, 100]
    assert candidate_sizes(setup_of(flat, law_of(60), largest=16)) == [1, 2, 4, 8, 16, 32, 64, 128]
    assert candidate_sizes(setup_of(flat, law_of(60), largest=16, num_samples=50)) == [1, 2, 4, 8, 16, 32]
    assert candidate_sizes(setup_of(flat, law_of(3), largest=8, smallest=2)) == [2, 4, 8]
    assert candidate_sizes(setup_of(flat, law_of(3), largest=8, world_size=3)) == [3, 6, 12, 24]
    assert candidate_sizes(setup_of(flat, law_of(1e-6), largest=1)) == [1]


def test_the_curve_is_relative_to_its_reference():
    setup = setup_of(affine, law_of(64, low=32, high=128), largest=256)
    curve = predicted_curve(setup, 32)
    assert [point.batch_size for point in curve] == candidate_sizes(setup)
    at_reference = next(point for point in curve if point.batch_size == 32)
    assert at_reference.relative_time == at_reference.relative_samples == 1
    for point in curve:
        size = point.batch_size
        assert point.relative_samples == pytest.approx((1 + size / 64) / (1 + 32 / 64))
        assert point.relative_time == pytest.approx(cost(setup, size) / cost(setup, 32))
        assert point.relative_samples_low <= point.relative_samples <= point.relative_samples_high
        assert point.relative_time_low <= point.relative_time <= point.relative_time_high
    largest = curve[-1]
    ends = sorted((1 + 256 / end) / (1 + 32 / end) for end in (32, 128))
    assert (largest.relative_samples_low, largest.relative_samples_high) == pytest.approx(ends)


def test_a_reference_that_is_no_candidate_joins_the_curve():
    curve = predicted_curve(setup_of(affine, law_of(64), largest=16), 300)
    assert 300 in [point.batch_size for point in curve]


def test_with_open_ends_the_curve_stays_finite():
    curve = predicted_curve(setup_of(affine, law_of(64, low=0.0, high=None)), 32)
    last = curve[-1]
    assert last.relative_samples_high == pytest.approx(4096 / 32)  # all further samples wasted
    assert last.relative_samples_low == 1  # none
    assert all(math.isfinite(value) for point in curve for value in vars(point).values())


def test_sizes_within_ten_percent_of_the_best_are_found():
    setup = setup_of(affine, law_of(64))
    costs = {size: cost(setup, size) for size in candidate_sizes(setup)}
    close = [size for size, value in costs.items() if value <= 1.1 * min(costs.values())]
    assert sizes_close_to(predicted_curve(setup, 4096)) == (min(close), max(close))


def test_a_batch_that_does_not_fit_is_accumulated():
    plan = plan_step(setup_of(affine, law_of(64), largest=32), 100)
    assert (plan.micro_batch_size, plan.accumulation_steps) == (25, 4)


def test_a_batch_is_shared_by_the_ranks():
    setup = setup_of(affine, law_of(64), largest=32, world_size=4)
    assert plan_step(setup, 128) == StepPlan(32, 1, pytest.approx(affine(32)))
    assert plan_step(setup, 126).micro_batch_size == 32  # the largest share of 32, 32, 31, 31


# several devices


@pytest.mark.parametrize("seconds", [flat, free, affine])
@pytest.mark.parametrize("num_samples", [None, 5000])
def test_the_device_table_is_that_of_trying_everything(seconds, num_samples):
    critical, largest = 64, 256
    setup = setup_of(seconds, law_of(critical, 32, 128), largest=largest, num_samples=num_samples)
    table = {point.devices: point for point in device_table(setup, [1, 3, 8, 64, 512])}

    def best(devices):
        costs = {}
        for share in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            batch = devices * share
            if num_samples is None or batch <= num_samples:
                costs[batch] = (1 + batch / critical) * seconds(share) / batch
        return min(costs.items(), key=lambda item: item[1])

    for devices, point in table.items():
        batch, least = best(devices)
        assert point.batch_size == batch
        assert point.speedup == pytest.approx(best(1)[1] / least)
        assert point.efficiency == pytest.approx(point.speedup / devices)
        assert point.speedup_low <= point.speedup <= point.speedup_high
    if seconds is not free:
        assert table[64].speedup_low < table[64].speedup < table[64].speedup_high


@given(
    overhead=st.floats(0, 0.1),
    critical=st.floats(0.5, 5000),
    spread=st.floats(1, 10),
    num_samples=st.none() | st.integers(300, 20_000),
)
def test_each_further_device_adds_less_and_never_harms(overhead, critical, spread, num_samples):
    law = law_of(critical, critical / spread, critical * spread)
    setup = setup_of(lambda size: overhead + 0.001 * size, law, largest=256, num_samples=num_samples)
    table = device_table(setup, [2**power for power in range(12)])
    assert table[0].speedup == pytest.approx(1)
    efficiencies = [point.efficiency for point in table]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(efficiencies))
    assert all(point.efficiency <= 1 + 1e-9 for point in table)


def test_more_devices_than_samples_are_left_out():
    setup = setup_of(flat, law_of(64), num_samples=100)
    assert [point.devices for point in device_table(setup, [1, 8, 64, 512])] == [1, 8, 64]


def test_diminishing_returns_are_where_the_efficiency_falls_below_one_half():
    setup = setup_of(flat, law_of(64), largest=64)
    found = diminishing_devices(setup)
    by_count = {point.devices: point.efficiency for point in device_table(setup, [2**power for power in range(12)])}
    assert found.devices == min(count for count, efficiency in by_count.items() if efficiency < 0.5)
    assert f"{found.devices} devices are together" in found.reason


def test_where_the_data_end_first_no_number_of_devices_is_named():
    found = diminishing_devices(setup_of(flat, law_of(1e6), num_samples=100))
    assert found.devices is None
    assert found.reason == "up to 64 devices the efficiency is at least 50%"


# settings


def test_settings_say_the_same_in_each_framework():
    plan = StepPlan(32, 4, 0.1)
    settings = settings_to_copy(plan, 128, 1, {"lr": 0.2})
    assert list(settings) == ["PyTorch", "Hugging Face", "Lightning"]
    assert "# 128 samples per step on 1 device(s)" in settings["PyTorch"]
    assert "accumulation_steps = 4" in settings["PyTorch"]
    assert "batch_size=32" in settings["PyTorch"]
    assert "per_device_train_batch_size=32,\n    gradient_accumulation_steps=4,\n" in settings["Hugging Face"]
    assert "accumulate_grad_batches=4" in settings["Lightning"]
    assert all("0.2" in text for text in settings.values())
    assert all(word not in text for text in settings.values() for word in ("betas", "adam_beta"))


def test_settings_carry_adams_betas():
    optimizer = {"lr": 0.001, "betas": (0.8, 0.998), "eps": 7e-9}
    settings = settings_to_copy(StepPlan(128, 1, 0.1), 128, 2, optimizer)
    assert "lr=0.001, betas=(0.8, 0.998), eps=7e-09" in settings["PyTorch"]
    assert "adam_beta1=0.8,\n    adam_beta2=0.998,\n    adam_epsilon=7e-09," in settings["Hugging Face"]
    assert "accumulation_steps" not in settings["PyTorch"]
    assert "Trainer(devices=2, accumulate_grad_batches=1)" in settings["Lightning"]


def test_settings_leave_out_a_rate_that_is_not_known():
    settings = settings_to_copy(StepPlan(8, 1, 0.1), 8, 1, {})
    assert not any("learning_rate" in text or "lr" in text.split() for text in settings.values())
    for text in settings.values():
        compile(text.strip(), "settings", "exec")
