"""What is said of the activations of one micro-batch: a mean and a variance per channel?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Mean and variance of the channels of a feature map, for each split of a batch.

    Shapes: S splits, C channels; (1, C) where all splits share what is known of them.

    Attributes:
        mean: (S, C); float32 or wider.
        var: (S, C), biased.
        size: of the map, one number per spatial dimension; () for flat features, None where it is not known.
    """

    mean: Tensor
    var: Tensor
    size: tuple[int, ...] | None = ()

    def detached(self) -> Moments:
        """Return the same values without their history, still asking for gradients where they did."""
        return Moments(_without_history(self.mean), _without_history(self.var), self.size)

    def pooled(self) -> Moments:
        """Return the moments of all splits taken together, (1, C)."""
        mean = self.mean.mean(0, keepdim=True)
        return Moments(mean, (self.var + (self.mean - mean).square()).mean(0, keepdim=True), self.size)


def _without_history(tensor: Tensor) -> Tensor:
    detached = tensor.detach()
    # a part that is computed again must save what it saved before; a compiler sees to that itself
    return detached if torch.compiler.is_compiling() else detached.requires_grad_(tensor.requires_grad)


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """Return the type that statistics of a tensor are kept in: float32, or the tensor's own where it is wider."""
    is_wide = tensor.dtype in (torch.float32, torch.float64)
    return tensor.dtype if is_wide else torch.promote_types(tensor.dtype, torch.float32)
