"""`make gpu-check`: without a GPU one sentence and an exit code, with one a record of tests and figures."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu" / "check.py"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_so_in_one_sentence_and_writes_nothing(check, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(check, "run_tests", lambda *_: pytest.fail("tests were run"))
    assert check.main(["--json", str(tmp_path / "gpu.json")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip() == check.NO_GPU
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("outcomes", "code"), [({"a": "passed"}, 0), ({"a": "passed", "b": "failure"}, 1), ({}, 1)])
def test_with_a_gpu_it_writes_tests_and_figures(check, monkeypatch, tmp_path, outcomes, code):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(check, "describe_environment", lambda runtime: {"device": str(runtime.device)})
    monkeypatch.setattr(check, "run_tests", lambda *_: outcomes)
    for name in ("measure_micro_batches", "measure_ghost_batch_norm", "time_char_lm"):
        monkeypatch.setattr(check, name, lambda device: {"name": str(device)})
    assert check.main(["--json", str(tmp_path / "gpu.json")]) == code
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["environment"]["device"] == "cuda"
    assert record["tests"] == outcomes
    assert record["benchmarks"] == [{"name": "cuda"}] * 3


def test_outcomes_of_tests_are_told_apart(check, tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False\n"
        "@pytest.mark.skip\ndef test_left_out(): pass\n"
        "@pytest.fixture\ndef broken(): raise OSError\n"
        "def test_broken(broken): pass\n"
    )
    outcomes = check.run_tests(["test_some.py"], tmp_path)
    assert {name.split(".")[-1]: outcome for name, outcome in outcomes.items()} == {
        "test_good": "passed",
        "test_bad": "failure",
        "test_left_out": "skipped",
        "test_broken": "error",
    }


@pytest.mark.parametrize("name", ["measure_micro_batches", "measure_ghost_batch_norm", "time_char_lm"])
def test_each_benchmark_runs_on_the_device_it_is_given(check, name):
    figures = getattr(check, name)(CPU, rounds=2, size=4)
    assert figures["rounds"] == 2
    assert figures["ours_s"] > 0
    assert figures["theirs_s"] > 0
    assert figures["ratio"] > 0


def test_make_calls_the_script():
    done = subprocess.run(["make", "--dry-run", "gpu-check"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "benchmarks/gpu/check.py" in done.stdout
