"""Buffers are lent again, never twice at once, and what is summed in them does not depend on who had them before."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from anybatch.errors import InputError
from anybatch.rl import LQG, GaussianPolicy, GradientAccumulator, Trajectories, estimate_gradient
from anybatch.rl.buffers import Buffers, borrowed
from anybatch.rl.compiled import TILE


def test_memory_is_kept_for_any_shape_that_fits():
    buffers = Buffers(torch.float32)
    large = buffers.take("a", 4, 6)
    assert buffers.take("a", 4, 6).data_ptr() == large.data_ptr()
    small = buffers.take("a", 2, 3)
    assert small.shape == (2, 3)
    assert small.data_ptr() == large.data_ptr()
    assert buffers.take("b", 2, 3).data_ptr() != large.data_ptr()
    assert buffers.take("a", 5, 6).shape == (5, 6)


def test_buffers_are_lent_to_one_at_a_time_and_again():
    with borrowed() as first, borrowed() as second:
        assert first is not second
    with borrowed() as again:
        assert again is first or again is second


def test_buffers_come_back_from_a_chunk_that_failed():
    with borrowed() as known:
        pass
    wild = GaussianPolicy(-0.3, features=lambda states: states / 0)
    with pytest.raises(InputError, match="must be finite"):
        estimate_gradient(LQG(), wild, 1000, seed=0)
    with borrowed() as again:
        assert again is known


@pytest.mark.parametrize("size", [1, 2])
def test_estimates_in_many_threads_equal_those_alone(size):
    env, policy, seeds = LQG(size=size), GaussianPolicy(-0.3 * torch.eye(size)), range(8)

    def estimate(seed):
        options = {"need_ranges": True, "chunk_size": 400, "num_workers": 1 + seed % 2}
        return estimate_gradient(env, policy, 4000, seed=seed, **options)

    alone = [estimate(seed) for seed in seeds]
    start = threading.Barrier(len(seeds))

    def estimate_with_others(seed):
        start.wait(60)
        return [estimate(seed) for _ in range(3)]

    with ThreadPoolExecutor(len(seeds)) as pool:
        found = list(pool.map(estimate_with_others, seeds))
    for seed in seeds:
        for estimated in found[seed]:
            assert torch.equal(estimated.gradient, alone[seed].gradient)
            assert torch.equal(estimated.ranges, alone[seed].ranges)


def test_a_task_without_costs_has_no_rewards_of_the_one_before():
    policy = GaussianPolicy(-0.3)
    estimate_gradient(LQG(), policy, 1000, seed=0)
    free = estimate_gradient(LQG(state_cost=0.0, action_cost=0.0), policy, 1000, seed=0)
    assert (free.mean_return, free.min_reward, free.max_reward) == (0.0, 0.0, 0.0)


def test_trajectories_that_are_added_stay_as_they_are():
    rewards = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    trajectories = Trajectories(torch.ones(5, 1, 40), rewards.clone(), max_feature=1.0)
    for estimator in ("gpomdp", "reinforce"):
        GradientAccumulator(estimator, discount=0.9).add(trajectories)
        assert torch.equal(trajectories.rewards, rewards)


def test_many_steps_of_more_trajectories_than_a_tile_equal_the_definition():
    horizon, num = 67, 2 * TILE + 3
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(horizon, 2, num, generator=generator, dtype=torch.float64)
    rewards = torch.randn(horizon, num, generator=generator, dtype=torch.float64)
    accumulator = GradientAccumulator("gpomdp", discount=0.99, baseline=False)
    accumulator.add(Trajectories(scores, rewards, max_feature=1.0))
    discounted = 0.99 ** torch.arange(horizon, dtype=torch.float64)[:, None] * rewards
    samples = (scores.cumsum(0) * discounted[:, None]).sum(0)
    torch.testing.assert_close(accumulator.estimate().gradient, samples.mean(1))
    torch.testing.assert_close(accumulator.estimate().variance, samples.var(1))
