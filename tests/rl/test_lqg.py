"""The linear-quadratic task: the slow twin, closed forms, quadrature, and what is refused."""

import tracemalloc

import numpy as np
import pytest
import torch
from reference.policy_gradients import lqg_trajectory

from anybatch.errors import InputError
from anybatch.rl import LQG, GaussianPolicy
from anybatch.rl import lqg_performance as module
from anybatch.rl.buffers import Buffers
from anybatch.rl.rollout import roll_out


@pytest.mark.parametrize("score", ["drawn", "clipped"])
def test_trajectories_equal_the_slow_twin(score):
    env, policy = LQG(), GaussianPolicy(-0.4, covariance=2.25)
    buffers = Buffers(torch.float64)
    trajectories = roll_out(env.dynamics, policy, 50, 20, start_seed=1, noise_seed=2, score=score, buffers=buffers)
    starts = torch.empty(1, 50, dtype=torch.float64)
    env.dynamics.draw_states(starts, torch.Generator().manual_seed(1))
    noise = torch.empty(20, 1, 50, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(2))
    visited = []
    for n in range(50):
        states, scores, rewards = lqg_trajectory(
            -0.4, 1.5, starts[0, n].item(), noise[:, 0, n].tolist(), clipped_score=score == "clipped"
        )
        assert trajectories.rewards[:, n].tolist() == pytest.approx(rewards, abs=1e-12)
        assert trajectories.scores[:, 0, n].tolist() == pytest.approx(scores, abs=1e-12)
        visited += states
    assert trajectories.max_feature == pytest.approx(max(map(abs, visited)))


@pytest.mark.parametrize(
    ("theta", "wanted"), [(0.0, -56.6666667), (-0.29, -15.25276), (-0.588403, -13.2067506), (-0.65, -13.26028)]
)
def test_the_published_closed_form(theta, wanted):
    assert LQG().performance(GaussianPolicy(theta)) == pytest.approx(wanted, abs=5e-6)


@pytest.mark.parametrize(("theta", "wanted"), [(0.0, -930.0), (-0.29, -18.4993)])
def test_the_slope_of_the_published_closed_form(theta, wanted):
    env, step = LQG(), 1e-5
    slope = (env.performance(GaussianPolicy(theta + step)) - env.performance(GaussianPolicy(theta - step))) / (2 * step)
    assert slope == pytest.approx(wanted, rel=1e-5)


def test_a_chain_that_diverges_has_minus_infinity():
    assert LQG().performance(GaussianPolicy(0.1)) == -np.inf
    assert LQG(size=2).performance(GaussianPolicy(0.1 * torch.eye(2))) == -np.inf


def test_two_independent_dimensions_perform_as_two_tasks():
    weights, covariance = torch.diag(torch.tensor([-0.3, -0.6])), torch.diag(torch.tensor([1.0, 0.25]))
    alone = (GaussianPolicy(-0.3), GaussianPolicy(-0.6, covariance=0.25))
    for options in ({}, {"max_state": None, "max_action": None}):
        both, one = LQG(size=2, **options), LQG(**options)
        policy = GaussianPolicy(weights, covariance)
        assert both.performance(policy) == pytest.approx(sum(map(one.performance, alone)), rel=1e-6)
    assert both.exact_performance(policy) == pytest.approx(sum(map(one.exact_performance, alone)), rel=1e-6)


def test_a_long_horizon_without_clipping_approaches_the_closed_form():
    env = LQG(size=2, control=[[1.0], [0.5]], transition=[[0.9, 0.2], [0.0, 0.8]], max_state=None, max_action=None)
    policy = GaussianPolicy([[-0.3, -0.2]])
    endless = env.performance(policy)
    long = LQG(
        transition=[[0.9, 0.2], [0.0, 0.8]],
        control=[[1.0], [0.5]],
        max_state=None,
        max_action=None,
        horizon=400,
    ).exact_performance(policy)
    assert long == pytest.approx(endless, rel=1e-12)
    assert env.exact_performance(policy) > endless


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transition": 0.9, "control": -0.7, "max_action": 1.3},
        {"size": 2, "control": [[1.0], [0.5]], "max_state": None, "max_action": None},
    ],
    ids=["published", "other numbers", "two dimensions, not clipped"],
)
def test_the_exact_performance_is_the_mean_return(options):
    env = LQG(**options)
    policy = GaussianPolicy(torch.full((1, env.dynamics.state_size), -0.3))
    trajectories = roll_out(env.dynamics, policy, 100_000, 20, start_seed=3, noise_seed=4)
    returns = (0.9 ** torch.arange(20, dtype=torch.float64)) @ trajectories.rewards.double()
    assert abs(returns.mean() - env.exact_performance(policy)) < 3.5 * returns.std() / 100_000**0.5


