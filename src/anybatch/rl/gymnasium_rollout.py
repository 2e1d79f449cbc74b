"""How are trajectories rolled out on any vector environment of Gymnasium?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from anybatch.errors import InputError
from anybatch.rl.policy import Policy, Score
from anybatch.rl.rollout import EarlyEnd, largest_of, refuse_early_end, seeded
from anybatch.rl.trajectories import Trajectories


def roll_out_gymnasium(
    env: VectorEnv,
    policy: Policy,
    horizon: int,
    *,
    start_seed: int,
    noise_seed: int,
    score: Score = "drawn",
    early_end: EarlyEnd = "pad",
) -> Trajectories:
    """Roll out one trajectory of every sub-environment, from a reset on, in float64.

    What the environment does after an episode's end does not matter: from there on the trajectory is padded with
    zeros, whatever the autoreset mode. A time limit of the environment below the horizon counts as an end.

    Args:
        env: with observations of numbers, and continuous or discrete actions.
        policy: fitting it; see `check_spaces`.
        horizon: H.
        start_seed: of the environment.
        noise_seed: of the actions.
        score: of the action as it was drawn, or as it was clipped to the action space.
        early_end: "pad" trajectories that end before the horizon, or "refuse" them.

    Returns:
        As many trajectories as there are sub-environments.

    Raises:
        InputError: rewards or observations that are not finite, or an early end where that is refused.
    """
    num = env.num_envs
    noise = torch.empty(horizon, policy.noise_size, num)
    policy.draw_noise(noise, seeded(noise_seed))
    noise = noise.double()
    actions = torch.zeros(horizon, 1 if policy.is_discrete else policy.num_actions, num, dtype=torch.float64)
    features = torch.zeros(horizon, policy.num_features, num, dtype=torch.float64)
    rewards = torch.zeros(horizon, num, dtype=torch.float64)
    alive = torch.ones(num, dtype=torch.bool)
    observations, _ = env.reset(seed=start_seed)
    for step in range(horizon):
        features[step] = policy.features(_planar(observations, alive, step)) * alive
        policy.act(features[step], noise[step], actions[step])
        taken = _clip(env.single_action_space, actions[step])
        observations, gains, terminated, truncated, _ = env.step(taken)
        rewards[step] = torch.where(alive, torch.as_tensor(np.asarray(gains, np.float64)), 0.0)
        _check_finite(rewards[step], "rewards", step)
        ended = torch.as_tensor(np.logical_or(terminated, truncated))
        if step + 1 == horizon:
            break
        if early_end == "refuse" and bool((ended & alive).any()):
            refuse_early_end(horizon, step)
        alive &= ~ended
        if not bool(alive.any()):
            break
        if env.metadata.get("autoreset_mode") == AutoresetMode.DISABLED and bool(ended.any()):
            observations, _ = env.reset(options={"reset_mask": ended.numpy()})
    scores = torch.empty(horizon, len(policy.parameters), num, dtype=torch.float64)
    policy.scores(features, noise, actions, score, scores)
    return Trajectories(scores, rewards, *largest_of(features), ended_early=~alive)


def check_spaces(env: VectorEnv, policy: Policy) -> None:
    """Say where a policy does not fit an environment.

    Args:
        env: of Gymnasium.
        policy: Gaussian for continuous actions, softmax for discrete ones.

    Raises:
        InputError: observations that are no numbers, actions of another kind or number than the policy's, or
            weights for another number of states.
    """
    states, actions = env.single_observation_space, env.single_action_space
    if not isinstance(states, (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)):
        raise InputError(
            f"observations must be numbers; got {states}. Wrap the environment in FlattenObservation of Gymnasium."
        )
    has_map = getattr(policy, "feature_map", None) is not None
    if isinstance(states, (spaces.Discrete, spaces.MultiDiscrete)) and not has_map:
        raise InputError(
            f"observations must be quantities for a policy linear in them; got {states}, whose numbers are names. "
            "Pass a feature map, such as one-hot."
        )
    state_size = int(np.prod(states.shape or (1,)))
    if not has_map and state_size != policy.num_features:
        raise InputError(
            f"the policy's weights must have {state_size} columns, one per number of the state; "
            f"got {policy.num_features}. Pass weights of that width or a feature map."
        )
    wanted = spaces.Discrete if policy.is_discrete else spaces.Box
    if not isinstance(actions, wanted):
        raise InputError(
            f"actions must be {wanted.__name__} for a {type(policy).__name__}; got {actions}. "
            "Take a softmax policy for discrete actions and a Gaussian one for continuous ones."
        )
    size = int(actions.n) if isinstance(actions, spaces.Discrete) else int(np.prod(actions.shape))
    if size != policy.num_actions:
        raise InputError(f"the policy's weights must have {size} rows, as the actions; got {policy.num_actions}.")


def _planar(observations: Any, alive: Tensor, step: int) -> Tensor:
    """(state size, n), zero where the trajectory is over."""
    flat = np.asarray(observations, np.float64).reshape(len(alive), -1)
    states = torch.where(alive, torch.from_numpy(np.ascontiguousarray(flat.T)), 0.0)
    _check_finite(states, "observations", step)
    return states


def _check_finite(values: Tensor, name: str, step: int) -> None:
    bad = ~values.isfinite()
    if bool(bad.any()):
        raise InputError(
            f"{name} must be finite; got {float(values[bad][0])} at step {step}. Check the environment and the policy."
        )


def _clip(space: Any, actions: Tensor) -> np.ndarray:
    """Clip (d, n) actions in place to the space, and return them as the environment takes them."""
    if isinstance(space, spaces.Discrete):
        return (actions[0].long() + int(space.start)).numpy()
    low, high = (torch.from_numpy(bound.reshape(-1, 1).astype(np.float64)) for bound in (space.low, space.high))
    torch.minimum(torch.maximum(actions, low, out=actions), high, out=actions)
    return actions.T.reshape(-1, *space.shape).numpy().astype(space.dtype)
