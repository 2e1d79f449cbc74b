"""The study of large batches: parts in their order, what stays of earlier results, verdicts from made-up runs."""

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

STUDY = Path(__file__).parent.parent / "studies" / "hoffer_2017_train_longer"


@pytest.fixture(scope="module")
def study():
    """All names of the study's modules, which are forgotten afterwards."""
    pytest.importorskip("matplotlib")
    names = [path.stem for path in STUDY.glob("*.py")]
    for name in names:
        sys.modules.pop(name, None)  # another study's
    sys.path[:0] = [str(STUDY), str(STUDY.parent)]
    yield SimpleNamespace(**{key: value for name in names for key, value in vars(import_module(name)).items()})
    del sys.path[:2]
    for name in names:
        del sys.modules[name]


@pytest.fixture(scope="module")
def results():
    return json.loads((STUDY / "results.json").read_text())


def run_of(recipe, batch_size, seed, accuracy, lr_factor=1.0, status="done"):
    return SimpleNamespace(
        recipe=recipe, batch_size=batch_size, seed=seed, lr_factor=lr_factor, status=status, updates=100, samples=3200,
        seconds=60.0, settings={"lr": 0.1}, environment={"torch": "2"}, distance_law=None,
        tensor_laws={},
        metrics={"eval_accuracy": accuracy, "train_accuracy": accuracy + 0.01},
        curve=[{"updates": 50, "loss": 0.5, "eval_accuracy": accuracy}],
        distance=[{"updates": t, "distance": t / 50, "tensors": {"first": 0.1, "last": 0.2}} for t in (50, 100)],
    )  # fmt: skip


def compared(*runs, partial=False):
    return SimpleNamespace(runs=runs, partial=partial)


def small_batch(*accuracies):
    return {"f1 at 128": compared(*(run_of("SB", 128, seed, value) for seed, value in enumerate(accuracies)))}


# what is run, and what stays


def test_what_tells_the_most_for_its_time_comes_first(study):
    names = list(study.FULL)
    assert names[:3] == ["f1 at 128", "f1 at 4096", "warm-up"]
    assert names[-1] == "adaptation at 4096"
    assert names.index("rates at 4096") < names.index("f1 at 1024") < names.index("resnet at 512")
    keys = {key[0] for expected in study.EXPECTED for key in (expected.better, expected.worse)}
    assert keys <= set(names)


def test_earlier_rows_stay_until_as_many_seeds_replace_them(study, results):
    kept = {(row["part"], row["recipe"]): row for row in results["rows"]}
    fewer, as_many = (study.join_results(small_batch(*values), results) for values in ((0.8, 0.81), (0.8, 0.81, 0.82)))
    for found, accuracy in ((fewer, kept["f1 at 128", "SB"]["metrics"]["eval_accuracy"]["mean"]), (as_many, 81.0)):
        rows = {(row["part"], row["recipe"]): row for row in found["rows"]}
        assert rows.keys() == kept.keys()
        assert rows["f1 at 128", "SB"]["metrics"]["eval_accuracy"]["mean"] == pytest.approx(accuracy)
        assert rows["f1 at 4096", "LB"] == kept["f1 at 4096", "LB"]
        assert list(dict.fromkeys(row["part"] for row in found["rows"])) == [
            name for name in study.FULL if name in {row["part"] for row in found["rows"]}
        ]


def test_claims_are_judged_over_earlier_rows_too(study, results):
    before = {claim["id"]: claim for claim in results["claims"]}
    found = {claim["id"]: claim for claim in study.join_results(small_batch(0.8, 0.81, 0.82), results)["claims"]}
    assert found.keys() == before.keys()
    assert found["gap-4096"]["verdict"] == "not"
    assert found["gap-4096"]["ours"].startswith("81.00 ± 1.00 against 88.11 ± 0.10")
    assert found["slopes-4096"] == before["slopes-4096"]  # its walks are not in the rows


def test_without_earlier_results_there_are_those_of_the_runs(study):
    found = study.join_results(small_batch(0.8), {})
    assert [row["part"] for row in found["rows"]] == ["f1 at 128"]
    assert found["claims"] == []
    assert found["incomplete"] == []


