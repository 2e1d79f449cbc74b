"""What is run on the linear-quadratic task, and when would a rule stop to draw there?"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.polynomial import Chebyshev
from recording import follow_fixed_steps, record

from anybatch.decide import confidence_schedule, error_bounds
from anybatch.decide.error_bounds import ErrorBound
from anybatch.decide.safe_step import BEST_ERROR
from anybatch.decide.smoothing_step import Rule, choose_smoothing_step
from anybatch.decide.vector_error_bounds import score_weight, sub_gaussian_score
from anybatch.rl import LQG, GaussianPolicy, GradientEstimate, SafePolicyGradient, SmoothingPolicyGradient
from anybatch.rl.bound_constants import BoundConstants
from anybatch.rl.coordinate_rule import CoordinateDecision, CoordinateRule
from anybatch.rl.safe_run import Iteration

DELTA, MINI_BATCH, MAX_BATCH = 0.05, 100, 100_000
REWARD_BOUND, FEATURE_BOUND, HORIZON, DISCOUNT = 2.0, 1.0, 10, 0.9
PUBLISHED_SMOOTHNESS = 200.0  # without R
DOMAIN = (-1.6, 0.1)  # of policies whose exact performance is tabulated


def make_task() -> LQG:
    """Return the authors' task: A = B = Q = R = 1, states and actions clipped to within 1."""
    return LQG(
        state_cost=1.0, action_cost=1.0, max_start=1.0, max_state=1.0, max_action=1.0,
        discount=DISCOUNT, horizon=HORIZON,
    )  # fmt: skip


@cache
def exact_polynomial() -> Chebyshev:
    """J(theta) of the clipped process with its horizon: by quadrature at 20 nodes, interpolated, to 1e-13."""
    env = make_task()
    return Chebyshev.interpolate(
        np.vectorize(lambda theta: env.exact_performance(GaussianPolicy(theta))), 19, domain=list(DOMAIN)
    )


def exact_performance(policy: GaussianPolicy) -> float:
    """Return the exact performance of a policy; minus infinity outside the table."""
    return float(exact_performances(np.array(policy.parameters.item())))


def exact_performances(thetas: np.ndarray) -> np.ndarray:
    """Return those of many policies."""
    return np.where((thetas >= DOMAIN[0]) & (thetas <= DOMAIN[1]), exact_polynomial()(thetas), -np.inf)


def run_smoothing(bound: str, rule: str, growth: float, num_trajectories: int, seed: int) -> dict[str, Any]:
    """Run the loop of 2022."""
    agent = SmoothingPolicyGradient(
        make_task(), GaussianPolicy(0.0), bound, delta=DELTA, rule=rule, mini_batch_size=MINI_BATCH,  # pyright: ignore[reportArgumentType]
        max_batch_size=MAX_BATCH, growth=growth, feature_norm_bound=FEATURE_BOUND, performance=exact_performance,
        seed=seed,
    )  # fmt: skip
    run = agent.run(num_trajectories)
    return _record_run(run.iterations, run.final_performance, agent.policy)


@dataclass(frozen=True)
class StoredRule(CoordinateRule):
    """The rule of 2017 as the authors' stored runs of 2022 look: a range without R, and always the best step."""

    def error_bound(self, estimate: GradientEstimate, constants: BoundConstants, coordinate: int) -> ErrorBound:
        """Return Bernstein's bound with the range 2 a_max F sum_t (t + 1) gam^t."""
        range_ = 2 * FEATURE_BOUND * score_weight("gpomdp", constants.discount, constants.horizon)
        variance = float(estimate.variance[coordinate])
        return error_bounds.empirical_bernstein(variance, range_, self.delta, is_heuristic=True)

    def decide(self, estimate: GradientEstimate, constants: BoundConstants) -> CoordinateDecision:
        """Return the decision with the step that is best for the best batch, whatever this one was."""
        found = super().decide(estimate, constants)
        if not found.step.step_size:
            return found
        step_size = (1 - BEST_ERROR) ** 2 / (2 * self.penalty_of(constants) * (1 + BEST_ERROR) ** 2)
        displacement = found.displacement * (step_size / found.step.step_size)
        return replace(found, step=replace(found.step, step_size=step_size), displacement=displacement)


def run_adabatch(range: str, num_trajectories: int, seed: int) -> dict[str, Any]:
    """Run the loop of 2017 in safe mode, its delta spent along the run; range "stored" takes `StoredRule`."""
    is_stored = range == "stored"
    agent = SafePolicyGradient(
        make_task(), GaussianPolicy(0.0), "bernstein", delta=confidence_of(1),
        range="theoretical" if is_stored else range, min_batch_size=MINI_BATCH, max_batch_size=MAX_BATCH,  # pyright: ignore[reportArgumentType]
        performance=exact_performance, seed=seed,
    )  # fmt: skip
    if is_stored:
        agent.rule = StoredRule(**vars(agent.rule))

    def spend(update: Iteration) -> None:
        agent.rule = replace(agent.rule, delta=confidence_of(update.iteration + 1))

    run = agent.run(num_trajectories, callback=spend)
    return _record_run(run.iterations, run.final_performance, agent.policy)


def confidence_of(iteration: int) -> float:
    """Return the failure probability of one update of 2017 in a run of 2022: delta / (k (k + 1))."""
    return DELTA / (iteration * (iteration + 1))


def run_fixed_steps(num_trajectories: int, seed: int) -> dict[str, Any]:
    """Run G(PO)MDP with the step 1 / L, without R as published, and batches of 100."""
    task = make_task(), GaussianPolicy(0.0)
    parameters, returns = follow_fixed_steps(*task, 1 / PUBLISHED_SMOOTHNESS, MINI_BATCH, num_trajectories, seed)
    thetas = np.array([theta.item() for theta in parameters])
    return {
        **record([MINI_BATCH] * len(returns), returns),
        **_count_worse(exact_performances(thetas)),
        "theta": float(thetas[-1]),
    }


def _record_run(updates: Sequence[Iteration], final: float | None, policy: GaussianPolicy) -> dict[str, Any]:
    steps = [update for update in updates if update.step_size]
    performances = [update.performance for update in updates] + [final]
    return {
        **record([update.batch_size for update in updates], [update.measured_performance for update in updates]),
        **_count_worse([each for each in performances if each is not None]),
        "num_steps": len(steps),
        "num_unpromised": sum(not update.is_safe for update in steps),
        "first_gradient": updates[0].gradient_norm,
        "theta": policy.parameters.item(),
    }


def _count_worse(performances: Iterable[float]) -> dict[str, Any]:
    found = np.array(list(performances))
    return {"num_worse": int((np.diff(found) < 0).sum()), "final_performance": float(found[-1])}


def stopping_batch(gradient_norm: float, rule: Rule, iteration: int = 1) -> int:
    """Return the batch at which a rule stops to draw, were the gradient's norm always this: sub-Gaussian, growth 1."""

    def is_enough(check: int) -> bool:
        bound = sub_gaussian_score(
            estimator="gpomdp", reward_bound=REWARD_BOUND, score_scale=FEATURE_BOUND, num_parameters=1,
            discount=DISCOUNT, horizon=HORIZON, delta=confidence_schedule(DELTA, iteration, check),
        )  # fmt: skip
        step = choose_smoothing_step(
            gradient_norm=gradient_norm, batch_size=check * MINI_BATCH, bound=bound, smoothness=1.0, rule=rule
        )
        return step.is_enough

    most = 1
    while not is_enough(most):
        most *= 2
    return MINI_BATCH * bisect_left(range(most), True, lo=1, key=is_enough)
