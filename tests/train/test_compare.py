"""Recipes over batch sizes: which runs there are, what they come to, and that none is done twice."""

import json
import os
import signal
import statistics
import threading
import time
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import TensorDataset
from train.resumable_runs import JOIN_TIMEOUT, jittered_workload, processes, wait_until
from train.small_workloads import Regularized, Stream, cross_entropy, labelled_vectors, vectors_workload

from anybatch import InputError, Milestones
from anybatch.errors import RunError, StoppedError
from anybatch.train import shared_work
from anybatch.train.compare import compare
from anybatch.train.comparison import RankedBy, Run, join_runs
from anybatch.train.recipes import Recipe
from anybatch.train.run_folder import RunFolder


class Accuracy:
    def __init__(self):
        self.right = self.count = 0

    def update(self, model, batch):
        self.right += (model(batch[0]).argmax(1) == batch[1]).sum().item()
        self.count += len(batch[1])

    def merge(self, other):
        self.right, self.count = self.right + other.right, self.count + other.count

    def compute(self):
        return {"accuracy": self.right / self.count}


class BrokenMetric(Accuracy):
    def update(self, model, batch):
        raise KeyError("n")


def workload_of(**changes):
    return vectors_workload(**{"eval_set": TensorDataset(*labelled_vectors()[:30]), "metric": Accuracy, **changes})


def compared(tmp_path, batch_sizes=(16, 32), recipes=("plain",), **options):
    workload = options.pop("workload", None) or workload_of()
    return compare(workload, batch_sizes, recipes, **{"runs": tmp_path, "seeds": 1, "num_evaluations": 4, **options})


def explode(lr):
    return {
        "model": Regularized,
        "optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        "epochs": 20,
    }


@pytest.fixture
def trained(monkeypatch):
    """The settings of each run that is trained."""
    calls = []
    run_training = shared_work.run_training

    def counted(workload, runtime, settings, folder, **options):
        calls.append((settings.batch_size, settings.seed, folder.path.name))
        return run_training(workload, runtime, settings, folder, **options)

    monkeypatch.setattr(shared_work, "run_training", counted)
    return calls


# runs and rows


def test_every_run_is_there_seed_by_seed(tmp_path, trained):
    found = compared(tmp_path, recipes=["plain", "sqrt"], seeds=2)
    cells = [(run.seed, run.batch_size, run.recipe) for run in found.runs]
    assert cells == [(seed, size, recipe) for seed in (0, 1) for size in (16, 32) for recipe in ("plain", "sqrt")]
    assert [(size, seed) for size, seed, _ in trained] == [(size, seed) for seed, size, _ in cells]
    assert len({run.key for run in found.runs}) == 8
    assert not found.partial
    assert [warning for warning in found.warnings if "sqrt at 32 (x1.41)" not in warning] == []
    for run in found.runs:
        assert run.updates == 192 / run.batch_size
        assert (run.status, run.samples, run.lr_factor) == ("done", 192, 1.0)
        lr = 0.1 * (2**0.5 if (run.recipe, run.batch_size) == ("sqrt", 32) else 1)
        assert run.settings["lr"] == pytest.approx(lr)
        assert run.settings["epochs"] == 2
        assert set(run.metrics) == {"eval_loss", "eval_accuracy", "train_loss", "train_accuracy"}
        assert len(run.curve) == 4
        assert run.curve[-1]["eval_accuracy"] == run.metrics["eval_accuracy"]
        folder = tmp_path / run.key
        assert sorted(path.name for path in folder.iterdir()) == [
            "config.json", "lock", "metrics.jsonl", "result.json", "weights.pt",
        ]  # fmt: skip
        assert run.key.startswith(f"batch{run.batch_size}-seed{run.seed}-")


