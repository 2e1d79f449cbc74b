"""The loop of 2017: the published curve, records, resume, modes, what is said of the guarantee, refusals."""

import io
import json
import math
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch

from anybatch import InputError, RunError
from anybatch.decide import error_bounds, gaussian_penalty
from anybatch.rl import LQG, GaussianPolicy, SafePolicyGradient, SoftmaxPolicy, gradient_estimate
from anybatch.rl.gradient_estimate import estimate_gradient
from anybatch.seeds import derive_seed

TASK = {"reward_bound": 4.0, "feature_bound": 2.0, "discount": 0.9, "std": 1.0}


def agent(theta=0.0, env=None, **options) -> SafePolicyGradient:
    options = {"bound": "student_t", "delta": 0.25, "seed": 3, **options}
    return SafePolicyGradient(env or LQG(), GaussianPolicy(theta), **options)


def test_paper_mode_follows_the_published_curve():
    run = agent(bound="chebyshev", delta=0.95, mode="paper", seed=1, max_batch_size=100_000).run(1_000_000)
    by_size = {place: min(run.iterations, key=lambda u: abs(u.num_trajectories - place)) for place in (10**5, 10**6)}
    assert by_size[10**5].performance == pytest.approx(-52.75, abs=0.3)
    assert by_size[10**6].performance == pytest.approx(-34.79, abs=0.3)
    assert run.iterations[0].performance == pytest.approx(-56.6666667)
    performances = [update.performance for update in run.iterations]
    assert performances == sorted(performances)
    assert 270 < len(run.iterations) < 300


def test_an_update_is_the_estimate_the_decision_and_the_step():
    loop = agent(bound="chebyshev", min_batch_size=2000)
    update = loop.step()
    estimate = estimate_gradient(LQG(), GaussianPolicy(0.0), 2000, seed=derive_seed(3, "batch", 0))
    error = error_bounds.chebyshev(estimator="gpomdp", **TASK, horizon=20, delta=0.25).error(2000)
    gradient = abs(estimate.gradient.item())
    penalty = gaussian_penalty(**TASK, action_volume=4.0)
    step_size = ((gradient - error) / (gradient + error)) ** 2 / (2 * penalty)
    assert update.max_gradient == pytest.approx(gradient)
    assert update.error == pytest.approx(error)
    assert update.step_size == pytest.approx(step_size)
    assert loop.policy.parameters.item() == pytest.approx(step_size * estimate.gradient.item())
    assert update.measured_performance == pytest.approx(estimate.mean_return)
    assert update.measured_std_error == pytest.approx(estimate.return_std / math.sqrt(2000))
    assert update.performance == pytest.approx(LQG().exact_performance(GaussianPolicy(0.0)))
    size, policy = loop.next_batch_size, loop.policy
    again = estimate_gradient(LQG(), policy, size, seed=derive_seed(3, "batch", 1))
    assert loop.step().max_gradient == pytest.approx(abs(again.gradient.item()))


def test_records_refer_to_the_policy_before_the_update_and_count_trajectories():
    run = agent().run(3000)
    assert run.iterations[0].performance == run.first_performance
    assert [update.iteration for update in run.iterations] == list(range(1, len(run.iterations) + 1))
    assert np.cumsum([update.batch_size for update in run.iterations]).tolist() == [
        update.num_trajectories for update in run.iterations
    ]
    assert run.final_performance > run.iterations[-1].performance
    assert run.num_trajectories <= 3000


def test_a_resumed_run_equals_an_uninterrupted_one():
    whole = agent(range="empirical", bound="bernstein").run(20_000)
    first = agent(range="empirical", bound="bernstein")
    first.run(4000)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = agent(range="empirical", bound="bernstein")
    second.load_state_dict(torch.load(file, weights_only=True))
    assert 0 < len(second.iterations) < len(whole.iterations)
    assert second.run(20_000) == whole


def test_a_run_says_why_it_ended_before_its_budget():
    options = {"bound": "chebyshev", "min_batch_size": 100, "delta": 0.05}
    first = agent(**options).run(30_000)
    assert len(first.iterations) == 1
    assert first.notes[-1] == "the run ended with 29900 of 30000 trajectories left: the next batch wants 54823"
    assert not any("left" in note for note in agent(**options).run(100).notes)  # nothing is


def test_another_seed_is_another_run_and_the_same_is_the_same():
    assert agent().run(2000) == agent().run(2000)
    assert agent().run(2000) != agent(seed=4).run(2000)
    several = {"min_batch_size": 60_000, "range": "empirical", "bound": "bernstein"}  # chunks
    assert agent(**several).step() == agent(**several, num_workers=2).step()


