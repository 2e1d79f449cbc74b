"""Which sizes and rates a sweep runs, with runs that cost what a law says."""

import pytest

from anybatch import InputError, RunError
from anybatch.probing.sweep import NUM_SEEDS, SizePlan, Sweep, sizes_to_measure, spacing_of
from anybatch.probing.target import LossTarget
from anybatch.probing.target_runs import RunRecord
from anybatch.probing.verify import require_two_sizes

TARGET = LossTarget(0.1, 2.3, 2000.0, "made up")
CRITICAL = 30.0


class MadeUpRuns:
    """Answers as runs of a workload with B_crit 30 and a best rate that grows with the root of the batch."""

    def __init__(self, seconds_per_sample=1e-4, bad_seeds=(), slow_sizes=()):
        self.spent = 0.0
        self.taken = []
        self._seconds_per_sample = seconds_per_sample
        self._bad_seeds = bad_seeds
        self._slow_sizes = slow_sizes

    def take(self, run, limits):
        self.taken.append(run)
        misses = abs(run.lr_scale / (run.batch_size / 32) ** 0.5 - 1)
        samples = 1000 * (1 + run.batch_size / CRITICAL) * (1 + 0.3 * misses)
        status = "reached" if samples <= limits.samples else "not reached"
        if (run.batch_size, run.lr_scale, run.seed) in self._bad_seeds:
            status = "diverged"
        cost = min(samples, limits.samples) * self._seconds_per_sample
        if cost > limits.seconds or run.batch_size in self._slow_sizes:
            status, cost = "out of time", limits.seconds
        self.spent += cost
        return RunRecord(status, min(samples, limits.samples), cost, cost, limits, ())


def swept(order=(32, 128, 8), budget=1000.0, first_rate=lambda size: 0, **runs):
    kept = MadeUpRuns(**runs)
    plans = {size: SizePlan(size, size, 1e-4, 1 + size / CRITICAL) for size in (2, 8, 32, 128, 512, 4096)}
    sweep = Sweep(
        kept, TARGET, plans, least_samples=1000.0, slowdown=1.0, seconds_per_evaluation=0.0, eval_samples=64,
        budget=budget, first_rate=first_rate, tell=lambda fraction, text: None,
    )  # fmt: skip
    sweep.run(list(order))
    return sweep, kept


@pytest.mark.parametrize("guess", [-3, 0, 2])
def test_each_size_gets_its_own_best_rate_and_three_further_seeds(guess):
    sweep, _ = swept(first_rate=lambda size: guess)
    assert {size: one.best for size, one in sweep.sizes.items()} == {32: 0, 128: 1, 8: -1}
    for one in sweep.sizes.values():
        assert one.is_bracketed
        assert sorted(one.runs) == [1, 2, 3]
    assert sweep.skipped == {}


def test_seeds_go_round_the_sizes_so_that_a_busy_minute_hits_all():
    _, kept = swept()
    later = [(run.seed, run.batch_size) for run in kept.taken if run.seed]
    assert later == [(seed, size) for seed in (1, 2, 3) for size in (32, 128, 8)]


def test_a_size_that_the_budget_does_not_hold_is_skipped_and_said():
    sweep, kept = swept((32, 4096, 8), budget=8.0)
    assert list(sweep.sizes) == [32, 8]
    assert "it would take about" in sweep.skipped[4096]
    assert kept.spent <= 8.0


def test_what_is_promised_to_sizes_begun_is_kept_for_them():
    for budget in (3.0, 4.0, 5.0, 7.0, 9.0):
        sweep, kept = swept((32, 128, 8, 512, 2), budget=budget)
        assert kept.spent <= 1.2 * budget
        assert all(len(one.runs) >= NUM_SEEDS[0] for one in sweep.sizes.values()), budget


def test_a_machine_that_is_slower_than_predicted_is_noticed():
    sweep, kept = swept((32, 128, 8, 512), budget=30.0, seconds_per_sample=1e-3)
    assert 512 in sweep.skipped
    assert kept.spent <= 36.0


def test_a_rate_that_reached_the_target_by_luck_is_left():
    sweep, _ = swept((32, 8), bad_seeds={(32, 1.0, 2)})
    one = sweep.sizes[32]
    assert one.best != 0
    assert len(one.runs) >= 1
    assert all(record.status == "reached" for record in one.runs.values())


def test_a_size_that_no_rate_gets_there_at_is_said():
    bad = {(8, 2.0**exponent, seed) for exponent in range(-9, 9) for seed in (0, 2)}
    for seeds in (bad, {run for run in bad if run[2]}):
        sweep, _ = swept((32, 128, 8), bad_seeds=seeds)
        assert sweep.skipped == {8: "no rate reached the target with every seed"}
        assert not sweep.sizes[8].runs


def test_a_size_that_the_budget_ends_in_is_said():
    sweep, _ = swept((32, 128, 8), slow_sizes={128})
    assert sweep.skipped[128] == sweep.skipped[32] == "the budget ended before a run was finished"


def test_worse_rates_are_given_up_at_the_best_ones_samples():
    _, kept = swept((32,))
    assert kept.spent < 8 * 1000 * (1 + 32 / CRITICAL) * 1e-4 * 1.3


def test_sizes_are_powers_around_the_recommended_and_the_largest():
    assert sizes_to_measure(32, 1437, 1, 1437) == [32, 128, 8, 1437, 64, 16, 256, 4]
    assert sizes_to_measure(2, 16, 1, 16) == [2, 8, 16, 4, 1]
    assert sizes_to_measure(64, 64, 2, 96) == [64, 16, 32, 8]


def test_evaluations_start_a_fortieth_of_the_way_apart():
    assert spacing_of(TARGET) == 50
    assert spacing_of(LossTarget(0.1, 2.3, 5.0, "")) == 1


# fewer than two sizes


def test_a_recommended_size_that_never_gets_there_is_told_with_the_rates_tried():
    bad = {(32, 2.0**exponent, 0) for exponent in range(-9, 9)}
    sweep, kept = swept((32, 8), bad_seeds=bad)
    assert {run.batch_size for run in kept.taken} == {32}
    message = r"the target loss, 0\.1, was not reached at batch 32 with any of 7 rates, 0\.125 to 8 times the"
    with pytest.raises(RunError, match=message):
        require_two_sizes(sweep, 32, TARGET, 1000.0)


def test_a_budget_for_one_size_is_told_with_what_two_take():
    sweep, _ = swept((32, 128, 8), budget=2.0)
    assert len(sweep.sizes) == 1
    with pytest.raises(InputError, match=r"must pay for two batch sizes; got 2 s, and measuring 32 and another one"):
        require_two_sizes(sweep, 32, TARGET, 2.0)


def test_two_sizes_are_enough_and_the_recommended_one_must_be_among_them():
    sweep, _ = swept((32, 8))
    assert all(one.runs for one in sweep.sizes.values())
    require_two_sizes(sweep, 32, TARGET, 1000.0)
    with pytest.raises(InputError, match="must pay for two batch sizes; got 1000 s, and measuring 128 and another"):
        require_two_sizes(sweep, 128, TARGET, 1000.0)
    sweep.sizes[8].runs.clear()
    with pytest.raises(InputError, match="must pay for two batch sizes"):
        require_two_sizes(sweep, 32, TARGET, 1000.0)
