"""Estimates on the tasks: published figures, exact gradients, and independence of everything but the seed."""

import threading
import time
from typing import get_type_hints

import gymnasium
import numpy as np
import pytest
import torch

from anybatch.errors import InputError
from anybatch.rl import (
    LQG,
    ContinuousCartPole,
    GaussianPolicy,
    GradientAccumulator,
    GradientBatch,
    SoftmaxPolicy,
    estimate_gradient,
)
from anybatch.rl.gradient_estimate import BatchOptions

NUM = 100_000


class Reused:
    """Features (s, 1), written into one array at every call, with a constant that is made at the first."""

    def __init__(self, *, is_fresh):
        self.is_fresh, self.kept, self.center = is_fresh, None, None

    def __call__(self, states):
        if self.center is None:
            self.center = torch.zeros(1)
        features = torch.cat([states - self.center, torch.ones(len(states), 1)], dim=1)
        if self.is_fresh:
            return features
        self.kept = features.clone() if self.kept is None else self.kept.copy_(features)
        return self.kept


class Hesitant(GaussianPolicy):
    """Features that are the states themselves at some steps, and a copy of them at others."""

    def __init__(self):
        super().__init__([[-0.2]])
        self.calls = 0

    def features(self, states):
        self.calls += 1
        return states if self.calls % 3 else states.clone()


def test_features_may_be_the_states_at_some_steps_and_copies_at_others():
    plain = estimate_gradient(LQG(), GaussianPolicy([[-0.2]]), 1000, seed=1)
    assert torch.equal(estimate_gradient(LQG(), Hesitant(), 1000, seed=1).gradient, plain.gradient)


def test_a_feature_map_may_reuse_its_output_and_keep_tensors_of_its_own():
    fresh, reused = (
        estimate_gradient(LQG(), GaussianPolicy([[0.0, 0.0]], features=Reused(is_fresh=each)), 1000, seed=1)
        for each in (True, False)
    )
    assert torch.equal(fresh.gradient, reused.gradient)
    feature_map = Reused(is_fresh=True)
    estimate_gradient(LQG(), GaussianPolicy([[0.0, 0.0]], features=feature_map), 1000, seed=1)
    assert not feature_map.center.is_inference()  # those could not be saved for a backward pass


@pytest.mark.parametrize(
    ("theta", "estimator", "gradient", "error", "std"),
    [
        (0.0, "reinforce", -9.62, 0.03, 19.9),
        (0.0, "gpomdp", -9.56, 0.014, 8.6),
        (-0.29, "gpomdp", -3.82, 0.011, 6.8),
        (-0.5884, "gpomdp", -0.463, 0.008, None),
        (-0.65, "gpomdp", -0.034, 0.008, None),
    ],
)
def test_the_published_code_has_these_gradients(theta, estimator, gradient, error, std):
    estimate = estimate_gradient(LQG(), GaussianPolicy(theta), NUM, estimator=estimator, score="clipped", seed=1)
    own_error = (estimate.variance.item() / NUM) ** 0.5
    assert abs(estimate.gradient.item() - gradient) < 3.5 * np.hypot(own_error, error)
    if std is not None:  # printed to one decimal; its own error is about std * sqrt(kurtosis / 4N), 1%
        assert estimate.variance.item() ** 0.5 == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize(("theta", "mean_return"), [(0.0, -12.134), (-0.29, -10.195), (-0.5884, -9.572)])
def test_the_published_code_has_these_returns(theta, mean_return):
    estimate = estimate_gradient(LQG(), GaussianPolicy(theta), NUM, seed=2)
    error = np.hypot(estimate.return_std / NUM**0.5, 0.005)
    assert abs(estimate.mean_return - mean_return) < 3.5 * error


