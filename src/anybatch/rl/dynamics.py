"""What must a task written in tensors say of itself, for many trajectories to be rolled out at once?"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor


class Dynamics(Protocol):
    """The rules of a task, planar: the trajectories come last, so that every operation runs along memory.

    Its public numbers, tensors and bounds tell a saved run of one task from that of another: what changes from call to
    call has a name with an underscore.

    Attributes:
        state_size: numbers of a state.
        action_size: numbers of an action.
        max_action: actions are clipped to this; the actions of `step` and `rewards` are.
        max_state: of the states, as far as they have bounds.
        can_end: whether trajectories may end before the horizon.
    """

    state_size: int
    action_size: int
    max_action: Bounds
    max_state: Bounds
    can_end: bool

    def draw_states(self, states: Tensor, generator: torch.Generator) -> None:
        """Fill (state size, n) with initial states."""
        ...

    def step(self, states: Tensor, actions: Tensor, out: Tensor) -> None:
        """Write the states that follow (state size, n) states under (action size, n) clipped actions."""
        ...

    def rewards(self, states: Tensor, actions: Tensor, out: Tensor) -> None:
        """Write (H, n) rewards of (H, state size, n) states before the step and (H, action size, n) clipped actions."""
        ...

    def is_over(self, states: Tensor) -> Tensor:
        """Return which of (..., state size, n) states end their trajectory, (..., n)."""
        ...


class Bounds:
    """Plus and minus a limit for each number of a state or an action; infinite where there is none.

    Args:
        values: (size,), positive.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.are_finite = bool(values.isfinite().all())
        self._common = float(values[0]) if bool((values == values[0]).all()) else None

    def clip(self, planes: Tensor) -> None:
        """Clip (size, n) in place."""
        if self._common is None:
            limits = self.values.to(planes)[:, None]
            torch.minimum(torch.maximum(planes, -limits, out=planes), limits, out=planes)
        elif self._common < math.inf:
            planes.clamp_(-self._common, self._common)
