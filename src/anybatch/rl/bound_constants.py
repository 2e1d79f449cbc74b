"""Which constants of a task do the bounds rest on, and which of them did only the data say?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from gymnasium import spaces

from anybatch.decide.argument_checks import require_count, require_discount, require_positive
from anybatch.errors import InputError
from anybatch.rl.gradient_accumulator import GradientEstimate
from anybatch.rl.task import TaskConstants

ROUNDING = 1e-5  # rollouts are float32


@dataclass(frozen=True)
class BoundConstants:
    """What is stated of a task, and what was seen of it.

    Attributes:
        discount: gam.
        horizon: H, in steps.
        action_volume: |A|; None where there is none.
        stated_reward_bound: R; None where it is to be taken from data.
        stated_feature_bound: M; None where it is to be taken from data.
        stated_feature_norm_bound: F; None where it is to be taken from M.
        max_abs_reward: the largest seen.
        max_feature: the largest seen.
        max_feature_norm: the largest seen.
        has_gains: whether a reward above 0 was seen.
        has_losses: whether a reward below 0 was seen.
        has_unbounded_actions: whether no box holds the actions, so that their volume can only be stated.
    """

    discount: float
    horizon: int
    action_volume: float | None = None
    stated_reward_bound: float | None = None
    stated_feature_bound: float | None = None
    stated_feature_norm_bound: float | None = None
    max_abs_reward: float = 0.0
    max_feature: float = 0.0
    max_feature_norm: float = 0.0
    has_gains: bool = False
    has_losses: bool = False
    has_unbounded_actions: bool = False

    @property
    def reward_bound(self) -> float:
        """R, stated or else the largest seen."""
        return self.max_abs_reward if self.stated_reward_bound is None else self.stated_reward_bound

    @property
    def feature_bound(self) -> float:
        """M, stated or else the largest seen."""
        return self.max_feature if self.stated_feature_bound is None else self.stated_feature_bound

    @property
    def estimated(self) -> tuple[str, ...]:
        """Names of what is taken from data."""
        stated = {"reward_bound": self.stated_reward_bound, "feature_bound": self.stated_feature_bound}
        if self.stated_feature_norm_bound is not None:
            del stated["feature_bound"]  # F takes its place
        return tuple(name for name, value in stated.items() if value is None)

    @property
    def are_empty(self) -> bool:
        """Whether nothing but zeros was seen of what is to be taken from data."""
        return any(getattr(self, name) == 0 for name in self.estimated)

    @property
    def violations(self) -> tuple[str, ...]:
        """One sentence for each stated bound that was exceeded, saying by how much."""
        found = (
            ("reward", self.max_abs_reward, self.stated_reward_bound),
            ("feature", self.max_feature, self.stated_feature_bound),
            ("feature vector", self.max_feature_norm, self.stated_feature_norm_bound),
        )
        return tuple(
            f"a {name} of size {seen:.6g} exceeds the stated bound {stated:.6g} by {seen - stated:.3g} "
            f"({seen / stated - 1:.1%}): the guarantee is void"
            for name, seen, stated in found
            if stated is not None and seen > stated * (1 + ROUNDING)
        )

    def observe(self, estimate: GradientEstimate) -> BoundConstants:
        """Return the same constants with what another batch has shown."""
        return replace(
            self,
            max_abs_reward=max(self.max_abs_reward, estimate.max_abs_reward),
            max_feature=max(self.max_feature, estimate.max_feature),
            max_feature_norm=max(self.max_feature_norm, estimate.max_feature_norm),
            has_gains=self.has_gains or estimate.max_reward > 0,
            has_losses=self.has_losses or estimate.min_reward < 0,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {
            "reward_bound": self.reward_bound,
            "feature_bound": self.feature_bound,
            "estimated": list(self.estimated),
        }


def find_constants(env: Any, *, takes_states: bool, given: TaskConstants) -> BoundConstants:
    """Join what the user states with what the environment says of itself.

    Args:
        env: with a `task` of its own, or any Gymnasium vector environment.
        takes_states: whether the policy's features are the states, of which alone the environment knows the bound.
        given: by the user; goes before the environment's.

    Returns:
        The constants, with nothing seen yet.

    Raises:
        InputError: no discount or no horizon, one of them or a bound out of its range, or a volume below that of the
            box of actions.
    """
    own = getattr(env, "task", None)
    if not isinstance(own, TaskConstants):
        own = TaskConstants()
    found = {name: getattr(own, name) if value is None else value for name, value in asdict(given).items()}
    box_volume = _box_volume(getattr(env, "single_action_space", None))
    if found["action_volume"] is None and box_volume < math.inf:
        found["action_volume"] = box_volume or None
    if not takes_states:
        found["feature_bound"] = given.feature_bound
    for name in ("discount", "horizon"):
        if found[name] is None:
            raise InputError(f"{name} must be given for an environment that does not state it; got None.")
    require_discount(found["discount"])
    require_count(horizon=found["horizon"])
    bounds = ("reward_bound", "feature_bound", "action_volume")
    require_positive(**{name: found[name] for name in bounds if found[name] is not None})
    volume = found["action_volume"]
    if volume is not None and volume < box_volume * (1 - ROUNDING) < math.inf:
        raise InputError(
            f"action_volume must be at least that of the box of actions, {box_volume:.6g}; got {volume}. Leave it out."
        )
    return BoundConstants(
        float(found["discount"]),
        int(found["horizon"]),
        _plain(volume),
        _plain(found["reward_bound"]),
        _plain(found["feature_bound"]),
        has_unbounded_actions=box_volume == math.inf,
    )


def _plain(value: float | None) -> float | None:
    """Return a number that can be saved."""
    return None if value is None else float(value)


def _box_volume(space: Any) -> float:
    """Return the volume of a box, infinite of an unbounded one; 0 of anything else."""
    if not isinstance(space, spaces.Box):
        return 0.0
    return float(np.prod(space.high.astype(np.float64) - space.low.astype(np.float64)))
