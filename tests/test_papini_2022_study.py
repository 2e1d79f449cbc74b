"""The study of smoothing policies: its parts do what they say, and its judgement can say no."""

import json
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from anybatch.rl import GaussianPolicy, SmoothingPolicyGradient, SoftmaxPolicy, estimate_gradient
from anybatch.rl.bound_constants import BoundConstants
from anybatch.rl.coordinate_rule import GaussianShape

FOLDER = Path(__file__).parent.parent / "studies" / "papini_2022_smoothing_policies"
MODULES = ("run", "authors", "recording", "lq_units", "cart_pole_units", "plan", "units", "judging", "pages")


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


# the rules


@pytest.mark.parametrize(("rule", "batch"), [("published", 8200), ("published_fast", 1900), ("corrected", 62_490_300)])
def test_rules_stop_to_draw_where_the_authors_figures_and_the_theory_say(study, rule, batch):
    assert study["lq_units"].stopping_batch(1.3, rule) == batch


def test_the_published_loop_stops_where_its_rule_does(study):
    found = study["lq_units"].run_smoothing("sub_gaussian", "published_fast", 1.0, 1500, seed=0)
    [(_, _, batch)] = found["curve"]
    assert batch == study["lq_units"].stopping_batch(found["first_gradient"], "published_fast")
    assert found["num_unpromised"] == found["num_steps"] == 1


def test_adabatch_spends_its_failure_probability_along_the_run(study, monkeypatch):
    units, deltas = study["lq_units"], []
    decide = units.CoordinateRule.decide

    def watch(rule, *arguments):
        deltas.append(rule.delta)
        return decide(rule, *arguments)

    monkeypatch.setattr(units.CoordinateRule, "decide", watch)
    units.run_adabatch("stored", 30_000, seed=0)
    assert len(deltas) > 3
    assert deltas == pytest.approx([0.05 / (k * (k + 1)) for k in range(1, len(deltas) + 1)])
    assert sum(units.confidence_of(k) for k in range(1, 1001)) == pytest.approx(0.0499500, abs=1e-7)


def test_the_stored_rule_has_the_range_without_r_and_always_the_best_step(study):
    env, constants = study["lq_units"].make_task(), BoundConstants(0.9, 10, 2.0, 2.0, 1.0)
    rule = study["lq_units"].StoredRule(GaussianShape.of(torch.eye(1)), delta=0.025)
    estimate = estimate_gradient(env, GaussianPolicy(0.0), 20_000, seed=0)
    decision = rule.decide(estimate, constants)
    assert decision.bound.f == pytest.approx(3 * 60.528624 * np.log(3 / 0.025))
    best = 0.1576707808 / rule.penalty_of(constants)
    assert decision.step.step_size == pytest.approx(best)
    assert decision.displacement.item() == pytest.approx(best * estimate.gradient.item())
    few = rule.decide(estimate_gradient(env, GaussianPolicy(0.0), 100, seed=0), constants)
    assert few.step.step_size == 0
    assert few.displacement.item() == 0


def test_exact_performance_of_the_table_is_that_of_the_quadrature(study):
    units = study["lq_units"]
    for theta in (-1.4321, -1.0173, -0.3712, 0.0):
        exact = units.make_task().exact_performance(GaussianPolicy(theta))
        assert units.exact_performance(GaussianPolicy(theta)) == pytest.approx(exact, abs=1e-10)
    assert units.make_task().task.reward_bound == 2.0


# the cart-pole


def test_the_cart_pole_is_that_of_gymnasium_step_by_step(study):
    theirs = gymnasium.make_vec("CartPole-v1", num_envs=50, vectorization_mode="vector_entry_point")
    observations, _ = theirs.reset(seed=0)
    dynamics, generator = study["cart_pole_units"].PushedCartPole(), np.random.default_rng(0)
    states, is_alive = torch.tensor(observations.T), np.ones(50, bool)
    for _ in range(60):
        actions = generator.integers(0, 2, 50)
        observations, rewards, is_over, _, _ = theirs.step(actions)
        following = torch.empty_like(states)
        dynamics.step(states, torch.tensor(actions[None], dtype=torch.float32), following)
        states = following
        assert (rewards[is_alive] == 1).all()
        np.testing.assert_allclose(states.numpy()[:, is_alive], observations.T[:, is_alive], atol=1e-4)
        np.testing.assert_array_equal(dynamics.is_over(states).numpy()[is_alive], is_over[is_alive])
        is_alive &= ~is_over
    assert not is_alive.all()


