"""The promise: of a thousand independent updates no more than delta make the policy worse, and controls do."""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from rl.exact_lqg import exact_performance

from anybatch.rl import LQG, GaussianPolicy, SmoothingPolicyGradient, TaskConstants
from anybatch.rl.bound_constants import find_constants
from anybatch.rl.coordinate_rule import CoordinateRule, GaussianShape
from anybatch.rl.promise import FailureCount, count_failures, draw_estimates
from anybatch.rl.smoothing_rule import SmoothingRule

ENV = LQG()
CONSTANTS = find_constants(ENV, takes_states=True, given=TaskConstants())
BATCH_SIZE, PROVEN_BATCH_SIZE = 12_000, 24_000
FAR_STARTS = (0.0, -0.1)  # from the optimum: every bound moves a policy from the first, and the tighter ones from both
STARTS = (*FAR_STARTS, -0.6501, -0.6502, -0.6503, -0.6504)  # two to one where the gradient's sign is a coin's
BOUNDS = (
    ("chebyshev", "theoretical"),
    ("hoeffding", "empirical"),
    ("bernstein", "theoretical"),
    ("bernstein", "empirical"),
    ("student_t", "theoretical"),
)


@dataclass(frozen=True)
class ShrunkenRule(CoordinateRule):
    divisor: float = 1.0

    def error_bound(self, estimate, constants, coordinate):
        bound = super().error_bound(estimate, constants, coordinate)
        return replace(bound, d=bound.d / self.divisor, f=bound.f / self.divisor)


@pytest.fixture(scope="module")
def drawn():
    policies = [GaussianPolicy(theta) for theta in STARTS]
    return list(draw_estimates(ENV, policies, 200, BATCH_SIZE, seed=0, need_ranges=True))


@pytest.fixture(scope="module")
def drawn_without_baseline():
    policies = [GaussianPolicy(theta) for theta in STARTS]
    return list(draw_estimates(ENV, policies, 200, PROVEN_BATCH_SIZE, seed=0, estimator="reinforce", baseline=False))


def count(drawn, delta, bound="student_t", range_="theoretical", divisor=1.0, **options) -> FailureCount:
    rule = ShrunkenRule(GaussianShape.of(torch.eye(1)), bound, range_, delta=delta, divisor=divisor, **options)
    return count_failures(
        drawn, lambda estimate: rule.decide(estimate, CONSTANTS).displacement, exact_performance(), delta
    )


@pytest.mark.parametrize(("bound", "range_"), BOUNDS)
@pytest.mark.parametrize("delta", [0.05, 0.25])
def test_safe_updates_make_a_policy_worse_no_more_often_than_promised(drawn, bound, range_, delta):
    found = count(drawn, delta, bound, range_)
    assert found.num_updates == 1200
    assert found.is_kept, found.reason
    assert found.num_steps >= (400 if delta == 0.25 or range_ == "empirical" else 200)  # from far off it has to move
    assert found.share_of_steps is not None
    assert found.share_of_steps <= 0.5


@pytest.mark.parametrize("delta", [0.05, 0.25])
def test_updates_that_are_proven_safe_move_and_make_no_policy_worse(drawn_without_baseline, delta):
    proven = {"estimator": "reinforce", "baseline": False}
    rule = CoordinateRule(GaussianShape.of(torch.eye(1)), "chebyshev", **proven)
    assert rule.caveats == ()
    assert CONSTANTS.estimated == ()
    found = count(drawn_without_baseline, delta, "chebyshev", **proven)
    assert (found.is_kept, found.num_worse) == (True, 0), found.reason
    assert found.num_steps >= (400 if delta == 0.25 else 150)
    control = count(drawn_without_baseline, delta, "chebyshev", divisor=10_000.0, **proven)
    assert control.is_surely_broken, control.reason


def test_the_loosest_bound_moves_a_policy_from_enough_trajectories():
    drawn = list(draw_estimates(ENV, [GaussianPolicy(0.0)], 50, 60_000, seed=0))
    found = count(drawn, 0.05, "hoeffding")
    assert (found.num_steps, found.num_worse) == (50, 0)


@pytest.mark.parametrize(("bound", "range_"), BOUNDS)
@pytest.mark.parametrize("delta", [0.05, 0.25])
def test_an_error_that_is_far_too_small_breaks_the_promise(drawn, bound, range_, delta):
    found = count(drawn, delta, bound, range_, divisor=10_000.0)
    assert found.is_surely_broken, found.reason


