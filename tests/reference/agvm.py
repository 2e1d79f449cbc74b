"""The slow obvious twin of AGVM: float64, number by number, and the official hook acted out rank by rank.

Nothing here is shared with the package. A gradient is a dictionary from module to a list of tensors.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Gradient = dict[str, list[Tensor]]


def flat(tensors: Sequence[Tensor]) -> list[float]:
    return [value for tensor in tensors for value in tensor.double().flatten().tolist()]


def dot(left: Sequence[float], right: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def mean(gradients: Sequence[Gradient], weights: Sequence[float] | None = None) -> Gradient:
    weights = [1.0] * len(gradients) if weights is None else weights
    return {
        module: [
            sum(w * g[module][i].double() for w, g in zip(weights, gradients, strict=True)) / sum(weights)
            for i in range(len(gradients[0][module]))
        ]
        for module in gradients[0]
    }


def cosine_fractions(first: Gradient, second: Gradient) -> dict[str, float]:
    """1 - cos over the whole vector of a module; a module without a gradient in a half has cos 0, as torch has it."""
    found = {}
    for module in first:
        a, b = flat(first[module]), flat(second[module])
        norms = math.sqrt(dot(a, a)) * math.sqrt(dot(b, b))
        found[module] = 1 - (dot(a, b) / norms if norms else 0.0)
    return found


def moment_fractions(parts: Sequence[Gradient]) -> dict[str, float]:
    """From K equal parts: |g|^2 ~ (K B2 - A2) / (K - 1), tr S_part ~ K (A2 - B2) / (K - 1), tr S_half = 2 / K of it."""
    found, k = {}, len(parts)
    for module in parts[0]:
        vectors = [flat(part[module]) for part in parts]
        middle = [sum(values) / k for values in zip(*vectors, strict=True)]
        a2, b2 = sum(dot(v, v) for v in vectors) / k, dot(middle, middle)
        signal, noise = max((k * b2 - a2) / (k - 1), 0.0), 2 * (a2 - b2) / (k - 1)
        found[module] = noise / (signal + noise)
    return found


def scales(
    fractions: dict[str, float],
    anchor: str,
    previous: dict[str, float],
    alpha: float = 0.97,
    low: float = 0.5,
    high: float = 10.0,
) -> dict[str, float]:
    """Ratio, clamp, square root, moving average; what cannot be compared stays."""
    new = dict(previous)
    for module, fraction in fractions.items():
        pair = (fractions.get(anchor, math.nan), fraction)
        if all(math.isfinite(value) and value > 0 for value in pair):
            ratio = (pair[0] + 1e-6) / (pair[1] + 1e-6)
            new[module] = alpha * previous.get(module, 1.0) + (1 - alpha) * math.sqrt(min(max(ratio, low), high))
    return new


class OfficialHook:
    """What the published hook does on a measuring iteration, W ranks in one process; W is even, the anchor comes first.

    Every rank's loss is divided by W^2 / 2 before backward, so that sums over a half leave (half mean) / W in
    `param.grad`, from which Adam's denominator is made; the vectors are multiplied with W and compared.
    """

    def __init__(self, world_size: int, alpha: float = 0.97, beta2: float | None = None, eps: float = 1e-8) -> None:
        assert world_size % 2 == 0
        self.world_size, self.alpha, self.beta2, self.eps = world_size, alpha, beta2, eps
        self.scales: dict[str, float] = {}

    def iterate(self, rank_gradients: Sequence[Gradient], exp_avg_sq: Gradient | None = None) -> dict[str, float]:
        w = self.world_size
        halves = []
        for ranks in (rank_gradients[: w // 2], rank_gradients[w // 2 :]):
            left = {
                m: [sum(g[m][i].double() for g in ranks) * 2 / w**2 for i in range(len(ranks[0][m]))] for m in ranks[0]
            }
            halves.append({m: [w * self.shown(m, i, g, exp_avg_sq) for i, g in enumerate(left[m])] for m in left})
        found = cosine_fractions(*halves)
        anchor = next(iter(found))
        for module, fraction in found.items():
            new = math.sqrt(min(max((found[anchor] + 1e-6) / (fraction + 1e-6), 0.5), 10.0))
            self.scales[module] = self.alpha * self.scales.get(module, 1.0) + (1 - self.alpha) * new
        return dict(self.scales)

    def shown(self, module: str, index: int, grad: Tensor, exp_avg_sq: Gradient | None) -> Tensor:
        if self.beta2 is None or exp_avg_sq is None:
            return grad
        second = self.beta2 * exp_avg_sq[module][index].double() + (1 - self.beta2) * grad**2
        return grad / (torch.sqrt(second) + self.eps)
