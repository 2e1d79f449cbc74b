"""Warm-up and drops in samples: where they lie, what they multiply, and that the batch size does not move them."""

import math

import pytest

from anybatch import InputError, Milestones
from anybatch.decide import SampleSchedule, scale_learning_rate


def test_each_milestone_multiplies_from_its_sample_on():
    schedule = SampleSchedule(milestones=(100, 300), decays=(0.1, 0.5))
    assert [schedule.factor(n) for n in (0, 99, 100, 299)] == [1.0, 1.0, 0.1, 0.1]
    assert schedule.factor(300) == schedule.factor(10**9) == pytest.approx(0.05)


def test_a_milestone_may_raise_the_rate():
    assert SampleSchedule(milestones=(10,), decays=(10.0,)).factor(10) == 10.0


def test_the_warm_up_rises_linearly_from_one_sample_s_share_to_one():
    schedule = SampleSchedule(milestones=(), decays=(), warmup_samples=1000)
    assert [schedule.factor(n) for n in (0, 249, 499, 999, 5000)] == [0.001, 0.25, 0.5, 1.0, 1.0]


def test_the_warm_up_of_the_published_detectors_is_exponential():
    """Check 13 of the digest of Xue et al. 2022: 920 updates up to a rate of 0.226274."""
    schedule = SampleSchedule((2000,), (0.1,), warmup_samples=920, warmup_start=0.001)
    rates = [0.226274 * schedule.factor(n) for n in (0, 230, 460, 690, 919, 920, 2000)]
    assert rates == pytest.approx([0.000226, 0.001272, 0.007155, 0.040238, 0.224582, 0.226274, 0.0226274], rel=2e-3)
    half_dropped = SampleSchedule((460,), (0.1,), warmup_samples=920, warmup_start=0.001)
    assert half_dropped.factor(460) == pytest.approx(0.1 * 0.001**0.5)


@pytest.mark.parametrize("warmup_start", [-0.1, 1.0])
def test_a_warm_up_that_starts_outside_its_range_is_refused(warmup_start):
    with pytest.raises(InputError, match=r"warmup_start must be at least 0 and below 1; got"):
        SampleSchedule((), (), 10, warmup_start)


@pytest.mark.parametrize("warmup_samples", [0.0, 0.5, 1.0])
def test_a_warm_up_below_a_sample_is_none(warmup_samples):
    assert SampleSchedule((), (), warmup_samples).factor(0) == 1.0


def test_a_drop_within_the_warm_up_multiplies_it():
    schedule = SampleSchedule(milestones=(500,), decays=(0.1,), warmup_samples=1000)
    assert schedule.factor(599) == pytest.approx(0.6 * 0.1)


def test_epochs_become_samples_as_the_milestones_say():
    milestones = Milestones((60, 120), decay=(10, 0.1))
    schedule = SampleSchedule.from_epochs(milestones, samples_per_epoch=50)
    assert schedule == SampleSchedule((3000, 6000), (10, 0.1), 0.0)
    assert [schedule.factor(50 * epoch) for epoch in (59, 60, 119, 120)] == [
        milestones.factor(epoch) for epoch in (59, 60, 119, 120)
    ]


def test_stretch_moves_the_milestones_and_not_the_warm_up():
    schedule = SampleSchedule.from_epochs(Milestones((2,)), samples_per_epoch=100, stretch=4, warmup_epochs=3)
    assert (schedule.milestones, schedule.warmup_samples) == ((800,), 300)


def test_no_milestones_are_a_constant_rate_after_the_warm_up():
    schedule = SampleSchedule.from_epochs(None, samples_per_epoch=100, warmup_epochs=1)
    assert (schedule.milestones, schedule.decays) == ((), ())
    assert [schedule.factor(n) for n in (0, 99, 10**6)] == [0.01, 1.0, 1.0]


def test_a_change_of_batch_size_does_not_move_the_schedule():
    schedule = SampleSchedule.from_epochs(Milestones((2,)), samples_per_epoch=960, warmup_epochs=1)

    def by_sample(batch_size):
        return {seen: schedule.factor(seen) for seen in range(0, 3 * 960, batch_size)}

    small, large = by_sample(32), by_sample(96)
    assert large.items() <= small.items()


def test_the_scaled_warm_up_has_as_many_updates_at_any_batch():
    def warming_updates(batch_size):
        epochs = scale_learning_rate(32, batch_size, family="sgd", rule="sqrt", warmup_epochs=2).warmup_epochs
        schedule = SampleSchedule.from_epochs(None, 1024, warmup_epochs=epochs)
        return sum(schedule.factor(update * batch_size) < 1 for update in range(1000))

    assert warming_updates(32) == warming_updates(256) == warming_updates(16) == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"milestones": (2, 1), "decays": (0.1, 0.1)}, r"milestones must be positive and ascend; got \(2, 1\)"),
        ({"milestones": (1, 1), "decays": (0.1, 0.1)}, r"milestones must be positive and ascend; got \(1, 1\)"),
        ({"milestones": (0,), "decays": (0.1,)}, r"milestones must be positive and ascend; got \(0,\)"),
        ({"milestones": (math.nan,), "decays": (0.1,)}, r"milestones must be positive and ascend; got \(nan,\)"),
        ({"milestones": (1, 2), "decays": (0.1,)}, "decays must be one per milestone; got 1 for 2 milestones"),
        ({"milestones": (), "decays": (), "warmup_samples": -1}, "warmup_samples must be at least 0; got -1. Pass 0"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        SampleSchedule(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples_per_epoch": 0}, "samples_per_epoch must be positive; got 0"),
        ({"samples_per_epoch": 10, "stretch": 0}, "stretch must be positive; got 0"),
        ({"samples_per_epoch": 10, "stretch": math.inf}, "stretch must be positive; got inf"),
        ({"samples_per_epoch": 10, "warmup_epochs": -1}, "warmup_samples must be at least 0; got -10"),
    ],
)
def test_epochs_that_cannot_be_counted_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        SampleSchedule.from_epochs(None, **arguments)
