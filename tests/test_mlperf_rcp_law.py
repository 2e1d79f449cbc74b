"""The study of the reference points: its rival laws find themselves, and its points are read as it says."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent.parent / "studies" / "mlperf_rcp_law" / "run.py"
SIZES = [8, 16, 32, 64, 128, 256]
TRUTHS = {
    "law": lambda b: 3 * (1 + b / 50),
    "power": lambda b: 2 * b**0.4,
    "hinge": lambda b: 5 * max(1, b / 48),
    "steps power": lambda b: b * (0.1 + 4 / b**0.7),
    "quadratic": lambda b: 3 * (1 + b / 90 + (b / 120) ** 2),
    "three terms": lambda b: b * (1 - (4 / b) ** 0.8) ** (-1 / 0.8),
}


@pytest.fixture(scope="module")
def study():
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("mlperf_rcp_law", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["mlperf_rcp_law"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path):
    def point(size, optimizer, runs):
        return {"batch_size": size, "optimizer": optimizer, "base_learning_rate": 0.1, "to_converge": runs}

    points = [
        point(64, "lars", [5, 6]),
        point(8, "lars", [3, 3]),
        point(8, "sgd", [2, 2, 99]),
        point(64, "sgd", [4, 4]),
    ]
    (tmp_path / "mlperf_rcp").mkdir()
    text = json.dumps({"benchmarks": {"net": {"round": "r", "points": points}}})
    (tmp_path / "mlperf_rcp" / "rcp.json").write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", TRUTHS)
def test_a_law_fitted_to_its_own_points_predicts_beyond_them(study, name):
    law = next(law for law in study.LAWS if law.name == name)
    means = np.array([TRUTHS[name](size) for size in SIZES])
    assert study.predict_by(law, SIZES, means, [1024])[0] == pytest.approx(TRUTHS[name](1024), rel=1e-3)


def test_the_first_law_is_the_one_of_the_package(study):
    means = np.array([1.0, 1.3, 1.2, 2.0, 3.1, 5.5])
    package = study.fit_samples_law(SIZES, [[mean] for mean in means])
    assert study.predict_by(study.LAW, SIZES, means, [8, 1024]) == pytest.approx(
        [package.samples(8), package.samples(1024)], rel=1e-5
    )


def test_a_law_with_more_parameters_than_points_predicts_nothing(study):
    quadratic = next(law for law in study.LAWS if law.name == "quadratic")
    assert math.isnan(study.predict_by(quadratic, [1, 2], np.array([1.0, 2.0]), [4])[0])


def test_points_are_split_by_optimizer_and_ordered_by_size(study, root):
    lars, sgd = study.read_benchmarks(root)
    assert (lars.name, sgd.name) == ("net, lars", "net, sgd")
    assert lars.sizes == sgd.sizes == (8, 64)
    assert [values.tolist() for values in lars.runs] == [[3, 3], [5, 6]]


def test_a_run_that_counts_many_times_the_others_is_left_out_and_counted(study, root):
    _, sgd = study.read_benchmarks(root)
    assert sgd.runs[0].tolist() == [2, 2]
    assert sgd.num_left_out == 1


def test_the_step_of_counting_is_that_of_the_coarsest_size(study, root):
    lars, sgd = study.read_benchmarks(root)
    assert lars.resolution == pytest.approx(1 / 5.5)
    assert sgd.resolution == 0


def test_a_folder_without_the_points_is_told(study, tmp_path):
    with pytest.raises(study.InputError, match=r"rcp\.json; they do not\. Pass --data-root"):
        study.read_benchmarks(tmp_path)


@pytest.fixture
def whole(tmp_path):
    """The data's folder, with one benchmark of enough sizes for every law."""
    points = [
        {"batch_size": size, "optimizer": "sgd", "base_learning_rate": 0.1,
         "to_converge": [TRUTHS["law"](size) * error for error in (0.98, 1.0, 1.02)]}
        for size in SIZES
    ]  # fmt: skip
    (tmp_path / "mlperf_rcp").mkdir()
    text = json.dumps({"benchmarks": {"net": {"round": "r", "points": points}}})
    (tmp_path / "mlperf_rcp" / "rcp.json").write_text(text)
    return tmp_path


def command(study, monkeypatch, root, *options):
    monkeypatch.setattr(study, "judge", lambda rows: [])
    monkeypatch.setattr(sys, "argv", ["run.py", "--smoke", "--data-root", str(root), *map(str, options)])
    return study.main()


def test_results_are_written_into_a_folder_that_is_made(study, whole, tmp_path, monkeypatch):
    assert command(study, monkeypatch, whole, "--json", tmp_path / "new" / "r.json") == 0
    assert json.loads((tmp_path / "new" / "r.json").read_text())["rows"]
    assert (tmp_path / "new" / "figures.svg").exists()


def test_a_file_in_place_of_the_folder_is_told_without_a_traceback(study, whole, tmp_path, monkeypatch, capsys):
    (tmp_path / "taken").write_text("")
    assert command(study, monkeypatch, whole, "--json", tmp_path / "taken" / "r.json") != 0
    assert "taken" in capsys.readouterr().err


def test_every_study_takes_the_same_options(study, whole, monkeypatch):
    assert command(study, monkeypatch, whole, "--finished-only") == 0


def test_the_claims_of_the_readme_say_how_many_seeds(study):
    head = next(line for line in SCRIPT.with_name("README.md").read_text().splitlines() if line.startswith("| claim "))
    assert head == "| claim | paper | ours | spread | seeds | verdict |"