def test_returns_of_the_cart_pole_are_those_of_gymnasium(study):
    theirs = gymnasium.make_vec("CartPole-v1", num_envs=500, vectorization_mode="vector_entry_point")
    policy = SoftmaxPolicy(torch.tensor([[0.0, 0.0, -0.4, -0.4], [0.0, 0.0, 0.4, 0.4]]))
    expected = estimate_gradient(theirs, policy, 2000, discount=0.9, horizon=100, seed=0)
    found = estimate_gradient(study["cart_pole_units"].CartPole(), policy, 2000, seed=1)
    error = 4 * expected.return_std / 2000**0.5
    assert found.mean_return == pytest.approx(expected.mean_return, abs=1.5 * error)
    assert found.return_std == pytest.approx(expected.return_std, rel=0.15)
    assert 0 < found.num_ended_early < 2000


def test_an_episode_that_ends_early_returns_one_per_step_alive_and_nothing_after(study):
    always_right = SoftmaxPolicy(torch.zeros(2, 1), features=lambda states: torch.ones(len(states), 1))
    always_right = always_right.with_parameters(torch.tensor([-50.0, 50.0]))
    theirs = gymnasium.make_vec("CartPole-v1", num_envs=200, vectorization_mode="vector_entry_point")
    theirs.reset(seed=0)
    counts, is_alive = np.zeros(200, int), np.ones(200, bool)
    while is_alive.any():
        _, _, is_over, _, _ = theirs.step(np.ones(200, int))
        counts += is_alive
        is_alive &= ~is_over
    estimate = estimate_gradient(study["cart_pole_units"].CartPole(), always_right, 2000, seed=0)
    returns = (1 - 0.9**counts) / 0.1
    assert estimate.mean_return == pytest.approx(returns.mean(), abs=4 * returns.std() / 200**0.5)
    assert estimate.num_ended_early == 2000


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_the_policy_in_numpy_draws_the_actions_of_the_softmax_policy(study, scale):
    generator = torch.Generator().manual_seed(0)
    weights, features = scale * torch.randn(2, 4, generator=generator), torch.randn(4, 1000, generator=generator)
    noise, expected, found = torch.rand(1, 1000, generator=generator), torch.empty(1, 1000), torch.empty(1, 1000)
    SoftmaxPolicy(weights, 2.0).act(features, noise, expected)
    study["cart_pole_units"].PushingPolicy(weights, 2.0).act(features, noise, found)
    assert 0 < expected.mean() < 1
    torch.testing.assert_close(found, expected)


def test_a_policy_outside_the_table_has_no_performance(study):
    assert study["lq_units"].exact_performance(GaussianPolicy(-1.7)) == -np.inf


def test_scaled_features_have_a_norm_of_one_at_most_and_raw_ones_do_not(study):
    units = study["cart_pole_units"]
    states = torch.tensor([[0.0, 0.0, 0.0, 0.0], [2.4, 3.0, 0.2, 3.0], [2.4, 30.0, 0.2, 3.0]])
    norms = units.scale_states(states).norm(dim=1)
    assert norms[1:].tolist() == pytest.approx([0.9885, 1.0], abs=1e-3)
    raw, scaled = (SoftmaxPolicy(torch.zeros(2, 4), features=f) for f in (None, units.scale_states))
    assert 0.25 < units.share_above(raw, 0) < 0.35
    assert units.share_above(scaled, 0) == 0


def test_the_published_run_says_that_its_guarantee_is_void_and_the_scaled_one_does_not(study):
    found = study["cart_pole_units"].run_relaxed(0.4, False, 600, seed=0)
    assert found["num_void"] == found["num_updates"] > 0
    assert study["cart_pole_units"].run_relaxed(0.4, True, 600, seed=0)["num_void"] == 0


def test_a_milestone_is_a_share_of_the_best_return_before(study):
    found = study["cart_pole_units"]._compare_with_best([8.0, 10.0, 9.5, 7.0], 0.2)
    assert found["margin"] == pytest.approx(7.0 - 0.8 * 10.0)
    assert found["least_share"] == pytest.approx(0.7)


# recording and planning


def test_a_record_has_means_over_updates_and_a_curve_over_trajectories(study):
    found = study["recording"].record([100, 300, 600], [1.0, 2.0, 4.0])
    assert found["mean_return"] == pytest.approx(7 / 3)
    assert found["mean_batch"] == pytest.approx(1000 / 3)
    assert (found["first_batch"], found["end_return"]) == (450.0, 4.0)
    assert found["curve"] == [(100, 1.0, 100.0), (400, 2.0, 300.0), (1000, 4.0, 600.0)]
    many = study["recording"].record([100] * 1000, [1.0] * 500 + [3.0] * 500)
    assert len(many["curve"]) == 200
    assert many["end_return"] == 3.0


