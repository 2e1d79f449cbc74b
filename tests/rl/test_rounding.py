"""A reward that is nearly constant leaves rounding, and rounding is no gradient: centered sums, floors, views."""

import pytest
import torch

from anybatch.rl import LQG, ContinuousCartPole, GaussianPolicy, GradientAccumulator, SafePolicyGradient, Trajectories
from anybatch.rl.gradient_estimate import estimate_gradient


def estimate_of(rewards, scores, estimator, **options):
    accumulator = GradientAccumulator(estimator, discount=0.9, need_ranges=True, **options)
    for chunk in range(4):
        part = slice(500 * chunk, 500 * (chunk + 1))
        accumulator.add(Trajectories(scores[..., part], rewards[:, part], max_feature=1.0))
    return accumulator.estimate()


@pytest.mark.parametrize("estimator", ["gpomdp", "reinforce"])
def test_a_constant_on_all_rewards_leaves_gradient_variance_and_ranges(estimator):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(20, 2, 2000, generator=generator)
    rewards = torch.randn(20, 2000, generator=generator) + torch.linspace(0, 3, 2000)  # chunks differ in their means
    plain, lifted = (estimate_of(rewards + lift, scores, estimator) for lift in (0.0, 1000.0))
    torch.testing.assert_close(lifted.gradient, plain.gradient, rtol=0, atol=1e-3)
    torch.testing.assert_close(lifted.variance, plain.variance, rtol=1e-4, atol=0)
    torch.testing.assert_close(lifted.ranges, plain.ranges, rtol=1e-4, atol=0)
    weight = 1000 * (1 - 0.9**20) / 0.1
    assert lifted.mean_return == pytest.approx(plain.mean_return + weight)
    assert lifted.return_std == pytest.approx(plain.return_std, rel=1e-4)


def test_without_baselines_a_constant_on_all_rewards_counts():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 1, 2000, generator=generator, dtype=torch.float64)
    rewards = torch.randn(3, 2000, generator=generator, dtype=torch.float64) + 5
    found = estimate_of(rewards, scores, "gpomdp", baseline=False)
    discounted = 0.9 ** torch.arange(3, dtype=torch.float64)[:, None] * rewards
    samples = (scores[:, 0].cumsum(0) * discounted).sum(0)
    assert found.gradient.item() == pytest.approx(samples.mean().item(), rel=1e-10)
    assert found.variance.item() == pytest.approx(samples.var().item(), rel=1e-10)
    assert found.ranges is not None
    assert found.ranges.item() == pytest.approx((samples.max() - samples.min()).item(), rel=1e-6)


def test_no_step_is_taken_on_rounding():
    env, policy = ContinuousCartPole(horizon=50), GaussianPolicy([[0.0, 0.0, 10.0, 3.0]])
    loop = SafePolicyGradient(
        env, policy, "student_t", feature_bound=5.0, min_batch_size=2000, max_batch_size=2000, delta=0.25
    )
    update = loop.step()
    assert estimate_gradient(env, policy, 2000, horizon=50, seed=0).num_ended_early == 0  # every reward is 1
    assert (update.is_safe, update.step_size, update.max_gradient) == (False, 0.0, 0.0)


def test_the_variance_is_no_smaller_than_rounding_can_make_it():
    scores = torch.randn(1, 1, 2000, generator=torch.Generator().manual_seed(0)).abs() + 1
    rewards = 100 / scores[:, 0]  # without baseline a sample is 100, up to rounding
    variance = estimate_of(rewards, scores, "gpomdp", baseline=False).variance.item()
    assert variance > 0


@pytest.mark.parametrize("take", [lambda states: states[:, :1], lambda states: states[:, 1:]])
def test_a_feature_map_that_returns_a_view_has_the_gradient_of_its_copy(take):
    env = LQG(size=2)
    weights = torch.full((2, 1), -0.2)
    view, copy = (
        estimate_gradient(env, GaussianPolicy(weights, features=features), 500, seed=1, score="clipped")
        for features in (take, lambda states: take(states).clone())
    )
    assert torch.equal(view.gradient, copy.gradient)
    assert view.max_feature == copy.max_feature


def test_the_largest_feature_norm_is_that_of_the_vectors():
    env = LQG(size=2)
    pair = GaussianPolicy(torch.zeros(2, 2), features=lambda states: torch.full_like(states, 3.0))
    estimate = estimate_gradient(env, pair, 10, seed=0)
    assert (estimate.max_feature, estimate.max_feature_norm) == (3.0, pytest.approx(18**0.5))