def test_rows_join_seeds_by_mean_and_standard_deviation(tmp_path):
    found = compared(tmp_path, recipes=["plain", "sqrt"], seeds=3)
    assert [(row.recipe, row.batch_size) for row in found.table] == [
        ("plain", 16), ("sqrt", 16), ("plain", 32), ("sqrt", 32),
    ]  # fmt: skip
    assert found.metric == RankedBy("accuracy", higher_is_better=True)
    for row in found.table:
        runs = [run for run in found.runs if (run.recipe, run.batch_size) == (row.recipe, row.batch_size)]
        values = [run.metrics["eval_loss"] for run in runs]
        spread = row.metrics["eval_loss"]
        assert spread.values == tuple(values)
        assert spread.mean == pytest.approx(sum(values) / 3)
        mean = sum(values) / 3
        assert spread.sd == pytest.approx((sum((value - mean) ** 2 for value in values) / 2) ** 0.5)
        assert (row.num_seeds, row.num_diverged, row.is_untuned, row.is_best) == (3, 0, True, True)
        assert row.updates == 192 / row.batch_size
        assert row.seconds == pytest.approx(statistics.mean(run.seconds for run in runs))


def test_one_seed_has_no_standard_deviation(tmp_path):
    assert compared(tmp_path, [16]).table[0].metrics["eval_loss"].sd is None


def test_recipes_that_come_to_the_same_share_a_run(tmp_path, trained):
    found = compared(tmp_path, recipes=["plain", "linear", Recipe("mine")])
    assert len(found.runs) == 6
    assert len(trained) == 3  # at the base batch all three are the same, at 32 two are
    by_cell = {(run.recipe, run.batch_size): run.key for run in found.runs}
    assert by_cell["plain", 16] == by_cell["linear", 16] == by_cell["mine", 16]
    assert by_cell["plain", 32] == by_cell["mine", 32] != by_cell["linear", 32]


def test_tried_rates_are_marked_best_and_untuned(tmp_path):
    found = compared(tmp_path, [32], lr_factors=[1e-3, 1, 2], num_evaluations=1, epochs=6)
    rows = {row.lr_factor: row for row in found.table}
    assert [row.lr for row in rows.values()] == pytest.approx([1e-4, 0.1, 0.2])
    assert [row.is_untuned for row in rows.values()] == [False, True, False]
    scores = {factor: row.metrics["eval_accuracy"].mean for factor, row in rows.items()}
    (best,) = [row.lr_factor for row in rows.values() if row.is_best]
    assert scores[best] == max(scores.values())
    assert not rows[1e-3].is_best


def run_of(lr_factor=1.0, seed=0, recipe="r", batch_size=8, status="done", **metrics):
    metrics = {f"eval_{name}": value for name, value in metrics.items()} if status == "done" else {}
    settings = {"lr": 0.1 * lr_factor}
    return Run(
        recipe, batch_size, seed, lr_factor, "key", settings, status, None, metrics, 10, 80, 2.0, (), (), None, {}, {}
    )


ACCURACY, LOSS = RankedBy("accuracy", True), RankedBy("loss", False)


def test_the_best_rate_is_found_within_each_recipe_and_batch_size():
    runs = [
        run_of(1.0, accuracy=0.5, loss=3.0), run_of(2.0, accuracy=0.6, loss=4.0), run_of(4.0, accuracy=0.4, loss=2.0),
        run_of(1.0, accuracy=0.9, loss=1.0, recipe="s"), run_of(1.0, accuracy=0.1, loss=9.0, batch_size=16),
    ]  # fmt: skip
    assert [row.is_best for row in join_runs(runs, ACCURACY)] == [False, True, False, True, True]
    assert [row.is_best for row in join_runs(runs, LOSS)] == [False, False, True, True, True]


