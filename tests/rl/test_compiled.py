"""What is compiled equals what goes step by step, lets NaN through, and is compiled where nothing can be kept."""

import math
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anybatch.errors import InputError
from anybatch.rl import LQG, GaussianPolicy, GradientAccumulator, Trajectories, estimate_gradient
from anybatch.rl import compiled as module
from anybatch.rl.buffers import Buffers
from anybatch.rl.dynamics import Bounds
from anybatch.rl.linear_walk import is_linear_policy, is_linear_task
from anybatch.rl.lqg import LQGDynamics
from anybatch.rl.rollout import roll_out

DRAWS = {"start_seed": 1, "noise_seed": 2}


def random_task(size, num_actions, seed, max_state, max_action):
    """An LQG with full matrices and a policy with a full covariance."""
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    state_root, action_root = normal(size, size), normal(num_actions, num_actions)
    noise_root = normal(num_actions, num_actions)
    env = LQG(
        transition=normal(size, size) / size,
        control=normal(size, num_actions),
        state_cost=(state_root @ state_root.T),
        action_cost=(action_root @ action_root.T),
        max_start=0.5,
        max_state=None if max_state is None else 0.5 + normal(size).abs(),
        max_action=None if max_action is None else 0.5 + normal(num_actions).abs(),
    )
    covariance = noise_root @ noise_root.T + torch.eye(num_actions, dtype=torch.float64)
    return env, normal(num_actions, size), covariance


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 7, module.TILE, module.TILE + 1, 2 * module.TILE + 5]),
    st.integers(1, 6),
    st.sampled_from(["drawn", "clipped"]),
    st.sampled_from([None, 1.0]),
    st.sampled_from([None, 1.0]),
    st.integers(0, 2**31),
)
def test_a_compiled_walk_equals_one_step_by_step(size, num_actions, num, horizon, score, max_state, max_action, seed):
    env, weights, covariance = random_task(size, num_actions, seed, max_state, max_action)
    compiled, stepped = (
        roll_out(env.dynamics, policy, num, horizon, score=score, buffers=Buffers(torch.float64), **DRAWS)
        for policy in (GaussianPolicy(weights, covariance), GaussianPolicy(weights, covariance, lambda states: states))
    )
    scale = max(1.0, float(stepped.rewards.abs().max()))
    torch.testing.assert_close(compiled.rewards, stepped.rewards, rtol=0, atol=1e-11 * scale)
    scale = max(1.0, float(stepped.scores.abs().max()))
    torch.testing.assert_close(compiled.scores, stepped.scores, rtol=0, atol=1e-11 * scale)
    assert compiled.max_feature == pytest.approx(stepped.max_feature, rel=1e-10)
    assert compiled.max_feature_norm == pytest.approx(stepped.max_feature_norm, rel=1e-10)


