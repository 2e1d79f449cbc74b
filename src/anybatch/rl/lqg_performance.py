"""How well does a Gaussian policy do on a linear-quadratic task, exactly?

Without clipping, values stay quadratic: with gain K, M = A + B K and t steps to go,

    P_t = Q + K^T R K + gamma M^T P_{t-1} M,    c_t = tr(Sigma (R + gamma B^T P_{t-1} B)) + gamma c_{t-1},

and J = -(E s^T P_H s + c_H). With clipping, in one dimension, the value is a function on an interval. It is held at
Gauss-Legendre nodes of panels, on each of which it is smooth, and one step back is a matrix: an integral over the
actions within their bounds, and two atoms where they are clipped.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.polynomial.legendre import leggauss, legvander
from numpy.typing import NDArray
from torch import Tensor

from anybatch.errors import InputError

if TYPE_CHECKING:
    from anybatch.rl.gaussian_policy import GaussianPolicy
    from anybatch.rl.lqg import LQGDynamics

Array = NDArray[np.float64]
NUM_NODES = 20
MAX_KINKS = 12


def linear_performance(dynamics: LQGDynamics, policy: GaussianPolicy, discount: float, horizon: int | None) -> float:
    """Return the expected discounted return where nothing is clipped.

    Args:
        dynamics: of which the bounds of states and actions are left out.
        policy: linear in the states.
        discount: gamma.
        horizon: H; None for infinitely many steps.

    Returns:
        J; minus infinity where the discounted cost diverges.

    Raises:
        InputError: a policy with a feature map or of other dimensions, or no horizon and a discount of 1.

    Source: Papini et al. 2017 for one dimension without horizon; the rest is the Riccati recursion of a fixed gain.
    """
    _check_fit(dynamics, policy)
    if policy.feature_map is not None:
        raise InputError("the closed form must have a policy linear in the states; got one with a feature map.")
    gain = policy.weights
    closed_loop = dynamics.transition + dynamics.control @ gain
    cost = dynamics.state_cost + gain.T @ dynamics.action_cost @ gain
    start = torch.diag(dynamics.max_start.square() / 3)
    if horizon is None:
        return _endless(dynamics, policy.covariance, closed_loop, cost, start, discount)
    value, noise_cost = torch.zeros_like(cost), 0.0
    for _ in range(horizon):
        noise_cost = _noise_cost(dynamics, policy.covariance, value, discount) + discount * noise_cost
        value = cost + discount * closed_loop.T @ value @ closed_loop
    return -float((start * value).sum()) - noise_cost


def _endless(
    dynamics: LQGDynamics, covariance: Tensor, closed_loop: Tensor, cost: Tensor, start: Tensor, discount: float
) -> float:
    if discount >= 1:
        raise InputError(f"the performance without horizon must have a discount below 1; got {discount}.")
    if math.sqrt(discount) * float(torch.linalg.eigvals(closed_loop).abs().max()) >= 1:
        return -math.inf
    step_back = discount * torch.kron(closed_loop.T.contiguous(), closed_loop.T.contiguous())
    value = torch.linalg.solve(torch.eye(len(step_back), dtype=torch.float64) - step_back, cost.reshape(-1))
    value = value.reshape(cost.shape)
    return -float((start * value).sum()) - _noise_cost(dynamics, covariance, value, discount) / (1 - discount)


def _noise_cost(dynamics: LQGDynamics, covariance: Tensor, value: Tensor, discount: float) -> float:
    return float((covariance * (dynamics.action_cost + discount * dynamics.control.T @ value @ dynamics.control)).sum())


def clipped_performance(dynamics: LQGDynamics, policy: GaussianPolicy, discount: float, horizon: int) -> float:
    """Return the expected discounted return of the clipped task in one dimension, by quadrature.

    Args:
        dynamics: with states and actions of one number.
        policy: of any feature map that is smooth.
        discount: gamma.
        horizon: H.

    Returns:
        J, to about 1e-12 where B times the bound of the actions is a multiple of the states' bound, as in the papers'
        tasks; elsewhere kinks of the value may lie inside panels, and about 1e-6 is left.

    Raises:
        InputError: more than one dimension, a bound that is missing, or a control of 0.
    """
    _check_fit(dynamics, policy)
    states, actions = dynamics.max_state, dynamics.max_action
    if dynamics.control.numel() == 1 and dynamics.control.item() == 0:
        raise InputError("the exact performance of a clipped task must have a control that acts; got 0.")
    if dynamics.control.numel() != 1 or not (states.are_finite and actions.are_finite):
        raise InputError(
            "the exact performance of a clipped task must be of one dimension with both bounds; got "
            f"max_state {states.values.tolist()} and max_action {actions.values.tolist()}."
        )
    grid = _Grid(dynamics, policy)
    step_back = discount * grid.transition()
    cost = grid.cost()
    value = np.zeros_like(cost)
    for _ in range(horizon):
        value = step_back @ value - cost
    points, weights = grid.start_nodes()
    return float(weights @ (grid.interpolation(points) @ value))


class _Grid:
    """A task in one dimension and a policy on the nodes of panels over the states."""

    def __init__(self, dynamics: LQGDynamics, policy: GaussianPolicy) -> None:
        self.slope, self.reach = dynamics.transition.item(), abs(dynamics.control.item())
        self.sign = math.copysign(1.0, dynamics.control.item())
        self.state_cost, self.action_cost = dynamics.state_cost.item(), dynamics.action_cost.item()
        self.max_state, self.max_action = dynamics.max_state.values.item(), dynamics.max_action.values.item()
        self.max_start = dynamics.max_start.item()
        self.std = math.sqrt(policy.covariance.item())
        self.edges = self._edges()
        panels = [_nodes(low, high) for low, high in pairwise(self.edges)]
        self.states = np.concatenate([points for points, _ in panels])
        states = torch.from_numpy(self.states)[None]
        self.means = policy.means(policy.features(states))[0].numpy()

    def _edges(self) -> Array:
        """Panel ends: where the value has a kink, and no wider apart than two standard deviations of the state."""
        kinks = {-self.max_state, 0.0, self.max_state}
        found = set(kinks)
        jump = self.reach * self.max_action
        while found and self.slope and len(kinks) < MAX_KINKS:
            before = {round((kink + move) / self.slope, 12) for kink in found for move in (-jump, jump)}
            found = {kink for kink in before if abs(kink) < self.max_state} - kinks
            kinks |= found
        return _refine(np.array(sorted(kinks)), 2 * self.reach * self.std)

    def cost(self) -> Array:
        """Expected cost at every node, of the clipped action."""
        low = (-self.max_action - self.means) / self.std
        high = (self.max_action - self.means) / self.std
        inside = _normal_cdf(high) - _normal_cdf(low)
        first = _density(low) - _density(high)
        second = inside + low * _density(low) - high * _density(high)
        squared = self.means**2 * inside + 2 * self.means * self.std * first + self.std**2 * second
        squared += self.max_action**2 * (1 - inside)
        return self.state_cost * self.states**2 + self.action_cost * squared

    def transition(self) -> Array:
        """(nodes, nodes): the expected value after one step, of the value at the nodes."""
        return np.stack([self._row(state, mean) for state, mean in zip(self.states, self.means, strict=True)])

    def _row(self, state: float, mean: float) -> Array:
        low = (-self.max_action - mean) / self.std
        high = (self.max_action - mean) / self.std
        atoms = np.clip(self.slope * state + self.sign * self.reach * self.max_action * np.array([-1, 1]), *self._span)
        chances = np.array([_normal_cdf(low), _normal_cdf(-high)])
        row = chances @ self.interpolation(atoms)
        points, weights = self._actions(state)
        following = np.clip(self.slope * state + self.sign * self.reach * points, *self._span)
        weights = weights * _density((points - mean) / self.std) / self.std
        return row + weights @ self.interpolation(following)

    def _actions(self, state: float) -> tuple[Array, Array]:
        """Nodes and weights over the actions within their bounds, cut where the next state passes a panel's end."""
        cuts = self.sign * (self.edges - self.slope * state) / self.reach
        cuts = cuts[np.abs(cuts) < self.max_action]
        edges = _refine(np.unique(np.concatenate([[-self.max_action, self.max_action], cuts])), 2 * self.std)
        pieces = [_nodes(low, high) for low, high in pairwise(edges)]
        return np.concatenate([points for points, _ in pieces]), np.concatenate([weights for _, weights in pieces])

    def start_nodes(self) -> tuple[Array, Array]:
        """Nodes and weights of the uniform initial states."""
        cuts = self.edges[np.abs(self.edges) < self.max_start]
        edges = np.unique(np.concatenate([[-self.max_start, self.max_start], cuts]))
        pieces = [_nodes(low, high) for low, high in pairwise(edges)]
        points, weights = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        return points, weights / (2 * self.max_start)

    @property
    def _span(self) -> tuple[float, float]:
        return -self.max_state, self.max_state

    def interpolation(self, points: Array) -> Array:
        """(points, nodes): the value at points, of the value at the nodes."""
        panels = np.clip(np.searchsorted(self.edges, points, side="right") - 1, 0, len(self.edges) - 2)
        matrix = np.zeros((len(points), len(self.states)))
        low, high = self.edges[panels], self.edges[panels + 1]
        local = (2 * points - low - high) / (high - low)
        columns = panels[:, None] * NUM_NODES + np.arange(NUM_NODES)
        np.put_along_axis(matrix, columns, legvander(local, NUM_NODES - 1) @ _to_coefficients(), axis=1)
        return matrix


