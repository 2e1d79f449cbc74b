"""What is said of a guarantee is what holds: features, covariances, void bounds, noise, states of other tasks."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from rl.saturated_policy import OwnGaussianPolicy, SaturatedPolicy

from anybatch import InputError
from anybatch.decide import (
    choose_smoothing_step,
    error_bounds,
    gaussian_penalty,
    optimal_batch_size,
    return_interval,
    vector_error_bounds,
)
from anybatch.decide.error_bounds import ErrorBound
from anybatch.rl import (
    LQG,
    ContinuousCartPole,
    GaussianPolicy,
    SafePolicyGradient,
    SmoothingPolicyGradient,
    estimate_gradient,
)
from anybatch.rl.deployed import DeployedPolicy, deployed_policies, is_within_noise
from anybatch.rl.policy_class import PolicyClass

COVARIANCE = [[0.5, 0.2], [0.2, 0.8]]


class Paying(gymnasium.Env):
    """One step after another, each paying the same; a state of one number."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    task = "pays"

    def __init__(self, reward: float | None = 0.0, space=None):
        self.reward = reward
        self.observation_space = space or self.observation_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample() if self.reward is None else np.ones(1), {}

    def step(self, action):
        reward = float(action[0]) if self.reward is None else self.reward
        return np.ones(1), reward, False, False, {}


def paying(reward: float | None = 0.0, num=16, **options):
    return SyncVectorEnv([lambda: Paying(reward, **options)] * num)


def loop_2022(env=None, policy=None, **options):
    defaults = {"bound": "sample_chebyshev", "delta": 0.25, "max_batch_size": 400, "seed": 3}
    return SmoothingPolicyGradient(env or LQG(), policy or GaussianPolicy(0.0), **defaults | options)


def test_nothing_is_proven_of_a_policy_that_may_not_be_linear_in_its_features():
    strict = {"discount": 0.5, "horizon": 2, "reward_bound": 1.0, "feature_bound": 1.0, "baseline": False}
    of_2017 = {"bound": "chebyshev", "estimator": "reinforce", **strict}
    for policy, guarantee in (
        (GaussianPolicy(0.5), "proven"),
        (OwnGaussianPolicy(0.5), "proven"),
        (SaturatedPolicy(0.5), "heuristic"),
    ):
        for loop in (
            SafePolicyGradient(paying(None), policy, **of_2017),
            loop_2022(paying(None), policy, bound="sub_gaussian", **strict),
        ):
            update = loop.step()
            assert update.guarantee == guarantee
            note = "the guarantee is heuristic: the bound is proven for GaussianPolicy and SoftmaxPolicy, linear in"
            assert loop.deployment.notes()[0].startswith(note) == (guarantee == "heuristic")
            assert bool(loop.rule.caveats) == (guarantee == "heuristic")  # of which each reason tells


def test_a_feature_norm_beyond_its_bound_voids_the_guarantee_and_a_stated_one_is_no_estimate():
    features = GaussianPolicy(torch.zeros(1, 2), features=lambda states: torch.full((len(states), 2), 3.0))
    assert loop_2022(policy=features, feature_norm_bound=4.3).deployment.constants.estimated == ()
    loop = loop_2022(policy=features, feature_norm_bound=4.0)
    with pytest.warns(UserWarning, match=r"feature vector of size 4\.24264 exceeds the stated bound 4"):
        update = loop.step()
    assert (update.guarantee, update.failure_probability) == ("void", 1.0)
    assert update.reason.endswith("; the guarantee is void")


def test_the_variance_of_a_score_is_the_trace_of_the_precision():
    policy = GaussianPolicy(torch.zeros(2, 2), COVARIANCE)
    noise = torch.linalg.cholesky(policy.covariance) @ torch.randn(2, 200_000, dtype=torch.float64)
    scores = torch.linalg.solve(policy.covariance, noise)
    found = PolicyClass.of(policy)
    assert float(scores.square().sum(0).mean()) == pytest.approx(found.score_sq, rel=0.02)
    assert found.scale == pytest.approx(math.sqrt(float(torch.linalg.eigvalsh(policy.covariance)[0])))
    update = loop_2022(LQG(size=2), policy, bound="chebyshev", mini_batch_size=400).step()
    largest = vector_error_bounds.variance_bound(
        estimator="gpomdp", reward_bound=8.0, score_sq_bound=8 * found.score_sq, discount=0.9, horizon=20
    )
    assert update.error == pytest.approx(math.sqrt(largest / (0.25 / 4) / 400))


