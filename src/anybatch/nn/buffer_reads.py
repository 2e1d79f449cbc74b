"""How does a compiled backward pass see a buffer as the forward pass read it, which has moved the buffer since?

A compiler computes cheap values again on the way back instead of keeping them, and takes buffers for constants of the
pass. It cannot look into an operator of our own, and so keeps what that returns.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("anybatch::buffer_as_read", mutates_args=(), schema="(Tensor buffer) -> Tensor")
def _buffer_as_read(buffer: Tensor) -> Tensor:
    return buffer.clone()


@_buffer_as_read.register_fake
def _(buffer: Tensor) -> Tensor:
    return torch.empty_like(buffer)


def read_buffer(buffer: Tensor) -> Tensor:
    """Return a buffer for a forward pass that updates it and whose gradients depend on its values.

    Args:
        buffer: to be changed in place later in the pass.

    Returns:
        Its values, without history; a copy where the pass is compiled.

    Example:
        >>> read_buffer(torch.ones(2))
        tensor([1., 1.])
    """
    return _buffer_as_read(buffer.detach()) if torch.compiler.is_compiling() else buffer.detach()
