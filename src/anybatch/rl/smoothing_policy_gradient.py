"""How does a policy get better all along a run, but for one stated probability? The loop of 2022."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any, final

from anybatch.decide.error_bounds import Estimator
from anybatch.decide.smoothing_step import Rule, SmoothingStep
from anybatch.errors import InputError
from anybatch.rl.bound_constants import find_constants
from anybatch.rl.deployment import Deployment
from anybatch.rl.gradient_accumulator import GradientEstimate
from anybatch.rl.gradient_estimate import AfterChunk, check_env, largest_batch, whole_chunks
from anybatch.rl.identity import describe
from anybatch.rl.known_performance import Performance, find_performance
from anybatch.rl.policy import Policy
from anybatch.rl.policy_class import PolicyClass, is_known_linear
from anybatch.rl.rollout import EarlyEnd
from anybatch.rl.safe_loop import SafeLoop
from anybatch.rl.safe_run import Iteration
from anybatch.rl.smoothing_rule import SmoothingRule, VectorBoundName
from anybatch.rl.task import TaskConstants


@final
class SmoothingPolicyGradient(SafeLoop):
    """Update a Gaussian or softmax policy along its whole gradient, so that a run fails with a stated probability.

    Each update draws small batches until the error of all of them together allows the step, or until
    `max_batch_size`; see `choose_smoothing_step` and, with a tolerance, `choose_relaxed_step`. Every look at the batch
    spends a share of `delta`; see `confidence_schedule`.

    Args:
        env: a vector environment; one with a `task` states its own constants.
        policy: Gaussian with a fixed covariance or softmax, linear in its features. The bounds are proven for
            `GaussianPolicy` and `SoftmaxPolicy`; any other class makes the guarantee heuristic.
        bound: on the error: "bernstein", "chebyshev" (by the largest variance there can be), "sample_chebyshev" (by
            the sample's variance), "sub_gaussian" (Gaussian policies) or "bounded_score" (softmax policies).
        estimator: "gpomdp" or "reinforce".
        delta: failure probability of the whole run.
        rule: "corrected", which takes no step once the guarantee is void; or "published" and "published_fast", by the
            authors' code, which has not the guarantee and goes on.
        tolerance: lambda: performance stays above (1 - lambda) times the best so far. None: each update improves.
        mini_batch_size: trajectories between two looks at the batch.
        max_batch_size: most trajectories of an update.
        growth: a batch is at least multiplied with this between two looks. 1, which is published, spends so much
            probability on looks that the Chebyshev bounds can be met at the first one alone; with them take 2.
        warm_start: an update begins with so many times the batch of the one before.
        reward_bound: R. Default: the environment's; else the largest seen, which makes the guarantee heuristic.
        feature_bound: M, of each feature, likewise.
        feature_norm_bound: F, of the features' 2-norm. Default: sqrt(number of features) M.
        discount: gam. Default: the environment's.
        horizon: H. Default: the environment's.
        performance: exact performance of a policy, for the record. Default: what the environment knows of the process
            that is measured, if anything.
        early_end: "pad" episodes that end before the horizon with rewards of 0 and say so, or "refuse" them.
        baseline: subtract the baselines that minimise the variance. They come from the same batch and bias the gradient
            by order 1/N, so that a guarantee is proven without them alone.
        num_workers: threads, for native environments. The result does not depend on it.
        seed: of every draw.

    Raises:
        InputError: an argument out of its range, or a bound that does not fit the policy.

    Source:
        Papini, Pirotta and Restelli 2022, arXiv:1905.03231, "SPG" and its relaxed form. Differs: see
        `choose_smoothing_step`.
    """

    def __init__(
        self,
        env: Any,
        policy: Policy,
        bound: VectorBoundName = "bernstein",
        estimator: Estimator = "gpomdp",
        delta: float = 0.05,
        rule: Rule = "corrected",
        *,
        tolerance: float | None = None,
        mini_batch_size: int = 100,
        max_batch_size: int = 100_000,
        growth: float = 1.0,
        warm_start: float = 0.0,
        reward_bound: float | None = None,
        feature_bound: float | None = None,
        feature_norm_bound: float | None = None,
        discount: float | None = None,
        horizon: int | None = None,
        performance: Performance | None = None,
        early_end: EarlyEnd = "pad",
        baseline: bool = True,
        num_workers: int = 1,
        seed: int = 0,
    ) -> None:
        if not 0 <= warm_start < math.inf:
            raise InputError(f"warm_start must be at least 0 and finite; got {warm_start}. 0 begins anew each time.")
        if not 1 <= growth < math.inf:
            raise InputError(f"growth must be at least 1 and finite; got {growth}. 1 adds mini-batches, 2 doubles.")
        check_env(env)
        self.env = env
        self.seed = int(seed)
        self.early_end = early_end
        self.num_workers = num_workers
        self.growth = growth
        self.warm_start = warm_start
        chosen = SmoothingRule(
            PolicyClass.of(policy),
            bound,
            estimator,
            delta,
            rule,
            tolerance,
            mini_batch_size,
            max_batch_size,
            feature_norm_bound,
            baseline,
            is_known_linear(policy),
        )
        most = largest_batch(env, chosen.mini_batch_size, chosen.max_batch_size)
        self.rule = replace(chosen, max_batch_size=most)
        given = TaskConstants(reward_bound, feature_bound, None, discount, horizon)
        constants = find_constants(env, takes_states=getattr(policy, "feature_map", None) is None, given=given)
        self.rule.check(constants)
        schedule = {"growth": growth, "warm_start": warm_start, "seed": self.seed}
        constants = replace(constants, stated_feature_norm_bound=feature_norm_bound)
        settings = self.rule.settings() | describe(env, policy) | schedule | {"constants": asdict(constants)}
        self.deployment = Deployment(
            policy,
            constants,
            caveats=self.rule.caveats,
            settings=settings,
            stays_when_void=self.rule.stays_when_void,
            needs_volume=False,
            performance=find_performance(env, policy, performance, constants, is_published=False),
        )
        self._best_high = -math.inf

    @property
    def next_batch_size(self) -> int:
        """Trajectories that the next update begins with."""
        last = self.iterations[-1].batch_size if self.iterations else 0
        wanted = max(round(self.warm_start * last), self.rule.mini_batch_size)
        return whole_chunks(self.env, min(wanted, self.rule.max_batch_size))

    def step(self, after_chunk: AfterChunk | None = None) -> Iteration:
        """Take one update."""
        deployment, rule = self.deployment, self.rule
        number = len(self.iterations) + 1
        estimate, step, self._best_high = self._collect(number, after_chunk)
        return deployment.update(
            estimate,
            step.step_size * estimate.gradient,
            promised=rule.delta / (number * (number + 1)),
            step_size=step.step_size,
            coordinate=None,
            error=step.error,
            is_safe=step.is_safe,
            guaranteed_gain=step.guaranteed_gain,
            reason=step.reason,
        )

    def _collect(self, number: int, after_chunk: AfterChunk | None) -> tuple[GradientEstimate, SmoothingStep, float]:
        """Draw trajectories until they are enough for update `number`, or the most there may be."""
        deployment, rule = self.deployment, self.rule
        batch = self._new_batch(rule.estimator, baseline=rule.baseline)
        size, check = self.next_batch_size, 1
        while True:
            batch.draw(size, after_chunk)
            estimate = batch.estimate()
            seen = deployment.constants.observe(estimate)
            step, best_high = rule.decide(estimate, seen, iteration=number, check=check, best_high=self._best_high)
            is_lost = bool(seen.violations) and rule.stays_when_void
            if step.is_enough or is_lost or batch.num_trajectories + rule.mini_batch_size > rule.max_batch_size:
                deployment.observe(estimate)
                return estimate, step, best_high
            size, check = self._growth(batch.num_trajectories), check + 1

    def _growth(self, size: int) -> int:
        """Return how many trajectories are added to a batch before the next look."""
        wanted = max(self.rule.mini_batch_size, round((self.growth - 1) * size))
        return min(wanted, self.rule.max_batch_size - size)

    def state_dict(self) -> dict[str, Any]:
        """Return all that an update changes."""
        return {**self.deployment.state_dict(), "best_high": self._best_high}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`."""
        self.deployment.load_state_dict(state)
        self._best_high = state["best_high"]
