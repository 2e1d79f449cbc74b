"""How does a linear system with a quadratic cost behave, where actions and states may be clipped?"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from anybatch.errors import InputError
from anybatch.rl.dynamics import Bounds
from anybatch.rl.gaussian_policy import GaussianPolicy
from anybatch.rl.lqg_performance import clipped_performance, linear_performance
from anybatch.rl.native_env import NativeVectorEnv


class LQGDynamics:
    """s' = clip(A s + B u) with u = clip(a), reward -(s^T Q s + u^T R u) of the state before the step.

    Args:
        transition: A, (k, k).
        control: B, (k, d).
        state_cost: Q, (k, k).
        action_cost: R, (d, d).
        max_start: initial states are uniform within plus and minus this, (k,).
        max_state: states are clipped to this, (k,).
        max_action: actions likewise, (d,).
    """

    can_end = False

    def __init__(
        self,
        transition: Tensor,
        control: Tensor,
        state_cost: Tensor,
        action_cost: Tensor,
        max_start: Tensor,
        max_state: Bounds,
        max_action: Bounds,
    ) -> None:
        self.transition, self.control = transition, control
        self.state_cost, self.action_cost = state_cost, action_cost
        self.max_start, self.max_state, self.max_action = max_start, max_state, max_action
        self.state_size, self.action_size = control.shape
        self._state_costs, self._action_costs = _entries(state_cost), _entries(action_cost)
        identity = torch.eye(self.state_size, dtype=torch.float64)
        self._is_sum = transition.equal(identity) and control.equal(identity)

    def draw_states(self, states: Tensor, generator: torch.Generator) -> None:
        """Fill (k, n) uniformly."""
        for row, bound in zip(states, self.max_start.tolist(), strict=True):
            row.uniform_(-bound, bound, generator=generator)

    def step(self, states: Tensor, actions: Tensor, out: Tensor) -> None:
        """Write (k, n) next states of (k, n) states and (d, n) clipped actions."""
        if self._is_sum:
            torch.add(states, actions, out=out)
        else:
            torch.mm(self.transition.to(states), states, out=out)
            out.addmm_(self.control.to(states), actions)
        self.max_state.clip(out)

    def rewards(self, states: Tensor, actions: Tensor, out: Tensor) -> None:
        """Write (H, n) rewards of (H, k, n) states and (H, d, n) clipped actions."""
        total = out.new_zeros(())
        for costs, values in ((self._state_costs, states), (self._action_costs, actions)):
            for i, j, cost in costs:
                total = torch.addcmul(total, values[:, i], values[:, j], value=-cost, out=out)
        if total is not out:
            out.zero_()

    def is_over(self, states: Tensor) -> Tensor:
        """Return (..., n) times no: trajectories go on to the horizon."""
        return torch.zeros_like(states[..., 0, :], dtype=torch.bool)


class LQG(NativeVectorEnv):
    """The linear-quadratic-Gaussian regulator; as it stands, the one-dimensional task of Papini et al. 2017.

    s' = clip(A s + B u), u = clip(a), reward = -(s^T Q s + u^T R u), s_0 uniform. The action is clipped before
    it acts and costs; the reward is of the state before the step; there is no noise but the policy's.

    Args:
        num_envs: side by side.
        size: numbers of a state, where `transition` is not given.
        transition: A, (k, k) or a number. Default: the identity.
        control: B, (k, d) or a number. Default: the identity.
        state_cost: Q, (k, k), or a number times the identity.
        action_cost: R, (d, d), or a number times the identity.
        max_start: bound of the initial states, per number or one for all.
        max_state: of the states; None: not clipped.
        max_action: of the actions; None: not clipped.
        discount: gamma.
        horizon: H.
        render_mode: None.

    Raises:
        InputError: matrices that do not fit each other, costs that are not symmetric and positive semidefinite, or
            bounds that are not positive or leave out initial states.

    Example:
        >>> env = LQG()
        >>> env.task
        TaskConstants(reward_bound=4.0, feature_bound=2.0, action_volume=4.0, discount=0.9, horizon=20)
        >>> round(env.performance(GaussianPolicy(0.0)), 4), round(env.exact_performance(GaussianPolicy(0.0)), 3)
        (-56.6667, -12.144)

    Source: Papini et al. 2017, the task of their figures, in the order of the authors' code.
    """

    dynamics: LQGDynamics

    def __init__(
        self,
        num_envs: int = 1,
        *,
        size: int = 1,
        transition: Any = None,
        control: Any = None,
        state_cost: Any = 0.5,
        action_cost: Any = 0.5,
        max_start: Any = 2.0,
        max_state: Any = 2.0,
        max_action: Any = 2.0,
        discount: float = 0.9,
        horizon: int = 20,
        render_mode: str | None = None,
    ) -> None:
        k = _size_of(transition, size)
        control_KD = _matrix("control", 1.0 if control is None else control, k)
        d = control_KD.shape[1]
        dynamics = LQGDynamics(
            transition=_matrix("transition", 1.0 if transition is None else transition, k, k),
            control=control_KD,
            state_cost=_cost("state_cost", state_cost, k),
            action_cost=_cost("action_cost", action_cost, d),
            max_start=_start(max_start, k),
            max_state=Bounds(_bound("max_state", math.inf if max_state is None else max_state, k)),
            max_action=Bounds(_bound("max_action", math.inf if max_action is None else max_action, d)),
        )
        if bool((dynamics.max_start > dynamics.max_state.values).any()):
            raise InputError(f"max_start must be within max_state; got {max_start} and {max_state}.")
        super().__init__(
            dynamics,
            num_envs,
            discount=discount,
            horizon=horizon,
            reward_bound=_reward_bound(dynamics),
            render_mode=render_mode,
        )

    @property
    def is_clipped(self) -> bool:
        """Whether states or actions are clipped."""
        return any(bool(b.values.isfinite().any()) for b in (self.dynamics.max_state, self.dynamics.max_action))

    def performance(self, policy: GaussianPolicy, *, discount: float | None = None) -> float:
        """Return the published performance: closed form of the chain without clipping and without horizon.

        Args:
            policy: linear in the states.
            discount: gamma. Default: the task's.

        Returns:
            J; minus infinity where the discounted cost diverges.
        """
        return linear_performance(self.dynamics, policy, self._discount if discount is None else discount, horizon=None)

    def exact_performance(
        self, policy: GaussianPolicy, *, discount: float | None = None, horizon: int | None = None
    ) -> float:
        """Return the expected discounted return of the process that is rolled out, clipping and horizon included.

        Args:
            policy: linear in the states; with clipping, any Gaussian one that is smooth in them.
            discount: gamma. Default: the task's.
            horizon: H. Default: the task's.

        Returns:
            J: closed form without clipping; by quadrature, to about 1e-12, in one dimension with clipping.

        Raises:
            InputError: clipping in more than one dimension, or with a control of 0.
            TooSharpError: a policy too narrow or too steep for the quadrature; an InputError.
        """
        evaluate = clipped_performance if self.is_clipped else linear_performance
        discount = self._discount if discount is None else discount
        return evaluate(self.dynamics, policy, discount, self._horizon if horizon is None else horizon)

    @property
    def _discount(self) -> float:
        assert self.task.discount is not None
        return self.task.discount


def _entries(matrix: Tensor) -> list[tuple[int, int, float]]:
    return [(i, j, matrix[i, j].item()) for i, j in matrix.nonzero().tolist()]


def _size_of(transition: Any, size: int) -> int:
    tensor = torch.as_tensor(size if transition is None else transition)
    return len(tensor) if tensor.ndim == 2 else size


def _matrix(name: str, given: Any, num_rows: int, num_columns: int | None = None) -> Tensor:
    tensor = torch.as_tensor(given, dtype=torch.float64)
    matrix = torch.eye(num_rows, dtype=torch.float64) * tensor if tensor.ndim == 0 else tensor
    wanted = (num_rows, matrix.shape[-1] if num_columns is None else num_columns)
    if matrix.shape != wanted or not bool(matrix.isfinite().all()):
        raise InputError(f"{name} must be finite and of shape {wanted}; got {tensor.tolist()}.")
    return matrix


def _cost(name: str, given: Any, size: int) -> Tensor:
    matrix = _matrix(name, given, size, size)
    if not matrix.equal(matrix.T) or float(torch.linalg.eigvalsh(matrix)[0]) < -1e-12:
        raise InputError(f"{name} must be symmetric and positive semidefinite; got {matrix.tolist()}.")
    return matrix


def _bound(name: str, given: Any, size: int) -> Tensor:
    bound = torch.as_tensor(given, dtype=torch.float64)
    if bound.ndim > 1 or (bound.ndim == 1 and len(bound) != size) or not bool((bound > 0).all()):
        raise InputError(f"{name} must be positive, a number or {size} of them; got {bound.tolist()}.")
    return bound.expand(size).clone()


def _start(given: Any, size: int) -> Tensor:
    bound = _bound("max_start", given, size)
    if not bool(bound.isfinite().all()):
        raise InputError(f"max_start must be finite; got {bound.tolist()}.")
    return bound


def _reward_bound(dynamics: LQGDynamics) -> float | None:
    if not (dynamics.max_state.are_finite and dynamics.max_action.are_finite):
        return None
    pairs = ((dynamics.state_cost, dynamics.max_state), (dynamics.action_cost, dynamics.max_action))
    return sum(float(bounds.values @ cost.abs() @ bounds.values) for cost, bounds in pairs)