@pytest.mark.parametrize(("delta", "divisor"), [(0.05, 10.0), (0.25, 100.0)])
def test_an_approximate_error_that_is_divided_breaks_the_promise(drawn, delta, divisor):
    assert count(drawn, delta, divisor=divisor).is_surely_broken


@pytest.mark.parametrize("delta", [0.05, 0.25])
def test_a_fixed_step_breaks_the_promise(drawn, delta):
    found = count_failures(drawn, lambda estimate: 0.1 * estimate.gradient, exact_performance(), delta)
    assert found.is_surely_broken, found.reason


@pytest.mark.parametrize("delta", [0.05, 0.25])
def test_a_step_from_noise_alone_breaks_the_promise(drawn, delta):
    generator = torch.Generator().manual_seed(0)

    def noise(estimate):
        std_error = (estimate.variance / estimate.num_trajectories).sqrt()
        return 1e-5 * std_error * torch.randn(1, generator=generator, dtype=torch.float64)

    found = count_failures(drawn, noise, exact_performance(), delta)
    assert found.is_surely_broken, found.reason


def failed_runs(delta: float, num_runs: int) -> tuple[FailureCount, int]:
    """Whole runs of the 2022 method, failed if one update made the policy worse; and how many steps all took."""
    performance = exact_performance()
    failures = steps = 0
    for index in range(num_runs):
        agent = SmoothingPolicyGradient(
            ENV,
            GaussianPolicy(STARTS[index % len(STARTS)]),
            "sample_chebyshev",
            delta=delta,
            mini_batch_size=500,
            max_batch_size=1000,
            performance=lambda policy: performance(policy.parameters),
            seed=index,
        )
        updates = [agent.step() for _ in range(3)]
        performances = [update.performance for update in updates] + [performance(agent.policy.parameters)]
        failures += any(after < before for before, after in pairwise(performances))
        steps += sum(update.step_size > 0 for update in updates)
    return FailureCount(delta, num_runs, num_runs, failures), steps


@pytest.mark.parametrize("delta", [0.05, 0.25])
def test_whole_runs_of_the_schedule_fail_no_more_often_than_promised(delta):
    found, steps = failed_runs(delta, 100)
    assert found.is_kept, found.reason
    assert steps >= 30  # the runs from the start that is far off have to move


@pytest.mark.parametrize("delta", [0.05, 0.25])
def test_whole_runs_with_an_error_that_is_far_too_small_fail_more_often(delta, monkeypatch):
    def shrunken(*arguments):
        bound = error_bound(*arguments)
        return replace(bound, d=bound.d / 1000)

    error_bound = SmoothingRule.error_bound
    monkeypatch.setattr(SmoothingRule, "error_bound", shrunken)
    found, _ = failed_runs(delta, 50)
    assert found.is_surely_broken, found.reason


def test_whole_runs_with_a_proven_bound_move_and_do_not_fail():
    performance = exact_performance()
    steps = 0
    for index, theta in enumerate((*FAR_STARTS, -0.6502) * 4):
        agent = SmoothingPolicyGradient(
            ENV, GaussianPolicy(theta), "chebyshev", delta=0.25, mini_batch_size=40_000, max_batch_size=40_000,
            baseline=False, performance=lambda policy: performance(policy.parameters), seed=index,
        )  # fmt: skip
        update = agent.step()
        assert update.guarantee == "proven"
        assert performance(agent.policy.parameters) >= update.performance
        steps += update.step_size > 0
    assert steps >= 4


def test_a_count_says_whether_the_promise_is_kept():
    kept, broken = FailureCount(0.25, 1000, 400, 20), FailureCount(0.05, 1000, 900, 100)
    assert (kept.is_kept, kept.is_surely_broken) == (True, False)
    assert (broken.is_kept, broken.is_surely_broken) == (False, True)
    assert (kept.share_of_steps, FailureCount(0.25, 1000, 0, 0).share_of_steps) == (0.05, None)
    assert kept.reason == ("20 of 1000 updates made the policy worse, 0.08 of delta = 0.25: promise kept; 400 moved it")
    assert "promise broken" in broken.reason
