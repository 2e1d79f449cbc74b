"""The command line in this process: what it writes, and how it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

import anybatch
from anybatch.cli import launch
from anybatch.cli.main import app
from anybatch.cli.probe import _bytes
from anybatch.registry import METHODS, WORKLOADS

FILE = Path(__file__).with_name("my_workloads.py")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command; return exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["anybatch", *map(str, arguments)])
        code = launch.run(app)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def mine(function):
    return f"{FILE}:{function}"


# what it does


def test_a_probe_prints_its_advice_and_writes_its_files(run, tmp_path):
    page, record = tmp_path / "new" / "p.html", tmp_path / "p.json"
    code, out, err = run("probe", mine("good"), "--budget", 1, "--json", record, "--report", page, "--device", "cpu")
    assert (code, err) == (0, "")
    written = json.loads(record.read_text())
    assert written["partial"] is False
    assert f"Use a batch size of {written['recommendation']['batch_size']}" in out
    assert f"JSON: {record}" in out
    assert f"Report: {page}" in out
    assert page.read_text().lstrip().lower().startswith("<!doctype html>")


def test_what_the_optimizer_does_not_hold_and_an_eps_of_two_are_no_obstacles(run, tmp_path):
    record = tmp_path / "p.json"
    code, _, err = run("probe", mine("half_trained_by_adam"), "--budget", 1, "--json", record, "--device", "cpu")
    assert (code, err) == (0, "")
    assert json.loads(record.read_text())["noise_scale"]["geometry"] == "adam"
    code, out, err = run("probe", mine("by_adafactor"), "--budget", 1, "--device", "cpu")
    assert (code, err) == (0, "")
    assert "noise in SGD's geometry" in out


def test_options_reach_the_probe(run, tmp_path):
    record = tmp_path / "p.json"
    options = {
        "--budget": 0.5, "--json": record, "--batch-size": 24, "--objective": "samples", "--devices": "1,2",
        "--target": "population", "--memory": "64GB", "--autocast": "bfloat16", "--seed": 7,
    }  # fmt: skip
    code, _, err = run("probe", mine("good"), *[word for option in options.items() for word in option])
    assert (code, err) == (0, "")
    written = json.loads(record.read_text())
    assert written["settings"] == {
        "batch_size": 24, "objective": "samples", "devices": [1, 2], "target": "population", "memory": 64 * 10**9,
        "budget": 0.5, "checkpoint": None, "autocast": "bfloat16", "num_workers": 0, "seed": 7,
    }  # fmt: skip
    assert written["recommendation"]["batch_size"] == 24
    assert written["noise_scale"]["target"] == "population"


def test_methods_lists_every_card_and_workload(run):
    code, out, _ = run("methods")
    assert code == 0
    for card in METHODS:
        assert card.name in out
        assert card.where in out
        assert card.stage in out
    assert all(name in out for name in WORKLOADS)


def test_paths_of_methods_are_whole_on_a_narrow_terminal(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = run("methods")
    assert all(card.where in out for card in METHODS)


def test_help_names_commands_and_options(run):
    code, out, _ = run("--help")
    assert code == 0
    assert "probe" in out
    assert "methods" in out
    code, out, _ = run("probe", "-h")
    assert code == 0
    for option in ("--report", "--json", "--batch-size", "--objective", "--devices", "--memory", "--budget", "--debug"):
        assert option in out


def test_the_version_is_told(run):
    assert run("--version") == (0, f"{anybatch.__version__}\n", "")


def test_without_a_command_the_help_is_shown(run):
    code, out, err = run()
    assert code == 2
    assert "Usage" in out + err


# how it refuses


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.py:f"], 2, "workload file must exist; none.py does not."),
        (["digit"], 2, "workload must be one of digits, fashion-mnist, fashion-mnist-resnet, f1-mnist"),
        ([mine("missing")], 2, "has no function 'missing'. It has vectors, mean_loss, good, "),
        ([mine("not_a_function")], 2, "has no function 'not_a_function'."),
        ([mine("a_number")], 2, "a_number must return an anybatch.Workload; got int."),
        ([mine("raising")], 2, "raising raised OSError: disk on fire"),
        ([mine("exits")], 1, "no data at all"),
        ([mine("empty")], 2, "train_set of a Workload must be of at least 2 samples; got 0."),
        ([mine("one_sample")], 2, "train_set of a Workload must be of at least 2 samples; got 1"),
        ([mine("vector_loss")], 2, "must return a scalar; got shape (2,). Take the mean over samples."),
        ([mine("summed")], 2, "the loss is sum-reduced: it doubles when the batch is doubled. Return the mean"),
        ([mine("nan_loss")], 1, "the loss is nan on the first batch, before any step."),
        ([mine("frozen")], 2, "the model must have a trainable parameter; got none. Set requires_grad on some."),
        ([mine("wrong_shapes")], 1, "RuntimeError in checking the input: mat1 and mat2 shapes cannot be multiplied"),
        ([mine("good"), "--batch-size", "97"], 2, "batch_size must be at most the training set's 96 samples; got 97."),
        ([mine("good"), "--memory", "1MB"], 2, "memory must hold one sample; got 1 MB, and training on it takes "),
        ([mine("good"), "--memory", "0"], 2, "memory must hold one sample; got 0 MB"),
        ([mine("good"), "--memory", "much"], 2, "--memory must be a number with a unit, such as 8GB or 500MiB; got"),
        ([mine("good"), "--memory", "8.0.0GB"], 2, "--memory must be a number with a unit"),
        ([mine("good"), "--memory", "."], 2, "--memory must be a number with a unit"),
        ([mine("good"), "--memory", "-5GB"], 2, "--memory must be a number with a unit"),
        ([mine("good"), "--devices", "1,many"], 2, "--devices must be whole numbers with commas, such as 1,8,64; got"),
        ([mine("good"), "--devices", ""], 2, "--devices must be whole numbers with commas"),
        ([mine("good"), "--devices", "0"], 2, "devices must be numbers of at least 1; got [0]."),
        ([mine("good"), "--budget", "0"], 2, "budget must be a positive number of seconds; got 0.0."),
        ([mine("good"), "--device", "abacus"], 2, "device must be one torch can use here; got 'abacus'."),
        ([mine("good"), "--checkpoint", "none.pt"], 2, "checkpoint none.pt cannot be read: No such file or directory."),
        ([mine("good"), "--checkpoint", str(FILE)], 2, "cannot be read as a state dict."),
        ([mine("good"), "--data-root", "."], 2, None),
        (["digits", "--data-root", "."], 2, "workload 'digits' takes no data root. Leave --data-root out."),
    ],
)
def test_bad_input_ends_with_its_code_and_a_line(run, arguments, code, message):
    if message is None:  # it takes any keyword, and hands it on to Workload
        message = "workload"
    found, _, err = run("probe", *arguments)
    assert found == code
    assert err.startswith("anybatch: ")
    assert message in err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("option", ["--json", "--report"])
@pytest.mark.parametrize("below", ["", "file/p.out", "file/deep/p.out"])
def test_a_path_that_cannot_be_written_is_refused_before_any_work(run, tmp_path, option, below):
    (tmp_path / "file").write_text("")
    code, _, err = run("probe", "none.py:f", option, tmp_path / below)
    assert code == 2
    assert "cannot be written: " in err
    assert "Choose another" in err
    assert len(err.splitlines()) == 1


def test_trying_a_path_leaves_what_is_there(run, tmp_path):
    (tmp_path / "old.json").write_text("{}")
    run("probe", "none.py:f", "--json", tmp_path / "old.json", "--report", tmp_path / "new.html")
    assert (tmp_path / "old.json").read_text() == "{}"
    assert not (tmp_path / "new.html").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["probe"],
        ["probe", mine("good"), "--batch-size", "0"],
        ["probe", mine("good"), "--batch-size", "many"],
        ["probe", mine("good"), "--objective", "money"],
        ["probe", mine("good"), "--target", "nobody"],
        ["probe", mine("good"), "--autocast", "float8"],
        ["probe", mine("good"), "--num-workers", "-1"],
        ["probe", mine("good"), "--no-such-option"],
        ["prob"],
    ],
)
def test_options_of_another_kind_are_refused_with_the_usage(run, arguments):
    code, _, err = run(*arguments)
    assert code == 2
    assert "Usage" in err
    assert "Traceback" not in err


def test_without_data_the_command_ends_with_a_sentence(run, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    code, _, err = run("probe", "fashion-mnist", "--data-root", tmp_path)
    assert code == 2
    assert err == (
        f"anybatch: Fashion-MNIST is not in {tmp_path} and could not be downloaded. "
        "Pass --data-root with the folder that holds FashionMNIST/raw.\n"
    )


def test_a_failure_on_the_way_shows_and_writes_what_was_measured(run, tmp_path):
    record = tmp_path / "p.json"
    code, out, err = run("probe", mine("nan_in_the_run"), "--budget", 1, "--json", record)
    assert code == 1
    assert "loss and gradients must be finite" in err
    assert "Throughput" in out
    written = json.loads(record.read_text())
    assert written["partial"] is True
    assert written["memory"]["max_micro_batch_size"] == 96
    assert written["recommendation"] is None


def test_debug_shows_where(run):
    code, _, err = run("probe", mine("wrong_shapes"), "--debug")
    assert code == 1
    assert "Traceback" in err
    assert "mean_loss" in err
    assert "Run again with --debug" not in err


def test_a_rank_that_is_told_to_end_while_it_fails_still_says_why():
    code = (
        "import os, signal, sys; from anybatch.cli import launch;"
        "launch._is_first_to_fail = lambda: os.kill(os.getpid(), signal.SIGTERM) is None;"
        "from anybatch.cli.main import app; sys.exit(launch.run(app))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "methods"],
        env={**os.environ, "WORLD_SIZE": "2", "RANK": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("anybatch: ValueError: ")
    assert done.stderr.endswith("(rank 1)\n")


def test_a_failure_of_the_model_says_how_to_see_where(run):
    _, _, err = run("probe", mine("wrong_shapes"))
    assert err.endswith("Run again with --debug to see where.\n")


def test_what_was_measured_is_written_though_torchrun_ends_the_rank_meanwhile(tmp_path):
    record = tmp_path / "p.json"
    code = (
        "import os, signal, sys; from contextlib import nullcontext; from anybatch.cli import launch, outputs;"
        "write = outputs.Outputs.write;"
        "ended = lambda *given: (os.kill(os.getpid(), signal.SIGTERM), write(*given))[1];"
        "outputs.Outputs.write = ended; launch._ranks = lambda: 2; launch.process_group = nullcontext;"
        "from anybatch.cli.main import app; sys.exit(launch.run(app))"
    )
    command = [sys.executable, "-c", code, "probe", mine("nan_in_the_run"), "--budget", "1", "--json", str(record)]
    environment = {**os.environ, "RANK": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert json.loads(record.read_text())["partial"] is True
    assert "loss and gradients must be finite" in done.stderr


def test_of_several_ranks_the_first_that_fails_speaks_in_every_attempt(monkeypatch):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    assert [launch._is_first_to_fail() for _ in range(2)] == [True, False]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert [launch._is_first_to_fail() for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1000", 1000),
        ("8GB", 8 * 10**9),
        ("8 gb", 8 * 10**9),
        ("8g", 8 * 10**9),
        ("1.5MiB", 3 * 2**19),
        ("500MiB", 500 * 2**20),
        (".5k", 500),
        ("2Ti", 2 * 2**40),
        ("7b", 7),
    ],
)
def test_memory_is_read_with_its_unit(text, size):
    assert _bytes(text) == size
