"""One run: killed, stopped, spread over ranks or diverged, it ends as it should."""

import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from train import resumable_runs
from train.resumable_runs import JOIN_TIMEOUT, jittered_workload, processes, settings_of, train_jittered, wait_until
from train.small_workloads import CPU, Stream, cross_entropy, labelled_vectors, vectors_workload

from anybatch import InputError
from anybatch.errors import StoppedError
from anybatch.train.evaluate import evaluate
from anybatch.train.loop import start_training
from anybatch.train.plan import Plan
from anybatch.train.run import RunSettings, evenly_spaced, run_training
from anybatch.train.run_folder import RunFolder
from anybatch.train.stop import StopRequest

FLOAT64 = {"rtol": 1e-9, "atol": 1e-12}  # the same sums in another order
NUM_KILLS = 10


def files_of(path):
    """What a run leaves: final weights, result and metrics."""
    folder = RunFolder(path)
    return torch.load(path / "weights.pt", weights_only=True), folder.result(), folder.metrics_path.read_text()


def assert_same_run(path, other):
    (weights, result, metrics), (wanted, wanted_result, wanted_metrics) = files_of(path), files_of(other)
    assert weights.keys() == wanted.keys()
    for name, value in weights.items():
        assert torch.equal(value, wanted[name]), name
    for name in result.keys() - {"seconds", "environment"}:
        assert result[name] == wanted_result[name], name
    assert metrics.splitlines() == wanted_metrics.splitlines()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    run_training(jittered_workload(), CPU, settings_of(), RunFolder(folder))
    return folder


# kills and signals


