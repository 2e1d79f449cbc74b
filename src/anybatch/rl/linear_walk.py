"""Which trajectories does compiled code roll out? Those of a linear system under a policy linear in its states."""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor

from anybatch.rl.compiled import walk
from anybatch.rl.gaussian_policy import GaussianPolicy
from anybatch.rl.lqg import LQGDynamics
from anybatch.rl.policy import Score


def is_linear_task(dynamics: object) -> TypeGuard[LQGDynamics]:
    """Return whether these are the rules of `LQG`; a subclass may have others."""
    return type(dynamics) is LQGDynamics


def is_linear_policy(policy: object) -> TypeGuard[GaussianPolicy]:
    """Return whether this is a `GaussianPolicy` on the states themselves; a subclass may act otherwise."""
    return type(policy) is GaussianPolicy and policy.feature_map is None


def walk_linear(
    dynamics: LQGDynamics,
    policy: GaussianPolicy,
    starts: Tensor,
    noise: Tensor,
    score: Score,
    scores: Tensor,
    rewards: Tensor,
) -> tuple[float, float]:
    """Fill scores and rewards as `anybatch.rl.rollout` fills them step by step, in one pass through memory.

    Args:
        dynamics: of the task.
        policy: fitting it.
        starts: (k, n) initial states, on the CPU.
        noise: (H, d, n), what actions are off their means.
        score: of the action as it was drawn, or as it was clipped.
        scores: (H, d * k, n); may be the noise, where k is 1.
        rewards: (H, n).

    Returns:
        The largest absolute number, and the largest 2-norm, of the states before each step.
    """
    k, d = dynamics.state_size, dynamics.action_size
    rules = (
        *((policy.weights, (d, k)), (policy.precision, (d, d))),
        *((dynamics.transition, (k, k)), (dynamics.control, (k, d))),
        *((dynamics.state_cost, (k, k)), (dynamics.action_cost, (d, d))),
        *((dynamics.max_state.values, (k,)), (dynamics.max_action.values, (d,))),
    )
    arrays = (tensor.detach().to(noise.dtype).expand(shape).contiguous().numpy() for tensor, shape in rules)
    return walk(starts.numpy(), noise.numpy(), *arrays, score == "clipped", scores.numpy(), rewards.numpy())
