"""What of many trajectories is compiled: their walk through a linear system, and the sums over them.

A call of a framework's operation reads and writes a plane of all trajectories, which no near cache holds, and has
Python's lock. Here a tile of trajectories takes all its steps at once, without the lock. Every function of a row runs
along contiguous memory, so that the compiler makes vector instructions of it (a row of an array that was unpacked from
a larger one would not do); comparisons are written so that NaN goes through.

All is in one file: machine code that is kept is made anew when this file changes, and not when another one does.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any

import numpy as np
from numba import njit

TILE = 512  # trajectories; their rows stay in the first level of cache

# products and sums may be fused and a row's sum reordered, but NaN and signed zeros must stay what they are
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc"}}
_LOST_FILES = (OSError, EOFError, pickle.UnpicklingError, TypeError)

compiled = njit(**_OPTIONS)


def kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call, and keep the machine code beside the function's file or in the user's cache.

    Args:
        function: in the subset of Python that Numba compiles; must be able to begin anew after an error.

    Returns:
        The same, compiled anew in every process where files cannot be written or read.
    """
    plain: Any = compiled(function)
    chosen: Any = plain
    with suppress(RuntimeError):  # no directory can be written to
        chosen = njit(cache=True, **_OPTIONS)(function)

    @wraps(function)
    def call(*arguments: Any) -> Any:
        nonlocal chosen
        try:
            return chosen(*arguments)
        except _LOST_FILES:
            if chosen is plain:
                raise
            with suppress(OSError):
                chosen._cache.flush()  # an index without its data would serve what was there before
            chosen = plain
            return plain(*arguments)

    return call


@kept
def walk(
    starts: np.ndarray,
    noise: np.ndarray,
    weights: np.ndarray,
    precision: np.ndarray,
    transition: np.ndarray,
    control: np.ndarray,
    state_cost: np.ndarray,
    action_cost: np.ndarray,
    max_state: np.ndarray,
    max_action: np.ndarray,
    score_clipped: bool,
    scores: np.ndarray,
    rewards: np.ndarray,
) -> tuple[float, float]:
    """Let n trajectories of k numbers, with d of an action, take H steps; all arrays are contiguous and of one type.

    Args:
        starts: (k, n) initial states.
        noise: (H, d, n), what actions are off their means.
        weights: (d, k) of the policy.
        precision: (d, d), inverse covariance of the noise.
        transition: (k, k).
        control: (k, d).
        state_cost: (k, k).
        action_cost: (d, d).
        max_state: (k,), infinite where states are not clipped.
        max_action: (d,).
        score_clipped: the clipped action is scored, not the drawn one.
        scores: (H, d * k, n), filled; may be the noise, where k is 1.
        rewards: (H, n), filled.

    Returns:
        The largest absolute number and the largest 2-norm of the states before each step.
    """
    num_steps, d, n = noise.shape
    k, one = len(starts), starts.dtype.type(1)
    states, following = np.empty((k, TILE), starts.dtype), np.empty((k, TILE), starts.dtype)
    actions, deviations = np.empty((d, TILE), starts.dtype), np.empty((d, TILE), starts.dtype)
    scaled, squares = np.empty(TILE, starts.dtype), np.empty(TILE, starts.dtype)
    largest, largest_square = np.zeros(TILE, starts.dtype), np.zeros(TILE, starts.dtype)
    for first in range(0, n, TILE):
        last = min(first + TILE, n)
        size = last - first
        for i in range(k):
            _copy(starts[i][first:last], states[i][:size])
        for t in range(num_steps):
            _fill(squares[:size], 0)
            for i in range(k):
                _raise_to(largest[:size], states[i][:size])
                _add_square(squares[:size], states[i][:size])
            _raise_to(largest_square[:size], squares[:size])
            for i in range(d):
                _copy(noise[t, i][first:last], deviations[i][:size])
                _copy(noise[t, i][first:last], actions[i][:size])
                _add_all(actions[i][:size], weights[i], states)
                _clip(actions[i][:size], max_action[i])
                if score_clipped:
                    _fill(scaled[:size], 0)
                    _add_all(scaled[:size], weights[i], states)
                    _copy(actions[i][:size], deviations[i][:size])
                    _add(deviations[i][:size], -one, scaled[:size])
            for i in range(d):
                _fill(scaled[:size], 0)
                _add_all(scaled[:size], precision[i], deviations)
                for j in range(k):
                    _multiply(scaled[:size], states[j][:size], scores[t, i * k + j][first:last])
            _fill(rewards[t][first:last], 0)
            _take_form(rewards[t][first:last], state_cost, states)
            _take_form(rewards[t][first:last], action_cost, actions)
            for i in range(k):
                _fill(following[i][:size], 0)
                _add_all(following[i][:size], transition[i], states)
                _add_all(following[i][:size], control[i], actions)
                _clip(following[i][:size], max_state[i])
            states, following = following, states
    return largest.max(), largest.max() if k == 1 else np.sqrt(largest_square.max())


