"""Which of the policies that were deployed was the worst, where performance is known or only measured?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from anybatch.rl.safe_run import Iteration

NOISE = 0.05  # chance with which noise alone may look like a worse policy, over all that were deployed


@dataclass(frozen=True)
class DeployedPolicy:
    """A policy with what its batches showed.

    Attributes:
        performance: exact, or the mean return of all its batches.
        std_error: of that; 0 where it is exact.
        iteration: of its first batch.
    """

    performance: float
    std_error: float
    iteration: int


def deployed_policies(iterations: Iterable[Iteration]) -> list[DeployedPolicy]:
    """Return one policy per run of updates between steps; the batches of a policy that stayed are pooled.

    Args:
        iterations: in order.

    Returns:
        The policies, in order; the one that the last update left is among them only where that took no step.
    """
    groups: list[list[Iteration]] = []
    has_moved = True
    for iteration in iterations:
        if has_moved:
            groups.append([])
        groups[-1].append(iteration)
        has_moved = iteration.step_size != 0
    return [_pool(group) for group in groups]


def is_within_noise(worst: DeployedPolicy, first: DeployedPolicy, num_policies: int) -> bool:
    """Return whether the worst of so many may be no worse than the first.

    Args:
        worst: by its performance.
        first: that it is compared with.
        num_policies: among which the worst is.

    Returns:
        Whether the difference is below the standard errors that the worst of as many equal policies may show.
    """
    error = math.hypot(worst.std_error, first.std_error)
    return first.performance - worst.performance <= NormalDist().inv_cdf(1 - NOISE / num_policies) * error


def _pool(batches: Sequence[Iteration]) -> DeployedPolicy:
    exact = batches[0].performance
    if exact is not None:
        return DeployedPolicy(exact, 0.0, batches[0].iteration)
    total = sum(batch.batch_size for batch in batches)
    shares = [batch.batch_size / total for batch in batches]
    mean = sum(share * batch.measured_performance for share, batch in zip(shares, batches, strict=True))
    error = math.hypot(*(share * batch.measured_std_error for share, batch in zip(shares, batches, strict=True)))
    return DeployedPolicy(mean, error, batches[0].iteration)