def test_several_actions_enter_the_rule_of_2017_by_their_covariance():
    loop = SafePolicyGradient(LQG(size=2), GaussianPolicy(torch.zeros(2, 2), COVARIANCE), "hoeffding", delta=0.25)
    std = float(torch.linalg.inv(torch.tensor(COVARIANCE)).diagonal().max()) ** -0.5
    task: dict = {"reward_bound": 8.0, "feature_bound": 2.0, "discount": 0.9, "std": std}
    penalty = gaussian_penalty(**task, action_volume=16.0, num_actions=2, covariance_det=0.36)
    assert loop.rule.penalty_of(loop.deployment.constants) == pytest.approx(penalty)
    size = error_bounds.theoretical_range(**task, action_diameter=4 * math.sqrt(2), action_volume=16.0)
    assert loop.step().error == pytest.approx(error_bounds.hoeffding(size, 0.25).error(100))


@pytest.mark.parametrize("volume", [0.01, 0.5])
def test_the_penalty_is_never_below_half_the_smoothness(volume):
    task = {"reward_bound": 4.0, "feature_bound": 2.0, "std": 1.0}
    assert gaussian_penalty(**task, discount=0.1, action_volume=volume) == pytest.approx(16 / 0.81)


def test_a_published_step_is_judged_by_the_true_smoothness():
    bound = ErrorBound("plain", 1.0, 0.0, 0.05)
    step = choose_smoothing_step(
        gradient_norm=1.0, batch_size=100, bound=bound, smoothness=400.0, rule="published_fast", step_smoothness=100.0
    )
    assert step.step_size == 1 / 100
    assert step.guaranteed_gain == pytest.approx(0.01 * 0.9 - 200 * 0.01**2)
    assert not step.is_safe
    assert step.reason.endswith("without a guarantee")
    assert loop_2022(policy=GaussianPolicy(-0.5), rule="published").step().guaranteed_gain < 0


def test_a_heuristic_bound_says_so_in_the_reason():
    assert loop_2022(max_batch_size=20_000).step().reason.endswith("if the heuristic bound holds")


def test_no_step_and_a_larger_batch_while_only_zeros_were_paid():
    policy = GaussianPolicy(0.5)
    options = {"discount": 0.5, "horizon": 2}
    loop = SafePolicyGradient(paying(), policy, "student_t", min_batch_size=32, **options)
    update = loop.step()
    assert (update.step_size, update.is_safe, loop.next_batch_size) == (0.0, False, 64)
    assert "no reward or no feature other than 0 in 32 trajectories" in update.reason
    assert loop_2022(paying(), policy, max_batch_size=200, **options).step().step_size == 0


def test_attributes_of_the_same_name_are_left_alone_and_batches_are_whole():
    loop = SafePolicyGradient(paying(None), GaussianPolicy(0.5), "student_t", discount=0.5, horizon=2)
    assert (loop.next_batch_size, loop.step().batch_size) == (112, 112)  # 7 times 16
    assert loop.iterations[0].performance is None


def test_the_default_performance_is_of_the_process_that_is_measured():
    exact, published = LQG().exact_performance(GaussianPolicy(0.0)), LQG().performance(GaussianPolicy(0.0))
    assert SafePolicyGradient(LQG(), GaussianPolicy(0.0)).step().performance == exact
    assert loop_2022().step().performance == exact
    paper = SafePolicyGradient(LQG(), GaussianPolicy(0.0), mode="paper")
    assert paper.step().performance == published
    assert "without clipping and without horizon" in paper.result().notes[-1]


@pytest.mark.parametrize("mode", ["safe", "paper"])
def test_a_policy_that_is_not_linear_has_no_exact_performance(mode):
    run = SafePolicyGradient(LQG(), SaturatedPolicy(-0.01), mode=mode).run(100)
    assert (run.final_performance, run.iterations[0].performance) == (None, None)
    assert run.notes[-1].startswith("no exact performance is known")


@pytest.mark.parametrize("loop", [SafePolicyGradient, SmoothingPolicyGradient])
def test_both_loops_refuse_an_early_end_on_a_native_environment(loop):
    agent = loop(ContinuousCartPole(), GaussianPolicy(torch.zeros(1, 4)), feature_bound=10.0, early_end="refuse")
    with pytest.raises(InputError, match="episodes must last to the horizon of 200 steps"):
        agent.step()


def test_updates_with_a_certain_failure_are_no_unsafe_steps():
    policy = GaussianPolicy(torch.zeros(2, 2))
    loop = SafePolicyGradient(LQG(size=2), policy, "chebyshev", delta=0.5)
    assert loop.step().failure_probability == 1
    assert not any("without a guarantee" in note for note in loop.result().notes)


def test_batches_of_one_policy_are_pooled_and_noise_is_called_noise():
    loop = SafePolicyGradient(LQG(size=2), GaussianPolicy(torch.zeros(2, 2)), "chebyshev", max_batch_size=100)
    for _ in range(3):
        loop.step()
    (policy,) = deployed_policies(loop.iterations)
    sizes = np.array([update.batch_size for update in loop.iterations])
    means = [update.measured_performance for update in loop.iterations]
    assert policy.performance == pytest.approx(np.average(means, weights=sizes))
    assert policy.std_error < min(update.measured_std_error for update in loop.iterations)
    assert loop.result().reason.count("none worse than the first") == 1
    first, low = DeployedPolicy(0.0, 0.3, 1), DeployedPolicy(-1.0, 0.4, 2)
    assert not is_within_noise(low, first, 2)  # two standard errors
    assert is_within_noise(low, first, 100)
    assert not is_within_noise(DeployedPolicy(-1.0, 0.0, 2), DeployedPolicy(0.0, 0.0, 1), 2)