def test_full_runs_have_the_authors_sizes_and_five_seeds(study):
    plan = study["plan"]
    scale, units = plan.SCALES["full"], plan.plan_units(plan.SCALES["full"])
    assert (scale.num_seeds, scale.lq, scale.pole) == (5, 10_000_000, 2_000_000)
    labels = {unit.label for unit in units}
    assert {*study["authors"].LQ, *study["authors"].CART_POLE} <= labels
    assert len(units) == 5 * (len(plan.SMOOTHING) + len(plan.ADABATCH) + 1 + len(plan.TOLERANCES) + 2)
    assert len({unit.name for unit in units}) == len(units)
    assert sum(unit.seconds for unit in units) < 2 * 3600


def test_the_loops_that_are_run_have_the_authors_constants(study):
    agent = SmoothingPolicyGradient(
        study["lq_units"].make_task(), GaussianPolicy(0.0), "sub_gaussian", rule="published", feature_norm_bound=1.0
    )
    found = agent.rule.step_smoothness(agent.deployment.constants)
    assert found == pytest.approx(study["lq_units"].PUBLISHED_SMOOTHNESS)
    pole = SmoothingPolicyGradient(
        study["cart_pole_units"].CartPole(), SoftmaxPolicy(torch.zeros(2, 4)), feature_norm_bound=1.0
    )
    task = study["cart_pole_units"].CartPole().task
    assert (task.horizon, task.discount, task.reward_bound) == (100, 0.9, 1.0)
    task = study["lq_units"].make_task().task
    assert (task.horizon, task.discount, task.reward_bound, task.action_volume) == (10, 0.9, 2.0, 2.0)
    found = pole.rule.smoothness(pole.deployment.constants)
    assert found == pytest.approx(study["cart_pole_units"].SMOOTHNESS)


# judgement


def lq_row(**changed):
    """Two seeds of a method."""
    row = {
        "seed": [0, 1], "mean_return": [-6.4, -6.4], "end_return": [-6.2, -6.2], "mean_batch": [1000.0, 1000.0],
        "num_updates": [10, 10], "first_batch": [100.0] * 2, "last_batch": [2000.0] * 2, "num_steps": [10, 10],
        "num_unpromised": [0, 0], "num_worse": [0, 0], "first_gradient": [1.3, 1.3], "num_trajectories": [10_000] * 2,
        "curve": [[(100, -6.4, 100.0), (10_000_000, -6.4, 100.0)]] * 2,
    }  # fmt: skip
    return row | changed


def pole_row(**changed):
    """Two seeds of a method on the cart-pole."""
    row = {
        "seed": [0, 1], "end_return": [9.0, 9.0], "mean_batch": [500.0] * 2, "num_updates": [10, 10],
        "margin": [0.5, 0.5], "least_share": [0.9, 0.9], "num_void": [0, 0], "share_above": [[0.0, 0.0]] * 2,
        "num_trajectories": [10_000] * 2, "curve": [[(100, 8.5, 100.0)]] * 2,
    }  # fmt: skip
    return row | changed


@pytest.mark.parametrize(
    ("away", "verdict"), [(0.05, "reproduced"), (-0.051, "partly"), (0.15, "partly"), (-0.16, "not")]
)
def test_figures_are_judged_by_the_bars_that_the_readme_states(study, away, verdict):
    assert study["judging"].near(away, 0.05) == verdict
    theirs = study["authors"].LQ["spg"]
    rows = {label: lq_row() for label in study["authors"].LQ}
    rows["spg"] = lq_row(mean_return=[theirs.mean_return + away] * 2, end_return=[theirs.end_return] * 2)
    claims = {claim.id: claim for claim in study["judging"]._judge_figures(rows)}
    assert claims["lq-return-spg"].verdict == verdict
    rows["spg"] = lq_row(mean_return=[theirs.mean_return] * 2, end_return=[theirs.end_return + away] * 2)
    claims = {claim.id: claim for claim in study["judging"]._judge_figures(rows)}
    assert claims["lq-return-spg"].verdict == verdict


@pytest.mark.parametrize(
    ("first", "last", "verdict"),
    [(1.0, 1.0, "reproduced"), (1.1, 0.85, "reproduced"), (1.0, 0.5, "partly"), (9.0, 1.0, "not"), (20.0, 1.2, "not")],
)
def test_growth_is_judged_at_both_ends(study, first, last, verdict):
    theirs = study["authors"].LQ["spg"]
    rows = {label: lq_row() for label in study["authors"].LQ}
    rows["spg"] = lq_row(first_batch=[first * theirs.first_batch] * 2, last_batch=[last * theirs.last_batch] * 2)
    claims = {claim.id: claim for claim in study["judging"]._judge_figures(rows)}
    assert claims["lq-grows-spg"].verdict == verdict


