"""What does a run of safe updates report?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Guarantee = Literal["proven", "heuristic", "void"]


@dataclass(frozen=True)
class Iteration:
    """One update. Performance, batch and gradient are those of the policy before it.

    Attributes:
        iteration: from 1.
        batch_size: trajectories of the gradient estimate.
        num_trajectories: of the run so far, these included.
        step_size: factor on the gradient; 0 for no step.
        coordinate: the one that moves; None where all do.
        performance: exact, of the function that the loop was given; None without one.
        measured_performance: mean discounted return of the batch.
        measured_std_error: of that mean.
        max_gradient: largest absolute coordinate of the estimate.
        gradient_norm: its 2-norm.
        error: of the estimate, in the largest coordinate (2017) or the 2-norm (2022).
        is_safe: whether the error allows the step that was taken, or a step at all; never once the guarantee is void.
        guaranteed_gain: lower bound on the gain of the step; negative where a loss is possible, minus infinity of a
            step that is taken once the guarantee is void.
        failure_probability: with which this update may be worse than that; 1 for a step without a guarantee, and once
            the guarantee is void.
        failure_probability_so_far: union bound over the updates of the run so far.
        guarantee: "proven" given the stated constants, "heuristic", or "void" from when a stated bound was exceeded.
        reason: one sentence.
    """

    iteration: int
    batch_size: int
    num_trajectories: int
    step_size: float
    coordinate: int | None
    performance: float | None
    measured_performance: float
    measured_std_error: float
    max_gradient: float
    gradient_norm: float
    error: float
    is_safe: bool
    guaranteed_gain: float
    failure_probability: float
    failure_probability_so_far: float
    guarantee: Guarantee
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values; what is not finite is None."""
        return {name: _finite(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class SafeRun:
    """A run so far.

    Attributes:
        iterations: in order.
        num_trajectories: of all batches.
        parameters: of the policy that the last update left.
        final_performance: of that policy; None without an exact performance.
        first_performance: of the first policy, exact or else measured, by all batches before the first step.
        worst_performance: of the worst policy that was deployed, likewise.
        worst_iteration: whose it was; one more than the last where it is the policy that the last update left.
        worst_parameters: of that policy.
        guarantee: of the whole run: the weakest of its updates.
        failure_probability: union bound over its updates, at most 1.
        guaranteed_gain: sum of the guaranteed gains; minus infinity where the guarantee is void.
        notes: one sentence for each thing that a reader must know.
        settings: of the loop, plain values.
        worst_is_within_noise: whether performance is only measured, and that of the worst is no further below the first
            than noise may put the worst of as many.
    """

    iterations: tuple[Iteration, ...]
    num_trajectories: int
    parameters: tuple[float, ...]
    final_performance: float | None
    first_performance: float
    worst_performance: float
    worst_iteration: int
    worst_parameters: tuple[float, ...]
    guarantee: Guarantee
    failure_probability: float
    guaranteed_gain: float
    notes: tuple[str, ...]
    settings: dict[str, Any]
    worst_is_within_noise: bool = False

    @property
    def reason(self) -> str:
        """One sentence on what came of the first policy, and on what may be relied on."""
        change = self.worst_performance - self.first_performance
        worst = f"worst deployed policy {change:+.4g} against the first" if change < 0 else "none worse than the first"
        if change < 0 and self.worst_is_within_noise:
            worst += ", within noise"
        return (
            f"{len(self.iterations)} updates from {self.num_trajectories} trajectories, {worst}; guarantee "
            f"{self.guarantee}, some update worse than promised with probability up to {self.failure_probability:.3g}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values; what is not finite is None."""
        plain = {field.name: _finite(getattr(self, field.name)) for field in fields(self)}
        return plain | {
            "iterations": [iteration.to_json() for iteration in self.iterations],
            "reason": self.reason,
        }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
