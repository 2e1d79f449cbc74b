"""What is run on the one-dimensional task: curves, fixed steps and the moments of gradients."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.polynomial import Chebyshev

from anybatch.rl import LQG, GaussianPolicy, SafePolicyGradient, estimate_gradient
from anybatch.seeds import derive_seed

ESTIMATORS = ("gpomdp", "reinforce")
DOMAIN = (-1.0, 0.1)  # of policies whose exact performance is tabulated


@cache
def exact_polynomial(std: float = 1.0) -> Chebyshev:
    """J(theta) of the clipped process with its horizon: by quadrature at 30 nodes, interpolated, to 2e-9."""
    env = LQG()

    def performance(theta: float) -> float:
        return env.exact_performance(GaussianPolicy(theta, std**2))

    return Chebyshev.interpolate(np.vectorize(performance), 29, domain=list(DOMAIN))


def exact_optimum(std: float = 1.0) -> float:
    """Return the policy with the best exact performance."""
    exact = exact_polynomial(std)
    found = [root.real for root in exact.deriv().roots() if abs(root.imag) < 1e-9]
    return max((theta for theta in found if DOMAIN[0] < theta < DOMAIN[1]), key=exact)


def run_curve(
    estimator: str,
    bound: str,
    range: str,
    delta: float,
    min_batch_size: int,
    max_batch_size: int,
    num_trajectories: int,
    seed: int,
) -> dict[str, Any]:
    """Run the published loop; also with a fixed batch, where both limits are the same."""
    agent = SafePolicyGradient(
        LQG(), GaussianPolicy(0.0), bound, estimator, delta, "paper",  # pyright: ignore[reportArgumentType]
        range=range, min_batch_size=min_batch_size, max_batch_size=max_batch_size, seed=seed,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    thetas = [0.0]
    run = agent.run(num_trajectories, callback=lambda _: thetas.append(agent.policy.parameters.item()))
    names = ("batch_size", "step_size", "performance", "measured_performance", "max_gradient", "error")
    found: dict[str, Any] = {name: [getattr(update, name) for update in run.iterations] for name in names}
    return {**found, "theta": thetas, "final_performance": run.final_performance}


def run_fixed_steps(
    std: float, batch_size: int, step_sizes: list[float], num_trajectories: int, start: float, seed: int
) -> dict[str, Any]:
    """Return the shares of updates that raise the closed form, and the exact performance, for each step size.

    The published script hands std in place of the variance to the closed form, and so does this.
    """
    env, exact = LQG(), exact_polynomial(std)
    rates: dict[str, list[float]] = {"closed_form": [], "exact": []}
    for step_size in step_sizes:
        thetas = [start]
        for index in range(num_trajectories // batch_size - 1):
            policy = GaussianPolicy(thetas[-1], std**2)
            own = derive_seed(seed, "fixed step", str(step_size), index)
            gradient = estimate_gradient(env, policy, batch_size, seed=own, score="clipped").gradient
            thetas.append(thetas[-1] + step_size * gradient.item())
        closed = np.array([env.performance(GaussianPolicy(theta, std)) for theta in thetas])
        rates["closed_form"].append(100 * float(np.mean(np.diff(closed) > 0)))
        rates["exact"].append(100 * float(np.mean(np.diff(exact(np.array(thetas))) > 0)))
    return rates


def measure_moments(estimator: str, theta: float, num_trajectories: int, seed: int) -> dict[str, Any]:
    """Return the gradient at one policy with the spread of single trajectories."""
    estimate = estimate_gradient(
        LQG(), GaussianPolicy(theta), num_trajectories, estimator=estimator, seed=seed, need_ranges=True  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    assert isinstance(estimate.ranges, torch.Tensor)
    return {
        "gradient": abs(estimate.gradient.item()),
        "std": math.sqrt(estimate.variance.item()),
        "range": estimate.ranges.item(),
    }