def test_safe_mode_takes_no_step_that_paper_mode_takes():
    safe, paper = (agent(bound="chebyshev", mode=mode).step() for mode in ("safe", "paper"))
    assert (safe.step_size, safe.is_safe, safe.guaranteed_gain) == (0.0, False, 0.0)
    assert paper.step_size > 0
    assert not paper.is_safe
    assert paper.failure_probability == 1
    assert safe.failure_probability == 0.25


def test_safe_mode_scores_the_drawn_action_and_paper_mode_the_clipped_one():
    for mode, score in (("safe", "drawn"), ("paper", "clipped")):
        seed = derive_seed(3, "batch", 0)
        estimate = estimate_gradient(LQG(), GaussianPolicy(0.0), 100, seed=seed, score=score)
        assert agent(mode=mode).step().max_gradient == pytest.approx(abs(estimate.gradient.item()))


def test_the_penalty_of_each_mode_is_its_own():
    task: dict = {"reward_bound": 2.125, "feature_bound": 2.0, "discount": 0.1, "std": 1.0, "action_volume": 1.0}
    for mode in ("safe", "paper"):
        loop = agent(env=LQG(max_action=0.5), mode=mode, discount=0.1)
        assert loop.rule.penalty_of(loop.deployment.constants) == gaussian_penalty(**task, mode=mode)


def test_the_batch_may_be_held_fixed():
    run = agent(min_batch_size=500, max_batch_size=500).run(5000)
    assert [update.batch_size for update in run.iterations] == [500] * 10


def test_only_the_coordinate_with_the_largest_gradient_moves():
    env = LQG(size=2)
    loop = SafePolicyGradient(env, GaussianPolicy(torch.zeros(2, 2)), "student_t", delta=0.25, min_batch_size=2000)
    update = loop.step()
    moved = loop.policy.parameters.nonzero().flatten().tolist()
    assert moved == [update.coordinate]
    assert update.failure_probability == min(4 * 0.25, 1.0)
    assert update.gradient_norm > update.max_gradient


def test_the_probability_spent_adds_up_to_one_at_most():
    run = agent(delta=0.3).run(3000)
    spent = [update.failure_probability_so_far for update in run.iterations]
    assert spent[:4] == pytest.approx([0.3, 0.6, 0.9, 1.0])
    assert run.failure_probability == 1.0


def test_the_guarantee_is_proven_only_where_nothing_is_estimated():
    strict = {"bound": "chebyshev", "estimator": "reinforce", "baseline": False}
    assert agent(**strict).step().guarantee == "proven"
    (note,) = agent(**strict).run(100).notes
    assert note == "performance is the exact one of the process that is measured, clipping and horizon included"
    for options, note in (
        (strict | {"baseline": True}, "baselines from the same batch bias the gradient by order 1/N"),
        (strict | {"estimator": "gpomdp"}, "the published variance of G(PO)MDP can be exceeded where rewards follow"),
        ({"bound": "student_t"}, "Student's t is approximate"),
        ({"bound": "bernstein", "range": "empirical"}, "the range is that of the sample"),
        ({"bound": "hoeffding"}, "the published range can be exceeded by a trajectory"),
        (strict | {"mode": "paper"}, "the score of the clipped action is biased"),
    ):
        run = agent(**options).run(100)
        assert run.guarantee == run.iterations[0].guarantee == "heuristic"
        assert run.notes[0].startswith(f"the guarantee is heuristic: {note}")
        assert "guarantee heuristic" in run.reason
        assert agent(**options, min_batch_size=200_000).step().reason.count("if the heuristic bound holds") == 1


class Pushed(gymnasium.vector.VectorEnv):
    """Eight sub-environments of one step after another: the reward is minus the squared action, less than 9."""

    def __init__(self, reward=lambda action: -(action**2), space=None):
        self.num_envs = 8
        self.metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.single_action_space = space or gymnasium.spaces.Box(-3.0, 3.0, (1,), np.float64)
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, 8)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, 8)
        self.reward = reward

    def reset(self, *, seed=None, options=None):
        return np.ones((8, 1)), {}

    def step(self, actions):
        rewards = self.reward(np.clip(np.asarray(actions, dtype=np.float64)[:, 0], -3, 3))
        return np.ones((8, 1)), rewards, np.zeros(8, bool), np.zeros(8, bool), {}


