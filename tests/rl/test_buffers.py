"""Buffers are lent again, never twice at once, and what is summed in them does not depend on who had them before."""

import threading

import torch

from anybatch.rl import LQG, GaussianPolicy, GradientAccumulator, Trajectories, estimate_gradient
from anybatch.rl.buffers import Buffers, borrowed
from anybatch.rl.trajectory_sums import STEPS_AT_ONCE


def test_memory_is_kept_for_any_shape_that_fits():
    buffers = Buffers(torch.float32)
    large = buffers.take("a", 4, 6)
    assert buffers.take("a", 4, 6) is large
    small = buffers.take("a", 2, 3)
    assert small.shape == (2, 3)
    assert small.data_ptr() == large.data_ptr()
    assert buffers.take("b", 2, 3).data_ptr() != large.data_ptr()
    assert buffers.take("a", 5, 6).shape == (5, 6)


def test_buffers_are_lent_to_one_at_a_time_and_again():
    with borrowed(torch.float32) as first, borrowed(torch.float32) as second:
        assert first is not second
    with borrowed(torch.float32) as again:
        assert again is first or again is second
    with borrowed(torch.float64) as other:
        assert other.dtype == torch.float64


def test_estimates_in_many_threads_equal_those_alone():
    env, seeds = LQG(), range(4)
    alone = [estimate_gradient(env, GaussianPolicy(-0.3), 3000, seed=seed, need_ranges=True) for seed in seeds]
    found = {}

    def estimate(seed: int) -> None:
        found[seed] = estimate_gradient(env, GaussianPolicy(-0.3), 3000, seed=seed, need_ranges=True, chunk_size=3000)

    threads = [threading.Thread(target=estimate, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for seed in seeds:
        assert torch.equal(found[seed].gradient, alone[seed].gradient)
        assert torch.equal(found[seed].ranges, alone[seed].ranges)


def test_trajectories_that_are_added_stay_as_they_are():
    rewards = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    trajectories = Trajectories(torch.ones(5, 1, 40), rewards.clone(), max_feature=1.0)
    for estimator in ("gpomdp", "reinforce"):
        GradientAccumulator(estimator, discount=0.9).add(trajectories)
        assert torch.equal(trajectories.rewards, rewards)


def test_a_horizon_beyond_one_block_of_running_sums_equals_the_definition():
    horizon, num = 2 * STEPS_AT_ONCE + 3, 50
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(horizon, 2, num, generator=generator, dtype=torch.float64)
    rewards = torch.randn(horizon, num, generator=generator, dtype=torch.float64)
    accumulator = GradientAccumulator("gpomdp", discount=0.99, baseline=False)
    accumulator.add(Trajectories(scores, rewards, max_feature=1.0))
    discounted = 0.99 ** torch.arange(horizon, dtype=torch.float64)[:, None] * rewards
    samples = (scores.cumsum(0) * discounted[:, None]).sum(0)
    torch.testing.assert_close(accumulator.estimate().gradient, samples.mean(1))
    torch.testing.assert_close(accumulator.estimate().variance, samples.var(1))
