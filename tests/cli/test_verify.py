"""`anybatch probe --verify` in this process: what it shows, keeps and refuses."""

import json
import sys
from pathlib import Path

import pytest

from anybatch.cli import launch
from anybatch.cli.main import app

WORKLOAD = f"{Path(__file__).with_name('my_workloads.py')}:plenty"
COMMON = ("probe", WORKLOAD, "--budget", 2, "--device", "cpu", "--verify")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run a command in an empty folder; return exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["anybatch", *map(str, arguments)])
        code = launch.run(app)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_same_command_again_takes_up_the_runs(run, tmp_path):
    arguments = (*COMMON, "--verify-budget", 15, "--runs", "kept", "--json", "p.json", "--report", "p.html")
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    first = json.loads((tmp_path / "p.json").read_text())["verification"]
    assert first["sentence"] in out
    assert 'id="chart-measured-time"' in (tmp_path / "p.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("kept/*/result.json")}
    assert len(before) > 5
    run(*arguments)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("kept/*/result.json")} == before
    assert json.loads((tmp_path / "p.json").read_text())["verification"] == first


def test_a_verification_that_is_refused_shows_the_probe_and_its_reason(run):
    code, out, err = run(*COMMON, "--verify-target", 99)
    assert code == 2
    assert err.startswith("anybatch: the target loss must lie below the loss at the start,")
    assert "Use a batch size of" in out


def test_without_verify_nothing_is_kept(run, tmp_path):
    assert run("probe", WORKLOAD, "--budget", 0.5, "--device", "cpu")[0] == 0
    assert list(tmp_path.iterdir()) == []
