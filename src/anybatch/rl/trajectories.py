"""What of many trajectories does a policy gradient need?"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Trajectories:
    """N trajectories of H steps under a policy of m parameters. After its end, a trajectory has zeros.

    Attributes:
        scores: (H, m, N), the gradient of log pi(a|s) of every step.
        rewards: (H, N), not discounted.
        max_feature: the largest |phi_i(s)| met.
        max_feature_norm: the largest 2-norm of phi(s) met; 0 where it was not looked for.
        ended_early: (N,), which ended before the horizon; None where none can.
    """

    scores: Tensor
    rewards: Tensor
    max_feature: float
    max_feature_norm: float = 0.0
    ended_early: Tensor | None = None

    @property
    def num_trajectories(self) -> int:
        """N."""
        return self.rewards.shape[1]

    @property
    def num_ended_early(self) -> int:
        """How many ended before the horizon."""
        return 0 if self.ended_early is None else int(self.ended_early.sum())
