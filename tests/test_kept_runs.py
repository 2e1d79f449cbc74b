"""Studies' finished runs go along in a file, and no run that is there already is touched by it."""

import json
import sys
from pathlib import Path

import pytest

from anybatch import InputError
from anybatch.train.run_folder import RunFolder

sys.path.append(str(Path(__file__).parents[1] / "studies"))
from command import is_own_record, keep_finished, read_arguments
from kept_runs import KEPT, bring_runs, keep_runs


def finish(path, config, result):
    folder = RunFolder(path)
    folder.claim(config)
    folder.finish(result)


def test_finished_runs_come_back_as_they_were_and_unfinished_ones_do_not(tmp_path):
    finish(tmp_path / "here" / "b", {"seed": 1}, {"loss": 0.25, "curve": [1, None]})
    finish(tmp_path / "here" / "a", {"seed": 0}, {"loss": 0.5})
    RunFolder(tmp_path / "here" / "begun").claim({"seed": 2})
    keep_runs(tmp_path / "here", tmp_path / KEPT)
    bring_runs(tmp_path / KEPT, tmp_path / "there")
    assert [json.loads(line)["name"] for line in (tmp_path / KEPT).read_text().splitlines()] == ["a", "b"]
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["a", "b"]
    assert RunFolder(tmp_path / "there" / "b").result() == {"loss": 0.25, "curve": [1, None]}
    keep_runs(tmp_path / "there", tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / KEPT).read_bytes()


def test_of_the_walk_of_each_tensor_the_first_is_kept(tmp_path):
    lines = [{"updates": n, "distance": 2.0 * n, "tensors": {"first": 1.0 * n, "last": 1.5 * n}} for n in (1, 2)]
    finish(tmp_path / "here" / "a", {}, {"loss": 0.5, "distance": lines})
    keep_runs(tmp_path / "here", tmp_path / KEPT)
    kept = json.loads((tmp_path / KEPT).read_text())["result"]["distance"]
    assert kept == [{"updates": n, "distance": 2.0 * n, "tensors": {"first": 1.0 * n}} for n in (1, 2)]


def test_a_run_that_is_there_stays_and_another_of_its_name_is_refused(tmp_path):
    finish(tmp_path / "here" / "a", {"seed": 0}, {"loss": 0.5})
    keep_runs(tmp_path / "here", tmp_path / KEPT)
    finish(tmp_path / "mine" / "a", {"seed": 0}, {"loss": 0.4})
    bring_runs(tmp_path / KEPT, tmp_path / "mine")
    assert RunFolder(tmp_path / "mine" / "a").result() == {"loss": 0.4}
    RunFolder(tmp_path / "other" / "a").claim({"seed": 7})
    with pytest.raises(InputError, match="must hold this run; it holds one with another seed"):
        bring_runs(tmp_path / KEPT, tmp_path / "other")


def test_runs_are_brought_for_the_full_study_in_its_own_folder_alone(tmp_path):
    here = tmp_path / "study"
    finish(tmp_path / "elsewhere" / "a", {}, {"loss": 0.5})
    here.mkdir()
    keep_runs(tmp_path / "elsewhere", here / KEPT)
    assert read_arguments("", here, arguments=["--quick"]).runs == here / "runs" / "quick"
    assert not (here / "runs").exists()
    own = read_arguments("", here, arguments=["--full", "--runs", str(tmp_path / "own")])
    assert not own.runs.exists()
    assert RunFolder(read_arguments("", here, arguments=["--full"]).runs / "a").result() == {"loss": 0.5}


def test_what_is_committed_is_kept_by_a_full_study_that_writes_beside_it(tmp_path):
    def asked(*options):
        return read_arguments("", tmp_path, parts=["one", "two"], arguments=["--full", *options])

    finish(tmp_path / "runs" / "full" / "a", {}, {"loss": 0.5})
    own = "--json", str(tmp_path / "results.json")
    for options in ((), ("--only", "one", *own), ("--json", str(tmp_path / "x" / "results.json"))):
        assert not is_own_record(asked(*options), tmp_path)
        keep_finished(asked(*options), tmp_path)
        assert not (tmp_path / KEPT).exists()
    keep_finished(asked(*own), tmp_path)
    assert len((tmp_path / KEPT).read_text().splitlines()) == 1