def test_a_batch_that_shrinks_has_not_grown_even_within_the_bars(study):
    theirs, rows = study["authors"].LQ["adabatch"], {label: lq_row() for label in study["authors"].LQ}
    for last, verdict in ((0.6, "partly"), (0.45, "not")):
        ends = {"first_batch": [1.5 * theirs.first_batch] * 2, "last_batch": [last * theirs.last_batch] * 2}
        rows["adabatch"] = lq_row(**ends)
        found = {claim.id: claim.verdict for claim in study["judging"]._judge_figures(rows)}
        assert found["lq-grows-adabatch"] == verdict


def test_a_curve_is_judged_where_it_is_farthest(study):
    theirs = study["authors"].LQ["spg"].returns
    for away, verdict in ((0.04, "reproduced"), (0.1, "partly"), (0.2, "not")):
        values = [theirs[0], theirs[1], theirs[2] + away, theirs[3]]
        points = [(x, y, 1.0) for x, y in zip(study["authors"].CHECKPOINTS, values, strict=True)]
        rows = {label: lq_row(curve=[points]) for label in study["authors"].LQ}
        found = {claim.id: claim.verdict for claim in study["judging"]._judge_curves(rows)}
        assert found["lq-curve-spg"] == verdict


@pytest.mark.parametrize(
    ("batch", "value", "verdict"), [(500.0, -6.6, "reproduced"), (500.0, -6.3, "partly"), (2000.0, -6.3, "not")]
)
def test_adabatch_must_be_smaller_and_slower(study, batch, value, verdict):
    rows = {"spg": lq_row(), "adabatch": lq_row(mean_batch=[batch] * 2, mean_return=[value] * 2)}
    assert study["judging"].judge_adabatch(rows).verdict == verdict


@pytest.mark.parametrize(
    ("ends", "verdict"), [((-6.5, -6.4), "reproduced"), ((-6.1, -6.4), "partly"), ((-6.1, -6.1), "not")]
)
def test_the_corrected_rule_must_beat_both_forms_of_adabatch(study, ends, verdict):
    rivals = zip(("adabatch_theoretical", "adabatch_empirical"), ends, strict=True)
    rows = {name: lq_row(end_return=[end] * 2) for name, end in rivals} | {"corrected_bernstein": lq_row()}
    assert study["judging"].judge_corrected_speed(rows).verdict == verdict


@pytest.mark.parametrize(("unpromised", "verdict"), [(0, "reproduced"), (3, "partly"), (10, "not")])
def test_published_steps_are_judged_by_their_own_bound(study, unpromised, verdict):
    row = lq_row(num_unpromised=[unpromised] * 2)
    assert study["judging"].judge_promise({"spg": row, "fspg": row}).verdict == verdict


@pytest.mark.parametrize(("worse", "verdict"), [(0, "reproduced"), (1, "partly"), (40, "not")])
def test_worse_updates_of_the_published_runs_are_counted(study, worse, verdict):
    rows = {name: lq_row(num_steps=[500, 500], num_worse=[worse, 0]) for name in ("spg", "fspg")}
    assert study["judging"].judge_monotony(rows).verdict == verdict


@pytest.mark.parametrize(("moved", "verdict"), [(10, "reproduced"), (2, "partly"), (0, "not")])
def test_a_bound_that_never_allows_a_step_is_told_with_what_it_asks_for(study, moved, verdict):
    claim = study["judging"].judge_sub_gaussian({"corrected_sub_gaussian": lq_row(num_steps=[moved] * 2)})
    assert claim.verdict == verdict
    assert claim.ours.endswith("would ask for 62490300")


@pytest.mark.parametrize(("steps", "worse", "verdict"), [(10, 0, "reproduced"), (10, 1, "partly"), (0, 0, "not")])
def test_a_corrected_rule_that_never_moves_has_shown_nothing(study, steps, worse, verdict):
    row = lq_row(num_steps=[steps] * 2, num_worse=[worse] * 2)
    assert study["judging"].judge_corrected({"corrected_bernstein": row, "spg": lq_row()}).verdict == verdict