@pytest.mark.parametrize("estimator", ["gpomdp", "reinforce"])
@pytest.mark.parametrize("theta", [0.0, -0.5])
def test_the_score_of_the_drawn_action_is_unbiased_and_that_of_the_clipped_one_is_not(theta, estimator):
    env, step = LQG(), 1e-4
    high, low = (env.exact_performance(GaussianPolicy(theta + move)) for move in (step, -step))
    exact = (high - low) / (2 * step)
    gaps = {}
    for score in ("drawn", "clipped"):
        estimate = estimate_gradient(env, GaussianPolicy(theta), 4 * NUM, estimator=estimator, score=score, seed=3)
        gaps[score] = abs(estimate.gradient.item() - exact) / (estimate.variance.item() / (4 * NUM)) ** 0.5
    assert gaps["drawn"] < 3.5
    if estimator == "gpomdp":
        assert gaps["clipped"] > 4


@pytest.mark.parametrize("estimator", ["gpomdp", "reinforce"])
def test_every_component_equals_the_slope_of_the_exact_performance(estimator):
    env = LQG(
        transition=[[0.9, 0.2], [0.0, 0.8]],
        control=[[1.0, 0.0], [0.5, 1.0]],
        max_state=None,
        max_action=None,
        horizon=8,
    )
    policy = GaussianPolicy([[-0.3, 0.1], [0.0, -0.2]], covariance=[[0.5, 0.2], [0.2, 0.4]])
    estimate = estimate_gradient(env, policy, NUM, estimator=estimator, seed=4)
    errors = (estimate.variance / NUM).sqrt()
    for k, direction in enumerate(torch.eye(4, dtype=torch.float64)):
        high, low = (
            env.exact_performance(policy.with_parameters(policy.parameters + move * direction))
            for move in (1e-4, -1e-4)
        )
        assert abs(estimate.gradient[k] - (high - low) / 2e-4) < 4 * errors[k]


def test_gpomdp_has_less_variance_than_reinforce():
    first, second = (
        estimate_gradient(LQG(), GaussianPolicy(-0.3), 10_000, estimator=name, seed=5)
        for name in ("gpomdp", "reinforce")
    )
    assert first.variance < second.variance / 2


def same(first, second, rel=0.0) -> bool:
    pairs = [(first.gradient, second.gradient), (first.variance, second.variance), (first.ranges, second.ranges)]
    values = ("mean_return", "return_std", "max_abs_reward", "max_feature", "num_trajectories", "num_ended_early")
    return all(torch.allclose(a, b, rtol=rel, atol=0) for a, b in pairs) and all(
        getattr(first, name) == pytest.approx(getattr(second, name), rel=rel, abs=0) for name in values
    )


@pytest.mark.parametrize("env", [LQG(), ContinuousCartPole(horizon=30)], ids=["lqg", "cart-pole"])
def test_threads_do_not_matter_and_the_seed_does(env):
    policy = GaussianPolicy(0.1 * torch.ones(1, env.dynamics.state_size))
    options = {"chunk_size": 500, "need_ranges": True}
    alone = estimate_gradient(env, policy, 4_700, seed=6, **options)
    assert same(alone, estimate_gradient(env, policy, 4_700, seed=6, num_workers=2, **options))
    assert not same(alone, estimate_gradient(env, policy, 4_700, seed=7, **options), rel=1e-4)


def test_a_chunk_is_kept_while_its_thread_goes_on_to_the_next(monkeypatch):
    options = {"seed": 6, "chunk_size": 50, "need_ranges": True}
    alone = estimate_gradient(LQG(), GaussianPolicy(0.0), 500, **options)
    add_sums = GradientAccumulator.add_sums

    def add_late(*arguments):
        time.sleep(0.02)
        add_sums(*arguments)

    monkeypatch.setattr(GradientAccumulator, "add_sums", add_late)
    assert same(alone, estimate_gradient(LQG(), GaussianPolicy(0.0), 500, num_workers=2, **options))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_chunks_are_told_and_what_is_raised_there_ends_the_draw(num_workers):
    seen = []

    def stop(num_drawn):
        seen.append(num_drawn)
        if num_drawn == 450:
            raise KeyError

    batch = GradientBatch(LQG(), GaussianPolicy(-0.2), seed=3, chunk_size=100, num_workers=num_workers)
    batch.draw(250, seen.append)
    assert seen == [100, 200, 250]
    with pytest.raises(KeyError):
        batch.draw(10**6, stop)
    assert seen[3:] == [350, 450]