def pushed(**options) -> SafePolicyGradient:
    env = options.pop("env", None) or Pushed()
    defaults = {
        "bound": "chebyshev",
        "estimator": "reinforce",
        "baseline": False,
        "delta": 0.5,
        "discount": 0.5,
        "horizon": 2,
        "min_batch_size": 16,
    }
    return SafePolicyGradient(env, GaussianPolicy(1.0), **{**defaults, **options})


def test_constants_that_are_not_given_come_from_the_data_and_every_output_says_so():
    loop = pushed()
    run = loop.run(2000)
    constants, left = loop.deployment.constants, 2000 - run.num_trajectories
    assert 0 < constants.reward_bound <= 9
    assert constants.feature_bound == 1
    assert constants.action_volume == 6
    assert run.guarantee == "heuristic"
    assert run.notes == (
        "the guarantee is heuristic: reward_bound is estimated from data, feature_bound is estimated from data",
        "no exact performance is known: deployed policies are compared by the mean returns of their batches",
        f"the run ended with {left} of 2000 trajectories left: the next batch wants {loop.next_batch_size}",
    )
    assert "guarantee heuristic" in run.reason
    assert run.to_json()["settings"]["constants"]["estimated"] == ["reward_bound", "feature_bound"]
    assert run.final_performance is None
    assert run.first_performance == run.iterations[0].measured_performance


def test_given_constants_are_taken_and_prove():
    run = pushed(reward_bound=9.0, feature_bound=1.0).run(100)
    assert run.guarantee == "proven"


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"reward_bound": 2.0, "feature_bound": 1.0}, r"a reward of size \d.* exceeds the stated bound 2 by .*void"),
        ({"reward_bound": 9.0, "feature_bound": 0.8}, r"a feature of size 1 exceeds the stated bound 0.8 by 0.2 \(25"),
    ],
)
def test_what_exceeds_a_stated_bound_voids_the_guarantee_and_says_by_how_much(stated, message):
    loop = pushed(**stated)
    with pytest.warns(UserWarning, match=message):
        run = loop.run(2000)
    assert run.guarantee == "void"
    assert "the guarantee is void" in run.notes[0]
    assert run.iterations[-1].guarantee == "void"


def void(**options) -> SafePolicyGradient:
    """A loop whose first batch exceeds the stated R, with an error far below the gradient."""
    return agent(reward_bound=1.0, min_batch_size=2000, **options)


def test_safe_mode_stays_where_it_is_once_the_guarantee_is_void_and_draws_no_more():
    loop = void()
    with pytest.warns(UserWarning, match="exceeds the stated bound 1"):
        run = loop.run(50_000)
    (update,) = run.iterations
    assert (update.step_size, update.is_safe, update.guaranteed_gain) == (0.0, False, 0.0)
    assert update.reason == "a stated bound was exceeded: no step; the guarantee is void"
    assert (update.failure_probability, run.guaranteed_gain) == (1.0, -math.inf)
    assert run.parameters == (0.0,)
    assert run.notes[-1] == "the run ended with 48000 of 50000 trajectories left, as the guarantee is void"
    assert loop.step().step_size == 0
    again = void()
    again.load_state_dict(loop.state_dict())
    assert len(again.run(50_000).iterations) == 2


def test_paper_mode_goes_on_once_the_guarantee_is_void_and_calls_no_step_safe():
    loop = void(mode="paper")
    with pytest.warns(UserWarning, match="exceeds the stated bound 1"):
        run = loop.run(50_000)
    assert len(run.iterations) > 1
    assert loop.policy.parameters.item() < 0
    for update in run.iterations:
        assert (update.is_safe, update.guaranteed_gain) == (False, -math.inf)
        assert update.reason.startswith("a stated bound was exceeded: step ")
        assert update.reason.endswith("as published, without a guarantee; the guarantee is void")
    assert run.to_json()["iterations"][0]["guaranteed_gain"] is None


def test_episodes_that_end_early_are_said_or_refused():
    class Ending(Pushed):
        def step(self, actions):
            observations, rewards, _, truncated, info = super().step(actions)
            return observations, rewards, np.ones(8, bool), truncated, info

    run = pushed(env=Ending()).run(64)
    assert any("ended before the horizon and were padded" in note for note in run.notes)
    with pytest.raises(InputError, match="episodes must last to the horizon"):
        pushed(env=Ending(), early_end="refuse").run(64)