@pytest.mark.parametrize(
    ("returns", "verdict"),
    [([[9.1, 9.2], [9.3], [9.4], [9.5]], "reproduced"), ([[9.1, 9.4], [9.3], [9.4], [9.5]], "partly"),
     ([[9.1], [9.5], [9.4], [9.6]], "not")],
)  # fmt: skip
def test_tolerances_are_judged_by_their_order(study, returns, verdict):
    sizes = ([1500.0], [600.0], [300.0], [100.0])
    rows = {
        label: pole_row(end_return=value, mean_batch=size)
        for label, value, size in zip(study["authors"].CART_POLE, returns, sizes, strict=True)
    }
    assert study["judging"].judge_order(rows).verdict == verdict
    rows["gpomdp"] = pole_row(end_return=[9.6], mean_batch=[2000.0])
    assert study["judging"].judge_order(rows).verdict == "not"


@pytest.mark.parametrize(("margin", "verdict"), [(0.0, "reproduced"), (-0.01, "partly"), (-0.2, "not")])
def test_a_milestone_must_be_kept_by_every_run(study, margin, verdict):
    rows = {"lambda_0.1": pole_row(), "lambda_0.2": pole_row(margin=[0.5, margin]), "gpomdp": pole_row(margin=[-9, -9])}
    assert study["judging"].judge_milestone(rows).verdict == verdict


@pytest.mark.parametrize(("share", "verdict"), [(0.0, "reproduced"), (0.005, "partly"), (0.3, "not")])
def test_features_above_the_bound_are_counted(study, share, verdict):
    rows = {"lambda_0.1": pole_row(share_above=[[0.0, share]] * 2), "scaled": pole_row()}
    assert study["judging"].judge_features(rows).verdict == verdict


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [({}, "reproduced"), ({"end_return": [8.4, 9.0]}, "partly"), ({"margin": [-0.1, 1.0]}, "not"),
     ({"num_void": [1, 0]}, "not"), ({"share_above": [[0.0, 0.1]] * 2}, "not")],
)  # fmt: skip
def test_the_scaled_run_must_keep_what_it_promises_and_learn(study, changed, verdict):
    assert study["judging"].judge_scaled({"scaled": pole_row(**changed)}).verdict == verdict


@pytest.mark.parametrize(
    ("away", "size", "verdicts"),
    [(0.0, 1.05, ("reproduced", "reproduced")), (0.1, 0.75, ("partly", "partly")), (0.3, 2.0, ("not", "not"))],
)
def test_returns_and_batches_of_the_cart_pole_are_judged_by_the_bars(study, away, size, verdicts):
    rows = {
        label: pole_row(end_return=[theirs.end_return + away] * 2, mean_batch=[theirs.mean_batch * size] * 2)
        for label, theirs in study["authors"].CART_POLE.items()
    }
    found = {claim.id: claim.verdict for claim in study["judging"]._judge_pole_figures(rows)}
    assert (found["cart-pole-return-lambda_0.1"], found["cart-pole-batch-lambda_0.1"]) == verdicts
    assert "cart-pole-batch-gpomdp" not in found


# the command


def test_smoke_makes_every_claim_on_the_list_or_says_why_not(tmp_path):
    command = [sys.executable, FOLDER / "run.py", "--smoke", "--runs", tmp_path / "runs", "--json", tmp_path / "r.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads((tmp_path / "r.json").read_text())
    made = [claim["id"] for claim in found["claims"]]
    assert found["incomplete"] == []
    assert not set(made) & set(found["left_out"])
    assert all(found["left_out"].values())
    listed = json.loads((FOLDER.parent / "claims.json").read_text())
    named = [study.split("/")[1] for claim in listed for study in claim["studies"] if study.startswith(FOLDER.name)]
    assert sorted([*made, *found["left_out"]]) == sorted(named)
    assert "lq-published-promise" in made
    assert "lq-return-spg" in found["left_out"]
    assert (tmp_path / "figures.svg").exists()
    again = subprocess.run([*command, "--finished-only"], capture_output=True, text=True, timeout=120)
    assert "units to do" not in again.stdout
    assert "left out: lq-return-spg, it is of whole runs" in again.stdout


def test_the_readme_gets_claims_and_a_table_of_each_task_between_the_marks(study, tmp_path):
    page = tmp_path / "README.md"
    text = (FOLDER / "README.md").read_text()
    page.write_text(text)
    claim = study["judging"].judge_milestone({"lambda_0.1": pole_row()})
    found = {"claims": [vars(claim)], "lq": {"spg": lq_row()}, "cart_pole": {"lambda_0.1": pole_row()}}
    study["pages"].write_readme(page, found)
    written = page.read_text()
    assert written.partition("<!-- results")[0] == text.partition("<!-- results")[0]
    assert "| lambda_0.1 | 10 | 500 |" in written
    assert "| spg | 10 | 1000 | 100 | 2000 | -6.4 |" in written
    assert "Not run yet" not in written
