"""Sums over parts give the estimate of the whole batch: against the slow twin, and for any way to cut the batch."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference.policy_gradients import gpomdp_samples, mean, reinforce_samples, variance

from anybatch.errors import InputError
from anybatch.rl import GradientAccumulator, Trajectories
from anybatch.rl import gradient_accumulator as module

TWINS = {"gpomdp": gpomdp_samples, "reinforce": reinforce_samples}


def example_of_the_digest() -> Trajectories:
    """theta .5, sigma 1: s = [[1,2],[2,-1]], a = [[1,0],[0,1]], r = [[1,2],[0,1]], trajectories first."""
    scores = torch.tensor([[[0.5, -2.0]], [[-2.0, -1.5]]], dtype=torch.float64)
    return Trajectories(scores, torch.tensor([[1.0, 0.0], [2.0, 1.0]], dtype=torch.float64), max_feature=2.0)


@pytest.mark.parametrize(
    ("estimator", "samples"),
    [("reinforce", (-1.9008620690, 0.8146551724)), ("gpomdp", (-0.1630324544, 0.3891987830))],
)
def test_two_trajectories_of_two_steps_give_the_samples_worked_out_by_hand(estimator, samples):
    accumulator = GradientAccumulator(estimator, discount=0.5, need_ranges=True)
    accumulator.add(example_of_the_digest())
    estimate = accumulator.estimate()
    assert estimate.gradient.item() == pytest.approx(sum(samples) / 2, abs=1e-9)
    assert estimate.variance.item() == pytest.approx((samples[0] - samples[1]) ** 2 / 2, abs=1e-9)
    assert estimate.ranges is not None
    assert estimate.ranges.item() == pytest.approx(samples[1] - samples[0], abs=1e-6)  # kept in float32
    assert estimate.mean_return == pytest.approx(1.25)
    assert estimate.return_std == pytest.approx(math.sqrt(1.125))
    assert (estimate.max_abs_reward, estimate.max_feature, estimate.num_ended_early) == (2.0, 2.0, 0)


def test_baselines_are_those_worked_out_by_hand():
    for estimator, wanted in (("reinforce", [0.7327586207]), ("gpomdp", [0.0588235294, 0.5775862069])):
        accumulator = GradientAccumulator(estimator, discount=0.5)
        accumulator.add(example_of_the_digest())
        assert accumulator.sums is not None
        assert accumulator.sums.baselines()[0].tolist() == pytest.approx(wanted, abs=1e-10)


@st.composite
def batches(draw):
    horizon, size, num = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(2, 30))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = torch.randn(horizon, size, num, generator=generator, dtype=torch.float64)
    rewards = torch.randn(horizon, num, generator=generator, dtype=torch.float64) - 1
    return Trajectories(scores, rewards, max_feature=1.0)


@given(batches(), st.sampled_from(["gpomdp", "reinforce"]), st.floats(0, 1), st.data())
def test_any_parts_give_the_mean_and_variance_of_the_slow_twin(batch, estimator, discount, data):
    num = batch.num_trajectories
    cuts = sorted(data.draw(st.sets(st.integers(1, num - 1), max_size=3)))
    accumulator = GradientAccumulator(estimator, discount=discount, need_ranges=True)
    for low, high in zip([0, *cuts], [*cuts, num], strict=True):
        accumulator.add(Trajectories(batch.scores[..., low:high], batch.rewards[:, low:high], max_feature=1.0))
    estimate = accumulator.estimate()
    twins = [(batch.scores[..., n].tolist(), batch.rewards[:, n].tolist()) for n in range(num)]
    samples = TWINS[estimator](twins, discount)
    scale = 1 + max(abs(value) for row in samples for value in row)
    assert estimate.num_trajectories == num
    assert estimate.ranges is not None
    for k, row in enumerate(samples):
        assert estimate.gradient[k].item() == pytest.approx(mean(row), abs=1e-10 * scale)
        assert estimate.variance[k].item() == pytest.approx(variance(row), abs=1e-9 * scale**2)
        assert estimate.ranges[k].item() == pytest.approx(max(row) - min(row), abs=3e-5 * scale)


def test_more_trajectories_may_be_added_after_an_estimate():
    batch = example_of_the_digest()
    grown = GradientAccumulator("gpomdp", discount=0.9, need_ranges=True)
    grown.add(batch)
    grown.estimate()
    grown.add(Trajectories(2 * batch.scores, batch.rewards, max_feature=4.0))
    whole = GradientAccumulator("gpomdp", discount=0.9, need_ranges=True)
    both = torch.cat([batch.scores, 2 * batch.scores], dim=2)
    whole.add(Trajectories(both, batch.rewards.repeat(1, 2), max_feature=4.0))
    assert grown.estimate().gradient.item() == pytest.approx(whole.estimate().gradient.item(), rel=1e-12)
    assert torch.equal(grown.estimate().ranges, whole.estimate().ranges)
    assert grown.estimate().max_feature == 4.0


def test_ranges_beyond_memory_come_from_a_file(monkeypatch):
    estimates = []
    for limit in (2**20, 8):
        monkeypatch.setattr(module, "LARGEST_IN_MEMORY", limit)
        accumulator = GradientAccumulator("gpomdp", discount=0.5, need_ranges=True)
        accumulator.add(example_of_the_digest())
        accumulator.add(example_of_the_digest())
        estimates.append(accumulator.estimate().ranges)
    assert torch.equal(*estimates)


def test_a_parameter_without_scores_has_no_gradient_and_no_variance():
    batch = example_of_the_digest()
    scores = torch.cat([batch.scores, torch.zeros_like(batch.scores)], dim=1)
    accumulator = GradientAccumulator("gpomdp", discount=0.5)
    accumulator.add(Trajectories(scores, batch.rewards, max_feature=2.0))
    estimate = accumulator.estimate()
    assert estimate.gradient[1] == estimate.variance[1] == 0
    assert estimate.gradient[0] != 0


def test_what_cannot_be_used_is_refused():
    with pytest.raises(InputError, match="estimator must be one of reinforce, gpomdp; got 'ppo'"):
        GradientAccumulator("ppo", discount=0.9)  # pyright: ignore
    with pytest.raises(InputError, match=r"discount must be between 0 and 1; got 1\.5"):
        GradientAccumulator(discount=1.5)
    with pytest.raises(InputError, match="at least 2 trajectories; got 0"):
        GradientAccumulator(discount=0.9).estimate()
    batch = example_of_the_digest()
    rewards = torch.tensor([[1.0, 0.0], [math.nan, 1.0]], dtype=torch.float64)
    with pytest.raises(InputError, match="rewards must be finite; got nan at step 1"):
        GradientAccumulator(discount=0.9).add(Trajectories(batch.scores, rewards, max_feature=2.0))
    with pytest.raises(InputError, match="scores must be finite"):
        GradientAccumulator(discount=0.9).add(Trajectories(batch.scores * math.inf, batch.rewards, max_feature=2.0))