def test_the_worst_deployed_policy_is_compared_with_the_first():
    values = iter([-5.0, -7.0, -6.0, -4.0, -4.0, -4.0])
    loop = agent(performance=lambda policy: next(values))
    for _ in range(3):
        loop.step()
    run = loop.result()
    assert (run.first_performance, run.worst_performance, run.worst_iteration) == (-5.0, -7.0, 2)
    assert run.final_performance == -4.0
    assert "worst deployed policy -2 against the first" in run.reason
    assert "none worse than the first" in agent(min_batch_size=2000).run(4000).reason


def test_the_last_policy_may_be_the_worst():
    values = iter([-5.0, -9.0])
    loop = agent(performance=lambda policy: next(values))
    loop.step()
    run = loop.result()
    assert (run.worst_performance, run.worst_iteration, run.worst_parameters) == (-9.0, 2, run.parameters)


def test_records_callback_and_news_come_with_each_update(tmp_path):
    path, seen, told = tmp_path / "records.jsonl", [], []
    loop = agent()
    loop.run(1500)
    run = loop.run(3000, records=path, callback=seen.append, tell=lambda *news: told.append(news))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [update.to_json() for update in run.iterations]
    assert list(run.iterations[-len(seen) :]) == seen
    assert {stage for stage, *_ in told} == {"updates"}
    news = [words for *_, words in told]
    assert 0 < len(seen) < len(lines)
    assert [words for words in news if ", batch" in words.partition(";")[0]] == news[1::2]
    assert len(news) == 2 * len(seen)
    assert news[2] == f"update {seen[1].iteration}, {seen[1].batch_size} trajectories; {news[1]}"
    assert [share for _, share, _ in told[1::2]] == [update.num_trajectories / 3000 for update in seen]
    assert "guarantee heuristic" in told[-1][2]
    assert {"batch_size", "step_size", "performance", "measured_performance", "is_safe"} <= lines[0].keys()


def test_a_run_becomes_json_without_infinities():
    loop = agent()
    loop.step()
    run = replace(loop.result(), final_performance=-math.inf)
    plain = json.loads(json.dumps(run.to_json(), allow_nan=False))
    assert plain["final_performance"] is None
    assert plain["iterations"][0]["batch_size"] == 100
    assert plain["settings"]["delta"] == 0.25
    assert plain["settings"]["constants"]["reward_bound"] == 4


def test_progress_moves_within_an_update(monkeypatch):
    monkeypatch.setattr(gradient_estimate, "LARGEST_CHUNK", 25)
    told = []
    agent().run(100, tell=lambda *news: told.append(news))
    assert told[:4] == [("updates", n / 100, f"update 1, {n} trajectories") for n in (25, 50, 75, 100)]
    assert told[4][2].startswith("update 1, batch 100, performance")


def test_an_update_that_is_ended_within_its_batch_leaves_the_loop_as_it_was(monkeypatch):
    def stop(num_drawn):
        if num_drawn > 40:
            raise KeyError

    monkeypatch.setattr(gradient_estimate, "LARGEST_CHUNK", 25)
    loop, whole = agent(), agent()
    loop.run(1000)
    before = loop.state_dict()
    with pytest.raises(KeyError):
        loop.step(stop)
    assert str(loop.state_dict()) == str(before)
    with pytest.raises(KeyError):
        loop.run(3000, after_chunk=stop)
    assert str(loop.state_dict()) == str(before)
    assert loop.run(3000) == whole.run(3000)


def test_a_callback_that_stops_the_run_leaves_it_whole():
    def stop(update):
        if update.iteration == 3:
            raise KeyboardInterrupt

    loop = agent()
    with pytest.raises(KeyboardInterrupt):
        loop.run(20_000, callback=stop)
    assert len(loop.iterations) == 3
    assert loop.run(5000) == agent().run(5000)


