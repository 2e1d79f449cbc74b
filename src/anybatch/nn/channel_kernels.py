"""Which parts of batch norm's kernels serve alone? Its evaluation scales channels, its backward pass sums over them."""

from __future__ import annotations

import torch
from torch import Tensor


def scale_channels(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float = 0.0,
    *,
    out: Tensor,
) -> None:
    """Write weight (x - mean) / sqrt(var + eps) + bias.

    On a CPU it is computed as a x + (bias - a mean), so that a mean far from zero costs digits unless a is 1.

    Args:
        input: (N, C, *).
        mean: (C,).
        var: (C,).
        weight: (C,), or None for ones.
        bias: (C,), or None for zeros.
        eps: added to `var`.
        out: of the shape and layout of `input`, which it may be.
    """
    nothing = input.new_empty(0)
    torch.native_batch_norm(input, weight, bias, mean, var, False, 0.0, eps, out=(out, nothing, nothing))


def sum_channels(grad: Tensor, input: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums over samples and positions of grad (x - mean) and of grad, those of a map in the input's dtype.

    Args:
        grad: (N, C, *).
        input: (N, C, *).
        mean: (C,).

    Returns:
        Two of (C,).
    """
    fixed = (None, mean, torch.ones_like(mean), None, None, False, 0.0, [False, True, True])
    _, products, sums = torch.ops.aten.native_batch_norm_backward(grad, input, *fixed)
    return products, sums
