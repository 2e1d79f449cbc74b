"""What is kept of a run of many updates?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from anybatch.rl import estimate_gradient
from anybatch.seeds import derive_seed

MOST_POINTS = 200  # of a curve
FEW = 5  # updates, of which the first and the last batches are the mean
END = 0.05  # share of the trajectories, of which the end is the mean


def record(sizes: Sequence[int], returns: Sequence[float]) -> dict[str, Any]:
    """Return what the updates of a run come to.

    Args:
        sizes: trajectories of each update.
        returns: measured mean return of each.

    Returns:
        Plain values; `curve` has (trajectories, return, batch) of so many groups of updates, weighted by trajectories.
    """
    size, mean_return = np.array(sizes), np.array(returns)
    total = np.cumsum(size)
    is_end = total > (1 - END) * total[-1]
    groups = [group for group in np.array_split(np.arange(len(size)), MOST_POINTS) if len(group)]
    return {
        "num_updates": len(size),
        "num_trajectories": int(total[-1]),
        "mean_batch": float(size.mean()),
        "first_batch": float(size[1 : 1 + FEW].mean()) if len(size) > 1 else float(size[0]),
        "last_batch": float(size[-FEW:].mean()),
        "mean_return": float(mean_return.mean()),
        "end_return": float(np.average(mean_return[is_end], weights=size[is_end])),
        "curve": [_point(size[group], mean_return[group], int(total[group[-1]])) for group in groups],
    }


def _point(size: np.ndarray, mean_return: np.ndarray, total: int) -> tuple[int, float, float]:
    return total, float(np.average(mean_return, weights=size)), float(size.mean())


def follow_fixed_steps(
    env: Any, policy: Any, step_size: float, batch_size: int, num_trajectories: int, seed: int
) -> tuple[list[torch.Tensor], list[float]]:
    """Follow the gradient with a fixed step and batch.

    Returns:
        The parameters before each update and after the last, and the measured return of each.
    """
    parameters, returns = [policy.parameters], []
    for index in range(num_trajectories // batch_size):
        found = estimate_gradient(env, policy, batch_size, seed=derive_seed(seed, "fixed step", index))
        returns.append(found.mean_return)
        policy = policy.with_parameters(policy.parameters + step_size * found.gradient)
        parameters.append(policy.parameters)
    return parameters, returns
