"""How well does a Gaussian policy do on a linear-quadratic task, exactly?

Without clipping, values stay quadratic: with gain K, M = A + B K and t steps to go,

    P_t = Q + K^T R K + gamma M^T P_{t-1} M,    c_t = tr(Sigma (R + gamma B^T P_{t-1} B)) + gamma c_{t-1},

and J = -(E s^T P_H s + c_H). With clipping, in one dimension, the value is a function on an interval. It is held at
Gauss-Legendre nodes of panels, on each of which it is smooth, and one step back is a matrix: an integral over the
actions within their bounds, and two atoms where they are clipped. Only panels within `TAIL` standard deviations of the
mean next state count, so that a step costs as many numbers per node whatever the standard deviation is.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
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
MAX_PANELS = 500  # a second per performance
TAIL = 9.0  # standard deviations, beyond which a normal has 2e-19 of its mass
ROWS_AT_ONCE = 256


class TooSharpError(InputError):
    """The standard deviation is so small that quadrature would take too many nodes."""


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
        tasks; elsewhere kinks of the value may lie inside panels, and about 1e-6 is left. Where the mean of the next
        state changes by more than twice what the state does, about 1e-7 is.

    Raises:
        InputError: more than one dimension, a bound that is missing, or a control of 0.
        TooSharpError: a standard deviation that moves the state by less than a 500th of its bound, or of that over the
            steepness of the next state's mean.
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
    _check_sharpness(dynamics, policy)
    grid = _Grid(dynamics, policy)
    transition, cost = grid.transition(), grid.cost()
    value = np.zeros_like(cost)
    for _ in range(horizon):
        value = discount * sum(weights.applied(value) for weights in transition) - cost
    points, weights = grid.start_nodes()
    return float(weights @ grid.interpolation(points).applied(value))


class _Weights(NamedTuple):
    """Sums over successive nodes, one per row.

    Attributes:
        first: (rows,), the first node of each.
        weights: (rows, k), of that one and those that follow.
    """

    first: NDArray[np.intp]
    weights: Array

    def applied(self, value: Array) -> Array:
        """(rows,): the sums, of the value at the nodes."""
        return np.einsum("nk,nk->n", self.weights, sliding_window_view(value, self.weights.shape[1])[self.first])


class _Grid:
    """A task in one dimension and a policy on the nodes of panels over the states."""

    def __init__(self, dynamics: LQGDynamics, policy: GaussianPolicy) -> None:
        self.slope, self.reach = dynamics.transition.item(), abs(dynamics.control.item())
        self.sign = math.copysign(1.0, dynamics.control.item())
        self.state_cost, self.action_cost = dynamics.state_cost.item(), dynamics.action_cost.item()
        self.max_state, self.max_action = dynamics.max_state.values.item(), dynamics.max_action.values.item()
        self.max_start = dynamics.max_start.item()
        self.std = math.sqrt(policy.covariance.item())
        self._steepness = _steepness(dynamics, policy)
        self.edges = self._edges()
        panels = [_nodes(low, high) for low, high in pairwise(self.edges)]
        self.states = np.concatenate([points for points, _ in panels])
        states = torch.from_numpy(self.states)[None]
        self.means = policy.means(policy.features(states))[0].numpy()

    def _edges(self) -> Array:
        """Panel ends: where the value has a kink, and so near that the next state moves by two deviations at most."""
        kinks = {-self.max_state, 0.0, self.max_state}
        found = set(kinks)
        jump = self.reach * self.max_action
        while found and self.slope and len(kinks) < MAX_KINKS:
            before = {round((kink + move) / self.slope, 12) for kink in found for move in (-jump, jump)}
            found = {kink for kink in before if abs(kink) < self.max_state} - kinks
            kinks |= found
        return _refine(np.array(sorted(kinks)), 2 * self.reach * self.std / self._steepness)

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

    def transition(self) -> tuple[_Weights, ...]:
        """Parts whose sum is the expected value after one step: at either end of the next states, and between them."""
        jump = self.reach * self.max_action
        low, high = (np.clip(self.slope * self.states + move, *self._span) for move in (-jump, jump))
        centers, spread = self.slope * self.states + self.sign * self.reach * self.means, self.reach * self.std
        at_low, at_high = self.interpolation(low), self.interpolation(high)
        return (
            at_low._replace(weights=at_low.weights * _normal_cdf((low - centers) / spread)[:, None]),
            at_high._replace(weights=at_high.weights * _normal_cdf((centers - high) / spread)[:, None]),
            self._between(np.maximum(low, centers - TAIL * spread), np.minimum(high, centers + TAIL * spread), centers),
        )

    def _between(self, low: Array, high: Array, centers: Array) -> _Weights:
        """Integrals over the next states from low to high, of normal density about the centers."""
        high = np.maximum(low, high)
        first, last = self._panel(low), self._panel(high)
        num_panels = int((last - first).max()) + 1
        first = np.minimum(first, len(self.edges) - 1 - num_panels)
        weights = np.empty((len(low), num_panels * NUM_NODES))
        for start in range(0, len(low), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            edges = self.edges[first[rows, None] + np.arange(num_panels + 1)]
            ends = np.clip(edges, low[rows, None], high[rows, None])
            weights[rows] = self._integrals(edges, ends, centers[rows]).reshape(len(ends), -1)
        return _Weights(first * NUM_NODES, weights)

    def _integrals(self, edges: Array, ends: Array, centers: Array) -> Array:
        """(rows, panels, NUM_NODES): weights of the nodes of each panel, integrated over its part between the ends."""
        points, weights = _nodes(ends[:, :-1, None], ends[:, 1:, None])
        spread = self.reach * self.std
        weights = weights * _density((points - centers[:, None, None]) / spread) / spread
        low, high = edges[:, :-1, None], edges[:, 1:, None]
        basis = legvander((2 * points - low - high) / (high - low), NUM_NODES - 1)
        return (weights[:, :, None] @ basis)[:, :, 0] @ _to_coefficients()

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

    def interpolation(self, points: Array) -> _Weights:
        """Rows that give the value at points."""
        panels = self._panel(points)
        low, high = self.edges[panels], self.edges[panels + 1]
        basis = legvander((2 * points - low - high) / (high - low), NUM_NODES - 1)
        return _Weights(panels * NUM_NODES, basis @ _to_coefficients())

    def _panel(self, points: Array) -> NDArray[np.intp]:
        return np.clip(np.searchsorted(self.edges, points, side="right") - 1, 0, len(self.edges) - 2)


@cache
def _gauss() -> tuple[Array, Array]:
    return leggauss(NUM_NODES)


@cache
def _to_coefficients() -> Array:
    """(NUM_NODES, NUM_NODES): Legendre coefficients of the values at the Gauss nodes."""
    nodes, weights = _gauss()
    return legvander(nodes, NUM_NODES - 1).T * weights * (np.arange(NUM_NODES) + 0.5)[:, None]


def _nodes(low: Array | float, high: Array | float) -> tuple[Array, Array]:
    nodes, weights = _gauss()
    return (low + high) / 2 + (high - low) / 2 * nodes, (high - low) / 2 * weights


def _refine(edges: Array, width: float) -> Array:
    parts = [np.linspace(low, high, math.ceil((high - low) / width) + 1)[:-1] for low, high in pairwise(edges)]
    return np.append(np.concatenate(parts), edges[-1])


def _density(standardized: Array) -> Array:
    return np.exp(-(standardized**2) / 2) / math.sqrt(2 * math.pi)


def _normal_cdf(standardized: Array | float) -> Array:
    return torch.special.ndtr(torch.as_tensor(standardized, dtype=torch.float64)).numpy()


def _steepness(dynamics: LQGDynamics, policy: GaussianPolicy) -> float:
    """Return half of how much more than the state the mean of the next one changes, at most; 1 where that is less."""
    max_state = dynamics.max_state.values.item()
    states = torch.linspace(-max_state, max_state, 1001, dtype=torch.float64)
    means = policy.means(policy.features(states[None]))[0]
    following = dynamics.transition.item() * states + dynamics.control.item() * means
    return max(1.0, float((following.diff().abs() / states.diff()).max()) / 2)


def _check_sharpness(dynamics: LQGDynamics, policy: GaussianPolicy) -> None:
    reach, max_state = abs(dynamics.control.item()), dynamics.max_state.values.item()
    std, least = math.sqrt(policy.covariance.item()), max_state * _steepness(dynamics, policy) / (reach * MAX_PANELS)
    if std < least:
        raise TooSharpError(
            f"the exact performance of a clipped task must have a standard deviation of at least {least:.3g}; "
            f"got {std:.3g}."
        )


def _check_fit(dynamics: LQGDynamics, policy: GaussianPolicy) -> None:
    is_fitting = policy.num_actions == dynamics.action_size
    if policy.feature_map is None:
        is_fitting &= policy.num_features == dynamics.state_size
    if not is_fitting:
        raise InputError(
            f"the policy's weights must be {(dynamics.action_size, dynamics.state_size)}, as the task's actions and "
            f"states; got {tuple(policy.weights.shape)}."
        )
