"""The command in processes of its own: Ctrl-C, and several ranks under torchrun."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from train.small_workloads import CPU

from anybatch.train.loop import start_training, train
from anybatch.workloads import load_workload

FILE = Path(__file__).with_name("my_workloads.py")
TIMEOUT = 120.0  # seconds; a command that hangs is killed


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **more}


def torchrun(*arguments, **more):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
        "--master-port", str(port), "-m", "anybatch", *map(str, arguments),
    ]  # fmt: skip
    process = subprocess.Popen(
        command,
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


def test_ctrl_c_keeps_what_was_measured_and_says_so(tmp_path):
    record, started = tmp_path / "p.json", tmp_path / "started"
    command = [sys.executable, "-m", "anybatch", "probe", f"{FILE}:waiting", "--json", str(record), "--budget", "2"]
    process = subprocess.Popen(
        command,
        env=environment(STARTED=str(started)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's children ignore it
    )
    try:
        deadline = time.monotonic() + TIMEOUT
        while not started.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 1
    assert err.strip() == ("anybatch: interrupted; what was measured before is above and in the files you asked for.")
    assert "Throughput" in out
    written = json.loads(record.read_text())
    assert written["partial"] is True
    assert written["throughput"]
    assert written["noise_scale"] is None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Digits after 60 steps."""
    workload = load_workload("digits")
    training = start_training(workload, CPU, seed=0)
    steps = train(workload, CPU, training, batch_size=32, seed=0)
    for _ in range(60):
        next(steps)
    path = tmp_path_factory.mktemp("weights") / "digits.pt"
    torch.save(training.model.state_dict(), path)
    return path


def test_two_ranks_agree_with_one_process_and_rank_0_alone_speaks(checkpoint, tmp_path):
    options = ["--budget", "6", "--checkpoint", checkpoint, "--device", "cpu"]
    code, out, err = torchrun("probe", "digits", *options, "--json", tmp_path / "two.json")
    assert code == 0, err
    assert out.count("Use a batch size of") == 1
    assert out.count("JSON:") == 1
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["environment"]["world_size"] == 2
    assert two["memory"]["max_micro_batch_size"] == 718
    command = [
        sys.executable,
        "-m",
        "anybatch",
        "probe",
        "digits",
        *map(str, options),
        "--json",
        str(tmp_path / "1.json"),
    ]
    subprocess.run(command, env=environment(), capture_output=True, timeout=TIMEOUT, check=True)
    one = json.loads((tmp_path / "1.json").read_text())
    ranks, alone = two["noise_scale"], one["noise_scale"]
    assert ranks["verdict"] == alone["verdict"] == "measured"
    assert ranks["low"] <= alone["high"]
    assert alone["low"] <= ranks["high"]
    assert 0.7 < ranks["value"] / alone["value"] < 1.4
    assert two["recommendation"]["batch_size"] % 2 == 0


def test_an_error_on_one_rank_ends_all_with_its_message():
    started = time.monotonic()
    code, out, err = torchrun("probe", f"{FILE}:failing_on_rank_1", "--budget", "4", "--device", "cpu")
    assert code == 1
    assert time.monotonic() - started < 60
    assert err.count("ValueError in measuring throughput: label 11 is out of range") == 1
    assert "(rank 1)" in err
    assert "Use a batch size of" not in out


def test_bad_input_is_told_once_over_all_ranks():
    code, _, err = torchrun("probe", f"{FILE}:summed", "--device", "cpu")
    assert code != 0
    assert err.count("the loss is sum-reduced") == 1
