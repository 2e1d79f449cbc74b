"""What do means and variances come to behind a convolution's weights, in operations that autograd knows?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def plain_tap_products(
    mean: Tensor, var: Tensor, weight: Tensor, fractions: Sequence[float], groups: int = 1
) -> tuple[Tensor, Tensor]:
    """Return what `tap_products` does, differentiable as often as one likes."""
    means, variances = mean.unflatten(1, (groups, -1)), var.unflatten(1, (groups, -1))
    grouped = taps_of(weight).unflatten(0, (groups, -1))
    by_tap = torch.einsum("sgc,gock->sgok", means, grouped).flatten(1, 2)
    weights = torch.tensor(fractions, device=weight.device, dtype=weight.dtype)
    return by_tap, torch.einsum("sgc,goc->sgo", variances, grouped.square() @ weights).flatten(1)


def taps_of(weight: Tensor) -> Tensor:
    """Return the weights of a convolution or a linear layer as (O, C, K)."""
    return weight.flatten(2) if weight.dim() > 2 else weight[:, :, None]
