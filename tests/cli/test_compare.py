"""`anybatch compare`: what it prints and writes, how signals and bad input end it, and several ranks."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anybatch.cli import launch
from anybatch.cli.main import app
from anybatch.train import shared_work

FILE = Path(__file__).with_name("comparable_workloads.py")
DIFFERS = ("key", "seconds", "environment")  # a workload of another name has another key
TIMEOUT = 90.0  # seconds; a command that hangs is killed
SIZES = ("--batch-sizes", "16,32", "--seeds", "1", "--device", "cpu", "--evaluations", "3")


def mine(function):
    return f"{FILE}:{function}"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run `anybatch compare` in this process; return exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("ONCE", str(tmp_path / "once"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["anybatch", "compare", *map(str, arguments)])
        code = launch.run(app)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def default_interrupt():
    """Ctrl-C as in the foreground; a background job's children ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def runs_in(path):
    """The runs of a JSON file, without what differs from call to call."""
    runs = json.loads(path.read_text())["runs"]
    return [{name: run[name] for name in run if name not in DIFFERS} for run in runs]


# what it does


def test_a_comparison_prints_its_table_and_writes_its_files(run, tmp_path):
    record, page = tmp_path / "new" / "c.json", tmp_path / "c.html"
    code, out, err = run(mine("good"), *SIZES, "--recipes", "plain,sqrt", "--json", record, "--report", page)
    assert (code, err) == (0, "")
    written = json.loads(record.read_text())
    assert [(found["recipe"], found["batch_size"]) for found in written["runs"]] == [
        ("plain", 16), ("sqrt", 16), ("plain", 32), ("sqrt", 32),
    ]  # fmt: skip
    assert f"JSON: {record}" in out
    assert f"Report: {page}" in out
    assert "sqrt" in out
    assert page.read_text().lstrip().lower().startswith("<!doctype html>")
    assert len(list((tmp_path / "runs").iterdir())) == 4


def test_the_same_command_again_trains_nothing_and_writes_the_same(run, tmp_path, monkeypatch):
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    assert run(mine("good"), *SIZES, "--recipes", "plain", "--json", first)[0] == 0
    monkeypatch.setattr(shared_work, "run_training", None)
    assert run(mine("good"), *SIZES, "--recipes", "plain", "--json", second)[0] == 0
    assert json.loads(first.read_text())["runs"] == json.loads(second.read_text())["runs"]


def test_options_reach_the_comparison(run, tmp_path):
    options = {
        "--batch-sizes": "48", "--recipes": f"plain,{mine('clipped')}", "--seeds": 2, "--lr-factors": "0.5,1",
        "--epochs": 1.5, "--runs": "elsewhere", "--json": "c.json", "--micro-batch-size": 24, "--evaluations": 2,
        "--device": "cpu", "--autocast": "bfloat16",
    }  # fmt: skip
    code, _, err = run(mine("good"), *[word for option in options.items() for word in option])
    assert (code, err) == (0, "")
    written = json.loads((tmp_path / "c.json").read_text())
    assert written["settings"] == {
        "batch_sizes": [48], "recipes": ["plain", "clipped"], "seeds": 2, "lr_factors": [0.5, 1.0],
        "base_batch_size": 16, "epochs": 1.5, "micro_batch_size": 24, "num_evaluations": 2,
        "max_eval_samples": 10_000, "autocast": "bfloat16", "device": "cpu", "runs": "elsewhere",
    }  # fmt: skip
    assert [row["lr"] for row in written["table"]] == [0.05, 0.1, 0.05, 0.1]
    assert all(len(found["curve"]) == 2 for found in written["runs"])


@pytest.mark.parametrize(("workload", "name", "code"), [("terminated", "SIGTERM", 143), ("interrupted", "SIGINT", 130)])
def test_a_signal_saves_and_the_same_command_goes_on(workload, name, code, run, tmp_path, default_interrupt):
    stopped, found, whole = (tmp_path / f"{part}.json" for part in ("stopped", "found", "whole"))
    options = (*SIZES, "--recipes", "plain", "--json")
    ended, out, err = run(mine(workload), *options, stopped)
    assert ended == code
    assert err == f"anybatch: stopped by {name} at update 13 of 24; the state is saved, call again to go on.\n"
    assert out == ""  # nothing is finished yet
    assert not stopped.exists()
    assert run(mine(workload), *options, found)[0] == 0
    assert run(mine("good"), *options, whole, "--runs", "whole")[0] == 0
    assert runs_in(found) == runs_in(whole)


