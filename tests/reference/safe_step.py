"""The slow obvious twin of the safe step: the formulas of 2017 as printed, batch sizes walked one by one."""

import math


def error_of(d: float, f: float, n: int) -> float:
    return d / math.sqrt(n) + f / n


def gain_over(gradient: float, d: float, f: float, n: int) -> float:
    """The guaranteed gain of the best step over the batch size, times 4 c."""
    error = error_of(d, f, n)
    return (gradient - error) ** 4 / ((gradient + error) ** 2 * n)


def best_batch_by_walking(gradient: float, d: float, f: float, smallest: int, largest: int) -> int:
    """Look at every batch size whose error is below the gradient, and take the one with the largest gain."""
    best, best_gain = largest, 0.0
    for n in range(smallest, largest + 1):
        if error_of(d, f, n) < gradient and gain_over(gradient, d, f, n) > best_gain:
            best, best_gain = n, gain_over(gradient, d, f, n)
    return best


def best_step_by_grid(gradient: float, error: float, penalty: float, points: int = 20_001) -> float:
    """The step with the largest a (g - e)^2 - c a^2 (g + e)^2, by trying many."""
    steps = [index / (points - 1) / penalty for index in range(points)]
    return max(steps, key=lambda step: step * (gradient - error) ** 2 - penalty * (step * (gradient + error)) ** 2)


def chebyshev_d(kind: str, reward: float, feature: float, discount: float, horizon: int, std: float, delta: float):
    """The closed forms of the paper's code."""
    top = discount**horizon
    if kind == "reinforce":
        variance = reward**2 * feature**2 * horizon * (1 - top) ** 2 / (std**2 * (1 - discount) ** 2)
    else:
        bracket = (1 - top**2) / (1 - discount**2) + horizon * top**2 - 2 * top * (1 - top) / (1 - discount)
        variance = reward**2 * feature**2 / (std**2 * (1 - discount) ** 2) * bracket
    return math.sqrt(variance / delta)