def test_a_batch_that_grows_by_whole_chunks_equals_one_drawn_at_once():
    whole = estimate_gradient(LQG(), GaussianPolicy(-0.2), 600, seed=8, chunk_size=100, need_ranges=True)
    batch = GradientBatch(LQG(), GaussianPolicy(-0.2), seed=8, chunk_size=100, need_ranges=True)
    for size in (100, 200, 300):
        batch.draw(size)
        batch.estimate()
    assert batch.num_trajectories == 600
    assert same(whole, batch.estimate())


def test_the_options_of_an_estimate_are_the_keywords_of_a_batch():
    hints = get_type_hints(GradientBatch.__init__)
    keywords = {name: kind for name, kind in hints.items() if name not in ("env", "policy", "return")}
    assert get_type_hints(BatchOptions) == keywords


def test_the_global_generators_are_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    estimate_gradient(LQG(), GaussianPolicy(0.0), 100, seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_a_policy_with_trainable_features_is_read_without_a_graph():
    layer = torch.nn.Linear(1, 3)
    estimate = estimate_gradient(LQG(), GaussianPolicy(torch.zeros(1, 3), features=layer), 100, seed=0)
    assert estimate.gradient.shape == (3,)
    assert not estimate.gradient.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_trajectories": 1}, "num_trajectories must be at least 2, for there to be a variance; got 1"),
        ({"horizon": 0}, "horizon must be a whole number of at least 1; got 0"),
        ({"discount": -0.1}, "discount must be between 0 and 1; got -0.1"),
        ({"estimator": "ppo"}, "estimator must be one of reinforce, gpomdp; got 'ppo'"),
        ({"score": "both"}, "score must be one of drawn, clipped; got 'both'"),
        ({"early_end": "ignore"}, "early_end must be one of pad, refuse; got 'ignore'"),
        ({"policy": GaussianPolicy([[0.1, 0.2]])}, "weights must have 1 columns, one per number of the state; got 2"),
        ({"policy": GaussianPolicy([[0.1], [0.2]])}, "weights must have 1 rows, as the actions; got 2"),
        ({"policy": SoftmaxPolicy([[0.1], [0.2]])}, "actions must be Discrete for a SoftmaxPolicy; got Box"),
        ({"env": gymnasium.make("CartPole-v1")}, "must be a vector environment; got .*gymnasium.make_vec"),
        (
            {"policy": GaussianPolicy(0.0, features=lambda states: states[:, :0])},
            r"must return 10 rows of 1 features, .* got the shape \(10, 0\)",
        ),
        ({"policy": GaussianPolicy(0.0, features=lambda states: states / 0)}, "features must be finite"),
    ],
)
def test_what_cannot_be_estimated_is_refused(change, message):
    arguments = {"env": LQG(), "policy": GaussianPolicy(0.0), "num_trajectories": 10, "seed": 0} | change
    with pytest.raises(InputError, match=message):
        estimate_gradient(**arguments)


def test_an_interrupt_does_not_wait_for_the_chunks_of_other_threads(monkeypatch):
    batch = GradientBatch(LQG(), GaussianPolicy(0.0), seed=0, num_workers=2, chunk_size=10)
    release = threading.Event()

    def slow(index, size):
        if index:
            release.wait(30)

    monkeypatch.setattr(batch, "_sum_chunk", slow)
    chunks = batch._sum_chunks([10] * 5)
    next(chunks, None)
    started = time.perf_counter()
    threading.Timer(10, release.set).start()
    with pytest.raises(KeyboardInterrupt):
        chunks.throw(KeyboardInterrupt)
    assert time.perf_counter() - started < 5
    release.set()