# what it refuses


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("good", "--batch-sizes", "16,many"), "--batch-sizes must be whole numbers with commas"),
        (("good", "--batch-sizes", "16.5"), "--batch-sizes must be whole numbers with commas"),
        (("good", "--batch-sizes", "97"), "batch_size must be at most the training set's 96 samples; got 97."),
        (("good", "--batch-sizes", "16", "--lr-factors", "a"), "--lr-factors must be numbers with commas"),
        (("good", "--batch-sizes", "16", "--recipes", "magic"), "recipe must be one of plain, linear, sqrt, ghost, "),
        (
            ("good", "--batch-sizes", "16", "--recipes", "plain,plain"),
            "recipes must have names of their own; got plain",
        ),
        (("good", "--batch-sizes", "16", "--seeds", "0"), "seeds must be positive; got 0."),
        (("without_eval_set", "--batch-sizes", "16"), "must have an eval_set to compare recipes on; got none."),
    ],
)
def test_bad_arguments_end_with_a_sentence_and_exit_code_2(arguments, message, run, tmp_path):
    function, *options = arguments
    code, out, err = run(mine(function), *options)
    assert code == 2
    assert err.startswith("anybatch: ")
    assert message in err
    assert err.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "runs").exists()


def test_batch_sizes_must_be_named(run):
    code, _, err = run(mine("good"))
    assert code == 2
    assert "--batch-sizes" in err


def test_files_that_cannot_be_written_are_refused_first(run, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = run(mine("good"), *SIZES, "--json", tmp_path / "file" / "c.json")
    assert code == 2
    assert "cannot be written" in err
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_shows_what_is_finished_and_ends_with_exit_code_1(run, tmp_path):
    assert run(mine("good"), *SIZES, "--recipes", "plain")[0] == 0
    (key,) = [path.name for path in (tmp_path / "runs").iterdir() if path.name.startswith("batch32")]
    (tmp_path / "full" / key).mkdir(parents=True)
    (tmp_path / "full" / key / "result.json.part").symlink_to("/dev/full")
    code, out, err = run(mine("good"), *SIZES, "--recipes", "plain", "--runs", "full", "--json", "c.json")
    assert code == 1
    assert f"{key}/result.json cannot be written: No space left on device. Finished runs are kept" in err
    assert "plain" in out
    written = json.loads((tmp_path / "c.json").read_text())
    assert written["partial"] is True
    assert [found["batch_size"] for found in written["runs"]] == [16]


# processes of its own


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}


def ended(command, **more):
    """Run a command to its end; return exit code, stdout and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, command)],
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, out, err


def torchrun(*arguments, **more):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ("--nproc-per-node", 2, "--master-addr", "127.0.0.1", "--master-port", port, "-m", "anybatch", "compare")
    return ended(("torch.distributed.run", *options, *arguments), **more)


def test_sigterm_from_outside_saves_and_ends_with_143(tmp_path):
    started = tmp_path / "started"
    command = [
        "-m",
        "anybatch",
        "compare",
        mine("slow"),
        "--batch-sizes",
        "16",
        "--recipes",
        "plain",
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(
        [sys.executable, *command],
        env=environment(STARTED=str(started)),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + TIMEOUT
        runs = tmp_path / "runs"
        while not list(runs.glob("*/metrics.jsonl")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 143
    assert err.startswith("anybatch: stopped by SIGTERM at update ")
    assert err.endswith("of 2400; the state is saved, call again to go on.\n")
    assert len(list(runs.glob("*/checkpoint.pt"))) == 1


def test_two_ranks_compare_as_one_process_and_rank_0_alone_speaks(run, tmp_path):
    two, one = tmp_path / "two.json", tmp_path / "one.json"
    options = (*SIZES, "--recipes", "plain,regime")
    code, out, err = torchrun(mine("good"), *options, "--json", two, "--runs", tmp_path / "two")
    assert code == 0, err
    assert out.count("JSON:") == 1
    assert run(mine("good"), *options, "--json", one, "--runs", "one")[0] == 0
    assert json.loads(two.read_text())["environment"]["world_size"] == 2
    for found, wanted in zip(runs_in(two), runs_in(one), strict=True):
        assert (found["recipe"], found["batch_size"]) == (wanted["recipe"], wanted["batch_size"])
        for name in ("loss", "eval_loss", "lr"):
            left, right = ([line[name] for line in each["curve"]] for each in (found, wanted))
            assert left == pytest.approx(right, rel=1e-4)  # float32, added up in another order over 24 to 48 updates


@pytest.mark.parametrize("workload", ["dying_on_rank_1", "failing_on_rank_1"])
def test_a_rank_that_dies_ends_all_with_a_message(workload, tmp_path):
    started = time.monotonic()
    code, out, err = torchrun(mine(workload), *SIZES, "--recipes", "plain", "--runs", tmp_path / "runs")
    assert code != 0
    assert time.monotonic() - started < 60
    assert out == ""
    if workload == "failing_on_rank_1":
        assert err.count("ValueError: label 11 is out of range") == 1
        assert "(rank 1)" in err
    else:
        assert "Signal 9 (SIGKILL)" in err or "exitcode  : -9" in err
        assert err.count("anybatch: another rank died, so this one ends too; ") == 1
        assert "gloo" not in err
    assert not list((tmp_path / "runs").glob("*/result.json"))
