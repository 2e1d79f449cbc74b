"""The slow obvious twin of `anybatch.rl`: one trajectory at a time, scalars, float64. Nothing is shared with it.

z_t is the score of a step, q_t = gamma^t r_t. Estimates are lists of one number per parameter.
"""

import math
from collections.abc import Sequence

Trajectory = tuple[Sequence[Sequence[float]], Sequence[float]]  # scores by step and parameter, rewards by step


def gaussian_score(weight: float, std: float, state: float, action: float) -> float:
    return (action - weight * state) * state / std**2


def lqg_trajectory(
    weight: float, std: float, start: float, noise: Sequence[float], *, clipped_score: bool = False
) -> tuple[list[float], list[float], list[float]]:
    """States, scores and rewards of the one-dimensional task, in the order of the published code."""
    states, scores, rewards = [], [], []
    state = start
    for draw in noise:
        drawn = weight * state + std * draw
        action = min(max(drawn, -2.0), 2.0)
        following = min(max(state + action, -2.0), 2.0)
        states.append(state)
        scores.append(gaussian_score(weight, std, state, action if clipped_score else drawn))
        rewards.append(-(0.5 * state * state + 0.5 * action * action))
        state = following
    return states, scores, rewards


def reinforce_samples(trajectories: Sequence[Trajectory], discount: float) -> list[list[float]]:
    """[parameter][trajectory], with the variance-minimising baseline of every parameter."""
    samples = []
    for k in range(len(trajectories[0][0][0])):
        summed, returns = [], []
        for scores, rewards in trajectories:
            summed.append(math.fsum(step[k] for step in scores))
            returns.append(math.fsum(discount**t * reward for t, reward in enumerate(rewards)))
        numerator = math.fsum(z * z * q for z, q in zip(summed, returns, strict=True))
        denominator = math.fsum(z * z for z in summed)
        baseline = numerator / (denominator if denominator != 0 else 1.0)
        samples.append([z * (q - baseline) for z, q in zip(summed, returns, strict=True)])
    return samples


def gpomdp_samples(trajectories: Sequence[Trajectory], discount: float) -> list[list[float]]:
    """[parameter][trajectory], with one baseline per parameter and step."""
    samples = []
    horizon = len(trajectories[0][1])
    for k in range(len(trajectories[0][0][0])):
        totals = [0.0] * len(trajectories)
        for t in range(horizon):
            summed = [math.fsum(step[k] for step in scores[: t + 1]) for scores, _ in trajectories]
            gains = [discount**t * rewards[t] for _, rewards in trajectories]
            numerator = math.fsum(c * c * q for c, q in zip(summed, gains, strict=True))
            denominator = math.fsum(c * c for c in summed)
            baseline = numerator / (denominator if denominator != 0 else 1.0)
            for n, (c, q) in enumerate(zip(summed, gains, strict=True)):
                totals[n] += c * (q - baseline)
        samples.append(totals)
    return samples


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def variance(values: Sequence[float]) -> float:
    """Divided by N - 1."""
    middle = mean(values)
    return math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1)
