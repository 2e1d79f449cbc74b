"""What does a bound need to know of a task?"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskConstants:
    """The constants of a task that enter the bounds; None where unknown or infinite.

    Attributes:
        reward_bound: R, |reward| <= R.
        feature_bound: M, |phi_i(s)| <= M for every state and feature; of the states themselves, as linear policies
            take them without a feature map.
        action_volume: |A|, of the action space.
        discount: gamma.
        horizon: H, steps of an episode.
    """

    reward_bound: float | None = None
    feature_bound: float | None = None
    action_volume: float | None = None
    discount: float | None = None
    horizon: int | None = None
