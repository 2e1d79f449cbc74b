"""What do means and variances come to behind a convolution's weights, in operations that autograd knows?"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Taps:
    """Which of a convolution's K taps are inside of the map, over the positions of its output.

    Attributes:
        fractions: K, of positions where a tap is inside.
        covariance: (K, K), over positions, of whether two taps are; None where all of them are everywhere.
    """

    fractions: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...] | None = None

    def tensors(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return fractions and covariance as tensors."""
        rows = torch.tensor([self.fractions, *(self.covariance or ())], device=like.device, dtype=like.dtype)
        return rows[0], None if self.covariance is None else rows[1:]


def plain_tap_moments(mean: Tensor, var: Tensor, weight: Tensor, taps: Taps, groups: int = 1) -> tuple[Tensor, Tensor]:
    """Return what `tap_moments` does, differentiable as often as one likes."""
    means, variances = mean.unflatten(1, (groups, -1)), var.unflatten(1, (groups, -1))
    grouped = taps_of(weight).unflatten(0, (groups, -1))
    by_tap = torch.einsum("sgc,gock->sgok", means, grouped).flatten(1, 2)
    fractions, _ = taps.tensors(weight)
    within = torch.einsum("sgc,goc->sgo", variances, grouped.square() @ fractions).flatten(1)
    return over_positions(by_tap, within, taps)


def over_positions(by_tap: Tensor, within: Tensor, taps: Taps) -> tuple[Tensor, Tensor]:
    """Return mean and variance over the positions of a map.

    Args:
        by_tap: (S, O, K), what each tap adds to the mean where it is inside.
        within: (S, O), the mean variance at a position.
        taps: of the convolution.

    Returns:
        Two of (S, O).
    """
    fractions, covariance = taps.tensors(by_tap)
    if covariance is None:
        return by_tap @ fractions, within
    return by_tap @ fractions, within + ((by_tap @ covariance) * by_tap).sum(2).clamp_min(0)


def taps_of(weight: Tensor) -> Tensor:
    """Return the weights of a convolution or a linear layer as (O, C, K)."""
    return weight.flatten(2) if weight.dim() > 2 else weight[:, :, None]