def test_a_state_of_other_settings_or_version_is_refused():
    loop = agent()
    loop.step()
    with pytest.raises(InputError, match="must be of the same settings; got another delta, mode"):
        agent(delta=0.1, mode="paper").load_state_dict(loop.state_dict())
    with pytest.raises(InputError, match="must have version 1; got 7"):
        agent().load_state_dict(loop.state_dict() | {"version": 7})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": 1.5}, "delta must be between 0 and 1; got 1.5"),
        ({"bound": "markov"}, "bound must be one of chebyshev, hoeffding, bernstein, student_t; got 'markov'"),
        ({"estimator": "pgpe"}, "estimator must be one of"),
        ({"mode": "bold"}, "mode must be one of safe, paper; got 'bold'"),
        ({"range": "guessed"}, "range must be one of theoretical, empirical; got 'guessed'"),
        ({"min_batch_size": 500, "max_batch_size": 100}, "min_batch_size must be at most max_batch_size; got 500 and"),
        ({"min_batch_size": 0}, "min_batch_size must be a whole number of at least 1; got 0"),
        ({"reward_bound": -1.0}, "reward_bound must be positive and finite; got -1.0"),
        ({"penalty": 0.0}, "penalty must be positive and finite; got 0.0"),
        ({"discount": 1.1}, "discount must be between 0 and 1; got 1.1"),
        (
            {"discount": 1.0},
            "discount must be below 1 for a penalty or a range that is computed from it; got 1. ",
        ),
        ({"discount": 1.0, "penalty": 9e3, "bound": "hoeffding"}, "discount must be below 1 for a penalty or a range"),
        ({"horizon": 0}, "horizon must be a whole number of at least 1; got 0"),
        ({"action_volume": 3.9}, "action_volume must be at least that of the box of actions, 4; got 3.9. Leave it out"),
        ({"action_volume": math.inf}, "action_volume must be positive and finite; got inf"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_drawn(options, message):
    with pytest.raises(InputError, match=message):
        agent(**options)


def test_what_the_method_cannot_use_is_refused():
    with pytest.raises(InputError, match="policy must be Gaussian, with a covariance; got SoftmaxPolicy"):
        SafePolicyGradient(LQG(), SoftmaxPolicy(torch.zeros(2, 1)))
    unbounded = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    with pytest.raises(InputError, match="action_volume must be known for this bound; the action space is discrete or"):
        pushed(env=Pushed(space=unbounded))
    assert pushed(env=Pushed(space=unbounded), penalty=100.0).step().iteration == 1
    run = pushed(env=Pushed(space=unbounded), action_volume=6.0).run(16)
    assert "the action space is unbounded: its volume is not known but stated, 6" in run.notes
    for options in ({"penalty": 100.0}, {"penalty": 100.0, "action_volume": 6.0}, {"env": Pushed()}):
        notes = pushed(**{"env": Pushed(space=unbounded)} | options).run(16).notes
        assert not any("unbounded" in note for note in notes)
    with pytest.raises(InputError, match="discount must be given for an environment that does not state it"):
        pushed(discount=None)
    with pytest.raises(InputError, match="horizon must be given"):
        pushed(horizon=None)
    with pytest.raises(InputError, match="rewards must be finite"):
        pushed(env=Pushed(reward=lambda action: action * np.nan)).step()


@pytest.mark.parametrize(
    "options", [{"bound": "chebyshev"}, {"bound": "student_t"}, {"bound": "bernstein", "range": "empirical"}]
)
def test_a_discount_of_1_is_taken_where_nothing_is_computed_that_is_infinite_there(options):
    update = agent(**options, discount=1.0, penalty=1e4, min_batch_size=40_000).step()
    assert 0 < update.error < update.max_gradient
    assert update.is_safe
    estimate = estimate_gradient(LQG(), GaussianPolicy(0.0), 40_000, discount=1.0, seed=derive_seed(3, "batch", 0))
    assert update.max_gradient == pytest.approx(abs(estimate.gradient.item()))


@pytest.mark.parametrize("volume", [4.0, 4.0 - 1e-6, 5.0])
def test_a_stated_action_volume_may_be_that_of_the_box_or_more(volume):
    loop = agent(action_volume=volume)
    assert loop.deployment.constants.action_volume == volume
    assert "unbounded" not in " ".join(loop.deployment.notes())


def test_a_feature_map_has_no_bound_unless_one_is_given():
    policy = GaussianPolicy([0.0, 0.0], features=lambda states: torch.cat([states, states**2], 1))
    options = {"bound": "chebyshev", "estimator": "reinforce", "baseline": False, "min_batch_size": 200}
    assert SafePolicyGradient(LQG(), policy, **options).step().guarantee == "heuristic"
    update = SafePolicyGradient(LQG(), policy, **options, feature_bound=4.0).step()
    assert update.guarantee == "proven"
    assert update.performance == pytest.approx(LQG().exact_performance(policy))
    assert SafePolicyGradient(LQG(), policy, "student_t", mode="paper").step().performance is None  # no closed form


def test_a_budget_below_the_first_batch_and_a_path_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(InputError, match="num_trajectories must hold the first batch; got 99 for a batch of 100"):
        agent().run(99)
    with pytest.raises(InputError, match="a result must have an update behind it"):
        agent().result()
    with pytest.raises(RunError, match="cannot be written"):
        agent().run(1000, records=tmp_path / "no" / "where.jsonl")
