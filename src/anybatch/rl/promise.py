"""How often does an update make a policy worse, if it is drawn anew a thousand times?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from anybatch.rl.gradient_accumulator import GradientEstimate
from anybatch.rl.gradient_estimate import estimate_gradient
from anybatch.seeds import derive_seed


@dataclass(frozen=True)
class FailureCount:
    """How many of independent updates made the policy worse.

    Attributes:
        delta: the share that is promised.
        num_updates: all.
        num_steps: those that moved the policy.
        num_worse: those that made it worse.
    """

    delta: float
    num_updates: int
    num_steps: int
    num_worse: int

    @property
    def share(self) -> float:
        """Of updates that made the policy worse, steps not taken being updates too."""
        return self.num_worse / self.num_updates

    @property
    def share_of_steps(self) -> float | None:
        """Of updates that moved the policy, those that made it worse; None where none did."""
        return self.num_worse / self.num_steps if self.num_steps else None

    @property
    def is_kept(self) -> bool:
        """Whether the share is at or below delta."""
        return self.share <= self.delta

    @property
    def is_surely_broken(self) -> bool:
        """Whether the share is above delta by more than four standard errors of a share of delta."""
        return self.share > self.delta + 4 * math.sqrt(self.delta * (1 - self.delta) / self.num_updates)

    @property
    def reason(self) -> str:
        """One sentence."""
        verb = "kept" if self.is_kept else "broken"
        return (
            f"{self.num_worse} of {self.num_updates} updates made the policy worse, {self.share / self.delta:.3g} of "
            f"delta = {self.delta:g}: promise {verb}; {self.num_steps} moved it"
        )


@dataclass(frozen=True, eq=False)
class DrawnEstimate:
    """A gradient estimate with the parameters it was drawn at.

    Attributes:
        parameters: (m,).
        estimate: of the gradient there.
    """

    parameters: Tensor
    estimate: GradientEstimate


def draw_estimates(
    env: Any, policies: Sequence[Any], num_each: int, batch_size: int, *, seed: int, **options: Any
) -> Iterator[DrawnEstimate]:
    """Draw independent gradient estimates at several policies.

    Args:
        env: a vector environment.
        policies: to start from.
        num_each: estimates at each.
        batch_size: trajectories of each estimate.
        seed: of every draw.
        **options: of `estimate_gradient`.

    Yields:
        The estimates, policy by policy.
    """
    for place, policy in enumerate(policies):
        for index in range(num_each):
            own = derive_seed(seed, "promise", place, index)
            estimate = estimate_gradient(env, policy, batch_size, seed=own, **options)
            yield DrawnEstimate(policy.parameters, estimate)


def count_failures(
    drawn: Iterable[DrawnEstimate],
    decide: Callable[[GradientEstimate], Tensor],
    performance: Callable[[Tensor], float],
    delta: float,
) -> FailureCount:
    """Count the updates that lower the exact performance.

    Args:
        drawn: independent estimates.
        decide: from an estimate to what is added to the parameters, (m,).
        performance: exact, of parameters (m,), and of the same process that the estimates are from.
        delta: the share that is promised.

    Returns:
        The count. A step of length zero never makes a policy worse.
    """
    num_updates = num_steps = num_worse = 0
    for start in drawn:
        displacement = decide(start.estimate)
        num_updates += 1
        if bool(displacement.any()):
            num_steps += 1
            num_worse += performance(start.parameters + displacement) < performance(start.parameters)
    return FailureCount(delta, num_updates, num_steps, num_worse)
