"""How does a pole on a cart behave under a force of any size within bounds?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anybatch.decide.argument_checks import require_positive
from anybatch.rl.dynamics import Bounds
from anybatch.rl.native_env import NativeVectorEnv

GRAVITY = 9.8
MASS_CART = 1.0
MASS_POLE = 0.1
SECONDS_PER_STEP = 0.02
MAX_POSITION = 2.4
MAX_ANGLE = 12 * math.pi / 180
MAX_START = 0.05


class CartPoleDynamics:
    """Position and velocity of a cart, angle and angular velocity of its pole; Euler's method as in Gymnasium.

    Args:
        max_force: the force is clipped to within plus and minus this, in newtons.
        half_length: of the pole, in metres.
    """

    state_size = 4
    action_size = 1
    can_end = True

    def __init__(self, max_force: float, half_length: float) -> None:
        self.max_action = Bounds(torch.tensor([max_force], dtype=torch.float64))
        limits = [2 * MAX_POSITION, math.inf, 2 * MAX_ANGLE, math.inf]
        self.max_state = Bounds(torch.tensor(limits, dtype=torch.float64))
        self.half_length = half_length

    def draw_states(self, states: Tensor, generator: torch.Generator) -> None:
        """Fill (4, n) uniformly, near the upright pole at rest."""
        states.uniform_(-MAX_START, MAX_START, generator=generator)

    def step(self, states: Tensor, actions: Tensor, out: Tensor) -> None:
        """Write (4, n) next states of (4, n) states and (1, n) forces."""
        _, velocity, angle, angular_velocity = states
        total_mass = MASS_CART + MASS_POLE
        sine, cosine = angle.sin(), angle.cos()
        pushed = (actions[0] + MASS_POLE * self.half_length * angular_velocity.square() * sine) / total_mass
        inertia = self.half_length * (4 / 3 - MASS_POLE / total_mass * cosine.square())
        angular_acceleration = (GRAVITY * sine - cosine * pushed) / inertia
        acceleration = pushed - MASS_POLE * self.half_length / total_mass * angular_acceleration * cosine
        rates = (velocity, acceleration, angular_velocity, angular_acceleration)
        for number, rate in enumerate(rates):
            torch.add(states[number], rate, alpha=SECONDS_PER_STEP, out=out[number])

    def rewards(self, states: Tensor, actions: Tensor, out: Tensor) -> None:
        """Write (H, n) times 1: every step counts, the one in which the pole falls too."""
        out.fill_(1)

    def is_over(self, states: Tensor) -> Tensor:
        """Return (..., n), where the cart has left the track or the pole has fallen."""
        return (states[..., 0, :].abs() > MAX_POSITION) | (states[..., 2, :].abs() > MAX_ANGLE)


class ContinuousCartPole(NativeVectorEnv):
    """Balance a pole on a cart by a force within bounds; 1 for every step until it falls.

    The rules are those of CartPole-v1 of Gymnasium, but for the force. An episode ends when the cart is 2.4 m from
    the middle or the pole 12 degrees from upright. States are not bounded before that: there is no feature bound.

    Args:
        num_envs: side by side.
        max_force: bound of the force, in newtons.
        half_length: of the pole, in metres.
        discount: gamma.
        horizon: H.
        render_mode: None.

    Raises:
        InputError: a force or a length that is not positive.

    Example:
        >>> ContinuousCartPole().task
        TaskConstants(reward_bound=1.0, feature_bound=None, action_volume=20.0, discount=0.9, horizon=200)

    Source: Barto, Sutton and Anderson 1983, as in Gymnasium; the continuous force and the longer pole from the
    experiment in the history of the authors' code of Papini et al. 2017.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_force: float = 10.0,
        half_length: float = 0.5,
        discount: float = 0.9,
        horizon: int = 200,
        render_mode: str | None = None,
    ) -> None:
        require_positive(max_force=max_force, half_length=half_length)
        super().__init__(
            CartPoleDynamics(max_force, half_length),
            num_envs,
            discount=discount,
            horizon=horizon,
            reward_bound=1.0,
            render_mode=render_mode,
        )