@pytest.mark.parametrize("score", ["drawn", "clipped"])
def test_the_published_task_walks_in_float32_as_step_by_step(score):
    compiled, stepped = (
        roll_out(LQG().dynamics, policy, 10_000, 20, score=score, **DRAWS)
        for policy in (GaussianPolicy(-0.3), GaussianPolicy(-0.3, features=lambda states: states))
    )
    torch.testing.assert_close(compiled.scores, stepped.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(compiled.rewards, stepped.rewards, rtol=0, atol=1e-5)


def test_states_too_small_to_be_squared_have_a_norm():
    trajectories = roll_out(LQG(max_start=1e-30, control=0.0).dynamics, GaussianPolicy(0.0), 100, 3, **DRAWS)
    assert 0 < trajectories.max_feature == trajectories.max_feature_norm <= 1e-30


def test_one_bound_for_all_numbers_of_a_state_is_every_ones():
    env, policy = LQG(size=2), GaussianPolicy(-0.3 * torch.eye(2))
    wanted = roll_out(env.dynamics, policy, 100, 5, **DRAWS)
    env.dynamics.max_state = Bounds(torch.tensor([2.0], dtype=torch.float64))
    assert torch.equal(roll_out(env.dynamics, policy, 100, 5, **DRAWS).rewards, wanted.rewards)
    env.dynamics.max_state = Bounds(torch.ones(3))
    with pytest.raises(RuntimeError, match="expand"):
        roll_out(env.dynamics, policy, 100, 5, **DRAWS)


def test_a_task_that_resizes_its_rewards_is_refused():
    class Averaging(LQGDynamics):
        def rewards(self, states, actions, out):
            out.resize_(len(out), 1).zero_()

    env = LQG()
    env.dynamics.__class__ = Averaging
    with pytest.raises(InputError, match=r"rewards of shape .*got \(20, 1, 3000\) and \(20, 1\)"):
        estimate_gradient(env, GaussianPolicy(-0.3), 3000, seed=0)


def test_only_the_package_s_own_classes_are_compiled():
    class Reversed(LQGDynamics):
        def step(self, states, actions, out):
            super().step(states, -actions, out)

    class Shy(GaussianPolicy):
        def act(self, features, noise, out):
            out.zero_()

    assert is_linear_task(LQG().dynamics)
    assert not is_linear_task(object.__new__(Reversed))
    assert is_linear_policy(GaussianPolicy(0.0))
    assert not is_linear_policy(Shy(0.0))
    assert not is_linear_policy(GaussianPolicy(0.0, features=lambda states: states))
    assert roll_out(LQG().dynamics, GaussianPolicy(0.0), 500, 3, **DRAWS).rewards[1].std() > 0.1
    still = roll_out(LQG(state_cost=0.0).dynamics, Shy(0.0), 500, 3, **DRAWS)
    assert not still.rewards.any()


@pytest.mark.parametrize("place", [0, module.TILE - 1, module.TILE + 2])
def test_noise_that_is_no_number_reaches_rewards_and_scores(place):
    num = module.TILE + 3
    noise, starts = np.zeros((3, 1, num)), np.zeros((1, num))
    noise[1, 0, place] = math.nan
    one, scores, rewards = np.ones((1, 1)), np.empty((3, 1, num)), np.empty((3, num))
    module.walk(starts, noise, *[one] * 6, one[0], one[0], False, scores, rewards)
    assert np.argwhere(np.isnan(rewards)).tolist() == [[1, place], [2, place]]
    assert np.argwhere(np.isnan(scores)).tolist() == [[1, 0, place], [2, 0, place]]


@pytest.mark.parametrize("estimator", ["gpomdp", "reinforce"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 5, module.TILE + 1])
def test_a_reward_that_is_not_finite_is_found_wherever_it_is(estimator, value, place):
    rewards = torch.zeros(3, module.TILE + 2)
    rewards[1, place] = value
    accumulator = GradientAccumulator(estimator, discount=0.0)
    with pytest.raises(InputError, match=f"rewards must be finite; got {value} at step 1"):
        accumulator.add(Trajectories(torch.ones(3, 1, module.TILE + 2), rewards, max_feature=1.0))


def test_a_system_that_runs_away_is_refused():
    env = LQG(transition=1e30, max_state=None)
    with pytest.raises(InputError, match="rewards must be finite"):
        estimate_gradient(env, GaussianPolicy(0.0), 1000, seed=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_trajectories_may_be_of_any_type_and_lie_anyhow(dtype):
    scores = torch.randn(4, 2, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    rewards = torch.randn(4, 50, generator=torch.Generator().manual_seed(1)).to(dtype)
    wanted = GradientAccumulator(discount=0.9)
    wanted.add(Trajectories(scores.double(), rewards.double(), max_feature=1.0))
    found = GradientAccumulator(discount=0.9)
    lying = scores.transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    found.add(Trajectories(lying, rewards.T.contiguous().T, max_feature=1.0))
    torch.testing.assert_close(found.estimate().gradient, wanted.estimate().gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 40), (2, 41), (4, 1), (0, 40)])
def test_shapes_that_do_not_fit_are_refused(shape):
    accumulator = GradientAccumulator(discount=0.9)
    with pytest.raises(InputError, match=r"scores must be of shape \(steps, parameters, trajectories\).*\(2, 1, 40\)"):
        accumulator.add(Trajectories(torch.ones(2, 1, 40), torch.ones(shape), max_feature=1.0))


def test_what_does_not_go_together_is_refused():
    accumulator = GradientAccumulator(discount=0.9)
    accumulator.add(Trajectories(torch.ones(2, 1, 4), torch.ones(2, 4), max_feature=1.0))
    with pytest.raises(InputError, match=r"as many as those before, \(2, 1\); got \(3, 1\)"):
        accumulator.add(Trajectories(torch.ones(3, 1, 4), torch.ones(3, 4), max_feature=1.0))
    with pytest.raises(InputError, match="must be real"):
        accumulator.add(Trajectories(torch.ones(2, 1, 4) * 1j, torch.ones(2, 4), max_feature=1.0))


DOUBLE = """
import sys
sys.path.insert(0, {folder!r})
{before}
from doubling import double
print(double(21))
"""
MODULE = "from anybatch.rl.compiled import kept\n\n\n@kept\ndef double(number):\n    return {} * number\n"


def run_doubling(folder, before="", **environment):
    code = DOUBLE.format(folder=str(folder), before=before)
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | environment)
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize("damage", ["none", "empty index", "no room", "no directory"])
def test_code_is_compiled_where_it_cannot_be_kept(damage, tmp_path):
    (tmp_path / "doubling.py").write_text(MODULE.format(2))
    kept = {"NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    before = ""
    if damage == "empty index":
        assert run_doubling(tmp_path, **kept)[0] == "42"
        for index in (tmp_path / "kept").rglob("*.nbi"):
            index.write_bytes(b"")
    elif damage == "no room":
        before = "import numba, resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
        before += "; import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
    elif damage == "no directory":
        (tmp_path / "kept").write_text("a file")
    for _ in range(2):
        assert run_doubling(tmp_path, before, **kept) == ("42", "")


def test_code_that_could_not_be_kept_is_not_taken_for_what_was_kept_before(tmp_path):
    kept = {"NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    no_room = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
    no_room += "; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
    (tmp_path / "doubling.py").write_text(MODULE.format(2))
    assert run_doubling(tmp_path, **kept) == ("42", "")
    (tmp_path / "doubling.py").write_text(MODULE.format(10))
    assert run_doubling(tmp_path, "import anybatch.rl.compiled; " + no_room, **kept) == ("210", "")
    assert run_doubling(tmp_path, **kept) == ("210", "")
