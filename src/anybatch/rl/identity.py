"""By what is a saved run told from one of another environment or policy?"""

from __future__ import annotations

from typing import Any

import torch
from gymnasium.vector import VectorEnv

from anybatch.rl.dynamics import Bounds, Dynamics
from anybatch.rl.gradient_estimate import check_env
from anybatch.rl.native_env import is_native
from anybatch.rl.policy import Policy


def describe(env: VectorEnv, policy: Policy) -> dict[str, Any]:
    """Return what is known by name of an environment and a policy.

    Args:
        env: of which the draws depend on the number of sub-environments, unless it is native.
        policy: of which a feature map is known by its name alone.

    Returns:
        Plain values: two of the same description may differ in code, and environments that are not native in numbers
        that only the code knows.

    Raises:
        InputError: the environment is no vector environment.
    """
    check_env(env)
    spaces = (env.single_observation_space, env.single_action_space)
    about = {"class": type(env).__qualname__, "id": None if env.spec is None else env.spec.id}
    about |= {"spaces": [str(space) for space in spaces]}
    about |= {"dynamics": _numbers_of(env.dynamics)} if is_native(env) else {"num_envs": env.num_envs}
    feature_map = getattr(policy, "feature_map", None)
    name = None if feature_map is None else getattr(feature_map, "__qualname__", type(feature_map).__qualname__)
    shape = [policy.num_actions, policy.num_features]
    return {"environment": about, "policy": {"class": type(policy).__qualname__, "shape": shape, "features": name}}


def _numbers_of(dynamics: Dynamics) -> dict[str, str]:
    """Return the public numbers, tensors and bounds of a task, as text: infinite ones are no JSON."""
    values = {name: value for name, value in getattr(dynamics, "__dict__", {}).items() if not name.startswith("_")}
    values |= {name: value.values for name, value in values.items() if isinstance(value, Bounds)}
    values |= {name: value.tolist() for name, value in values.items() if isinstance(value, torch.Tensor)}
    return {name: str(value) for name, value in values.items() if isinstance(value, (int, float, list))}