def test_figures_are_drawn_of_what_is_there(study, results, tmp_path):
    study.draw(results["rows"], {}, tmp_path)
    assert "figures.svg" in [path.name for path in tmp_path.iterdir()]
    study.draw([], small_batch(0.8), tmp_path)


# verdicts


def cell(study, *accuracies, num_diverged=0):
    return study.Cell({"eval_accuracy": accuracies} if accuracies else {}, (), num_diverged=num_diverged)


@pytest.mark.parametrize(("best", "verdict"), [(1.0, "not"), (2.0, "not"), (4.0, "reproduced"), (8.0, "reproduced")])
def test_the_best_of_the_rates_is_put_beside_the_square_root_s(study, best, verdict):
    rates = {("rates at 4096", "LB", 4096, factor): cell(study, 80.0 + (factor == best)) for factor in (2.0, 4.0, 8.0)}
    diverged = {("rates at 4096", "LB", 4096, 16.0): cell(study, num_diverged=1)}
    base = {("f1 at 4096", "LB", 4096, 1.0): cell(study, 80.5, 80.7)}
    assert study.judge_rates(base | rates) == []  # not all are there
    (claim,) = study.judge_rates(base | rates | diverged)
    assert claim.verdict == verdict
    assert "x16 diverged" in claim.ours


def test_every_part_is_judged(study):
    judged = {key[0] for expected in study.EXPECTED for key in (expected.better, expected.worse)} | {"rates at 4096"}
    assert judged == set(study.FULL)


def test_longer_training_alone_is_no_postponed_drop(study):
    expected = next(each for each in study.EXPECTED if each.id == "postponed")
    assert expected.worse == ("not postponed", "SB", 128)


def test_the_rule_for_adamw_is_put_beside_the_small_batch(study):
    found = {("adamw at 512", "sqrt", 512, 1.0): cell(study, 88.0), ("adamw at 64", "none", 64, 1.0): cell(study, 88.1)}
    assert {claim.id: claim.verdict for claim in study.judge_orderings(found)} == {"adam-keeps": "undecided"}


def laws_of(study, *differences):
    fit = study.fit_distance_law([10, 20, 40, 80], [1.0, 2.0, 2.9, 4.1])
    return tuple(replace(fit, aicc_difference=each, r2_log=0.9, r2_power=0.8) for each in differences)


def test_seeds_that_leave_the_law_open_decide_it_together(study):
    power = study.Cell({"eval_accuracy": [80.0] * 3}, laws_of(study, -3.8, -3.2, -3.4))
    open_ = study.Cell({"eval_accuracy": [80.0] * 2}, laws_of(study, 1.4, 1.5))
    found = {(*study.SMALL, 1.0): power, ("f1 at 4096", "LB", 4096, 1.0): open_}
    (claim,) = study.judge_laws(found)
    assert (claim.id, claim.verdict, claim.seeds) == ("log-law", "not", 2)
    assert claim.ours == (
        "SB at 128: power (-10.4; mean R2 0.900 of the log, 0.800 of the power); "
        "LB at 4096: undecided (+2.9; mean R2 0.900 of the log, 0.800 of the power)"
    )


@pytest.mark.parametrize(
    ("differences", "verdict"), [((4.0, 4.0), "reproduced"), ((1.0, 1.0), "undecided"), ((-4.0, -4.0), "not")]
)
def test_the_log_law_is_reproduced_where_every_cell_shows_it(study, differences, verdict):
    cell = study.Cell({"eval_accuracy": [80.0] * 2}, laws_of(study, *differences))
    (claim,) = study.judge_laws({(*study.SMALL, 1.0): cell})
    assert claim.verdict == verdict


def test_the_first_tensor_has_a_verdict_of_its_own(study):
    runs = [run_of("SB", 128, seed, 0.8) for seed in range(3)]
    (log,), (power,) = laws_of(study, 2.5), laws_of(study, -2.5)
    for run in runs:
        run.distance_law, run.tensor_laws = power, {"last": power, "first": log}
    found = study.join_results({"f1 at 128": compared(*runs)}, {})
    again = study.join_results({}, json.loads(json.dumps(found)))
    for claims in (found["claims"], again["claims"]):
        assert {c["id"]: c["verdict"] for c in claims} == {"log-law": "not", "log-law-first": "reproduced"}