def test_a_rate_at_which_any_seed_diverged_is_not_the_best():
    runs = [
        run_of(1.0, 0, accuracy=0.5), run_of(1.0, 1, accuracy=0.6),
        run_of(2.0, 0, accuracy=0.9), run_of(2.0, 1, status="diverged"),
        run_of(4.0, 0, status="diverged"), run_of(4.0, 1, status="diverged"),
    ]  # fmt: skip
    rows = join_runs(runs, ACCURACY)
    assert [row.is_best for row in rows] == [True, False, False]
    assert [row.num_diverged for row in rows] == [0, 1, 2]
    assert rows[1].metrics["eval_accuracy"].values == (0.9,)
    assert rows[2].metrics == {}
    assert not any(row.is_best for row in join_runs(runs[4:], ACCURACY))


def test_without_a_metric_rows_are_ranked_by_the_loss(tmp_path):
    found = compared(tmp_path, [16], workload=workload_of(metric=None), lr_factors=[1e-4, 1])
    assert found.metric == LOSS
    assert [row.is_best for row in found.table] == [False, True]


def test_a_rate_of_a_million_diverges_and_is_said_so(tmp_path):
    found = compared(tmp_path, [16], workload=workload_of(**explode(0.1)), lr_factors=[1, 1e7])
    fine, diverged = found.runs
    assert (fine.status, diverged.status) == ("done", "diverged")
    assert "the loss was not finite by update" in diverged.reason
    assert diverged.metrics == {}
    assert diverged.distance_law is None
    rows = found.table
    assert [row.num_diverged for row in rows] == [0, 1]
    assert [row.is_best for row in rows] == [True, False]
    json.loads(found.to_json())
    again = compared(tmp_path, [16], workload=workload_of(**explode(0.1)), lr_factors=[1, 1e7])
    assert again.runs == found.runs


def test_only_diverged_runs_make_a_comparison_too(tmp_path):
    found = compared(tmp_path, [16], workload=workload_of(**explode(1e6)))
    assert found.table[0].num_diverged == 1
    assert not found.table[0].is_best


def test_a_run_whose_last_step_destroys_it_makes_a_comparison_too(tmp_path):
    found = compared(tmp_path, [96], workload=workload_of(**explode(1e38)), epochs=1, num_evaluations=1, seeds=2)
    assert found.table[0].num_diverged == 2


def test_weights_that_do_not_move_make_a_comparison_too(tmp_path):
    workload = workload_of(optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1e-30), epochs=20)
    found = compared(tmp_path, [16], workload=workload)
    assert found.runs[0].distance[-1]["distance"] == 0
    assert found.runs[0].distance_law is None


def test_the_walk_of_the_weights_is_fitted_before_the_first_drop(tmp_path):
    found = compared(tmp_path, [16], epochs=20)
    law = found.runs[0].distance_law
    assert law is not None
    tensors = found.runs[0].tensor_laws
    assert list(tensors) == list(found.runs[0].distance[-1]["tensors"])
    assert {fit.num_points for fit in tensors.values()} == {law.num_points}
    assert law not in tensors.values()
    few = compared(tmp_path, [16], epochs=1).runs[0]  # 6 updates
    assert (few.distance_law, few.tensor_laws) == (None, {})


def test_the_result_is_one_json_object(tmp_path):
    found = compared(tmp_path / "runs")
    written = json.loads(found.to_json(tmp_path / "new" / "c.json"))
    assert json.loads((tmp_path / "new" / "c.json").read_text()) == written
    assert written["settings"]["batch_sizes"] == [16, 32]
    assert written["settings"]["recipes"] == ["plain"]
    assert written["metric"] == {"name": "accuracy", "higher_is_better": True}
    assert [run["batch_size"] for run in written["runs"]] == [16, 32]
    assert written["partial"] is False


def test_a_listener_hears_how_far_all_runs_are(tmp_path):
    told = []
    compared(tmp_path, seeds=2, progress=lambda *news: told.append(news))
    stages, fractions, texts = zip(*told, strict=True)
    assert set(stages) == {"comparison"}
    assert list(fractions) == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] < 1
    assert texts[0].startswith("0 of 4 runs done; plain at 16, seed 0")


# epochs


