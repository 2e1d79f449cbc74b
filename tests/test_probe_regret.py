"""The study of the probe's advice: averages of made-up runs, other tools' rules, and verdicts from made-up sweeps."""

import importlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from probing.made_up import noise_of

from anybatch.probing.noise import NoisePoint, average
from anybatch.probing.target import LossPoint

sys.path.append(str(Path(__file__).parents[1] / "studies"))
from kept_runs import KEPT
from reporting import END, START

STUDY = Path(__file__).parent.parent / "studies" / "anybatch_2026_probe_regret"


@pytest.fixture(scope="module")
def study():
    """The modules of the study by name, out of the way of other studies' modules."""
    pytest.importorskip("matplotlib")
    names, kept, path = ("averages", "finders", "measuring", "showing", "run"), dict(sys.modules), list(sys.path)
    sys.path[:0] = [str(STUDY), str(STUDY.parent)]
    for name in names:
        sys.modules.pop(name, None)
    yield {name: importlib.import_module(name) for name in names}
    sys.path[:] = path
    for name in names:
        sys.modules.pop(name)
        if name in kept:
            sys.modules[name] = kept[name]


def points_of(*scales):
    """A run whose loss falls from 8 on by half from point to point, 100 samples apart."""
    return [NoisePoint(100 * index, 8.0 / 2**index, noise_of(scale)) for index, scale in enumerate(scales)]


@pytest.mark.parametrize("until", [-math.inf, 3.0, 2.0, 1.3])
def test_the_harmonic_average_is_the_probe_s(study, until):
    points = points_of(10.0, 5.0, 40.0, 80.0)
    way = study["averages"].way_to(points, 8, until)
    assert study["averages"].harmonic(way) == pytest.approx(average(points, 8, until=until).value)


def test_a_constant_noise_scale_is_every_average(study):
    found = study["averages"].averages([points_of(30.0, 30.0, 30.0), points_of(30.0, 30.0)], 4, 3.0)
    assert list(found) == study["averages"].NAMES
    assert all(value == pytest.approx(30.0) for value in found.values())


def test_first_and_last_are_the_ends_of_the_way(study):
    found = study["averages"].averages([points_of(10.0, 20.0, 40.0, 80.0)], 4, 2.0)
    assert found["first"] == pytest.approx(10)
    assert found["last"] == pytest.approx(40)
    assert found["last, whole run"] == pytest.approx(80)
    assert found["harmonic"] < found["arithmetic"] < found["arithmetic, whole run"]


def test_a_run_that_starts_below_the_loss_is_its_first_point(study):
    found = study["averages"].averages([points_of(10.0, 20.0, 40.0)], 4, 9.0)
    assert [found[name] for name in study["averages"].AVERAGES] == pytest.approx([10.0] * 5)


def test_equal_falls_of_the_log_loss_weigh_alike(study):
    way = study["averages"].way_to(points_of(10.0, 10.0, 40.0), 1e6, 2.0)  # where samples of a small batch would not
    assert study["averages"].harmonic_over_loss(way) == pytest.approx(2 / (1 / 10 + (1 / 10 + 1 / 40) / 2))


@pytest.mark.parametrize(
    ("largest", "num_samples", "sizes"),
    [
        (10**6, 1437, (1437, 128, 1437)),
        (100, 1437, (64, 64, 100)),
        (10**6, 60_000, (8192, 128, 60_000)),
        (2, 9, (2, 2, 2)),
    ],
)
def test_other_tools_follow_memory_alone(study, largest, num_samples, sizes):
    assert tuple(study["finders"].advised(largest, num_samples).values()) == sizes


def found_of(recommended=(8, 8, 8), predicted=30.0, seconds=None, largest=320, measured=20.0, geometries=("sgd",)):
    times = seconds or {4: 1.5, 8: 1.0, 16: 1.2, 32: 2.0}
    sizes = [
        {"batch_size": size, "seconds": each, "seconds_per_sample": 1e-3, "samples": [1000 * each], "lr_scale": 1.0,
         "is_bracketed": True}
        for size, each in times.items()
    ]  # fmt: skip
    law = {"examples": 1000.0, "critical_batch_size": measured, "low": 15.0, "high": 30.0}
    probes = [
        {"seed": seed, "recommended": size, "recommended_low": size, "recommended_high": size,
         "critical_batch_size": predicted, "interval": [20.0, None]}
        for seed, size in enumerate(recommended)
    ]  # fmt: skip
    names = ["harmonic", "harmonic over log loss", "arithmetic", "last", "first"]
    names += [f"{name}, whole run" for name in names if name != "first"]
    averages = {geometry: {name: 20.0 * (1 + index) for index, name in enumerate(names)} for geometry in geometries}
    return {
        "workload": "made up",
        "environment": {"date": "today", "device": "CPU", "num_threads": 1, "torch": "2"},
        "sizes": sizes,
        "probes": probes,
        "advised": {"Lightning": 32, "Accelerate": 16, "largest": largest},
        "num_noise_runs": 3,
        "by_loss": [{"loss": 0.5, "law": law, "law_of_all_sizes": law, "averages": averages}],
    }


