"""What passes over a batch whose splits have moments of their own?

Kernels, where channels lie in planes, as PyTorch keeps them by default. Other layouts are broadcast over.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from anybatch.nn.moments import wide_dtype
from anybatch.nn.plane_passes import PlanePasses

_SMALLEST_PLANE = 8  # positions; below, a kernel's work per channel is more than its work per value


class Passes(Protocol):
    """The passes over one batch of S splits and C channels; moments and factors are (S, C)."""

    @property
    def num_values(self) -> int | Tensor:
        """Values per split and channel; (S, 1) where splits differ."""
        ...

    def observe(self) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance."""
        ...

    def apply(self, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return scale (x - mean) + shift."""
        ...

    def laid_out(self, grad: Tensor) -> Tensor:
        """Return a gradient of the input's shape as `reduce` and `combine` take it."""
        ...

    def reduce(self, grad: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of grad (x - mean) and of grad."""
        ...

    def combine(self, grad: Tensor, mean: Tensor, of_grad: Tensor, of_input: Tensor, constant: Tensor) -> Tensor:
        """Return of_grad grad + of_input (x - mean) + constant."""
        ...


def passes_for(input: Tensor, num_splits: int) -> Passes:
    """Return the passes that suit where a batch lies and how.

    Args:
        input: (N, C) or (N, C, *).
        num_splits: S, which divides N.

    Returns:
        The passes; what they return has the dtype and the memory format of the input.
    """
    in_planes = input.is_cpu and input.is_contiguous() and input.shape[2:].numel() >= _SMALLEST_PLANE
    in_planes = in_planes and input.dim() > 2 and input.numel() > 0
    return PlanePasses(input, num_splits) if in_planes else _Broadcast(input, num_splits)


class _Broadcast:
    def __init__(self, input: Tensor, num_splits: int) -> None:
        self._input = input
        self._num_splits = num_splits
        self._parts = self._in_parts(input)
        self.num_values = input.numel() // max(1, num_splits * input.shape[1])

    def laid_out(self, grad: Tensor) -> Tensor:
        return self._in_parts(grad)

    def _in_parts(self, tensor: Tensor) -> Tensor:
        shape = self._input.shape
        return tensor.to(wide_dtype(tensor)).reshape(self._num_splits, -1, shape[1], shape[2:].numel())

    def _out_of_parts(self, parts: Tensor) -> Tensor:
        return torch.empty_like(self._input).copy_(parts.reshape(self._input.shape))

    def observe(self) -> tuple[Tensor, Tensor]:
        mean = self._parts.mean((1, 3))
        return mean, (self._parts - _spread(mean)).square_().mean((1, 3))

    def apply(self, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        centred = self._parts - _spread(mean)
        return self._out_of_parts(centred.mul_(_spread(scale)).add_(_spread(shift)))

    def reduce(self, grad: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        return (self._parts - _spread(mean)).mul_(grad).sum((1, 3)), grad.sum((1, 3))

    def combine(self, grad: Tensor, mean: Tensor, of_grad: Tensor, of_input: Tensor, constant: Tensor) -> Tensor:
        centred = (self._parts - _spread(mean)).mul_(_spread(of_input)).add_(_spread(constant))
        return self._out_of_parts(centred.addcmul_(grad, _spread(of_grad)))


def _spread(moment: Tensor) -> Tensor:
    return moment[:, None, :, None]