@kept
def sum_up(
    scores: np.ndarray,
    rewards: np.ndarray,
    centers: np.ndarray,
    discounts: np.ndarray,
    by_step: bool,
    rows: np.ndarray,
) -> tuple[np.ndarray, float, float, float, float, bool]:
    """Fill the rows of n trajectories of H steps and m components; all arrays are contiguous and of one type.

    Args:
        scores: (H, m, n).
        rewards: (H, n).
        centers: (H,), which rewards are taken less of.
        discounts: (H,), of each step's rewards.
        by_step: the rows are of every step (G(PO)MDP); else of the sums over all (REINFORCE).
        rows: (H + 2, m, n), filled with summed scores C_1, ..., C_H, with A = sum_t C_t q_t and with 1, where q_t is
            the discounted reward; (3, m, n) of C_H, C_H sum_t q_t and 1 where not by step.

    Returns:
        (m, H) or (m, 1), float64, C_t^2 q_t summed over trajectories, there without the discount; the sum and the sum
        of squares of their returns; the smallest and the largest reward, and whether all rewards are finite, without
        which these say nothing.
    """
    num_steps, m, n = scores.shape
    num_rows = len(rows)
    summed, returns = np.empty(TILE, scores.dtype), np.empty(TILE, scores.dtype)
    low, high = np.full(TILE, rewards[0, 0]), np.full(TILE, rewards[0, 0])
    nothing = np.zeros(TILE, scores.dtype)
    one, zero = scores.dtype.type(1), scores.dtype.type(0)
    weighted = np.zeros((m, num_rows - 2))
    sum_of_returns = sum_of_squares = 0.0
    for first in range(0, n, TILE):
        last = min(first + TILE, n)
        size = last - first
        _fill(returns[:size], 0)
        for t in range(num_steps):
            _spread(low[:size], high[:size], nothing[:size], rewards[t][first:last])
            _add_less(returns[:size], discounts[t], rewards[t][first:last], centers[t])
        returned, squared = _sum(returns[:size])
        sum_of_returns += returned
        sum_of_squares += squared
        for j in range(m):
            total = rows[num_rows - 2, j][first:last]
            _fill(total, 0)
            _fill(rows[num_rows - 1, j][first:last], 1)
            _fill(summed[:size], 0)
            for t in range(num_steps):
                _add(summed[:size], one, scores[t, j][first:last])
                if by_step:
                    _copy(summed[:size], rows[t, j][first:last])
                    reward = rewards[t][first:last]
                    weighted[j, t] += _add_reward(total, discounts[t], summed[:size], reward, centers[t])
            if not by_step:
                _copy(summed[:size], rows[0, j][first:last])
                weighted[j, 0] += _add_reward(total, one, summed[:size], returns[:size], zero)
    return weighted, sum_of_returns, sum_of_squares, low.min(), high.max(), nothing.sum() == 0


@compiled
def _copy(values: np.ndarray, out: np.ndarray) -> None:
    for n in range(len(out)):
        out[n] = values[n]


@compiled
def _fill(out: np.ndarray, value: float) -> None:
    for n in range(len(out)):
        out[n] = value


@compiled
def _add(out: np.ndarray, factor: float, values: np.ndarray) -> None:
    if factor != 0:
        for n in range(len(out)):
            out[n] += factor * values[n]


@compiled
def _add_all(out: np.ndarray, factors: np.ndarray, rows: np.ndarray) -> None:
    for i in range(len(factors)):
        _add(out, factors[i], rows[i][: len(out)])


@compiled
def _take_form(out: np.ndarray, matrix: np.ndarray, rows: np.ndarray) -> None:
    """Subtract the quadratic form of the rows."""
    for i in range(len(matrix)):
        for j in range(len(matrix)):
            _add_product(out, -matrix[i, j], rows[i][: len(out)], rows[j][: len(out)])


@compiled
def _add_square(out: np.ndarray, values: np.ndarray) -> None:
    for n in range(len(out)):
        out[n] += values[n] * values[n]


@compiled
def _add_product(out: np.ndarray, factor: float, left: np.ndarray, right: np.ndarray) -> None:
    if factor != 0:
        for n in range(len(out)):
            out[n] += factor * left[n] * right[n]


@compiled
def _multiply(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
    for n in range(len(out)):
        out[n] = left[n] * right[n]


@compiled
def _clip(values: np.ndarray, limit: float) -> None:
    for n in range(len(values)):
        value = limit if values[n] > limit else values[n]
        values[n] = -limit if value < -limit else value


@compiled
def _raise_to(largest: np.ndarray, values: np.ndarray) -> None:
    for n in range(len(values)):
        value = abs(values[n])
        largest[n] = value if value > largest[n] else largest[n]


@compiled
def _add_less(out: np.ndarray, factor: float, values: np.ndarray, center: float) -> None:
    for n in range(len(out)):
        out[n] += factor * (values[n] - center)


@compiled
def _add_reward(total: np.ndarray, discount: float, summed: np.ndarray, rewards: np.ndarray, center: float) -> float:
    """Add what one step's reward contributes to A, and return the sum of C^2 times the reward."""
    weighted = total.dtype.type(0)
    for n in range(len(total)):
        product = summed[n] * (rewards[n] - center)
        total[n] += discount * product
        weighted += product * summed[n]
    return weighted


@compiled
def _sum(values: np.ndarray) -> tuple[float, float]:
    """Return the sum and the sum of squares, in float64."""
    total = square = 0.0
    for n in range(len(values)):
        value = np.float64(values[n])
        total += value
        square += value * value
    return total, square


@compiled
def _spread(low: np.ndarray, high: np.ndarray, nothing: np.ndarray, values: np.ndarray) -> None:
    for n in range(len(values)):
        low[n] = values[n] if values[n] < low[n] else low[n]
        high[n] = values[n] if values[n] > high[n] else high[n]
        nothing[n] += values[n] - values[n]