def verdicts(study, **changes):
    return {claim.id: claim.verdict for claim in study["run"].judge({"made-up": found_of(**changes)})}


def test_claims_follow_from_what_was_found(study):
    assert verdicts(study) == {
        "regret-made_up": "reproduced",
        "critical-made_up": "reproduced",
        "rules-made_up": "partly",
        "average-cut": "reproduced",
        "average-best": "reproduced",
    }


@pytest.mark.parametrize(
    ("changes", "id_", "verdict"),
    [
        ({"recommended": (8, 16, 32)}, "regret-made_up", "partly"),
        ({"recommended": (8, 32, 32)}, "regret-made_up", "not"),
        ({"predicted": 41.0}, "critical-made_up", "not"),
        ({"predicted": 9.0}, "critical-made_up", "not"),
        ({"predicted": None}, "critical-made_up", "not"),
        ({"recommended": (16, 16, 16)}, "rules-made_up", "partly"),
        ({"recommended": (8, 8, 8), "largest": 32}, "rules-made_up", "reproduced"),
        ({"recommended": (9, 9, 9), "seconds": {8: 10.0, 16: 11.0}}, "regret-made_up", "partly"),
    ],
)
def test_a_bar_that_is_missed_is_said(study, changes, id_, verdict):
    assert verdicts(study, **changes)[id_] == verdict


def test_beyond_the_sweep_time_follows_the_law(study):
    assert study["run"].time_at(found_of(), 320) == (pytest.approx(1000 * 17 * 1e-3), False)
    assert study["run"].time_at(found_of(), 16) == (1.2, True)


def test_a_time_by_the_law_is_said_and_never_enough(study):
    claims = {claim.id: claim for claim in study["run"].judge({"made-up": found_of(recommended=(8, 9, 8))})}
    assert "1.00x, 1.45x by the law, 1.00x at 8, 9, 8" in claims["regret-made_up"].ours
    assert "largest (320): 17.00x by the law" in claims["rules-made_up"].ours


@pytest.mark.parametrize("changes", [{"predicted": None}, {"measured": None}])
def test_a_critical_batch_size_without_limit_has_no_ratio(study, changes):
    found = found_of(**changes)
    assert json.dumps(study["run"].ratios(found), allow_nan=False) == "[null, null, null]"
    claims = {claim.id: claim for claim in study["run"].judge({"made-up": found})}
    assert claims["critical-made_up"].verdict == "not"
    assert claims["critical-made_up"].ours.startswith("no ratio, no ratio, no ratio")


def test_averages_are_judged_where_a_critical_batch_size_was_measured(study):
    unlimited = found_of(measured=None, geometries=("sgd", "adam"))
    assert {claim.id for claim in study["run"].judge({"a": unlimited})} == {"regret-a", "critical-a", "rules-a"}
    both = {claim.id for claim in study["run"].judge({"a": unlimited, "b": found_of()})}
    assert both >= {"average-cut", "average-best"}
    assert "geometry" not in both


def test_earlier_losses_leave_more_of_the_way(study):
    measuring = study["measuring"]
    target = measuring.LossTarget(0.2, 2.2, 1000.0, "made up")
    losses = [measuring.target_at(target, share) for share in measuring.SHARES_LEFT]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(0.2)
    assert measuring.target_at(target, 1.0) == pytest.approx(2.2)


def test_a_dear_evaluation_takes_fewer_samples(study, tmp_path):
    parts = study["run"].FULL
    assert parts["char-lm"].eval_samples == 256
    assert {parts[name].eval_samples for name in ("digits", "fashion-mnist")} == {2048}

    class Kept:
        def take(self, run, limits):
            self.run = run
            return SimpleNamespace(curve=[LossPoint(n, 0.0, 2 + 8 / 2**n) for n in range(20)])

    workload, kept = parts["digits"].workload(tmp_path), Kept()
    run, _ = study["measuring"].set_target(workload, study["measuring"].Runtime.detect("cpu"), kept, 300)
    assert run == kept.run
    assert run.eval_samples == 300


def command(study, monkeypatch, here, *options):
    monkeypatch.setattr(study["run"], "HERE", here)
    monkeypatch.setattr(sys, "argv", ["run.py", *options])
    return study["run"].main()


@pytest.mark.parametrize("measured", [20.0, None])
def test_what_was_found_is_kept_with_the_study_and_shown_where_it_was_not_run(study, tmp_path, monkeypatch, measured):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "README.md").write_text(f"# A study\n\n{START}\n{END}\n")
    own = ["--full", "--json", str(here / "results.json")]
    monkeypatch.setattr(study["run"], "measure", lambda *_: found_of(measured=measured))
    assert command(study, monkeypatch, here, *own) == 0
    (there / KEPT).write_bytes((here / KEPT).read_bytes())
    monkeypatch.setattr(study["run"], "measure", lambda *_: pytest.fail("measured"))
    assert command(study, monkeypatch, there, "--full", "--finished-only", "--json", str(there / "results.json")) == 0
    assert (there / "results.json").read_bytes() == (here / "results.json").read_bytes()
    assert (there / KEPT).read_bytes() == (here / KEPT).read_bytes()
