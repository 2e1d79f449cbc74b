"""The study of safe policy gradients: its units are done once and survive a kill, and its judgement can say no."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from anybatch.rl import LQG, GaussianPolicy, SafePolicyGradient
from anybatch.rl.promise import FailureCount

FOLDER = Path(__file__).parent.parent / "studies" / "papini_2017_safe_policy_gradients"
MODULES = ("run", "authors", "lqg_units", "cart_pole_unit", "promise_units", "plan", "units", "findings", "pages")


@pytest.fixture(scope="module")
def study():
    """The modules of the study by name."""
    pytest.importorskip("matplotlib")
    sys.path.insert(0, str(FOLDER))
    found = {name: __import__(name) for name in MODULES}
    yield found
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        del sys.modules[name]


def curve_run(**changed):
    """A run of three updates as a unit keeps it."""
    return {
        "batch_size": [100, 300, 600], "step_size": [1e-5] * 3, "performance": [-56.0, -40.0, -20.0],
        "measured_performance": [-12.0, -11.0, -10.0], "theta": [0.0, -0.1, -0.2, -0.3], "final_performance": -15.0,
        "seconds": 1.0, "seed": 0,
    } | changed  # fmt: skip


# units


def test_every_figure_of_the_paper_is_planned(study):
    scale = study["plan"].SCALES["full"]
    units = study["plan"].plan_units(scale)
    assert (scale.num_trajectories, scale.num_seeds) == (30_000_000, 5)
    kinds = [unit.kind for unit in units]
    assert kinds.count("curve") == 12 * 5
    assert kinds.count("fixed-batch") == 2 * scale.fixed_batch_seeds
    assert kinds.count("fixed-steps") == 6 * scale.rate_seeds
    assert len({unit.name for unit in units}) == len(units)
    assert scale.num_updates * 12 >= 1000
    assert scale.num_runs >= 1000
    variants = {(unit.settings["estimator"], unit.settings["baseline"]) for unit in units if unit.kind == "updates"}
    assert ("reinforce", False) in variants  # of which the guarantee is proven
    runs = {unit.settings["bound"] for unit in units if unit.kind == "runs" and unit.settings["divisor"] == 1}
    assert runs == {"sample_chebyshev", "chebyshev"}
    promise = sum(unit.seconds for unit in units if unit.kind in ("updates", "runs"))
    assert promise < 12 * 60
    assert sum(unit.seconds for unit in units) / 2 < 20 * 60


def test_a_curve_is_the_published_loop_with_the_authors_limits(study):
    unit = next(
        unit
        for unit in study["plan"].plan_units(study["plan"].SCALES["smoke"])
        if unit.kind == "curve" and unit.label == "chebyshev_gpomdp_095"
    )
    loop = SafePolicyGradient(
        LQG(), GaussianPolicy(0.0), "chebyshev", delta=0.95, mode="paper", max_batch_size=100_000, seed=0
    )
    expected = loop.run(unit.settings["num_trajectories"])
    found = study["plan"].KINDS[unit.kind](**unit.settings)
    assert found["batch_size"] == [update.batch_size for update in expected.iterations]
    assert found["final_performance"] == expected.final_performance
    assert found["theta"][-1] == expected.parameters[0]
    assert len(found["theta"]) == len(found["batch_size"]) + 1


def test_rates_count_updates_that_raise_each_performance(study):
    found = study["lqg_units"].run_fixed_steps(1.0, 100, [1e-5, 0.05], 3000, -0.3, seed=0)
    assert found["closed_form"][0] > 80  # far from the optimum a small step improves
    assert found["exact"][0] > 80
    assert found["exact"][1] < 70  # a large one goes to and fro about it


def test_starts_of_the_promise_stand_on_both_sides_of_the_exact_optimum(study):
    optimum = study["lqg_units"].exact_optimum()
    assert -0.66 < optimum < -0.64
    starts = [study["promise_units"].starting_policy(place, 10_000) for place in range(12)]
    assert starts[:4] == [0, -0.1, -0.2, -0.4]  # one of three is far enough for a bound to let it move
    assert [start < optimum for start in starts[4:]] == [True] * 4 + [False] * 4
    assert max(abs(start - optimum) for start in starts[4:]) < 1e-3


def test_exact_performance_of_the_table_is_that_of_the_quadrature(study):
    for std in (1.0, 0.5):
        exact = LQG().exact_performance(GaussianPolicy(-0.3712, std**2))
        assert study["lqg_units"].exact_polynomial(std)(-0.3712) == pytest.approx(exact, abs=1e-8)


def test_a_divided_error_takes_steps_that_the_whole_one_does_not(study):
    found = study["promise_units"].count_updates("gpomdp", True, 5, 10, 500, [0.25], seed=0)
    steps = {(row["bound"], row["divisor"]): row["num_steps"] for row in found["counts"]}
    assert steps["chebyshev", 1.0] == 0
    assert steps["chebyshev", 10_000.0] == 10
    assert steps["noise alone", 1.0] == 10


def test_a_cart_pole_with_a_longer_pole_starts_where_the_authors_did(study):
    for kind in ("adaptive", "fixed"):
        found = study["cart_pole_unit"].run_cart_pole(kind, 4500, seed=0)
        assert found["measured_performance"][0] == pytest.approx(187.5, abs=3)
    assert found["step_size"] == [1e-2]


# sharing


def test_a_unit_is_done_once_and_again_only_where_it_was_killed(study, tmp_path):
    units, times = study["units"], []

    def count(seed):
        times.append(seed)
        if len(times) == 1:
            raise KeyboardInterrupt
        return {"value": 3}

    unit, kinds = units.Unit("curve", "x", {"seed": 0}, 1.0), {"curve": count}
    with pytest.raises(KeyboardInterrupt):
        units.do_units([unit], kinds, tmp_path)
    assert units.read_results([unit], tmp_path) == {}
    units.do_units([unit], kinds, tmp_path)
    units.do_units([unit], kinds, tmp_path)
    assert times == [0, 0]
    [(_, result)] = units.read_results([unit], tmp_path)["curve"]
    assert result["value"] == 3


def test_a_unit_keeps_its_name_so_that_finished_ones_are_found(study):
    unit = study["units"].Unit("fixed-steps", "0.5 100", {"seed": 1, "start": -0.5}, 1.0)
    assert unit.name == "fixed-steps-0.5_100-2a0bb791c9"


def test_a_failing_worker_ends_the_study_with_a_sentence(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder has to be")
    command = [sys.executable, FOLDER / "run.py", "--smoke", "--workers", "1", "--runs", tmp_path / "runs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "a worker ended with exit code 1; call again to go on."


def test_the_time_of_a_run_that_did_all_units_is_kept(study, tmp_path, monkeypatch, capsys):
    unit = study["units"].Unit("curve", "x", {"seed": 0}, 1.0)
    run, path = study["run"], tmp_path / "results.json"

    def do(*_):
        study["units"].do_units([unit], {"curve": lambda seed: {}}, tmp_path / "runs")

    for name, value in {
        "plan_units": lambda _: [unit], "run_units": do, "summarize": lambda *_: {"claims": []},
    }.items():  # fmt: skip
        monkeypatch.setattr(run, name, value)
    monkeypatch.setattr(study["pages"], "draw", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["run.py", "--smoke", "--runs", str(tmp_path / "runs"), "--json", str(path)])
    assert run.main() == 0
    first = json.loads(path.read_text())["whole_run"]
    assert (first["num_units"], first["num_workers"]) == (1, 2)
    assert first["elapsed_seconds"] > 0
    assert "a run of all 1 units took" in capsys.readouterr().out
    assert run.main() == 0  # which does none
    assert json.loads(path.read_text())["whole_run"] == first
    path.unlink()
    assert run.main() == 0
    assert json.loads(path.read_text())["whole_run"] is None


# judgement


def test_performance_is_that_of_the_last_complete_batch(study):
    at = study["findings"].performance_at
    assert [at(curve_run(), place) for place in (50, 100, 399, 400, 5000)] == [-56.0, -56.0, -56.0, -40.0, -20.0]


def test_average_return_is_weighted_by_trajectories(study):
    assert study["findings"].average_return(curve_run()) == pytest.approx((-1200 - 3300 - 6000) / 1000)


def test_updates_that_lower_the_closed_form_are_counted_the_last_one_too(study):
    assert study["findings"].num_worse(curve_run()) == 0
    assert study["findings"].num_worse(curve_run(performance=[-56.0, -57.0, -20.0], final_performance=-21.0)) == 2


def test_interval_is_the_authors(study):
    # five averages with a standard deviation of 0.1: t(0.95; 4) = 2.1318
    values = np.array([-1, -0.5, 0, 0.5, 1]) * 0.1 / np.std([-1, -0.5, 0, 0.5, 1], ddof=1)
    assert study["findings"].half_width(values.tolist()) == pytest.approx(2.1318 * 0.1 / math.sqrt(5), rel=1e-4)
    assert study["findings"].half_width([1.0]) is None


@pytest.mark.parametrize(
    ("away", "verdict"), [(0.0, "reproduced"), (0.019, "reproduced"), (-0.05, "partly"), (0.2, "not")]
)
def test_an_average_is_judged_by_the_authors_interval_and_the_bar(study, away, verdict):
    label = "chebyshev_gpomdp_095"
    row = {"average_return": -10.6085 + away, "half_width": 0.001, "seeds": 5}
    [claim] = study["run"]._judge_averages({label: row})
    assert (claim.id, claim.verdict) == (f"table-main-{label}", verdict)


@pytest.mark.parametrize(("away", "verdict"), [(0.29, "reproduced"), (-0.31, "partly"), (1.0, "not")])
def test_a_curve_is_judged_where_it_is_farthest(study, away, verdict):
    performances = {"100000": [0.0], "1000000": [-34.791], "5000000": [-20.993 + away]}
    [claim] = study["run"]._judge_curves({"chebyshev_gpomdp_095": {"performances": performances, "seeds": 1}})
    assert claim.verdict == verdict


def test_a_proven_bound_moves_a_policy_that_is_far_from_the_optimum(study):
    found = study["promise_units"].count_updates("reinforce", False, 0, 4, 30_000, [0.05, 0.25], seed=0)
    proven = [row for row in found["counts"] if (row["bound"], row["divisor"]) == ("chebyshev", 1.0)]
    assert [(row["num_steps"], row["num_worse"]) for row in proven] == [(4, 0), (4, 0)]
    runs = study["promise_units"].count_runs("chebyshev", 0.25, 1.0, 6, seed=0)
    assert (runs["num_runs"], runs["num_updates"], runs["num_failed"]) == (6, 12, 0)
    assert 1 <= runs["num_moved"] <= runs["num_steps"] <= 8  # from the four far starts alone


def updates_unit(study, place, start, *counts):
    names = ("bound", "divisor", "delta", "num_updates", "num_steps", "num_worse")
    result = {"start": start, "counts": [dict(zip(names, count, strict=True)) for count in counts]}
    return study["units"].Unit("updates", "gpomdp", {"place": place}, 1.0), result


def test_failures_are_told_of_the_updates_that_moved_overall_and_by_start(study):
    count = ("chebyshev", 1.0, 0.25)
    results = {
        "updates": [
            updates_unit(study, 4, -0.6499, (*count, 10, 4, 2)),
            updates_unit(study, 0, 0.0, (*count, 10, 10, 0), ("chebyshev", 10.0, 0.25, 10, 10, 5)),
            updates_unit(study, 5, -0.6501, (*count, 10, 2, 1)),
        ]
    }
    row, control = study["findings"].count_failures(results)
    assert (row["num_updates"], row["num_steps"], row["num_worse"]) == (30, 16, 3)
    assert row["share_of_steps"] == pytest.approx(3 / 16)
    assert [start["num_steps"] for start in row["starts"]] == [10, 4, 2]
    assert "starts" not in control
    assert study["findings"].moved_by_start(row["starts"]) == {"from 0": (10, 10, 0), "near the optimum": (20, 6, 3)}
    [claim] = study["run"]._judge_promises([row, control])
    assert claim.ours == (
        "failures over delta 0.400 at delta 0.25, where 16 of 30 moved it and 3 of these made it worse"
    )
    assert claim.spread.endswith("10 of 10 from 0 (0 worse), 6 of 20 near the optimum (3 worse)")
    head, cells = study["pages"]._moved([row, control])
    assert head[-2:] == ("from 0", "near the optimum")
    assert [cell[3:] for cell in cells] == [[30, 16, 3, "18.75", "10 of 10, 0 worse", "6 of 20, 3 worse"]]


def test_whole_runs_are_judged_by_bound_and_say_how_many_moved(study):
    unit, results = study["units"].Unit, []
    for bound in study["promise_units"].RUN_SETTINGS:
        for divisor, failed in ((1.0, 10), (1000.0, 200)):
            result = {"num_runs": 250, "num_failed": failed, "num_moved": 80, "num_updates": 1000, "num_steps": 300}
            settings = {"bound": bound, "delta": 0.25, "divisor": divisor}
            results.append((unit("runs", bound, settings, 1.0), result))
    claims = list(study["run"]._judge_runs(study["findings"].run_rows({"runs": results})))
    assert [claim.id for claim in claims] == ["promise-runs", "promise-runs_chebyshev_without_baseline"]
    for claim in claims:
        assert claim.verdict == "reproduced"
        assert claim.ours == "0.160 at delta 0.25, where 300 of 1000 updates moved it, in 80 runs"


def failures(worse, divisor, bound="chebyshev"):
    found = FailureCount(0.25, 1000, 1000, worse)
    return {
        "estimator": "gpomdp", "bound": bound, "divisor": divisor, "delta": 0.25, "num_updates": 1000,
        "num_steps": 1000, "num_worse": worse, "share_of_steps": worse / 1000, "is_kept": found.is_kept,
        "share_over_delta": found.share / 0.25, "is_surely_broken": found.is_surely_broken,
        "starts": [{"start": 0.0, "num_updates": 1000, "num_steps": 1000, "num_worse": worse}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([failures(0, 1.0), failures(400, 10.0)], "reproduced"),
        ([failures(0, 1.0), failures(100, 10.0)], "partly"),  # no control fails: nothing is shown
        ([failures(300, 1.0), failures(400, 10.0)], "not"),
        ([failures(450, 1.0, "noise alone")], "reproduced"),
        ([failures(200, 1.0, "noise alone")], "not"),
    ],
)
def test_a_promise_is_judged_with_its_control(study, rows, verdict):
    [claim] = study["run"]._judge_promises(rows)
    assert claim.verdict == verdict


def test_price_is_the_batch_used_over_those_of_the_oracles(study):
    plan, unit, label = study["plan"], study["units"].Unit, "chebyshev_gpomdp_005"
    known = [
        (unit("moments", "gpomdp", {"theta": theta}, 1.0), {"gradient": 10.0, "std": 10.0, "range": 100.0})
        for theta in plan.THETAS
    ]
    curve = (unit("curve", label, {"num_trajectories": 1000, "seed": 0}, 1.0), curve_run())
    [row] = study["findings"].price_rows({"moments": known, "curve": [curve]})
    assert row["true_variance"] == 3 * math.ceil(12.6846584384 / 0.05)
    assert row["sign"] == 3 * math.ceil(norm.ppf(0.95) ** 2)
    assert row["over_sign"] == pytest.approx(1000 / 9)


def test_the_readme_gets_its_tables_between_the_marks(study, tmp_path):
    page = tmp_path / "README.md"
    start, end = "<!-- results: generated by run.py --json results.json -->", "<!-- end of results -->"
    page.write_text(f"before\n{start}\nold\n{end}\nafter\n")
    claim = {
        "id": "x",
        "statement": "a | b",
        "source": "s",
        "paper": "1",
        "ours": "2",
        "spread": "3",
        "seeds": 5,
        "verdict": "not",
    }
    parts = ("curves", "improvement_rates", "cart_pole", "failures", "failures_of_runs", "price", "price_at_start")
    empty = {name: [] for name in parts}
    study["pages"].write_readme(page, {"claims": [claim], **empty})
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| a \\| b (s) | 1 | 2 | 3 | 5 | not |" in text
    assert "old" not in text
    study["pages"].write_readme(page, {"claims": [claim], **empty})
    assert page.read_text() == text


def test_ids_join_the_list_of_claims(study):
    listed = json.loads((FOLDER.parent / "claims.json").read_text())
    named = [study_.split("/")[1] for claim in listed for study_ in claim["studies"] if study_.startswith(FOLDER.name)]
    labels = study["authors"].CURVES
    assert {name for name in named if name.startswith("table-main-")} == {f"table-main-{label}" for label in labels}
    assert {"monotonic", "bounds-rank", "improvement-rates", "promise-runs"} <= set(named)
    units = study["promise_units"]
    bounds = [f"{of}{bound}" for of in units.VARIANTS for bound in (*units.BOUNDS, "noise alone", "fixed step of 0.1")]
    ids = {f"promise-{name.removeprefix('gpomdp')}".replace(" ", "_").replace(".", "") for name in bounds}
    assert len([name for name in named if name.startswith("promise-")]) == len(ids) + 2
