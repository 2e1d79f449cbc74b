"""What becomes of a good policy for a cart-pole when the pole gets twice as long?"""

from __future__ import annotations

from typing import Any

import torch
from authors import CART_POLE_START

from anybatch.decide import choose_safe_step, error_bounds, gaussian_penalty
from anybatch.rl import ContinuousCartPole, GaussianPolicy, GradientEstimate, estimate_gradient
from anybatch.seeds import derive_seed

DELTA, STD, ACTION_VOLUME = 0.95, 1.0, 20.0
PENALTY_DISCOUNT = 0.9  # of the penalty alone: returns are not discounted in the published runs
FIRST_BATCH, MIN_BATCH, MAX_BATCH = 1000, 10, 500_000
FIXED_BATCH, FIXED_STEP = 4000, 1e-2


def run_cart_pole(kind: str, num_trajectories: int, seed: int) -> dict[str, Any]:
    """Follow one coordinate at a time, with the adaptive rule or a fixed step, and say what was returned."""
    env, theta = ContinuousCartPole(half_length=1.0), torch.tensor(CART_POLE_START, dtype=torch.float64)
    size = FIRST_BATCH if kind == "adaptive" else FIXED_BATCH
    found: dict[str, Any] = {"batch_size": [], "step_size": [], "measured_performance": []}
    while sum(found["batch_size"]) + size <= num_trajectories:
        own = derive_seed(seed, kind, len(found["batch_size"]))
        estimate = estimate_gradient(
            env, GaussianPolicy(theta[None], STD**2), size, discount=1.0, seed=own, score="clipped", need_ranges=True
        )
        step_size, next_size = _decide(estimate) if kind == "adaptive" else (FIXED_STEP, FIXED_BATCH)
        for name, value in zip(found, (size, step_size, estimate.mean_return), strict=True):
            found[name].append(value)
        coordinate = int(estimate.gradient.abs().argmax())
        theta[coordinate] += step_size * estimate.gradient[coordinate]
        size = next_size
    return {**found, "theta": theta.tolist()}


def _decide(estimate: GradientEstimate) -> tuple[float, int]:
    """Return step and next batch with R and M of this batch, variance and range the largest of all coordinates."""
    assert estimate.ranges is not None
    penalty = gaussian_penalty(
        reward_bound=estimate.max_abs_reward,
        feature_bound=estimate.max_feature,
        discount=PENALTY_DISCOUNT,
        std=STD,
        action_volume=ACTION_VOLUME,
    )
    step = choose_safe_step(
        max_gradient=float(estimate.gradient.abs().max()),
        batch_size=estimate.num_trajectories,
        bound=error_bounds.empirical_bernstein(float(estimate.variance.max()), float(estimate.ranges.max()), DELTA),
        penalty=penalty,
        min_batch_size=MIN_BATCH,
        max_batch_size=MAX_BATCH,
        mode="paper",
    )
    return step.step_size, step.next_batch_size
