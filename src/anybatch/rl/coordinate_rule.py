"""What does the method of 2017 do with one gradient estimate: which coordinate moves, and how far?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from anybatch.decide import error_bounds
from anybatch.decide.argument_checks import require_batch_limits, require_choice, require_positive, require_probability
from anybatch.decide.error_bounds import ErrorBound, Estimator
from anybatch.decide.safe_step import Mode, SafeStep, choose_safe_step, gaussian_penalty
from anybatch.errors import InputError
from anybatch.rl.bound_constants import ROUNDING, BoundConstants
from anybatch.rl.gradient_accumulator import GradientEstimate
from anybatch.rl.policy_class import LINEAR_CAVEAT

BoundName = Literal["chebyshev", "hoeffding", "bernstein", "student_t"]
RangeSource = Literal["theoretical", "empirical"]
BASELINE_CAVEAT = "baselines from the same batch bias the gradient by order 1/N"


@dataclass(frozen=True)
class GaussianShape:
    """How wide a Gaussian policy draws.

    Attributes:
        std: of an action given the others, the smallest: 1 / sqrt of the largest diagonal entry of the precision.
        num_actions: numbers of an action.
        covariance_det: determinant of the covariance.
    """

    std: float
    num_actions: int
    covariance_det: float

    @classmethod
    def of(cls, covariance: Tensor) -> GaussianShape:
        """Return the shape of a covariance, (d, d)."""
        precision = torch.linalg.inv(covariance.double())
        return cls(float(precision.diagonal().max()) ** -0.5, len(covariance), float(torch.linalg.det(covariance)))


@dataclass(frozen=True)
class CoordinateDecision:
    """A step of one coordinate.

    Attributes:
        step: size of the step and of the next batch.
        coordinate: the one with the largest gradient.
        max_gradient: its absolute value.
        displacement: (m,), what is added to the parameters.
        bound: of the error.
    """

    step: SafeStep
    coordinate: int
    max_gradient: float
    displacement: Tensor
    bound: ErrorBound


@dataclass(frozen=True)
class CoordinateRule:
    """The method of 2017 with its settings.

    Attributes:
        shape: of the policy.
        bound: "chebyshev", "hoeffding", "bernstein" or "student_t".
        range: of one trajectory's gradient, for Hoeffding and Bernstein: "theoretical", the published formula, or
            "empirical", that of the batch.
        estimator: "gpomdp" or "reinforce".
        delta: failure probability per update and coordinate.
        mode: "safe" or "paper".
        min_batch_size: least trajectories.
        max_batch_size: most trajectories.
        penalty: c; None for `gaussian_penalty`.
        baseline: whether the estimates have baselines.
        is_known_linear: whether the policy is known to be linear in its features.
    """

    shape: GaussianShape
    bound: BoundName = "bernstein"
    range: RangeSource = "theoretical"
    estimator: Estimator = "gpomdp"
    delta: float = 0.05
    mode: Mode = "safe"
    min_batch_size: int = 100
    max_batch_size: int = 500_000
    penalty: float | None = None
    baseline: bool = True
    is_known_linear: bool = True

    def __post_init__(self) -> None:
        require_choice(BoundName, bound=self.bound)
        require_choice(RangeSource, range=self.range)
        require_choice(Estimator, estimator=self.estimator)
        require_choice(Mode, mode=self.mode)
        require_probability(self.delta)
        require_batch_limits(self.min_batch_size, self.max_batch_size)
        if self.min_batch_size < 2:
            raise InputError(
                f"min_batch_size must be at least 2, for there to be a variance; got {self.min_batch_size}."
            )
        if self.penalty is not None:
            require_positive(penalty=self.penalty)
        object.__setattr__(self, "delta", float(self.delta))  # plain numbers can be saved
        for name in ("min_batch_size", "max_batch_size"):
            object.__setattr__(self, name, int(getattr(self, name)))

    @property
    def uses_range(self) -> bool:
        """Whether the bound needs the range of one trajectory's gradient."""
        return self.bound in ("hoeffding", "bernstein")

    @property
    def needs_ranges(self) -> bool:
        """Whether the estimate must have its ranges."""
        return self.uses_range and self.range == "empirical"

    @property
    def needs_volume(self) -> bool:
        """Whether the volume of the action space is needed, and with it a discount below 1."""
        return self.penalty is None or (self.uses_range and self.range == "theoretical")

    @property
    def stays_when_void(self) -> bool:
        """Whether the policy stays once a stated bound was exceeded."""
        return self.mode == "safe"

    @property
    def caveats(self) -> tuple[str, ...]:
        """Why the guarantee is less than proven, one clause each."""
        found = []
        if self.bound == "student_t":
            found.append("Student's t is approximate")
        if self.needs_ranges:
            found.append("the range is that of the sample")
        elif self.uses_range:
            found.append("the published range can be exceeded by a trajectory")
        if self.bound == "chebyshev" and self.estimator == "gpomdp":
            found.append("the published variance of G(PO)MDP can be exceeded where rewards follow the scores")
        if self.baseline:
            found.append(BASELINE_CAVEAT)
        if not self.is_known_linear:
            found.append(LINEAR_CAVEAT)
        if self.mode == "paper":
            found.append("the score of the clipped action is biased")
        return tuple(found)

    def caveats_of_penalty(self, constants: BoundConstants) -> tuple[str, ...]:
        """Return the caveat of a stated penalty that is below the one of the task's constants, where they tell it."""
        are_known = not constants.estimated and constants.action_volume is not None and constants.discount < 1
        if self.penalty is None or not are_known:
            return ()
        computed = replace(self, penalty=None).penalty_of(constants)
        if self.penalty >= computed * (1 - ROUNDING):
            return ()
        return (f"the stated penalty, {self.penalty:.6g}, is below that of the task's constants, {computed:.6g}",)

    def settings(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def check(self, constants: BoundConstants) -> None:
        """Refuse constants that no penalty or range can be computed from, where one has to be.

        Args:
            constants: of the task.

        Raises:
            InputError: no volume of the action space, or a discount of 1.
        """
        if not self.needs_volume:
            return
        _volume(constants)
        if constants.discount == 1:
            raise InputError(
                "discount must be below 1 for a penalty or a range that is computed from it; got 1. "
                "Give penalty as a number and for Hoeffding and Bernstein the empirical range, or a lower discount."
            )

    def decide(self, estimate: GradientEstimate, constants: BoundConstants) -> CoordinateDecision:
        """Choose the coordinate, the step and the next batch.

        Args:
            estimate: from one batch.
            constants: of the task.

        Returns:
            The decision.
        """
        coordinate = int(estimate.gradient.abs().argmax())
        gradient = float(estimate.gradient[coordinate])
        if constants.are_empty:
            return self._wait(estimate, coordinate)
        bound = self.error_bound(estimate, constants, coordinate)
        step = choose_safe_step(
            max_gradient=abs(gradient),
            batch_size=estimate.num_trajectories,
            bound=bound,
            penalty=self.penalty_of(constants),
            min_batch_size=self.min_batch_size,
            max_batch_size=self.max_batch_size,
            mode=self.mode,
        )
        displacement = torch.zeros_like(estimate.gradient)
        displacement[coordinate] = step.step_size * gradient
        return CoordinateDecision(step, coordinate, abs(gradient), displacement, bound)

    def _wait(self, estimate: GradientEstimate, coordinate: int) -> CoordinateDecision:
        size = estimate.num_trajectories
        following = min(max(2 * size, self.min_batch_size), self.max_batch_size)
        reason = f"no reward or no feature other than 0 in {size} trajectories, so no bound on it: no step; "
        step = SafeStep(0.0, following, False, math.inf, 0.0, f"{reason}next batch {following}")
        bound = ErrorBound(self.bound, math.inf, 0.0, self.delta, is_heuristic=True)
        return CoordinateDecision(step, coordinate, 0.0, torch.zeros_like(estimate.gradient), bound)

    def penalty_of(self, constants: BoundConstants) -> float:
        """Return c, as given or by the task's constants."""
        if self.penalty is not None:
            return self.penalty
        return gaussian_penalty(
            reward_bound=constants.reward_bound,
            feature_bound=constants.feature_bound,
            discount=constants.discount,
            action_volume=_volume(constants),
            std=self.shape.std,
            num_actions=self.shape.num_actions,
            covariance_det=self.shape.covariance_det,
            mode=self.mode,
        )

    def error_bound(self, estimate: GradientEstimate, constants: BoundConstants, coordinate: int) -> ErrorBound:
        """Bound the error of one coordinate.

        Args:
            estimate: from one batch.
            constants: of the task.
            coordinate: which.

        Returns:
            The bound, heuristic where a constant or the range came from data.
        """
        is_heuristic = bool(constants.estimated or self.caveats)
        variance = float(estimate.variance[coordinate])
        if self.bound == "chebyshev":
            found = error_bounds.chebyshev(
                estimator=self.estimator,
                reward_bound=constants.reward_bound,
                feature_bound=constants.feature_bound,
                discount=constants.discount,
                horizon=constants.horizon,
                std=self.shape.std,
                delta=self.delta,
            )
            return replace(found, is_heuristic=is_heuristic)
        if self.bound == "student_t":
            return error_bounds.student_t(variance, estimate.num_trajectories, self.delta)
        size = self._range(estimate, constants, coordinate)
        if self.bound == "hoeffding":
            return error_bounds.hoeffding(size, self.delta, is_heuristic=is_heuristic)
        return error_bounds.empirical_bernstein(variance, size, self.delta, is_heuristic=is_heuristic)

    def _range(self, estimate: GradientEstimate, constants: BoundConstants, coordinate: int) -> float:
        if estimate.ranges is not None and self.range == "empirical":
            return float(estimate.ranges[coordinate])
        volume, num_actions = _volume(constants), self.shape.num_actions
        return error_bounds.theoretical_range(
            reward_bound=constants.reward_bound,
            feature_bound=constants.feature_bound,
            action_diameter=volume ** (1 / num_actions) * math.sqrt(num_actions),  # of a cube
            action_volume=volume,
            discount=constants.discount,
            std=self.shape.std,
        )


def _volume(constants: BoundConstants) -> float:
    if constants.action_volume is None:
        raise InputError(
            "action_volume must be known for this bound; the action space is discrete or unbounded. Give action_volume "
            "as a number, or for discrete actions use SmoothingPolicyGradient."
        )
    return constants.action_volume
