"""How often does a safe update make a policy worse, in fact, and how often does one whose error is a lie?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from lqg_units import DOMAIN, exact_optimum, exact_polynomial
from torch import Tensor

from anybatch.decide.error_bounds import ErrorBound
from anybatch.rl import LQG, GaussianPolicy, GradientEstimate, SmoothingPolicyGradient, TaskConstants
from anybatch.rl.bound_constants import BoundConstants, find_constants
from anybatch.rl.coordinate_rule import CoordinateRule, GaussianShape
from anybatch.rl.promise import DrawnEstimate, FailureCount, count_failures, draw_estimates
from anybatch.rl.smoothing_rule import SmoothingRule

BOUNDS = ("chebyshev", "hoeffding", "bernstein", "empirical hoeffding", "empirical bernstein", "student_t")
VARIANTS = {  # estimator and whether it has baselines; Chebyshev's bound of the last is the one that is proven
    "gpomdp": ("gpomdp", True),
    "reinforce": ("reinforce", True),
    "reinforce without baseline": ("reinforce", False),
}
DIVISORS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 1000.0, 10_000.0)  # of the error
FAR_STARTS = (0.0, -0.1, -0.2, -0.4)  # where the gradient is large and a bound lets the policy move
OFFSETS = (-0.08, -0.04, -0.02, -0.01, 0.01, 0.02, 0.04, 0.08)  # from the optimum, over the root of the batch
NUM_STARTS = len(FAR_STARTS) + len(OFFSETS)


@dataclass(frozen=True)
class RunSetting:
    """How whole runs of 2022 are made with one bound.

    Attributes:
        baseline: whether the estimates have baselines.
        num_updates: of a run.
        batches: least and most trajectories of an update, by delta.
    """

    baseline: bool
    num_updates: int
    batches: Mapping[float, tuple[int, int]]


RUN_SETTINGS = {
    "sample_chebyshev": RunSetting(True, 4, {0.05: (500, 8000), 0.25: (500, 8000)}),
    "chebyshev": RunSetting(False, 2, {0.05: (130_000, 130_000), 0.25: (40_000, 40_000)}),  # proven
}


@dataclass(frozen=True)
class DividedRule(CoordinateRule):
    """The rule of 2017 with an error that is divided."""

    divisor: float = 1.0

    def error_bound(self, estimate: GradientEstimate, constants: BoundConstants, coordinate: int) -> ErrorBound:
        """Return the divided bound."""
        return _divide(super().error_bound(estimate, constants, coordinate), self.divisor)


@dataclass(frozen=True)
class DividedSmoothingRule(SmoothingRule):
    """The rule of 2022 with an error that is divided."""

    divisor: float = 1.0

    def error_bound(self, estimate: GradientEstimate, constants: BoundConstants, delta: float) -> ErrorBound:
        """Return the divided bound."""
        return _divide(super().error_bound(estimate, constants, delta), self.divisor)


def _divide(bound: ErrorBound, divisor: float) -> ErrorBound:
    return replace(bound, d=bound.d / divisor, f=bound.f / divisor)


def starting_policy(place: int, batch_size: int) -> float:
    """Return a policy far from the optimum, or in the later places one where the gradient's sign is nearly a coin's."""
    if place < len(FAR_STARTS):
        return FAR_STARTS[place]
    return exact_optimum() + OFFSETS[place - len(FAR_STARTS)] / math.sqrt(batch_size)


def _performance(parameters: Tensor) -> float:
    theta = float(parameters[0])
    return float(exact_polynomial()(theta)) if DOMAIN[0] <= theta <= DOMAIN[1] else -math.inf


def count_updates(
    estimator: str, baseline: bool, place: int, num_each: int, batch_size: int, deltas: list[float], seed: int
) -> dict[str, Any]:
    """Count independent updates from one start that made the policy worse, by bound, delta and divisor."""
    env = LQG()
    start = starting_policy(place, batch_size)
    options = {"estimator": estimator, "baseline": baseline, "need_ranges": True}
    drawn = list(draw_estimates(env, [GaussianPolicy(start)], num_each, batch_size, seed=seed + place, **options))
    constants = find_constants(env, takes_states=True, given=TaskConstants())
    counts = []
    for delta in deltas:
        for name in BOUNDS:
            for divisor in DIVISORS:
                rule = _rule(name, estimator, baseline, delta, divisor)
                found = count_failures(
                    drawn,
                    lambda estimate, rule=rule: rule.decide(estimate, constants).displacement,
                    _performance,
                    delta,
                )
                counts.append({"bound": name, "divisor": divisor, **asdict(found)})
        for name, decide in _controls(seed + place).items():
            counts.append({"bound": name, "divisor": 1.0, **asdict(_count(drawn, decide, delta))})
    return {"start": start, "counts": counts}


def _rule(name: str, estimator: str, baseline: bool, delta: float, divisor: float) -> DividedRule:
    empirical, _, bound = name.rpartition(" ")
    range_ = empirical or "theoretical"
    shape = GaussianShape.of(torch.eye(1))
    return DividedRule(shape, bound, range_, estimator, delta, baseline=baseline, divisor=divisor)  # pyright: ignore[reportArgumentType]


def _count(drawn: list[DrawnEstimate], decide: Callable[[GradientEstimate], Tensor], delta: float) -> FailureCount:
    return count_failures(drawn, decide, _performance, delta)


def _controls(seed: int) -> dict[str, Callable[[GradientEstimate], Tensor]]:
    """Return updates that no bound allows: along noise alone, and by a fixed step."""
    generator = torch.Generator().manual_seed(seed)

    def along_noise(estimate: GradientEstimate) -> Tensor:
        std_error = (estimate.variance / estimate.num_trajectories).sqrt()
        return 1e-5 * std_error * torch.randn(1, generator=generator, dtype=torch.float64)

    return {"noise alone": along_noise, "fixed step of 0.1": lambda estimate: 0.1 * estimate.gradient}


def count_runs(bound: str, delta: float, divisor: float, num_runs: int, seed: int) -> dict[str, Any]:
    """Count whole runs of the method of 2022 in which some update made the policy worse."""
    setting = RUN_SETTINGS[bound]
    least, most = setting.batches[delta]
    failures = steps = moved = 0
    for index in range(num_runs):
        agent = SmoothingPolicyGradient(
            LQG(),
            GaussianPolicy(starting_policy(index % NUM_STARTS, least)),
            bound,  # pyright: ignore[reportArgumentType]
            delta=delta,
            mini_batch_size=least,
            max_batch_size=most,
            growth=2.0,
            baseline=setting.baseline,
            performance=lambda policy: _performance(policy.parameters),
            seed=seed + index,
        )
        agent.rule = DividedSmoothingRule(**vars(agent.rule), divisor=divisor)
        updates = [agent.step() for _ in range(setting.num_updates)]
        performances = [update.performance or 0.0 for update in updates] + [_performance(agent.policy.parameters)]
        failures += any(after < before for before, after in pairwise(performances))
        taken = sum(update.step_size > 0 for update in updates)
        steps, moved = steps + taken, moved + (taken > 0)
    return {
        "num_runs": num_runs,
        "num_failed": failures,
        "num_moved": moved,
        "num_updates": num_runs * setting.num_updates,
        "num_steps": steps,
    }