def test_twice_the_nodes_change_nothing_in_the_exact_performance(monkeypatch):
    policies = [GaussianPolicy(theta, variance) for theta, variance in ((0.0, 1.0), (-0.59, 0.25), (-1.5, 2.0))]
    coarse = [LQG().exact_performance(policy) for policy in policies]
    monkeypatch.setattr(module, "NUM_NODES", 40)
    module._gauss.cache_clear()
    module._to_coefficients.cache_clear()
    fine = [LQG().exact_performance(policy) for policy in policies]
    module._gauss.cache_clear()
    module._to_coefficients.cache_clear()
    assert coarse == pytest.approx(fine, abs=1e-9)


@pytest.mark.parametrize(
    ("options", "theta", "std", "wanted"),
    [
        ({}, 0.0, 1.0, -12.144419777226684),
        ({}, -0.59, 0.5, -3.6873712814740047),
        ({}, -0.3, 0.1, -1.4186153977407798),
        ({}, 0.1, 0.1, -10.510101261756741),
        ({"transition": 0.9, "control": -0.7, "max_action": 1.3}, -0.3, 0.5, -11.896934245661928),
        ({"transition": 1.3, "control": 0.5, "max_action": 1.0, "max_start": 1.0}, -0.4, 0.3, -6.893365741759485),
    ],
)
def test_the_exact_performance_equals_that_of_a_dense_matrix_over_all_nodes(options, theta, std, wanted):
    assert LQG(**options).exact_performance(GaussianPolicy(theta, std**2)) == pytest.approx(wanted, abs=2e-13)


@pytest.mark.parametrize("std", [0.05, 0.02, 0.0041])
def test_a_sharp_policy_that_is_never_clipped_performs_as_the_closed_form_in_bounded_memory(std):
    policy = GaussianPolicy(-0.3, std**2)
    tracemalloc.start()
    performance = LQG().exact_performance(policy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    free = LQG(max_state=None, max_action=None).exact_performance(policy)
    assert performance == pytest.approx(free, abs=1e-12)
    assert peak < 100e6


def test_a_policy_that_is_too_sharp_for_quadrature_is_refused():
    with pytest.raises(InputError, match=r"standard deviation of at least 0\.004; got 0\.003"):
        LQG().exact_performance(GaussianPolicy(-0.3, 0.003**2))
    wide = LQG(control=10.0, max_state=2.0)
    assert wide.exact_performance(GaussianPolicy(-0.03, 0.003**2)) < 0


def test_constants_are_known_where_they_exist():
    assert (LQG().task.reward_bound, LQG().task.feature_bound, LQG().task.action_volume) == (4.0, 2.0, 4.0)
    wide = LQG(size=2, max_action=[1.0, 3.0], action_cost=[[1.0, 0.5], [0.5, 1.0]], discount=0.5, horizon=7)
    assert wide.task.reward_bound == pytest.approx(0.5 * 8 + 1 + 9 + 2 * 0.5 * 3)
    assert (wide.task.action_volume, wide.task.discount, wide.task.horizon) == (12.0, 0.5, 7)
    free = LQG(max_state=None, max_action=None).task
    assert (free.reward_bound, free.feature_bound, free.action_volume) == (None, None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transition": [[1.0, 2.0]]}, r"transition must be finite and of shape \(1, 1\)"),
        ({"size": 2, "control": [[1.0]]}, r"control must be finite and of shape \(2, 1\)"),
        ({"state_cost": -1.0}, "state_cost must be symmetric and positive semidefinite"),
        ({"max_action": -2.0}, "max_action must be positive"),
        ({"max_start": 3.0}, "max_start must be within max_state; got 3.0 and 2.0"),
        ({"discount": 1.1}, "discount must be between 0 and 1; got 1.1"),
        ({"horizon": 0}, "horizon must be a whole number of at least 1; got 0"),
        ({"num_envs": 0}, "num_envs must be a whole number of at least 1; got 0"),
    ],
)
def test_tasks_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        LQG(**options)


def test_performances_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match=r"weights must be \(1, 1\).*got \(1, 2\)"):
        LQG().performance(GaussianPolicy([[0.1, 0.2]]))
    with pytest.raises(InputError, match="clipped task must be of one dimension with both bounds"):
        LQG(size=2).exact_performance(GaussianPolicy(torch.zeros(2, 2)))
    with pytest.raises(InputError, match="got one with a feature map"):
        LQG().performance(GaussianPolicy(0.0, features=torch.tanh))
    with pytest.raises(InputError, match="discount below 1; got 1"):
        LQG(discount=1.0).performance(GaussianPolicy(-0.5))


@pytest.mark.parametrize(("theta", "std"), [(-10.0, 0.1), (-10.0, 1.0), (-30.0, 1.0)])
def test_a_steep_policy_has_its_performance_to_seven_digits(theta, std, monkeypatch):
    policy = GaussianPolicy(theta, covariance=std**2)
    found = LQG().exact_performance(policy)
    monkeypatch.setattr(module, "_steepness", lambda *arguments: max(1.0, abs(1 + theta)))
    monkeypatch.setattr(module, "_check_sharpness", lambda *arguments: None)
    assert found == pytest.approx(LQG().exact_performance(policy), abs=1e-7)
