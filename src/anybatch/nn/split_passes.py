"""Which kernels pass over a batch whose splits have moments of their own?

Channels that lie in planes, as PyTorch keeps them by default, are handed to batch norm's kernels of evaluation as one
sample of N C channels. Other layouts are broadcast over.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from anybatch.nn.channel_kernels import scale_channels, sum_channels
from anybatch.nn.moments import wide_dtype

_SMALLEST_PLANE = 4  # positions; below, a kernel's work per channel is more than its work per value
_VALUES_OF_A_CHUNK = 2**17  # what is centred stays in the cache


class Passes(Protocol):
    """The passes over one batch of S splits and C channels; moments and factors are (S, C)."""

    num_values: int
    """Values per split and channel."""

    def observe(self) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance."""
        ...

    def apply(self, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return scale (x - mean) + shift."""
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
    return _InPlanes(input, num_splits) if in_planes else _Broadcast(input, num_splits)


class _Broadcast:
    def __init__(self, input: Tensor, num_splits: int) -> None:
        self._input = input
        self._num_splits = num_splits
        self._parts = self._in_parts(input)
        self.num_values = input.numel() // max(1, num_splits * input.shape[1])

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
        grad = self._in_parts(grad)
        return (self._parts - _spread(mean)).mul_(grad).sum((1, 3)), grad.sum((1, 3))

    def combine(self, grad: Tensor, mean: Tensor, of_grad: Tensor, of_input: Tensor, constant: Tensor) -> Tensor:
        centred = (self._parts - _spread(mean)).mul_(_spread(of_input)).add_(_spread(constant))
        return self._out_of_parts(centred.addcmul_(self._in_parts(grad), _spread(of_grad)))


def _spread(moment: Tensor) -> Tensor:
    return moment[:, None, :, None]


class _InPlanes:
    def __init__(self, input: Tensor, num_splits: int) -> None:
        self._input = input
        self._num_splits = num_splits
        self._planes = self._in_planes(input)
        self.num_values = input.numel() // (num_splits * input.shape[1])

    def _in_planes(self, tensor: Tensor) -> Tensor:
        shape = self._input.shape
        return tensor.to(wide_dtype(tensor)).contiguous().view(1, shape[0] * shape[1], shape[2:].numel())

    def _per_plane(self, moment: Tensor) -> Tensor:
        samples = self._input.shape[0] // self._num_splits
        return moment[:, None].expand(-1, samples, -1).reshape(-1)

    def _per_sample(self, statistic: Tensor) -> Tensor:
        return statistic.view(self._num_splits, -1, self._input.shape[1])

    def observe(self) -> tuple[Tensor, Tensor]:
        chunks = self._planes[0].split(self._planes_of_a_chunk())
        memory = torch.empty_like(chunks[0])
        statistics = [_plane_moments(chunk, memory[: len(chunk)]) for chunk in chunks]
        means, variances = (self._per_sample(torch.cat(each)) for each in zip(*statistics, strict=True))
        mean = means.mean(1)
        return mean, (variances + (means - mean[:, None]).square()).mean(1)

    def _planes_of_a_chunk(self) -> int:
        return max(1, _VALUES_OF_A_CHUNK // self._planes.shape[2])

    def apply(self, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return self._scaled(self._planes, scale, shift, mean).to(self._input.dtype)

    def _scaled(self, planes: Tensor, scale: Tensor, shift: Tensor, about: Tensor) -> Tensor:
        scale, shift, about = (self._per_plane(each) for each in (scale, shift, about))
        # no view, or nothing could be changed in place behind the layer
        output = torch.empty_like(self._input, dtype=planes.dtype)
        scale_channels(planes, about, torch.ones_like(about), scale, shift, out=output.view_as(planes))
        return output

    def reduce(self, grad: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        products, sums = sum_channels(self._in_planes(grad), self._planes, self._per_plane(mean))
        return self._per_sample(products).sum(1), self._per_sample(sums).sum(1)

    def combine(self, grad: Tensor, mean: Tensor, of_grad: Tensor, of_input: Tensor, constant: Tensor) -> Tensor:
        rest = constant - of_input * mean
        output = self._scaled(self._in_planes(grad), of_grad, rest, torch.zeros_like(rest))
        output.view_as(self._planes).addcmul_(self._planes, self._per_plane(of_input)[None, :, None])
        return output.to(self._input.dtype)


def _plane_moments(planes: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each row; squares are of what is centred, so a large mean costs no digits."""
    mean = planes.mean(1, keepdim=True)
    centred = torch.sub(planes, mean, out=memory)
    return mean[:, 0], torch.linalg.vector_norm(centred, dim=1).square_().div_(planes.shape[1])
