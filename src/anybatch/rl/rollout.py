"""How are thousands of trajectories of a task written in tensors rolled out at once?"""

from __future__ import annotations

import math
from typing import Literal, NoReturn

import torch
from torch import Tensor

from anybatch.errors import InputError
from anybatch.rl.buffers import Buffers
from anybatch.rl.dynamics import Dynamics
from anybatch.rl.linear_walk import is_linear_policy, is_linear_task, walk_linear
from anybatch.rl.policy import Policy, Score
from anybatch.rl.trajectories import Trajectories

EarlyEnd = Literal["pad", "refuse"]


def roll_out(
    dynamics: Dynamics,
    policy: Policy,
    num_trajectories: int,
    horizon: int,
    *,
    start_seed: int,
    noise_seed: int,
    score: Score = "drawn",
    early_end: EarlyEnd = "pad",
    buffers: Buffers | None = None,
) -> Trajectories:
    """Roll trajectories out side by side.

    Args:
        dynamics: of the task.
        policy: fitting it.
        num_trajectories: n.
        horizon: H.
        start_seed: of the initial states.
        noise_seed: of the actions.
        score: of the action as it was drawn, or as it was clipped.
        early_end: "pad" trajectories that end before the horizon, or "refuse" them.
        buffers: where everything is put. Default: new ones, of float32.

    Returns:
        The trajectories; the next call with the same buffers overwrites them.

    Raises:
        InputError: an early end where that is refused.
    """
    buffers = buffers or Buffers(torch.float32)
    noise = buffers.take("noise", horizon, policy.noise_size, num_trajectories)
    policy.draw_noise(noise, seeded(noise_seed))
    shape = (horizon, len(policy.parameters), num_trajectories)
    scores = noise if noise.shape == shape else buffers.take("scores", *shape)
    rewards = buffers.take("rewards", horizon, num_trajectories)
    if is_linear_task(dynamics) and is_linear_policy(policy):
        starts = buffers.take("states", dynamics.state_size, num_trajectories)
        dynamics.draw_states(starts, seeded(start_seed))
        return Trajectories(scores, rewards, *walk_linear(dynamics, policy, starts, noise, score, scores, rewards))
    states = buffers.take("states", horizon + 1, dynamics.state_size, num_trajectories)
    actions = buffers.take("actions", horizon, dynamics.action_size, num_trajectories)
    dynamics.draw_states(states[0], seeded(start_seed))
    features = _walk(dynamics, policy, states, actions, noise, buffers)
    dynamics.rewards(states[:-1], actions, rewards)
    ended = _end(dynamics, states[:-1], features, rewards, early_end) if dynamics.can_end else None
    policy.scores(features, noise, actions, score, scores)
    return Trajectories(scores, rewards, *largest_of(features), ended_early=ended)


def seeded(seed: int) -> torch.Generator:
    """Return a generator of its own."""
    return torch.Generator().manual_seed(seed)


def largest_of(features: Tensor) -> tuple[float, float]:
    """Return the largest absolute value of (H, p, n) features, and the largest 2-norm over their p numbers."""
    low, high = features.aminmax()
    largest = max(-float(low), float(high))
    if features.shape[1] == 1:
        return largest, largest
    first, *others = features.unbind(1)
    squared_norms = first.square()
    for feature in others:
        squared_norms.addcmul_(feature, feature)
    return largest, math.sqrt(squared_norms.max())


def _walk(
    dynamics: Dynamics, policy: Policy, states: Tensor, actions: Tensor, noise: Tensor, buffers: Buffers
) -> Tensor:
    """Fill states and actions, and return (H, p, n) features, copied: a feature map may reuse its output."""
    kept = None
    visited = states[:-1].unbind()
    for step, (now, action, drawn, following) in enumerate(zip(visited, actions, noise, states[1:], strict=True)):
        features = policy.features(now)
        if features is not now and kept is None:
            kept = buffers.take("features", len(noise), *features.shape)
            if step:
                kept[:step] = states[:step]  # were the features so far
        if kept is not None:
            kept[step] = features
        policy.act(features, drawn, action)
        dynamics.max_action.clip(action)
        dynamics.step(now, action, following)
    return states[:-1] if kept is None else kept


def refuse_early_end(horizon: int, step: int) -> NoReturn:
    """Refuse an episode that ended with a step before the horizon.

    Args:
        horizon: H.
        step: after which it ended, from 0.

    Raises:
        InputError: always.
    """
    raise InputError(
        f"episodes must last to the horizon of {horizon} steps; got one that ended at step {step}. "
        "Pass early_end='pad' to count nothing after an end, or a shorter horizon."
    )


def _end(dynamics: Dynamics, states: Tensor, features: Tensor, rewards: Tensor, early_end: EarlyEnd) -> Tensor:
    """Put zeros where trajectories are over, and return which are."""
    alive = dynamics.is_over(states).cumsum(0) == 0
    if early_end == "refuse" and not bool(alive[-1].all()):
        refuse_early_end(len(states), step=int(alive.all(dim=1).sum()) - 1)
    rewards.mul_(alive)
    features.mul_(alive[:, None])
    return ~alive[-1]
