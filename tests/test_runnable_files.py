"""Examples run whole, benchmarks in their smoke setting."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import anybatch
from anybatch.workloads import load_workload

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_benchmark_runs_in_its_smoke_setting(path, tmp_path):
    figures = tmp_path / "figures.json"
    subprocess.run([sys.executable, path, "--smoke", "--json", figures], check=True, timeout=120)
    assert "environment" in figures.read_text()


@pytest.mark.timeout(600)
@pytest.mark.skipif(not DATA.exists(), reason="needs Fashion-MNIST beside the project")
@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*/run.py")), ids=lambda path: path.parent.name)
def test_study_runs_in_its_smoke_setting(path, tmp_path):
    figures = tmp_path / "results.json"
    options = ["--smoke", "--runs", tmp_path / "runs", "--data-root", DATA, "--json", figures]
    done = subprocess.run([sys.executable, path, *options], capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert not found["incomplete"]
    assert {claim["verdict"] for claim in found["claims"]} <= {"reproduced", "partly", "not", "undecided"}
    assert (tmp_path / "figures.svg").exists()


def test_example_loop_prints_three_noise_scales():
    path = ROOT / "examples" / "measure_in_your_loop.py"
    done = subprocess.run([sys.executable, path], check=True, capture_output=True, text=True, timeout=60)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all("samples" in line for line in lines)


def test_example_monitor_prints_json_lines_with_a_noise_scale():
    path = ROOT / "examples" / "noise_monitor.py"
    done = subprocess.run([sys.executable, path], check=True, capture_output=True, text=True, timeout=60)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["step"] for line in lines] == list(range(20, 401, 20))
    assert {"noise_scale", "batch_efficiency"} <= lines[-1].keys()


def test_example_of_micro_batches_learns():
    path = ROOT / "examples" / "kalman_micro_batch.py"
    done = subprocess.run([sys.executable, path], check=True, capture_output=True, text=True, timeout=60)
    assert "layers with a prior: 2 of 3" in done.stdout
    assert float(done.stdout.split()[-1]) > 0.9


def test_example_workload_is_probed_with_its_own_module_groups():
    workload = load_workload(f"{ROOT / 'examples' / 'my_workload.py'}:my_workload")
    result = anybatch.probe(workload, budget=3)
    assert result.noise is not None
    assert set(result.noise.average.modules) == {"body", "head"}
    assert result.recommendation is not None
    assert result.recommendation.lr_rule == "sqrt"
    assert [warning.cause for warning in result.warnings][-1] != "random draws"
