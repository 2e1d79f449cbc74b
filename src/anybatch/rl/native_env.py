"""How does a task written in tensors look to Gymnasium?"""

from __future__ import annotations

from typing import Any, TypeGuard

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from anybatch.decide.argument_checks import require_count, require_discount
from anybatch.rl.dynamics import Bounds, Dynamics
from anybatch.rl.task import TaskConstants


class NativeVectorEnv(VectorEnv):
    """A vector environment over the tensors of `dynamics`; actions are clipped to the action space.

    Sub-environments are truncated at the horizon and start anew on the step after (autoreset mode NEXT_STEP).
    `estimate_gradient` goes past this class to the dynamics, whatever `num_envs` is, but for a subclass with a `step`
    or a `reset` of its own.

    Args:
        dynamics: of the task.
        num_envs: side by side.
        discount: gamma.
        horizon: H, steps of an episode.
        reward_bound: R; None where there is none.
        render_mode: there is nothing to see; None.

    Raises:
        InputError: a discount outside [0, 1], a horizon or a number below 1.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        dynamics: Dynamics,
        num_envs: int,
        *,
        discount: float,
        horizon: int,
        reward_bound: float | None,
        render_mode: str | None = None,
    ) -> None:
        require_discount(discount)
        require_count(num_envs=num_envs, horizon=horizon)
        self.dynamics = dynamics
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.single_observation_space = _box(dynamics.max_state)
        self.single_action_space = _box(dynamics.max_action)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.task = TaskConstants(
            reward_bound=reward_bound,
            feature_bound=_finite(float(dynamics.max_state.values.max())),
            action_volume=_finite(float((2 * dynamics.max_action.values).prod())),
            discount=discount,
            horizon=horizon,
        )
        self._horizon = horizon
        self._generator = torch.Generator()
        self._generator.seed()
        self._states = torch.zeros(dynamics.state_size, num_envs)
        self._num_steps = torch.zeros(num_envs, dtype=torch.int64)
        self._is_done = torch.zeros(num_envs, dtype=torch.bool)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw initial states.

        Args:
            seed: of this and all later draws; of a list, the first.
            options: `reset_mask`, (num_envs,), says which sub-environments start anew. Default: all.

        Returns:
            Observations, float32 of (num_envs, state size), and an empty dictionary.
        """
        first = seed[0] if isinstance(seed, list) else seed
        if first is not None:
            self._generator.manual_seed(first)
        mask = None if options is None else options.get("reset_mask")
        is_new = torch.ones(self.num_envs, dtype=torch.bool) if mask is None else torch.as_tensor(mask)
        self._start(is_new)
        return self._observations(), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take one action in every sub-environment; those that ended on the step before start anew instead.

        Args:
            actions: (num_envs, action size).

        Returns:
            Observations, rewards, which terminated, which were truncated, and an empty dictionary.
        """
        is_new = self._is_done
        taken = torch.as_tensor(np.asarray(actions), dtype=torch.float32).reshape(self.num_envs, -1).T.clone()
        self.dynamics.max_action.clip(taken)
        rewards, following = torch.empty(1, self.num_envs), torch.empty_like(self._states)
        self.dynamics.rewards(self._states[None], taken[None], rewards)
        self.dynamics.step(self._states, taken, following)
        self._states = following
        self._num_steps += 1
        if bool(is_new.any()):
            self._start(is_new)
        is_over = self.dynamics.is_over(self._states) & ~is_new
        is_truncated = (self._num_steps >= self._horizon) & ~is_over
        self._is_done = is_over | is_truncated
        rewards = torch.where(is_new, 0.0, rewards[0]).double().numpy()
        return self._observations(), rewards, is_over.numpy(), is_truncated.numpy(), {}

    def _start(self, is_new: Tensor) -> None:
        states = torch.empty_like(self._states)
        self.dynamics.draw_states(states, self._generator)
        self._states = torch.where(is_new, states, self._states)
        self._num_steps = torch.where(is_new, 0, self._num_steps)
        self._is_done = self._is_done & ~is_new

    def _observations(self) -> np.ndarray:
        return self._states.T.contiguous().numpy()


def is_native(env: object) -> TypeGuard[NativeVectorEnv]:
    """Return whether an environment may be rolled out past its Gymnasium class: one with a step of its own may not."""
    if not isinstance(env, NativeVectorEnv):
        return False
    return type(env).step is NativeVectorEnv.step and type(env).reset is NativeVectorEnv.reset


def _box(bounds: Bounds) -> gymnasium.spaces.Box:
    high = bounds.values.float().numpy()
    return gymnasium.spaces.Box(-high, high, dtype=np.float32)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
