"""What plausible but unusual inputs lead to: numbers of NumPy, other discounts, classes with ways of their own."""

import json
import math

import gymnasium
import numpy as np
import pytest
import torch

from anybatch.decide import choose_safe_step, error_bounds
from anybatch.errors import InputError
from anybatch.rl import LQG, GaussianPolicy, SafePolicyGradient, SmoothingPolicyGradient, TaskConstants
from anybatch.rl.gradient_estimate import estimate_gradient
from anybatch.rl.native_env import is_native
from anybatch.rl.policy_class import is_known_linear


@pytest.mark.parametrize(("discount", "horizon"), [(0.5, 5), (0.9, 40), (0.1, 20)])
def test_the_exact_performance_is_that_of_the_discount_and_the_horizon_of_the_run(discount, horizon):
    policy = GaussianPolicy(-0.5)
    agent = SafePolicyGradient(LQG(), policy, "chebyshev", discount=discount, horizon=horizon, max_batch_size=20_000)
    found = agent.run(100).first_performance
    assert found == pytest.approx(LQG(discount=discount, horizon=horizon).exact_performance(policy), rel=1e-12)
    measured = estimate_gradient(LQG(), policy, 50_000, seed=0, discount=discount, horizon=horizon)
    assert found == pytest.approx(measured.mean_return, abs=5 * measured.return_std / math.sqrt(50_000))


def test_the_published_performance_is_that_of_the_discount_of_the_run():
    policy = GaussianPolicy(-0.5)
    agent = SafePolicyGradient(LQG(), policy, "chebyshev", mode="paper", discount=0.5)
    assert agent.run(100).first_performance == pytest.approx(LQG(discount=0.5).performance(policy), rel=1e-12)


def test_an_environment_that_knows_its_own_process_alone_tells_nothing_of_another():
    class Own(LQG):
        def exact_performance(self, policy):
            return super().exact_performance(policy)

    assert SafePolicyGradient(Own(), GaussianPolicy(-0.5)).run(100).first_performance is not None
    assert SafePolicyGradient(Own(), GaussianPolicy(-0.5), discount=0.5).run(100).final_performance is None


@pytest.mark.parametrize(
    ("penalty", "guarantee", "caveat"), [(0.05, "heuristic", "is below that of the task's"), (1e6, "proven", None)]
)
def test_a_stated_penalty_is_said_and_one_that_is_too_small_makes_the_guarantee_heuristic(penalty, guarantee, caveat):
    agent = SafePolicyGradient(
        LQG(), GaussianPolicy(0.0), "chebyshev", "reinforce", 0.9, baseline=False, penalty=penalty, max_batch_size=5000
    )
    run = agent.run(5000)
    assert run.guarantee == guarantee
    assert f"the penalty is stated: c = {penalty:.6g}" in run.notes
    assert any("stated penalty" in note for note in run.notes) == (caveat is not None)


class Waving(GaussianPolicy):
    def means(self, features):
        return (50 * super().means(features)).sin()


class Renamed(GaussianPolicy):
    pass


def test_a_subclass_with_a_mean_of_its_own_is_not_known_to_be_linear():
    assert is_known_linear(GaussianPolicy(0.0))
    assert is_known_linear(Renamed(0.0))
    assert not is_known_linear(Waving(0.0))


def test_an_environment_with_a_step_of_its_own_is_asked_for_it():
    class Shifted(LQG):
        def step(self, actions):
            observations, rewards, *rest = super().step(actions)
            return observations, rewards + 100, *rest

    assert is_native(LQG())
    assert not is_native(Shifted())
    policy = GaussianPolicy(-0.5)
    plain = estimate_gradient(LQG(), policy, 2000, seed=0).mean_return
    shifted = estimate_gradient(Shifted(num_envs=500), policy, 2000, seed=0, discount=0.9, horizon=20).mean_return
    assert shifted - plain == pytest.approx(100 * (1 - 0.9**20) / 0.1, abs=0.5)
    agent = SafePolicyGradient(Shifted(num_envs=100), policy, max_batch_size=100, reward_bound=104.0)
    assert agent.run(100).final_performance is None


@pytest.mark.parametrize("loop", [SafePolicyGradient, SmoothingPolicyGradient])
def test_numbers_of_numpy_are_saved_and_written_as_plain_ones(loop, tmp_path):
    env = LQG()
    env.task = TaskConstants(np.float64(4.0), np.float64(2.0), np.float64(4.0), np.float64(0.9), np.int64(20))
    agent = loop(
        env,
        GaussianPolicy(-0.5),
        delta=np.float32(0.5),
        seed=np.int64(4),
        max_batch_size=np.int64(1000),
        performance=lambda policy: torch.tensor(1.0),
    )
    run = agent.run(np.int64(1000), records=tmp_path / "records.jsonl")
    json.dumps(run.to_json())
    torch.save(agent.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["settings"]["delta"] == 0.5


def test_whole_numbers_may_be_of_any_type():
    assert estimate_gradient(LQG(), GaussianPolicy(0.0), np.int64(1000), seed=0).num_trajectories == 1000
    bound = error_bounds.empirical_bernstein(variance=1e6, range=300.0, delta=0.5)
    step = choose_safe_step(
        max_gradient=1.0, batch_size=1e3, bound=bound, penalty=1.0, min_batch_size=100.0, max_batch_size=1e5
    )
    assert step.next_batch_size == 100_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_size": 10**30}, "max_batch_size must be at most 2\\^53"),
        ({"delta": "0.05"}, "delta must be between 0 and 1; got '0.05'"),
        ({"delta": None}, "delta must be between 0 and 1; got None"),
        ({"penalty": "1"}, "penalty must be positive and finite; got '1'"),
    ],
)
def test_what_is_no_such_number_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        SafePolicyGradient(LQG(), GaussianPolicy(0.0), **options)


def test_a_feature_map_may_return_an_array():
    policy = GaussianPolicy(-0.3, features=lambda states: np.tanh(states.numpy()))
    wanted = GaussianPolicy(-0.3, features=torch.tanh)
    found = [estimate_gradient(LQG(), each, 1000, seed=0).gradient.item() for each in (policy, wanted)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_scalar_environment_is_called_one():
    env = gymnasium.make("Pendulum-v1")
    with pytest.raises(InputError, match="must be a vector environment"):
        SafePolicyGradient(env, GaussianPolicy(torch.zeros(1, 3)), discount=0.9, horizon=5)


def test_batches_of_whole_rounds_stay_within_the_largest():
    env = gymnasium.make_vec("Pendulum-v1", num_envs=100)
    policy = GaussianPolicy(torch.zeros(1, 3))
    options = {"discount": 0.9, "horizon": 3, "min_batch_size": 10}
    run = SafePolicyGradient(env, policy, max_batch_size=150, **options).run(400)
    assert [update.batch_size for update in run.iterations] == [100] * 4
    with pytest.raises(InputError, match=r"max_batch_size must be at least 100.*100 sub-environments; got 50"):
        SafePolicyGradient(env, policy, max_batch_size=50, **options)
