"""A probe checked against training: what comes out, what a second call takes up, and what is refused."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from train.small_workloads import Stream, labelled_vectors, vectors_workload

import anybatch
from anybatch import InputError, RunError
from anybatch.probing import kept_runs


def workload_of(**changes):
    return vectors_workload(train_set=labelled_vectors(256), epochs=4, **changes)


def probed(workload, **arguments):
    return anybatch.probe(workload, **{"budget": 0.5, "device": "cpu", **arguments})


def verified(workload, result, runs, **arguments):
    return anybatch.verify(workload, result, **{"budget": 4.0, "device": "cpu", "runs": runs, **arguments})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def first(runs, told):
    workload = workload_of()
    result = probed(workload, runs=runs)
    return verified(workload, result, runs, progress=lambda *call: told.append(call))


def test_the_recommended_size_is_measured_at_its_best_rate_beside_others(first):
    found = first.verification
    assert found.recommended == first.recommendation.batch_size
    sizes = [point.batch_size for point in found.points]
    assert sizes == sorted(sizes)
    assert found.recommended in sizes
    assert len(sizes) >= 2
    for point in found.points:
        assert len(point.rates) >= 4
        ratios = [after.lr_scale / before.lr_scale for before, after in zip(point.rates, point.rates[1:], strict=False)]
        assert set(ratios) == {2.0}
        assert point.lr_scale in [trial.lr_scale for trial in point.rates]
        assert 1 <= point.num_runs <= 3
        assert point.samples_low <= point.samples <= point.samples_high
        assert 0 < point.seconds_low <= point.seconds <= point.seconds_high
    assert {point.batch_size for point in found.predicted} == {point.batch_size for point in first.curve}


def test_the_target_lies_on_the_way_down(first):
    target = first.verification.target
    assert target.loss < target.start_loss
    assert target.samples < 4 * 256
    assert f"Recommended {first.verification.recommended}: " in first.verification.sentence
    assert first.verification.reason


def test_the_result_keeps_what_the_probe_found_and_the_cost(first):
    record = json.loads(first.to_json())
    assert record["verification"]["verdict"] in ("confirmed", "refuted", "undetermined")
    assert record["seconds"]["verify"] > 0
    assert 0 < record["verification"]["spent"] <= 1.5 * record["verification"]["budget"]
    assert record["seconds"]["total"] == pytest.approx(
        sum(spent for name, spent in record["seconds"].items() if name != "total")
    )
    assert record["recommendation"]


def test_progress_is_told_before_each_run(told):
    assert {call[0] for call in told} == {"verify"}
    assert told[0][1] == 0.0
    assert told[-1][1] == 1.0


def test_a_second_call_takes_up_the_runs_and_ends_with_the_same_figures(first, runs, monkeypatch):
    def no_run(*arguments, **options):
        raise AssertionError("a run was made again")

    monkeypatch.setattr("anybatch.probing.kept_runs.run_to_target", no_run)
    monkeypatch.setattr(sys.modules["anybatch.probing.probe"]._Probe, "run", no_run)
    workload = workload_of()
    again = verified(workload, probed(workload, runs=runs), runs)
    assert again.verification == first.verification
    assert again.law == first.law


def test_a_killed_call_is_gone_on_with(first, runs, monkeypatch):
    folders = sorted(runs.glob("target-*/result.json"))
    folders[len(folders) // 2].unlink()
    made = []
    run = kept_runs.run_to_target

    def counted(*arguments, **options):
        made.append(arguments[2])
        return run(*arguments, **options)

    monkeypatch.setattr("anybatch.probing.kept_runs.run_to_target", counted)
    workload = workload_of()
    again = verified(workload, probed(workload, runs=runs), runs).verification
    assert len(made) == 1
    assert [point.samples for point in again.points] == [point.samples for point in first.verification.points]


def test_other_data_are_other_runs(first, runs):
    before = set(runs.iterdir())
    other = replace(workload_of(), train_set=labelled_vectors(256, seed=1))
    verified(other, probed(other, runs=runs), runs)
    assert set(runs.iterdir()) > before


def test_a_kept_run_is_a_small_record(first, runs):
    folder = next(path for path in runs.iterdir() if path.name.startswith("target-"))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "lock", "result.json"]
    assert (folder / "result.json").stat().st_size < 50_000


def test_a_loss_that_is_asked_for_is_gone_to(first, runs):
    workload, result = workload_of(), first
    wanted = 0.5 * (first.verification.target.loss + first.verification.target.start_loss)
    found = verified(workload, result, runs, target_loss=wanted).verification
    assert found.target.loss == wanted
    assert found.points[0].samples < first.verification.points[0].samples


def test_a_target_barely_below_the_start_judges_nothing_and_says_what_would(first, tmp_path):
    wanted = 0.99 * first.verification.target.start_loss
    found = verified(workload_of(), first, tmp_path, target_loss=wanted).verification
    assert (found.verdict, found.ratio) == ("undetermined", None)
    assert "Give a lower --verify-target" in found.reason


def test_a_size_off_the_powers_of_two_is_measured_beside_its_halves_and_quarters(tmp_path):
    workload = vectors_workload(train_set=labelled_vectors(96), epochs=4)
    found = verified(workload, probed(workload, batch_size=96), tmp_path, budget=15.0).verification
    assert found.recommended == found.largest == 96
    tried = {point.batch_size for point in found.points} | {one.batch_size for one in found.skipped}
    assert tried == {96, 48, 24, 12}
    assert tried <= {point.batch_size for point in found.predicted}


# what is refused


def test_a_budget_too_small_for_two_sizes_is_told_with_what_two_take(first, tmp_path):
    start = first.verification.target.start_loss
    with pytest.raises(InputError, match=r"must pay for two batch sizes; got 0\.05 s, and .* takes about") as caught:
        verified(workload_of(), first, tmp_path, budget=0.05, target_loss=0.999 * start)
    assert caught.value.partial is first


def test_a_target_that_is_never_reached_is_told_with_what_was_reached(first, tmp_path):
    message = r"the target loss, -1, was not reached by the small-batch run: \d+ samples at batch 4 came to"
    with pytest.raises(RunError, match=message) as caught:
        verified(workload_of(), first, tmp_path, target_loss=-1.0)
    assert caught.value.partial.recommendation is not None


def test_a_start_below_the_target_is_refused(first, tmp_path):
    with pytest.raises(InputError, match=r"target loss must lie below the loss at the start, .*; got 50"):
        verified(workload_of(), first, tmp_path, target_loss=50.0)


def test_a_workload_that_does_not_learn_has_no_target(first, tmp_path):
    def still(model):
        return torch.optim.SGD(model.parameters(), lr=0.0)

    with pytest.raises(RunError, match="the small-batch run must lower the loss to set a target"):
        verified(workload_of(optimizer=still), first, tmp_path)


def test_an_optimizer_without_a_rate_is_refused_before_anything_is_measured():
    class Rateless(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {})

        def step(self, closure=None):
            pass

    workload = workload_of(optimizer=lambda model: Rateless(model.parameters()))
    with pytest.raises(InputError, match=r"must have a rate, lr, in each of its .*; got Rateless") as caught:
        probed(workload)
    assert caught.value.partial.memory is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 0.0}, "verify budget must be a positive number of seconds; got 0"),
        ({"budget": float("inf")}, "verify budget must be a positive number of seconds; got inf"),
        ({"target_loss": float("nan")}, "target loss must be a finite number; got nan"),
    ],
)
def test_a_bad_argument_is_told_with_its_rule(first, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        verified(workload_of(), first, tmp_path, **arguments)


def test_another_workload_or_an_unfinished_probe_is_refused(first, tmp_path):
    with pytest.raises(InputError, match="workload must be the one probed, 'workload'; got 'other'"):
        verified(workload_of(name="other"), first, tmp_path)
    with pytest.raises(InputError, match="result must be of a finished probe"):
        verified(workload_of(), replace(first, recommendation=None), tmp_path)


def test_a_stream_is_refused(first, tmp_path):
    stream = vectors_workload(train_set=Stream(labelled_vectors(200), times=100))
    with pytest.raises(InputError, match="train_set must have a length to verify a prediction"):
        verified(stream, first, tmp_path)