def test_a_state_of_another_environment_or_feature_map_is_refused():
    def squares(states):
        return states**2

    loop = SafePolicyGradient(LQG(), GaussianPolicy(0.0))
    loop.step()
    other = SafePolicyGradient(LQG(size=2), GaussianPolicy(torch.zeros(2, 2)))
    with pytest.raises(InputError, match="got another constants, environment, policy"):
        other.load_state_dict(loop.state_dict())
    with pytest.raises(InputError, match=r"got another .*policy"):
        SafePolicyGradient(LQG(), GaussianPolicy(0.0, features=squares), feature_bound=2.0).load_state_dict(
            loop.state_dict()
        )


@pytest.mark.parametrize(
    ("saved", "other"),
    [
        (LQG(), LQG(transition=0.5)),
        (LQG(), LQG(max_start=1.0)),
        (LQG(), LQG(state_cost=0.4)),
        (ContinuousCartPole(), ContinuousCartPole(half_length=1.0)),
    ],
)
def test_a_state_of_other_dynamics_is_refused(saved, other):
    policy = GaussianPolicy(torch.zeros(1, saved.dynamics.state_size))
    options = {"reward_bound": 4.0, "feature_bound": 10.0}
    for loop in (SafePolicyGradient, SmoothingPolicyGradient):
        state = loop(saved, policy, **options).state_dict()
        with pytest.raises(InputError, match=r"got another environment\."):
            loop(other, policy, **options).load_state_dict(state)
        loop(saved, policy, **options).load_state_dict(state)


def test_a_restored_loop_has_constants_and_counts():
    first, second = (
        SafePolicyGradient(paying(None), GaussianPolicy(0.5), "student_t", discount=0.5, horizon=2) for _ in range(2)
    )
    first.step()
    first.deployment.num_ended_early = 7
    second.load_state_dict(first.state_dict())
    assert second.deployment.constants == first.deployment.constants
    assert second.deployment.constants.reward_bound > 0
    assert second.deployment.num_ended_early == 7


def test_every_chunk_has_starts_and_noise_of_its_own():
    one, two = (
        estimate_gradient(LQG(), GaussianPolicy(0.0), 40_000, seed=0, chunk_size=size, need_ranges=True)
        for size in (40_000, 20)
    )
    ratio = two.gradient.item() - one.gradient.item()
    assert abs(ratio) < 5 * math.sqrt(2 * one.variance.item() / 40_000)  # equal noise would leave 30 times as much
    both = estimate_gradient(LQG(), GaussianPolicy(0.0), 40, seed=0, chunk_size=20)
    alone = estimate_gradient(LQG(), GaussianPolicy(0.0), 20, seed=0, chunk_size=20)
    assert both.mean_return != pytest.approx(alone.mean_return, rel=1e-3)


def test_rewards_of_both_signs_have_twice_the_range():
    task = {"reward_bound": 1.0, "discount": 0.9, "horizon": 3, "delta": 0.1}
    narrow, wide = (return_interval(0.0, 0.0, 10, **task, has_both_signs=both) for both in (False, True))
    assert wide.high == pytest.approx(2 * narrow.high)


def test_a_batch_never_exceeds_its_maximum():
    for size in range(1000, 1200):
        bound = ErrorBound("plain", 10 * error_bounds_root(size), 0.0, 0.05)
        assert optimal_batch_size(10.0, bound, 2, size) <= size


def error_bounds_root(size: int) -> float:
    """d / gradient at which the best batch is just `size`, up to rounding."""
    return (math.sqrt(17) - 3) / 4 * math.sqrt(size)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SafePolicyGradient(LQG(), GaussianPolicy(0.0), min_batch_size=1), "min_batch_size must be at least 2"),
        (lambda: loop_2022(mini_batch_size=1), "mini_batch_size must be at least 2, for there to be a variance; got 1"),
        (lambda: LQG(control=0.0).exact_performance(GaussianPolicy(0.0)), "must have a control that acts; got 0"),
        (lambda: LQG(max_state=None, max_start=math.inf), "max_start must be finite"),
        (
            lambda: return_interval(0.0, 1.0, 9, reward_bound=1.0, discount=0.9, horizon=0, delta=0.1),
            "horizon must be a whole number of at least 1; got 0",
        ),
        (
            lambda: estimate_gradient(
                paying(space=gymnasium.spaces.Discrete(4)), GaussianPolicy(0.0), 4, discount=0.5, horizon=2, seed=0
            ),
            "observations must be quantities for a policy linear in them; got Discrete",
        ),
    ],
)
def test_what_would_fail_later_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
