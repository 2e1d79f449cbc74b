"""Native environments keep Gymnasium's promises, and any vector environment can be rolled out."""

import math
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from anybatch.errors import InputError
from anybatch.rl import LQG, ContinuousCartPole, GaussianPolicy, SoftmaxPolicy, estimate_gradient
from anybatch.rl.gymnasium_rollout import roll_out_gymnasium
from anybatch.rl.registration import ENVIRONMENTS
from anybatch.rl.rollout import roll_out

TASKS = {
    "lqg": (lambda num, **options: LQG(num, **options), [[-0.3]]),
    "two dimensions": (lambda num, **options: LQG(num, size=2, max_state=[2.0, 3.0], **options), -0.4 * torch.eye(2)),
    "cart-pole": (lambda num, **options: ContinuousCartPole(num, **options), [[-0.9, 2.1, 3.5, 7.3]]),
    "falling cart-pole": (lambda num, **options: ContinuousCartPole(num, **options), [[0.0, 0.0, -9.0, 0.0]]),
}


@pytest.mark.parametrize("score", ["drawn", "clipped"])
@pytest.mark.parametrize("task", TASKS)
def test_the_vector_environment_gives_the_trajectories_of_the_tensors(task, score):
    make, weights = TASKS[task]
    env, policy = make(64), GaussianPolicy(weights)
    slow = roll_out_gymnasium(env, policy, 60, start_seed=5, noise_seed=6, score=score)
    fast = roll_out(env.dynamics, policy, 64, 60, start_seed=5, noise_seed=6, score=score)
    horizon = env.task.horizon or 60
    steps = slice(0, min(60, horizon))  # the environment is truncated at its own horizon
    # float32 against float64 policies: rounding grows along a trajectory
    torch.testing.assert_close(slow.rewards[steps].float(), fast.rewards[steps], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(slow.scores[steps].float(), fast.scores[steps], rtol=5e-3, atol=5e-3)
    if horizon >= 60:
        assert slow.num_ended_early == fast.num_ended_early
        assert slow.max_feature == pytest.approx(fast.max_feature, rel=1e-4)
    assert (fast.num_ended_early > 32) == (task == "falling cart-pole")


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_registered_environment_keeps_the_promises_of_a_vector_environment(name):
    env = gymnasium.make_vec(name, num_envs=3)
    first, info = env.reset(seed=7)
    again, _ = env.reset(seed=7)
    assert np.array_equal(first, again)
    assert info == {}
    assert not np.array_equal(first, env.reset(seed=8)[0])
    assert first in env.observation_space
    env.action_space.seed(0)
    for _ in range(3):
        observations, rewards, terminated, truncated, infos = env.step(env.action_space.sample())
        assert observations in env.observation_space
        assert rewards.shape == terminated.shape == truncated.shape == (3,)
        assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
        assert infos == {}
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    env.close()


def test_sub_environments_are_truncated_at_the_horizon_and_start_anew_on_the_next_step():
    env = LQG(2, horizon=3)
    env.reset(seed=0)
    still = np.zeros((2, 1), np.float32)
    truncated = [env.step(still)[3].tolist() for _ in range(3)]
    assert truncated == [[False, False], [False, False], [True, True]]
    before = env.step(still)
    assert before[1].tolist() == [0.0, 0.0]
    assert before[3].tolist() == [False, False]
    after = env.step(still)
    assert np.array_equal(after[0], before[0])  # no action: the state stays
    assert after[1] == pytest.approx(-0.5 * before[0][:, 0] ** 2)


def test_a_reset_mask_starts_some_anew():
    env = LQG(3)
    first, _ = env.reset(seed=0)
    second, _ = env.reset(options={"reset_mask": np.array([True, False, True])})
    assert (first == second)[:, 0].tolist() == [False, True, False]


class Countdown(gymnasium.Env):
    """Ends after 3 steps where it starts with a state below a half, after 100 elsewhere; reward 1, then a poison."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float64)

    def __init__(self, action_space: gymnasium.Space, reward: float = 1.0):
        self.action_space = action_space
        self.reward = reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.start, self.step_number = self.np_random.random(), 0
        return np.array([self.start]), {}

    def step(self, action):
        assert action in self.action_space
        self.step_number += 1
        last = 3 if self.start < 0.5 else 100
        return np.array([self.start]), self.reward, self.step_number == last, False, {}


def countdown(mode=AutoresetMode.NEXT_STEP, space=None, **options):
    space = space or gymnasium.spaces.Discrete(2, start=5)
    return SyncVectorEnv([lambda: Countdown(space, **options)] * 16, autoreset_mode=mode)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_nothing_counts_after_an_end_whatever_the_autoreset_mode(mode):
    policy = SoftmaxPolicy([[0.5], [-0.5]])
    trajectories = roll_out_gymnasium(countdown(mode), policy, 8, start_seed=3, noise_seed=4)
    is_short = trajectories.rewards.sum(0) == 3
    assert 0 < trajectories.num_ended_early == int(is_short.sum()) < 16
    assert bool((trajectories.rewards[:, ~is_short] == 1).all())
    assert bool((trajectories.scores[:3] != 0).all())
    assert bool((trajectories.scores[3:, :, is_short] == 0).all())
    assert bool((trajectories.scores[3:, :, ~is_short] != 0).all())


def nine_where_zero(states):
    """Features that are large at the zeros of a trajectory that is over."""
    return torch.where(states == 0, 9.0, states + 1)


@pytest.mark.parametrize("is_native", [True, False])
def test_features_of_a_trajectory_that_is_over_count_nothing(is_native):
    if is_native:
        policy = GaussianPolicy([[0.0, 0.0, -9.0, 0.0]], features=lambda states: states + 1)
        trajectories = roll_out(ContinuousCartPole().dynamics, policy, 64, 60, start_seed=5, noise_seed=6)
        assert trajectories.num_ended_early > 32
    else:
        policy = SoftmaxPolicy([[0.5], [-0.5]], features=nine_where_zero)
        trajectories = roll_out_gymnasium(countdown(), policy, 8, start_seed=3, noise_seed=4)
        assert trajectories.max_feature <= 2
    is_over = trajectories.rewards == 0
    assert bool((trajectories.scores.transpose(0, 1)[:, is_over] == 0).all())
    assert bool((trajectories.scores.transpose(0, 1)[:, ~is_over] != 0).all())
    assert bool(is_over.any())


def test_estimates_pad_or_refuse_an_early_end():
    policy = SoftmaxPolicy([[0.5], [-0.5]])
    estimate = estimate_gradient(countdown(), policy, 40, discount=1.0, horizon=8, seed=0)
    assert estimate.num_trajectories == 48  # whole rollouts of 16
    assert 0 < estimate.num_ended_early < 48
    assert 3 < estimate.mean_return < 8
    with pytest.raises(InputError, match="must last to the horizon of 8 steps; got one that ended at step 2"):
        estimate_gradient(countdown(), policy, 40, discount=1.0, horizon=8, seed=0, early_end="refuse")
    whole = estimate_gradient(countdown(), policy, 40, discount=1.0, horizon=3, seed=0, early_end="refuse")
    assert whole.num_ended_early == 0


def test_actions_are_clipped_to_a_box_of_any_shape():
    space = gymnasium.spaces.Box(np.array([[-0.1], [-0.2]], np.float32), np.array([[0.3], [0.4]], np.float32))
    estimate = estimate_gradient(
        countdown(space=space), GaussianPolicy([[0.5], [1.0]]), 32, discount=0.9, horizon=3, seed=0
    )
    assert estimate.gradient.shape == (2,)


def test_a_softmax_policy_learns_which_way_to_push_the_cart():
    env = gymnasium.make_vec("CartPole-v1", num_envs=100, vectorization_mode="sync")
    estimate = estimate_gradient(env, SoftmaxPolicy(torch.zeros(2, 4)), 200, discount=0.95, horizon=50, seed=0)
    by_action = estimate.gradient.reshape(2, 4)
    torch.testing.assert_close(by_action[0], -by_action[1])  # scores of a softmax sum to zero over actions
    # to push right where the pole falls to the right keeps it up
    assert by_action[1, 3] > 4 * (estimate.variance[7] / 200).sqrt()


@pytest.mark.parametrize(
    ("env", "options", "message"),
    [
        (countdown(reward=math.nan), {}, "rewards must be finite; got nan at step 0"),
        (countdown(), {"discount": None}, "discount must be given for an environment that does not say its own"),
        (countdown(), {"horizon": None}, "horizon must be given"),
        (countdown(), {"num_workers": 2}, "num_workers must be left alone.*got 2"),
        (countdown(space=gymnasium.spaces.Discrete(3)), {}, "weights must have 3 rows, as the actions; got 2"),
        (countdown(space=gymnasium.spaces.MultiBinary(2)), {}, "actions must be Discrete for a SoftmaxPolicy"),
    ],
)
def test_what_cannot_be_rolled_out_is_refused(env, options, message):
    arguments = {"discount": 0.9, "horizon": 5, "seed": 0} | options
    with pytest.raises(InputError, match=message):
        estimate_gradient(env, SoftmaxPolicy([[0.5], [-0.5]]), 40, **arguments)


def test_without_its_extra_one_sentence_says_what_to_install():
    lines = [
        "import importlib.util, anybatch",
        "importlib.util.find_spec = lambda name: None",
        "try:",
        "    import anybatch.rl",
        "except anybatch.InputError as error:",
        "    print(error)",
    ]
    code = "\n".join(lines)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "anybatch.rl needs gymnasium and numba. Run: pip install 'anybatch[rl]'"


def test_a_native_environment_refuses_an_early_end_as_any_other_does():
    make, weights = TASKS["falling cart-pole"]
    env, policy = make(64), GaussianPolicy(weights)
    refused = {"start_seed": 5, "noise_seed": 6, "early_end": "refuse"}
    pattern = r"must last to the horizon of 60 steps; got one that ended at step (\d+)\. Pass early_end='pad'"
    with pytest.raises(InputError, match=pattern) as slow:
        roll_out_gymnasium(env, policy, 60, **refused)
    with pytest.raises(InputError, match=pattern) as fast:
        roll_out(env.dynamics, policy, 64, 60, **refused)
    assert str(slow.value) == str(fast.value)
    last = int(str(fast.value).partition("at step ")[2].partition(".")[0])
    assert roll_out(env.dynamics, policy, 64, last + 1, **refused).num_ended_early == 0  # the last step may end it
