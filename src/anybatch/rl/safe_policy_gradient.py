"""How does a policy get better with a stated probability at every update? The loop of 2017."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, final

from anybatch.decide.error_bounds import Estimator
from anybatch.decide.safe_step import Mode
from anybatch.errors import InputError
from anybatch.rl.bound_constants import find_constants
from anybatch.rl.coordinate_rule import BoundName, CoordinateRule, GaussianShape, RangeSource
from anybatch.rl.deployment import Deployment
from anybatch.rl.gradient_estimate import AfterChunk, check_env, largest_batch, whole_chunks
from anybatch.rl.identity import describe
from anybatch.rl.known_performance import Performance, find_performance
from anybatch.rl.policy import Policy
from anybatch.rl.policy_class import is_known_linear
from anybatch.rl.rollout import EarlyEnd
from anybatch.rl.safe_loop import SafeLoop
from anybatch.rl.safe_run import Iteration
from anybatch.rl.task import TaskConstants


@final
class SafePolicyGradient(SafeLoop):
    """Update a Gaussian policy so that each update makes it better, but for a stated probability.

    Each update draws a batch, moves the coordinate with the largest gradient as far as the error of the batch allows,
    and sizes the next batch for the largest guaranteed gain per trajectory; see `choose_safe_step`.

    Args:
        env: a vector environment; one with a `task` states its own constants.
        policy: Gaussian, linear in its features, with a fixed covariance. The bounds are proven for `GaussianPolicy`;
            any other class with a covariance makes the guarantee heuristic.
        bound: on the error: "bernstein", "chebyshev", "hoeffding" or "student_t".
        estimator: "gpomdp" or "reinforce".
        delta: failure probability per update and coordinate. 0.05 is cautious, 0.95 bold.
        mode: "safe": no step where the error is not below the gradient or the guarantee is void, and scores of the
            actions as drawn. "paper": the published runs, which step in any case and score the clipped actions.
        range: of one trajectory's gradient, for Hoeffding and Bernstein: "theoretical", by the published formula, or
            "empirical", that of the batch.
        min_batch_size: least trajectories of a batch, and those of the first.
        max_batch_size: most trajectories of a batch.
        reward_bound: R. Default: the environment's; else the largest seen, which makes the guarantee heuristic.
        feature_bound: M, likewise; of the policy's features, where it has a feature map.
        action_volume: |A|, not below that of the box of actions. Default: the environment's, or that of the box. Of
            actions without bounds it is the user's word alone, and the run says so.
        discount: gam. Default: the environment's.
        horizon: H. Default: the environment's.
        penalty: c. Default: `gaussian_penalty`.
        performance: exact performance of a policy, for the record. Default: what the environment knows of the process
            that is measured; in mode "paper" the published closed form.
        early_end: "pad" episodes that end before the horizon with rewards of 0 and say so, or "refuse" them.
        baseline: subtract the baselines that minimise the variance. They come from the same batch and bias the gradient
            by order 1/N, so that a guarantee is proven without them alone.
        num_workers: threads, for native environments. The result does not depend on it.
        seed: of every draw.

    Raises:
        InputError: an argument out of its range, a policy that is not Gaussian, or a constant that neither the
            environment nor the user states and data cannot.

    Example:
        >>> from anybatch.rl import LQG, GaussianPolicy
        >>> agent = SafePolicyGradient(LQG(), GaussianPolicy(0.0), bound="chebyshev", delta=0.25, seed=1)
        >>> run = agent.run(30_000)
        >>> [(update.batch_size, update.is_safe) for update in run.iterations]
        [(100, False), ...
        >>> run.final_performance > run.first_performance
        True

    Source:
        Papini, Pirotta and Restelli 2017, "Adaptive Batch Size for Safe Policy Gradients".
    """

    def __init__(
        self,
        env: Any,
        policy: Policy,
        bound: BoundName = "bernstein",
        estimator: Estimator = "gpomdp",
        delta: float = 0.05,
        mode: Mode = "safe",
        *,
        range: RangeSource = "theoretical",
        min_batch_size: int = 100,
        max_batch_size: int = 500_000,
        reward_bound: float | None = None,
        feature_bound: float | None = None,
        action_volume: float | None = None,
        discount: float | None = None,
        horizon: int | None = None,
        penalty: float | None = None,
        performance: Performance | None = None,
        early_end: EarlyEnd = "pad",
        baseline: bool = True,
        num_workers: int = 1,
        seed: int = 0,
    ) -> None:
        covariance = getattr(policy, "covariance", None)
        if covariance is None:
            raise InputError(
                f"policy must be Gaussian, with a covariance; got {type(policy).__name__}. Use SmoothingPolicyGradient "
                "for a softmax policy."
            )
        check_env(env)
        self.env = env
        self.seed = int(seed)
        self.early_end = early_end
        self.num_workers = num_workers
        rule = CoordinateRule(
            GaussianShape.of(covariance),
            bound,
            range,
            estimator,
            delta,
            mode,
            min_batch_size,
            max_batch_size,
            penalty,
            baseline,
            is_known_linear(policy),
        )
        most = largest_batch(env, rule.min_batch_size, rule.max_batch_size)
        self.rule = replace(rule, max_batch_size=most)
        given = TaskConstants(reward_bound, feature_bound, action_volume, discount, horizon)
        constants = find_constants(env, takes_states=getattr(policy, "feature_map", None) is None, given=given)
        self.rule.check(constants)
        self.deployment = Deployment(
            policy,
            constants,
            caveats=self.rule.caveats + self.rule.caveats_of_penalty(constants),
            settings={
                **self.rule.settings(),
                **describe(env, policy),
                "seed": self.seed,
                "constants": asdict(constants),
            },
            stays_when_void=self.rule.stays_when_void,
            needs_volume=self.rule.needs_volume,
            performance=find_performance(env, policy, performance, constants, is_published=mode == "paper"),
            remarks=() if penalty is None else (f"the penalty is stated: c = {penalty:.6g}",),
        )
        self._next_batch_size = rule.min_batch_size

    @property
    def next_batch_size(self) -> int:
        """Trajectories of the next batch."""
        return whole_chunks(self.env, self._next_batch_size)

    def step(self, after_chunk: AfterChunk | None = None) -> Iteration:
        """Take one update."""
        deployment, rule = self.deployment, self.rule
        batch = self._new_batch(
            rule.estimator,
            baseline=rule.baseline,
            need_ranges=rule.needs_ranges,
            score="clipped" if rule.mode == "paper" else "drawn",
        )
        batch.draw(self._next_batch_size, after_chunk)
        estimate = batch.estimate()
        deployment.observe(estimate)
        decision = rule.decide(estimate, deployment.constants)
        iteration = deployment.update(
            estimate,
            decision.displacement,
            promised=min(rule.delta * len(estimate.gradient), 1.0),
            step_size=decision.step.step_size,
            coordinate=decision.coordinate,
            error=decision.step.error,
            is_safe=decision.step.is_safe,
            guaranteed_gain=decision.step.guaranteed_gain,
            reason=decision.step.reason,
        )
        self._next_batch_size = decision.step.next_batch_size
        return iteration

    def state_dict(self) -> dict[str, Any]:
        """Return all that an update changes."""
        return {**self.deployment.state_dict(), "next_batch_size": self._next_batch_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of `state_dict`."""
        self.deployment.load_state_dict(state)
        self._next_batch_size = state["next_batch_size"]