@cache
def _gauss() -> tuple[Array, Array]:
    return leggauss(NUM_NODES)


@cache
def _to_coefficients() -> Array:
    """(NUM_NODES, NUM_NODES): Legendre coefficients of the values at the Gauss nodes."""
    nodes, weights = _gauss()
    return legvander(nodes, NUM_NODES - 1).T * weights * (np.arange(NUM_NODES) + 0.5)[:, None]


def _nodes(low: float, high: float) -> tuple[Array, Array]:
    nodes, weights = _gauss()
    return (low + high) / 2 + (high - low) / 2 * nodes, (high - low) / 2 * weights


def _refine(edges: Array, width: float) -> Array:
    parts = [np.linspace(low, high, math.ceil((high - low) / width) + 1)[:-1] for low, high in pairwise(edges)]
    return np.append(np.concatenate(parts), edges[-1])


def _density(standardized: Array) -> Array:
    return np.exp(-(standardized**2) / 2) / math.sqrt(2 * math.pi)


def _normal_cdf(standardized: Array | float) -> Array:
    return torch.special.ndtr(torch.as_tensor(standardized, dtype=torch.float64)).numpy()


def _check_fit(dynamics: LQGDynamics, policy: GaussianPolicy) -> None:
    is_fitting = policy.num_actions == dynamics.action_size
    if policy.feature_map is None:
        is_fitting &= policy.num_features == dynamics.state_size
    if not is_fitting:
        raise InputError(
            f"the policy's weights must be {(dynamics.action_size, dynamics.state_size)}, as the task's actions and "
            f"states; got {tuple(policy.weights.shape)}."
        )
