"""What does the method of 2022 do with a batch that may grow: enough, or more?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch

from anybatch.decide import vector_error_bounds
from anybatch.decide.argument_checks import require_choice, require_count, require_positive, require_probability
from anybatch.decide.error_bounds import ErrorBound, Estimator
from anybatch.decide.milestone import milestone_budget, return_interval
from anybatch.decide.smoothing_policies import Version, smoothness_constant
from anybatch.decide.smoothing_step import (
    Rule,
    SmoothingStep,
    choose_relaxed_step,
    choose_smoothing_step,
    confidence_schedule,
)
from anybatch.errors import InputError
from anybatch.rl.bound_constants import BoundConstants
from anybatch.rl.coordinate_rule import BASELINE_CAVEAT
from anybatch.rl.gradient_accumulator import GradientEstimate
from anybatch.rl.policy_class import LINEAR_CAVEAT, PolicyClass

VectorBoundName = Literal["bernstein", "chebyshev", "sample_chebyshev", "sub_gaussian", "bounded_score"]


@dataclass(frozen=True)
class SmoothingRule:
    """The method of 2022 with its settings.

    Attributes:
        policy_class: of the policy.
        bound: "bernstein", "chebyshev" (by the variance bound), "sample_chebyshev" (by the sample's variance),
            "sub_gaussian" (Gaussian policies) or "bounded_score" (softmax policies).
        estimator: "gpomdp" or "reinforce".
        delta: failure probability of the whole run.
        rule: "corrected", "published" or "published_fast".
        tolerance: lambda of the milestone constraint; None for steps that each improve.
        mini_batch_size: trajectories between two looks at the batch.
        max_batch_size: most trajectories of an update.
        feature_norm_bound: F, of the 2-norm of the features. None: from the bound on each.
        baseline: whether the estimates have baselines.
        is_known_linear: whether the policy is known to be linear in its features.
    """

    policy_class: PolicyClass
    bound: VectorBoundName = "bernstein"
    estimator: Estimator = "gpomdp"
    delta: float = 0.05
    rule: Rule = "corrected"
    tolerance: float | None = None
    mini_batch_size: int = 100
    max_batch_size: int = 100_000
    feature_norm_bound: float | None = None
    baseline: bool = True
    is_known_linear: bool = True

    def __post_init__(self) -> None:
        require_choice(VectorBoundName, bound=self.bound)
        require_choice(Estimator, estimator=self.estimator)
        require_choice(Rule, rule=self.rule)
        require_probability(self.delta)
        require_count(mini_batch_size=self.mini_batch_size, max_batch_size=self.max_batch_size)
        if self.mini_batch_size < 2:
            raise InputError(
                f"mini_batch_size must be at least 2, for there to be a variance; got {self.mini_batch_size}."
            )
        if self.mini_batch_size > self.max_batch_size:
            raise InputError(
                f"mini_batch_size must be at most max_batch_size; got {self.mini_batch_size} and {self.max_batch_size}."
            )
        if self.feature_norm_bound is not None:
            require_positive(feature_norm_bound=self.feature_norm_bound)
        if self.tolerance is not None and not 0 <= self.tolerance <= 1:
            raise InputError(f"tolerance must be between 0 and 1, or None; got {self.tolerance}.")
        only = {"sub_gaussian": True, "bounded_score": False}
        if only.get(self.bound, self.policy_class.is_gaussian) != self.policy_class.is_gaussian:
            kind = "Gaussian" if self.policy_class.is_gaussian else "softmax"
            raise InputError(
                f"bound must fit a {kind} policy; got {self.bound!r}. Choose bernstein, chebyshev, sample_chebyshev or "
                f"{'sub_gaussian' if self.policy_class.is_gaussian else 'bounded_score'}."
            )
        object.__setattr__(self, "delta", float(self.delta))  # plain numbers can be saved
        for name in ("mini_batch_size", "max_batch_size"):
            object.__setattr__(self, name, int(getattr(self, name)))

    @property
    def num_events(self) -> int:
        """How many things may fail in one look at the batch."""
        return 1 if self.tolerance is None else 3

    @property
    def stays_when_void(self) -> bool:
        """Whether the policy stays once a stated bound was exceeded."""
        return self.rule == "corrected"

    @property
    def caveats(self) -> tuple[str, ...]:
        """Why the guarantee is less than proven, one clause each."""
        found = []
        if self.bound == "sample_chebyshev":
            found.append("the variance is that of the sample")
        if self.bound == "bernstein" and self.policy_class.is_gaussian:
            found.append("the score of a Gaussian policy is not bounded")
        if self.baseline:
            found.append(BASELINE_CAVEAT)
        if not self.is_known_linear:
            found.append(LINEAR_CAVEAT)
        if self.tolerance is not None:
            found.append("rewards are taken to have the signs that were seen")
        if self.rule != "corrected":
            found.append("the published rule has a batch that is too small and a smoothness constant without R")
        return tuple(found)

    def settings(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def check(self, constants: BoundConstants) -> None:
        """Refuse constants that no smoothness can be computed from.

        Args:
            constants: of the task.

        Raises:
            InputError: a discount of 1.
        """
        if constants.discount == 1:
            raise InputError(
                "discount must be below 1 for the smoothness; got 1. "
                "Give a lower discount, or take SafePolicyGradient with a penalty."
            )

    def feature_norm(self, constants: BoundConstants) -> float:
        """Return F, stated or else from the bound on each feature."""
        if self.feature_norm_bound is not None:
            return self.feature_norm_bound
        return constants.feature_bound * math.sqrt(self.policy_class.num_features)

    def smoothness(self, constants: BoundConstants) -> float:
        """Return L."""
        return self._smoothness(constants, "improved")

    def step_smoothness(self, constants: BoundConstants) -> float:
        """Return what steps are made of: L, or what the published code takes for it."""
        return self._smoothness(constants, "improved" if self.rule == "corrected" else "published")

    def _smoothness(self, constants: BoundConstants, version: Version) -> float:
        return smoothness_constant(
            self.policy_class.smoothing(self.feature_norm(constants)),
            reward_bound=constants.reward_bound,
            discount=constants.discount,
            version=version,
        )

    def error_bound(self, estimate: GradientEstimate, constants: BoundConstants, delta: float) -> ErrorBound:
        """Bound the error of the whole gradient, in the 2-norm.

        Args:
            estimate: from the batch as it stands.
            constants: of the task.
            delta: this look's share of the failure probability.

        Returns:
            The bound, heuristic where a constant came from data or the rule is less than proven.
        """
        found = self._error_bound(estimate, constants, delta)
        return replace(found, is_heuristic=bool(constants.estimated or self.caveats))

    def _error_bound(self, estimate: GradientEstimate, constants: BoundConstants, delta: float) -> ErrorBound:
        variance = float(estimate.variance.sum())
        task: dict[str, Any] = {
            "estimator": self.estimator,
            "reward_bound": constants.reward_bound,
            "discount": constants.discount,
            "horizon": constants.horizon,
        }
        norm = self.feature_norm(constants)
        if self.bound == "sample_chebyshev":
            return vector_error_bounds.vector_chebyshev(variance, delta)
        if self.bound == "chebyshev":
            score_sq = self.policy_class.score_sq * norm**2
            largest = vector_error_bounds.variance_bound(score_sq_bound=score_sq, **task)
            return vector_error_bounds.vector_chebyshev(largest, delta)
        score = self.policy_class.score_bound(norm)
        task |= {"num_parameters": len(estimate.gradient), "delta": delta}
        if self.bound == "sub_gaussian":
            return vector_error_bounds.sub_gaussian_score(score_scale=score, **task)
        if self.bound == "bounded_score":
            return vector_error_bounds.bounded_score(score_bound=score, **task)
        if self.rule != "corrected":
            task["reward_bound"] = 1.0  # the published code leaves it out of this bound
        return vector_error_bounds.vector_bernstein(variance=variance, score_bound=score, **task)

    def decide(
        self, estimate: GradientEstimate, constants: BoundConstants, *, iteration: int, check: int, best_high: float
    ) -> tuple[SmoothingStep, float]:
        """Decide on a batch as it stands.

        Args:
            estimate: from the batch.
            constants: of the task.
            iteration: k, from 1.
            check: i, from 1.
            best_high: highest upper bound on the performance of the policies before; minus infinity where there are
                none.

        Returns:
            The step, and the upper bound with this policy's own; `best_high` itself without a milestone.
        """
        if constants.are_empty:
            return self._wait(estimate.num_trajectories), best_high
        delta = confidence_schedule(self.delta, iteration, check, num_events=self.num_events)
        bound = self.error_bound(estimate, constants, delta)
        norm, size = float(torch.linalg.vector_norm(estimate.gradient)), estimate.num_trajectories
        made_of = {"smoothness": self.smoothness(constants), "step_smoothness": self.step_smoothness(constants)}
        if self.tolerance is None:
            step = choose_smoothing_step(gradient_norm=norm, batch_size=size, bound=bound, rule=self.rule, **made_of)
            return step, best_high
        interval = return_interval(
            estimate.mean_return,
            estimate.return_std,
            size,
            reward_bound=constants.reward_bound,
            discount=constants.discount,
            horizon=constants.horizon,
            delta=delta,
            has_both_signs=constants.has_gains and constants.has_losses,
        )
        best_high = max(best_high, interval.high)
        budget = milestone_budget(interval, best_high, self.tolerance)
        step = choose_relaxed_step(gradient_norm=norm, batch_size=size, bound=bound, budget=budget, **made_of)
        return step, best_high

    def _wait(self, size: int) -> SmoothingStep:
        reason = f"no reward or no feature other than 0 in {size} trajectories, so no bound on it: no step"
        return SmoothingStep(0.0, False, None, False, math.inf, 0.0, reason)