def drops(comparison):
    """The epoch from which each run's rate is lower."""
    return [next(line["epochs"] for line in run.curve if line["lr"] < 0.02) for run in comparison.runs]


@pytest.mark.parametrize("epochs", [None, 1, 4])
def test_fewer_or_more_epochs_move_the_schedule_in_proportion(epochs, tmp_path):
    workload = workload_of(schedule=Milestones((1,)))
    found = compared(tmp_path, [16, 48], ["plain", "regime"], workload=workload, epochs=epochs, num_evaluations=1000)
    total = epochs or 2
    for run in found.runs:
        stretch = 3 if (run.recipe, run.batch_size) == ("regime", 48) else 1
        assert run.settings["epochs"] == total * stretch
        assert run.settings["milestones"] == [total / 2 * stretch]
        assert run.samples == 96 * total * stretch
    assert drops(found) == [total / 2 * run.settings["epochs"] / total for run in found.runs]


def test_a_scheduler_of_torch_lasts_as_long_as_a_short_comparison(tmp_path):
    workload = workload_of(schedule=lambda optimizer: OneCycleLR(optimizer, 0.1, total_steps=30), epochs=30)
    found = compared(tmp_path, [80], workload=workload, epochs=1.4)
    assert found.runs[0].updates == 2  # 160 samples, 26 more than 1.4 epochs


# warnings


def test_milestones_beyond_the_workload_s_epochs_are_told(tmp_path):
    late = workload_of(schedule=Milestones((1, 5, 9)), epochs=2)
    told = compared(tmp_path / "1", [16], ["plain"], workload=late).warnings
    assert told == (
        "The workload's milestones must lie within its 2 epochs; got 5 and 9, where the rate never drops. "
        "Leave them out, or train longer.",
    )
    within = workload_of(schedule=Milestones((1,)), epochs=2)
    assert compared(tmp_path / "2", [16], ["plain"], workload=within).warnings == ()


def test_rates_that_no_measurement_stands_behind_are_told_of_sgd_too(tmp_path):
    told = compared(tmp_path, [16, 64], ["plain", "linear", "sqrt"], epochs=1).warnings
    assert told == (
        "How far a rule for the rate holds is unknown without a critical batch size: linear at 64 (x4), "
        "sqrt at 64 (x2). anybatch probe measures it; --lr-factors 0.5,1 tries lower rates.",
    )


def test_ghost_batches_without_batch_norm_are_warned_of(tmp_path):
    found = compared(tmp_path, [16], ["plain", "ghost", "regime"])
    assert found.warnings == ("The model has no batch norm, so ghost batches change nothing in ghost, regime.",)
    assert compared(tmp_path / "2", [16], ["ghost"], workload=workload_of(model=Regularized)).warnings == ()


def test_batch_norm_over_micro_batches_is_warned_of(tmp_path):
    found = compared(tmp_path, [32], workload=workload_of(model=Regularized), micro_batch_size=8)
    assert any("batch norm" in warning.lower() for warning in found.warnings)


def test_a_loss_that_fails_in_eval_mode_is_warned_of(tmp_path):
    def loss(model, batch):
        if not model.training:
            raise KeyError("boxes")
        return cross_entropy(model, batch)

    found = compared(tmp_path, [16], workload=workload_of(loss=loss))
    assert "The loss fails in eval mode (KeyError), so only the metric is compared." in found.warnings
    assert set(found.runs[0].metrics) == {"eval_accuracy", "train_accuracy"}
    with pytest.raises(InputError, match=r"loss of the workload failed on its eval_set: KeyError: 'boxes'"):
        compared(tmp_path, [16], workload=workload_of(loss=loss, metric=None))


# again


def test_finished_runs_are_not_run_again(tmp_path, trained):
    found = compared(tmp_path, recipes=["plain", "sqrt"], seeds=2)
    assert len(trained) == 8
    again = compared(tmp_path, recipes=["plain", "sqrt"], seeds=2)
    assert len(trained) == 8
    assert again.to_dict()["runs"] == found.to_dict()["runs"]
    assert again.to_dict()["table"] == found.to_dict()["table"]


