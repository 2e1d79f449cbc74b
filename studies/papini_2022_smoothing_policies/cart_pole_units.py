"""What is run on the cart-pole with two pushes, and how far are its states from the bound that is assumed?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Discrete
from recording import follow_fixed_steps, record
from scipy.special import expit
from torch import Tensor

from anybatch.rl import SmoothingPolicyGradient, SoftmaxPolicy
from anybatch.rl.cart_pole import GRAVITY, MASS_CART, MASS_POLE, SECONDS_PER_STEP, CartPoleDynamics
from anybatch.rl.dynamics import Bounds
from anybatch.rl.native_env import NativeVectorEnv

DELTA, MINI_BATCH, MAX_BATCH = 0.2, 100, 100_000
HORIZON, DISCOUNT, FORCE, HALF_LENGTH = 100, 0.9, 10.0, 0.5
SMOOTHNESS = 600.0
SCALES = (4.8, 6.0, 0.42, 6.0)  # twice the limits of position and angle, and of usual velocities
NUM_LOOKED_AT = 1000  # trajectories of each policy whose states are looked at


class PushedCartPole(CartPoleDynamics):
    """CartPole-v1 of Gymnasium: action 1 pushes to the right and 0 to the left.

    Written in NumPy: side by side are a hundred, for which the call of an operation costs more than its work.
    """

    def __init__(self) -> None:
        super().__init__(FORCE, HALF_LENGTH)
        self.max_action = Bounds(torch.tensor([math.inf]))  # of what is drawn: an index

    def step(self, states: Tensor, actions: Tensor, out: Tensor) -> None:
        """Write (4, n) next states of (4, n) states and (1, n) indices of actions."""
        now, following = states.numpy(), out.numpy()
        _, velocity, angle, turning = now
        sine, cosine = np.sin(angle), np.cos(angle)
        mass = MASS_CART + MASS_POLE
        pushed = (FORCE * (2 * actions.numpy()[0] - 1) + MASS_POLE * HALF_LENGTH * turning * turning * sine) / mass
        swing = (GRAVITY * sine - cosine * pushed) / (HALF_LENGTH * (4 / 3 - MASS_POLE / mass * cosine * cosine))
        rates = velocity, pushed - MASS_POLE * HALF_LENGTH / mass * swing * cosine, turning, swing
        for number, rate in enumerate(rates):
            following[number] = now[number] + SECONDS_PER_STEP * rate


class CartPole(NativeVectorEnv):
    """CartPole-v1 of Gymnasium with the authors' horizon and discount: 1 for every step until the pole falls."""

    def __init__(self) -> None:
        super().__init__(PushedCartPole(), 1, discount=DISCOUNT, horizon=HORIZON, reward_bound=1.0)
        self.single_action_space = Discrete(2)


class PushingPolicy(SoftmaxPolicy):
    """A softmax policy of two actions, which it draws in NumPy, as the dynamics are and for their reason."""

    def act(self, features: Tensor, noise: Tensor, out: Tensor) -> None:
        """Write (1, n) indices of actions of (p, n) features and (1, n) noise."""
        left, right = self.weights.numpy()
        drive = (right - left).astype(np.float32) @ features.numpy() / self.temperature
        np.less_equal(expit(-drive), noise.numpy()[0], out=out.numpy()[0], casting="unsafe")


def scale_states(states: Tensor) -> Tensor:
    """Return (n, 4) features of norm 1 at most: states over constants, drawn in where they are longer."""
    features = states / states.new_tensor(SCALES)
    return features / torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_min(1)


def run_relaxed(tolerance: float, is_scaled: bool, num_trajectories: int, seed: int) -> dict[str, Any]:
    """Run relaxed SPG; with scaled features by the corrected rule, else as published with F = 1 assumed."""
    policy = PushingPolicy(torch.zeros(2, 4), features=scale_states if is_scaled else None)
    agent = SmoothingPolicyGradient(
        CartPole(), policy, "bernstein", delta=DELTA, rule="corrected" if is_scaled else "published",
        tolerance=tolerance, mini_batch_size=MINI_BATCH, max_batch_size=MAX_BATCH, feature_norm_bound=1.0, seed=seed,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a norm above 1, which is counted
        updates = agent.run(num_trajectories).iterations
    returns = [update.measured_performance for update in updates]
    return {
        **record([update.batch_size for update in updates], returns),
        **_compare_with_best(returns, tolerance),
        "num_steps": sum(update.step_size > 0 for update in updates),
        "num_void": sum(update.guarantee == "void" for update in updates),
        "share_above": [share_above(each, seed) for each in (policy, agent.policy)],
    }


def run_fixed_steps(num_trajectories: int, seed: int) -> dict[str, Any]:
    """Run G(PO)MDP with the step 1 / L and batches of 100."""
    policy = PushingPolicy(torch.zeros(2, 4))
    parameters, returns = follow_fixed_steps(CartPole(), policy, 1 / SMOOTHNESS, MINI_BATCH, num_trajectories, seed)
    last = policy.with_parameters(parameters[-1])
    return {
        **record([MINI_BATCH] * len(returns), returns),
        "least_share": _compare_with_best(returns, 1.0)["least_share"],
        "share_above": [share_above(each, seed) for each in (policy, last)],
    }


def _compare_with_best(returns: Sequence[float], tolerance: float) -> dict[str, float]:
    """Return the least distance above (1 - tolerance) times the best return before, and the least share of that."""
    best = np.maximum.accumulate(returns)[:-1]
    later = np.array(returns[1:])
    if not len(later):
        return {"margin": math.inf, "least_share": 1.0}
    return {"margin": float((later - (1 - tolerance) * best).min()), "least_share": float((later / best).min())}


def share_above(policy: SoftmaxPolicy, seed: int) -> float:
    """Return in which share of the steps the norm of a policy's features is above 1."""
    dynamics, generator = PushedCartPole(), torch.Generator().manual_seed(seed)
    states, actions = torch.empty(4, NUM_LOOKED_AT), torch.empty(1, NUM_LOOKED_AT)
    dynamics.draw_states(states, generator)
    is_alive, num_steps, num_above = torch.ones(NUM_LOOKED_AT, dtype=torch.bool), 0, 0
    for _ in range(HORIZON):
        features, following = policy.features(states), torch.empty_like(states)
        is_above = torch.linalg.vector_norm(features, dim=0) > 1 + 1e-6
        num_steps, num_above = num_steps + int(is_alive.sum()), num_above + int((is_above & is_alive).sum())
        policy.act(features, torch.rand(1, NUM_LOOKED_AT, generator=generator), actions)
        dynamics.step(states, actions, following)
        states = following
        is_alive &= ~dynamics.is_over(states)
    return num_above / num_steps