def test_a_run_killed_at_ten_random_moments_ends_as_if_nothing_had_happened(whole, tmp_path):
    context, draw = processes(), random.Random(0)
    assert settings_of().num_updates(jittered_workload()) == 396
    for _ in range(NUM_KILLS):
        num_calls = context.Value("i", 0, lock=False)
        process = context.Process(target=train_jittered, args=(tmp_path, num_calls, 0.004))
        process.start()
        try:
            last = draw.randint(1, 36)  # ten times 36 steps do not finish the run
            assert wait_until(lambda last=last, calls=num_calls: calls.value >= last)
            time.sleep(draw.uniform(0.0, 0.004))  # a step or a save long
        finally:
            process.kill()
            process.join(JOIN_TIMEOUT)
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "result.json").exists()
    assert (tmp_path / "checkpoint.pt").exists()
    run_training(jittered_workload(), CPU, settings_of(), RunFolder(tmp_path))
    assert not (tmp_path / "checkpoint.pt").exists()
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize(
    ("number", "update"),  # 33 is evaluated, 396 is the last
    [(signal.SIGTERM, 1), (signal.SIGINT, 17), (signal.SIGTERM, 33), (signal.SIGINT, 396)],
)
def test_a_signal_saves_the_state_and_the_next_call_goes_on(number, update, whole, tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's children ignore it
    calls = []

    def loss(model, batch):
        calls.append(model.training)
        if sum(calls) == update and model.training:
            os.kill(os.getpid(), number)
        return cross_entropy(model, batch)

    try:
        with (
            StopRequest() as stop,
            pytest.raises(StoppedError, match=rf"stopped by {number.name} at update {update} of 396; the state is sav"),
        ):
            run_training(jittered_workload(loss=loss), CPU, settings_of(), RunFolder(tmp_path), stop=stop)
    finally:
        signal.signal(signal.SIGINT, before)
    assert sum(calls) == update
    run_training(jittered_workload(), CPU, settings_of(), RunFolder(tmp_path))
    assert_same_run(tmp_path, whole)


def test_a_second_signal_kills(tmp_path):
    context = processes()
    num_calls = context.Value("i", 0, lock=False)
    process = context.Process(target=train_jittered, args=(tmp_path, num_calls, 60.0, 9))
    process.start()
    process.join(JOIN_TIMEOUT)
    assert process.exitcode == -signal.SIGTERM
    assert num_calls.value == 9
    assert not (tmp_path / "checkpoint.pt").exists()


# ranks


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    """What each rank found, case by case."""
    folder = tmp_path_factory.mktemp("ranks")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = processes()
    ranks = [
        context.Process(target=resumable_runs.run_on_ranks, args=(2, store.port, rank, folder)) for rank in range(2)
    ]
    deadline = time.monotonic() + JOIN_TIMEOUT
    try:
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for process in ranks:
            if process.is_alive():
                process.kill()
                process.join()
    assert [process.exitcode for process in ranks] == [0, 0]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def assert_same_curve(found, wanted):
    assert [line.keys() for line in found["curve"]] == [line.keys() for line in wanted["curve"]]
    for name in wanted["curve"][0]:
        left, right = ([line[name] for line in result["curve"]] for result in (found, wanted))
        torch.testing.assert_close(torch.tensor(left), torch.tensor(right), **FLOAT64, msg=name)
    distances = [torch.tensor([line["distance"] for line in result["distance"]]) for result in (found, wanted)]
    torch.testing.assert_close(*distances, **FLOAT64)


@pytest.mark.parametrize("case", ["without_batch_norm", "accumulated", "at_rates_of_modules", "ghosts_of_a_share"])
def test_two_ranks_train_as_one_process_at_the_same_batch(case, on_two_ranks, tmp_path):
    alone = resumable_runs.CASES[case](CPU, tmp_path)
    for found in on_two_ranks:
        assert_same_curve(found[case], alone)
        assert found[case]["samples"] == alone["samples"]


def test_every_rank_returns_the_same_result(on_two_ranks):
    first, second = on_two_ranks
    assert first == second


def test_ranks_evaluate_the_model_that_is_saved(on_two_ranks):
    found = on_two_ranks[0]["normalized_by_rank"]
    workload = resumable_runs.normalized_workload()
    model = start_training(workload, CPU, seed=0).model
    model.load_state_dict(torch.load(Path(found["folder"]) / "weights.pt", weights_only=True))
    alone = evaluate(workload, CPU, model, batch_size=16, max_samples=10_000, with_loss=True)
    assert found["metrics"]["eval_loss"] == pytest.approx(alone["loss"], rel=1e-9)


def test_a_signal_on_one_rank_stops_all_and_the_run_goes_on_equal(on_two_ranks):
    for found in on_two_ranks:
        assert "stopped by SIGTERM at update 8 of 48; the state is saved" in found["resumed"]["words"]
        assert found["resumed"]["curve"] == found["without_batch_norm"]["curve"]


# what a run shows


def test_a_result_has_an_evaluation_at_each_of_its_moments(whole):
    _, result, metrics = files_of(whole)
    assert (result["status"], result["reason"], result["updates"]) == ("done", None, 396)
    assert result["samples"] == 396 * 16
    assert [line["updates"] for line in result["curve"]] == [33 * count for count in range(1, 13)]
    last = result["curve"][-1]
    assert last["epochs"] == 66
    assert result["metrics"] == {"eval_loss": last["eval_loss"], "train_loss": last["train_loss"]}
    assert result["seconds"] > 0
    lines = [json.loads(line) for line in metrics.splitlines()]
    assert [line["updates"] for line in lines] == sorted(line["updates"] for line in lines)
    assert [line for line in lines if "loss" in line] == result["curve"]
    assert [line for line in lines if "distance" in line] == result["distance"]


def test_the_last_distance_is_that_of_the_final_weights(whole):
    weights, result, _ = files_of(whole)
    initial = start_training(jittered_workload(), CPU, seed=3, plan=settings_of().plan).model
    total = 0.0
    for name, parameter in initial.named_parameters():
        square = (weights[name].double() - parameter.detach().double()).square().sum().item()
        assert result["distance"][-1]["tensors"][name] == pytest.approx(square**0.5, rel=1e-6)
        total += square
    assert result["distance"][-1]["distance"] == pytest.approx(total**0.5, rel=1e-6)
    assert result["distance"][0]["updates"] == 1


def test_the_loss_of_an_entry_is_the_mean_since_the_last_one(tmp_path):
    losses = []

    def loss(model, batch):
        value = cross_entropy(model, batch)
        if model.training:
            losses.append(value.item())
        return value

    settings = RunSettings(16, 0, Plan(), num_evaluations=3)
    result = run_training(vectors_workload(loss=loss, eval_set=labelled_vectors(9)), CPU, settings, RunFolder(tmp_path))
    means = [sum(losses[start : start + 4]) / 4 for start in (0, 4, 8)]
    assert [line["loss"] for line in result["curve"]] == pytest.approx(means, rel=1e-6)


def test_how_often_a_run_is_looked_at_does_not_move_it(whole, tmp_path):
    settings = replace(settings_of(), num_evaluations=1, max_eval_samples=5)
    run_training(jittered_workload(), CPU, settings, RunFolder(tmp_path), checkpoint_seconds=0.05)
    weights, wanted = files_of(tmp_path)[0], files_of(whole)[0]
    assert all(torch.equal(value, wanted[name]) for name, value in weights.items())


def test_a_run_leaves_the_global_generators_as_they_were(tmp_path):
    before = torch.random.get_rng_state(), random.getstate()
    run_training(jittered_workload(epochs=1), CPU, settings_of(), RunFolder(tmp_path))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_a_listener_hears_how_far_the_run_is(monkeypatch, tmp_path):
    monkeypatch.setattr("anybatch.train.run.SECONDS_BETWEEN_NEWS", 0.0)
    told = []
    workload = vectors_workload(eval_set=labelled_vectors(9))
    settings = RunSettings(16, 0, Plan(), num_evaluations=3)
    run_training(workload, CPU, settings, RunFolder(tmp_path), tell=lambda *news: told.append(news))
    fractions, words = zip(*told, strict=True)
    assert fractions[-1] == 1.0
    assert sorted(fractions) == list(fractions)
    assert words[0] == ""
    assert words[-1].startswith("eval_loss ")


# what cannot go on


def test_a_run_whose_loss_is_not_finite_ends_as_diverged(tmp_path):
    workload = jittered_workload(
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1e6, momentum=0.9), schedule=None
    )
    settings = replace(settings_of(), plan=Plan())
    result = run_training(workload, CPU, settings, RunFolder(tmp_path))
    assert result["status"] == "diverged"
    assert result["reason"] == f"the loss was not finite by update {result['updates']}"
    assert result["updates"] < 396
    assert result["metrics"] == {}
    assert RunFolder(tmp_path).result() == result


def test_a_run_whose_last_step_destroys_the_weights_ends_as_diverged(tmp_path):
    workload = jittered_workload(
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1e38), schedule=None, epochs=1 / 6
    )
    result = run_training(workload, CPU, replace(settings_of(), plan=Plan()), RunFolder(tmp_path))
    assert result["updates"] == 1
    assert None not in result["metrics"].values()
    assert result["status"] == "diverged"


def test_a_workload_without_epochs_has_no_run():
    for changes in ({"epochs": None}, {"train_set": Stream(labelled_vectors())}):
        with pytest.raises(InputError, match="a run needs a training set with a length, and a workload that states"):
            settings_of().num_updates(vectors_workload(**changes))


def test_a_run_has_at_least_one_update():
    assert settings_of(batch_size=96).num_updates(vectors_workload(epochs=0.1)) == 1


@given(last=st.integers(1, 10_000), count=st.integers(1, 200))
def test_evaluations_are_evenly_spaced_and_end_at_the_last_update(last, count):
    found = sorted(evenly_spaced(last, count))
    assert found[-1] == last
    assert found[0] >= 1
    assert len(found) == min(last, count)
    gaps = [after - before for before, after in zip([0, *found], found, strict=False)]
    assert max(gaps) - min(gaps) <= 1