def test_more_seeds_and_sizes_add_their_own_runs_alone(tmp_path, trained):
    compared(tmp_path, [16], seeds=1)
    found = compared(tmp_path, [16, 48], seeds=2)
    assert [(size, seed) for size, seed, _ in trained] == [(16, 0), (48, 0), (16, 1), (48, 1)]
    assert len(found.runs) == 4


@pytest.mark.parametrize(
    "options",
    [
        {"micro_batch_size": 8},
        {"num_evaluations": 5},
        {"max_eval_samples": 7},
        {"epochs": 3},
        {"autocast": "bfloat16"},
        {"lr_factors": [0.5]},
        {"workload": workload_of(base_batch_size=8)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_decides_a_run_has_a_folder_of_its_own(options, tmp_path, trained):
    first = compared(tmp_path, [16])
    second = compared(tmp_path, [16], **options)
    assert len(trained) == 2
    assert first.runs[0].key != second.runs[0].key


def stop_at(call, number=signal.SIGTERM):
    """A loss that sends a signal at its n-th pass in train mode; the first one is the fingerprint's."""
    calls = []

    def loss(model, batch):
        calls.append(model.training)
        if sum(calls) == call and model.training:
            os.kill(os.getpid(), number)
        return cross_entropy(model, batch)

    return loss


def test_a_stopped_comparison_shows_what_is_finished_and_goes_on(tmp_path, trained):
    whole = compared(tmp_path / "whole", seeds=2)
    # runs have 12 and 6 updates
    with pytest.raises(StoppedError, match="stopped by SIGTERM at update") as stopped:
        compared(tmp_path / "stopped", seeds=2, workload=workload_of(loss=stop_at(24)))
    partial = stopped.value.partial
    assert partial.partial
    assert stopped.value.exit_code == 143
    assert [(run.batch_size, run.seed) for run in partial.runs] == [(16, 0), (32, 0)]
    assert [row.num_seeds for row in partial.table] == [1, 1]
    trained.clear()
    found = compared(tmp_path / "stopped", seeds=2)
    assert [(size, seed) for size, seed, _ in trained] == [(16, 1), (32, 1)]
    without_seconds = [
        [{name: value for name, value in run.items() if name not in ("seconds", "environment")} for run in runs]
        for runs in (found.to_dict()["runs"], whole.to_dict()["runs"])
    ]
    assert without_seconds[0] == without_seconds[1]
    for run in whole.runs:
        weights = [torch.load(tmp_path / name / run.key / "weights.pt") for name in ("stopped", "whole")]
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_signal_between_two_runs_stops_there(tmp_path, monkeypatch):
    run_training = shared_work.run_training

    def signalled(*arguments, **options):
        result = run_training(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(shared_work, "run_training", signalled)
    with pytest.raises(StoppedError, match=r"stopped by SIGTERM between two runs; call again to go on\.") as stopped:
        compared(tmp_path)
    assert [run.batch_size for run in stopped.value.partial.runs] == [16]


def test_finished_only_trains_nothing(tmp_path, trained):
    compared(tmp_path, [16])
    found = compared(tmp_path, [16, 32], finished_only=True)
    assert len(trained) == 1
    assert [run.batch_size for run in found.runs] == [16]
    assert found.partial


# folders


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(RunError, match=r"cannot be written: (Not a directory|File exists)\. Finished runs are kept"):
        compared(tmp_path / "runs")


@pytest.mark.parametrize("name", ["weights.pt", "result.json", "metrics.jsonl", "config.json"])
def test_a_disk_that_fills_up_keeps_what_is_finished(name, tmp_path, monkeypatch):
    compared(tmp_path / "other")
    (key,) = [path.name for path in (tmp_path / "other").iterdir() if path.name.startswith("batch32")]
    full = tmp_path / "runs" / key
    full.mkdir(parents=True)
    (full / f"{name}.part").symlink_to("/dev/full")
    with pytest.raises(
        RunError, match=rf"{key}/{name} cannot be written: .*\. Finished runs are kept; make room"
    ) as end:
        compared(tmp_path / "runs")
    assert [run.batch_size for run in end.value.partial.runs] == [16]
    found = compared(tmp_path / "runs")
    assert not found.partial


def stopped_run(tmp_path):
    with pytest.raises(StoppedError):
        compared(tmp_path, [16], workload=workload_of(loss=stop_at(5)))
    (folder,) = tmp_path.iterdir()
    assert (folder / "checkpoint.pt").exists()
    return folder


def test_a_checkpoint_that_is_damaged_is_told_and_a_new_start_helps(tmp_path):
    checkpoint = stopped_run(tmp_path) / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    with pytest.raises(InputError, match=r"checkpoint\.pt cannot be read\. Delete it to start this run again\."):
        compared(tmp_path, [16])
    checkpoint.unlink()
    assert compared(tmp_path, [16]).runs[0].status == "done"


@pytest.mark.parametrize("state", [{"model": 3}, {"training": {"version": 1}, "record": {}}, [1, 2]])
def test_a_checkpoint_of_something_else_is_told(state, tmp_path):
    checkpoint = stopped_run(tmp_path) / "checkpoint.pt"
    torch.save(state, checkpoint)
    with pytest.raises(InputError, match=r"checkpoint\.pt cannot be read\. Delete it to start this run again\."):
        compared(tmp_path, [16])


def test_a_folder_with_another_configuration_is_told(tmp_path):
    folder = stopped_run(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "workload": "another"}))
    with pytest.raises(InputError, match="must hold this run; it holds one with another workload"):
        compared(tmp_path, [16])


# several processes


def share_work(runs, log, may_start):
    """Run a comparison whose runs note who did them."""
    torch.set_num_threads(1)
    run_training = shared_work.run_training

    def noted(workload, runtime, settings, folder, **options):
        with open(log, "a") as file:
            file.write(f"{os.getpid()} {folder.path.name}\n")
        return run_training(workload, runtime, settings, folder, **options)

    shared_work.run_training = noted
    may_start.wait(JOIN_TIMEOUT)
    workload = jittered_workload(epochs=8)
    found = compare(workload, [16, 32], ["plain", "sqrt"], seeds=2, num_evaluations=2, runs=runs)
    assert len(found.runs) == 8
    assert not found.partial


def test_processes_given_the_same_call_share_the_work(tmp_path):
    context = processes()
    may_start, log = context.Event(), tmp_path / "log"
    both = [context.Process(target=share_work, args=(tmp_path / "runs", log, may_start)) for _ in range(2)]
    try:
        for process in both:
            process.start()
        may_start.set()
        for process in both:
            process.join(JOIN_TIMEOUT)
    finally:
        for process in both:
            process.kill()
    assert [process.exitcode for process in both] == [0, 0]
    workers, keys = zip(*[line.split() for line in log.read_text().splitlines()], strict=True)
    assert len(keys) == len(set(keys)) == 8
    assert len(set(workers)) == 2


def test_a_run_that_another_holds_is_waited_for(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(shared_work, "SECONDS_BETWEEN_TRIES", 0.02)
    whole = compared(tmp_path, [16])
    (folder,) = tmp_path.iterdir()
    result = (folder / "result.json").read_text()
    (folder / "result.json").unlink()
    trained.clear()
    told = []

    def finish():
        wait_until(lambda: any("waiting for the runs of another process" in text for text in told), 20)
        (folder / "result.json").write_text(result)

    other = threading.Thread(target=finish)
    with RunFolder(folder).lock() as is_ours:
        assert is_ours
        other.start()
        found = compared(tmp_path, [16], progress=lambda stage, fraction, text: told.append(text))
        other.join()
    assert not trained
    assert found.runs == whole.runs


def test_a_run_that_another_finishes_just_before_it_is_held_is_not_run_again(tmp_path, trained, monkeypatch):
    compared(tmp_path, [16])
    (folder,) = tmp_path.iterdir()
    result = (folder / "result.json").read_text()
    (folder / "result.json").unlink()
    lock = RunFolder.lock

    def late(self):
        (folder / "result.json").write_text(result)
        return lock(self)

    monkeypatch.setattr(RunFolder, "lock", late)
    compared(tmp_path, [16])
    assert len(trained) == 1


def test_a_wait_for_another_process_can_be_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_work, "SECONDS_BETWEEN_TRIES", 0.02)
    compared(tmp_path, [16])
    (folder,) = tmp_path.iterdir()
    (folder / "result.json").unlink()

    def progress(stage, fraction, text):
        if "waiting" in text:
            os.kill(os.getpid(), signal.SIGTERM)

    started = time.monotonic()
    with (
        RunFolder(folder).lock(),
        pytest.raises(StoppedError, match="stopped by SIGTERM between two runs"),
    ):
        compared(tmp_path, [16], progress=progress)
    assert time.monotonic() - started < 20


# refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workload": workload_of(eval_set=None)}, "workload 'workload' must have an eval_set to compare recipes on"),
        ({"workload": workload_of(epochs=None)}, "must have a train_set with a length, epochs and base_batch_size"),
        ({"workload": workload_of(base_batch_size=None)}, "must have a train_set with a length, epochs and base_batch"),
        ({"workload": workload_of(train_set=Stream(labelled_vectors()))}, "must have a train_set with a length"),
        ({"batch_sizes": []}, r"batch_sizes must be positive and different numbers, at least one; got \[\]\."),
        ({"batch_sizes": [16, 16]}, r"batch_sizes must be positive and different numbers.*got \[16, 16\]\."),
        ({"batch_sizes": [0]}, r"batch_sizes must be positive and different numbers.*got \[0\]\."),
        ({"batch_sizes": [16.5]}, r"batch_sizes must be .*; got \[16\.5\]\."),
        ({"batch_sizes": [16, 97]}, r"batch_size must be at most the training set's 96 samples; got 97\."),
        ({"lr_factors": []}, r"lr_factors must be positive and different numbers, at least one; got \[\]\."),
        ({"lr_factors": [1, 1.0]}, r"lr_factors must be positive and different numbers"),
        ({"lr_factors": [-1]}, r"lr_factors must be positive and different numbers"),
        ({"lr_factors": [float("nan")]}, r"lr_factors must be positive"),
        ({"lr_factors": [float("inf")]}, r"lr_factors must be positive"),
        ({"seeds": 0}, r"seeds must be positive; got 0\."),
        ({"num_evaluations": 0}, r"num_evaluations must be positive; got 0\."),
        ({"max_eval_samples": 0}, r"max_eval_samples must be positive; got 0\."),
        ({"epochs": 0}, r"epochs must be positive; got 0\."),
        ({"epochs": float("nan")}, r"epochs must be positive; got nan\."),
        ({"micro_batch_size": -8}, r"micro_batch_size must be positive; got -8\."),
        ({"autocast": "float8"}, r"autocast must be one of bfloat16; got 'float8'\."),
        ({"device": "toaster"}, r"device must be one torch can use here; got 'toaster'\."),
        ({"recipes": ["magic"]}, r"recipe must be one of plain, .*got 'magic'\."),
        ({"recipes": []}, "recipes must"),
        ({"recipes": [Recipe("g", ghost_batch_size=48)]}, r"ghost_batch_size must be at most the batch; got 48 for a"),
        ({"batch_sizes": ["32"]}, r"batch_sizes must be positive and different numbers"),
        ({"seeds": "2"}, r"seeds must be positive; got 2\."),
        (
            {"workload": workload_of(metric=BrokenMetric)},
            "metric of the workload failed on its eval_set: KeyError: 'n'",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(options, message, tmp_path, trained):
    with pytest.raises(InputError, match=message):
        compared(tmp_path / "runs", **options)
    assert not trained
    assert not (tmp_path / "runs").exists()


def test_a_rate_that_no_rule_is_known_for_is_refused_before_anything_is_trained(tmp_path, trained):
    workload = workload_of(optimizer=lambda model: torch.optim.Adagrad(model.parameters(), lr=0.1))
    with pytest.raises(InputError, match="recipe 'sqrt' must know how the rate of Adagrad scales"):
        compared(tmp_path, recipes=["plain", "sqrt"], workload=workload)
    assert not trained


def test_an_error_of_the_users_loss_is_told_with_its_run(tmp_path):
    class Broken(nn.Linear):
        def forward(self, inputs):
            if self.training and len(inputs) == 16:
                raise ZeroDivisionError("my own mistake")
            return super().forward(inputs)

    with pytest.raises(RunError, match=r"plain at 16, seed 0 failed: ZeroDivisionError: my own mistake\.") as raised:
        compared(tmp_path, [16, 32], workload=workload_of(model=lambda: Broken(6, 3)))
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert [run.batch_size for run in raised.value.partial.runs] == [32]


class Figures:
    """A metric that says what it is told to."""

    higher_is_better = True
    figures: ClassVar = {"zeta": 0.5, "alpha": 0.25}

    def update(self, model, batch):
        model(batch[0])

    def merge(self, other):
        pass

    def compute(self):
        return dict(self.figures)


def test_the_first_figure_of_the_metric_ranks_whoever_reads_it(tmp_path):
    workload = workload_of(metric=Figures)
    first, second = (compared(tmp_path, [16], workload=workload) for _ in range(2))
    assert first.metric == second.metric == RankedBy("zeta", True)
    assert first.to_dict()["runs"] == second.to_dict()["runs"]


def test_a_metric_may_say_that_lower_is_better(tmp_path):
    class Error(Accuracy):
        higher_is_better = False

        def compute(self):
            return {"error": 1 - self.right / self.count}

    found = compared(tmp_path, [16], workload=workload_of(metric=Error), lr_factors=[1, 1e-6])
    assert found.metric == RankedBy("error", False)
    assert [row.lr_factor for row in found.table if row.is_best] == [1]


def test_a_figure_that_is_not_a_number_is_left_out_and_no_divergence(tmp_path):
    class Partial(Figures):
        figures: ClassVar = {"map": 0.5, "map_small": float("nan")}

    found = compared(tmp_path, [16], workload=workload_of(metric=Partial))
    assert [run.status for run in found.runs] == ["done"]
    assert "eval_map" in found.table[0].metrics
    assert "eval_map_small" not in found.table[0].metrics


def test_the_law_of_the_walk_does_not_hang_on_the_number_of_evaluations(tmp_path):
    workload = workload_of(epochs=40)
    laws = [
        compared(tmp_path, [16], workload=workload, num_evaluations=count).runs[0].distance_law for count in (1, 40)
    ]
    assert laws[0] is not None
    assert laws[0] == laws[1]


def test_the_law_is_fitted_before_a_schedulers_first_step(tmp_path):
    workload = workload_of(epochs=40, schedule=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 30))
    law = compared(tmp_path, [16], workload=workload, num_evaluations=1).runs[0].distance_law
    assert law is not None
    assert law.last_update <= 30 * 96 / 16


def test_sizes_outside_the_base_and_rules_beyond_their_range_are_warned_of(tmp_path):
    workload = workload_of(optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3), base_batch_size=2)
    warnings = compared(tmp_path, [96], ["sqrt"], workload=workload, epochs=1).warnings
    assert any("own batch size, 2, is not among the sizes" in warning for warning in warnings)
    assert any(warning.startswith("sqrt at 96: ") and "no rule holds" in warning for warning in warnings)
