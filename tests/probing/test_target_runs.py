"""Runs to a target: what they count, when they end, and what their clock leaves out."""

import math
import time

import pytest
import torch
from train.small_workloads import CPU, cross_entropy, vectors_workload

from anybatch.probing.target import LossPoint
from anybatch.probing.target_runs import (
    Limits,
    RunRecord,
    TargetRun,
    next_evaluation,
    run_to_target,
    status_of,
    training_loss,
)
from anybatch.train.loop import start_training

AMPLE = Limits(20_000, 60.0)


def target_run(**changes):
    fields = {
        "batch_size": 8, "micro_batch_size": 8, "lr_scale": 1.0, "seed": 0, "target_loss": 0.5, "spacing": 16,
        "eval_samples": 96, **changes,
    }  # fmt: skip
    return TargetRun(**fields)


def test_a_run_ends_at_its_target_between_two_evaluations():
    record = run_to_target(vectors_workload(), CPU, target_run(), AMPLE)
    assert record.status == "reached"
    before, after = record.curve[-2:]
    assert after.loss <= 0.5 < before.loss
    assert before.samples < record.samples <= after.samples
    assert before.seconds < record.seconds <= after.seconds


def test_the_loss_is_that_of_the_whole_training_set_where_it_is_small():
    workload = vectors_workload()
    model = start_training(workload, CPU, seed=0).model
    whole = cross_entropy(model, workload.train_set.tensors).item()
    assert training_loss(workload, CPU, model, 1000) == pytest.approx(whole, rel=1e-5)


def test_the_same_run_takes_the_same_samples_and_another_seed_takes_others():
    first, again, other = (
        run_to_target(vectors_workload(), CPU, target_run(seed=seed), AMPLE).samples for seed in (0, 0, 1)
    )
    assert first == again != other


def test_accumulation_leaves_the_samples_alone():
    whole = run_to_target(vectors_workload(), CPU, target_run(batch_size=32, micro_batch_size=32), AMPLE)
    parts = run_to_target(vectors_workload(), CPU, target_run(batch_size=32, micro_batch_size=8), AMPLE)
    assert parts.samples == pytest.approx(whole.samples, rel=1e-3)


def test_the_clock_stands_while_the_loss_is_evaluated():
    def slow_in_eval(model, batch):
        if not model.training:
            time.sleep(0.02)
        return cross_entropy(model, batch)

    record = run_to_target(vectors_workload(loss=slow_in_eval), CPU, target_run(), AMPLE)
    assert record.cost >= 0.02 * (len(record.curve) - 1)
    assert record.seconds < record.cost - 0.015 * (len(record.curve) - 1)


def test_the_rate_stays_constant_whatever_the_schedule():
    def to_nothing(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.0)

    plain = run_to_target(vectors_workload(), CPU, target_run(), AMPLE)
    assert run_to_target(vectors_workload(schedule=to_nothing), CPU, target_run(), AMPLE).samples == plain.samples


def test_a_rate_that_diverges_ends_early():
    record = run_to_target(vectors_workload(), CPU, target_run(lr_scale=1e6), AMPLE)
    assert record.status == "diverged"
    assert record.samples < 0.1 * AMPLE.samples


def test_a_target_that_is_never_reached_ends_with_the_samples_or_the_time():
    unreachable = target_run(target_loss=-1.0)
    assert run_to_target(vectors_workload(), CPU, unreachable, Limits(200, 60.0)).status == "not reached"
    assert run_to_target(vectors_workload(), CPU, unreachable, Limits(1e9, 0.02)).status == "out of time"


def test_a_run_without_a_target_goes_through_its_samples():
    record = run_to_target(vectors_workload(), CPU, target_run(target_loss=None), Limits(500, 60.0))
    assert record.status == "done"
    assert 500 <= record.samples < 550
    assert record.samples == record.curve[-1].samples


def test_global_generators_are_left_alone():
    before = torch.random.get_rng_state()
    run_to_target(vectors_workload(), CPU, target_run(), Limits(100, 60.0))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_evaluations_are_a_twentieth_apart_on_a_long_way():
    assert next_evaluation(target_run(), 0) == 16
    assert next_evaluation(target_run(batch_size=64), 0) == 64
    assert next_evaluation(target_run(), 10_000) == 10_500
    assert next_evaluation(target_run(target_loss=None), 10_000) == 10_016


@pytest.mark.parametrize(
    ("losses", "samples", "status"),
    [
        ([2.0, 1.5], 10, None),
        ([2.0, math.nan], 10, "diverged"),
        ([2.0, 2.0 + 4.1 * 1.5], 10, "diverged"),
        ([2.0, 7.9], 10, None),
        ([2.0, 2.0], 300, "diverged"),
        ([2.0, 1.9], 300, None),
        ([2.0, 1.9], 1000, "not reached"),
        ([2.0, 0.5], 1000, "reached"),
        ([0.4], 0, "reached"),
    ],
)
def test_how_a_run_ends(losses, samples, status):
    curve = [LossPoint(index and samples, 0.0, loss) for index, loss in enumerate(losses)]
    assert status_of(target_run(), Limits(1000, 60.0), curve, 1.0) == status


@pytest.mark.parametrize(
    ("status", "limits", "answers"),
    [
        ("reached", Limits(9e9, 9e9), True),
        ("diverged", Limits(9e9, 9e9), True),
        ("not reached", Limits(100, 99.0), True),
        ("not reached", Limits(101, 1.0), False),
        ("out of time", Limits(100, 10.0), True),
        ("out of time", Limits(100, 11.0), False),
    ],
)
def test_a_kept_record_answers_what_it_went_far_enough_for(status, limits, answers):
    record = RunRecord(status, 50.0, 1.0, 1.0, Limits(100, 10.0), ())
    assert record.answers(limits) is answers
