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


class Passes(Protocol):
    """The passes over one batch of S splits and C channels; moments and factors are (S, C)."""

    num_values: int | Tensor
    """Values per split and channel; (S, 1) where splits differ."""

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
    return PlanePasses(input, num_splits) if in_planes else _Broadcast(input, num_splits)


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


class PlanePasses:
    """The passes over a contiguous batch on a CPU; each channel of each sample is a plane of its own.

    Args:
        input: (N, C, *).
        num_parts: contiguous and near-equal, the larger ones first.
    """

    def __init__(self, input: Tensor, num_parts: int) -> None:
        self._input = input
        self._planes = self._in_planes(input)
        self._memory: Tensor | None = None
        size, num_larger = divmod(len(input), num_parts)
        self._blocks = [(number, samples) for number, samples in ((num_larger, size + 1), (num_parts - num_larger, size)) if number]
        self._num_samples: int | Tensor = size
        if num_larger:
            sizes = [samples for number, samples in self._blocks for _ in range(number)]
            self._num_samples = self._planes.new_tensor(sizes)[:, None]
        self.num_values = self._num_samples * self._planes.shape[2]

    def _in_planes(self, tensor: Tensor) -> Tensor:
        shape = self._input.shape
        return tensor.to(wide_dtype(tensor)).contiguous().view(1, shape[0] * shape[1], shape[2:].numel())

    def _per_plane(self, moment: Tensor) -> Tensor:
        """Return (N C,) of (K, C)."""
        blocks = moment.split([number for number, _ in self._blocks])
        spread = [
            block[:, None].expand(-1, samples, -1).reshape(-1)
            for block, (_, samples) in zip(blocks, self._blocks, strict=True)
        ]
        return spread[0] if len(spread) == 1 else torch.cat(spread)

    def _per_part(self, of_planes: Tensor) -> Tensor:
        """Return sums, (K, C), of (N C,)."""
        blocks = of_planes.view(-1, self._input.shape[1]).split([number * samples for number, samples in self._blocks])
        sums = [block.unflatten(0, size).sum(1) for block, size in zip(blocks, self._blocks, strict=True)]
        return sums[0] if len(sums) == 1 else torch.cat(sums)

    def observe(self) -> tuple[Tensor, Tensor]:
        _, num_planes, size = self._planes.shape
        # group norm's kernel with a plane to each group: moments as exact as batch norm's, in a third of the time
        of_group_norm = torch.native_group_norm(self._planes, None, None, 1, num_planes, size, num_planes, 0.0)
        self._memory, means, inverse_stds = of_group_norm
        mean = self._per_part(means) / self._num_samples
        distances = means[0] - self._per_plane(mean)
        return mean, self._per_part(inverse_stds[0].pow(-2).addcmul_(distances, distances)) / self._num_samples

    def apply(self, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        output, self._memory = self._memory, None
        return self._like_input(self._scaled(self._planes, scale, shift, self._per_plane(mean), output))

    def _scaled(
        self, planes: Tensor, scale: Tensor, shift: Tensor, about: Tensor | None = None, output: Tensor | None = None
    ) -> Tensor:
        scale, shift = self._per_plane(scale), self._per_plane(shift)
        about = torch.zeros_like(scale) if about is None else about
        output = torch.empty_like(planes) if output is None else output
        scale_channels(planes, about, torch.ones_like(about), scale, shift, out=output)
        return output

    def _like_input(self, planes: Tensor) -> Tensor:
        """Return planes in the shape and the dtype of the input, and no view: it may be changed in place."""
        return planes.as_strided_(self._input.shape, self._input.stride()).to(self._input.dtype)

    def reduce(self, grad: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        products, sums = sum_channels(self._in_planes(grad), self._planes, self._per_plane(mean))
        return self._per_part(products), self._per_part(sums)

    def combine(self, grad: Tensor, mean: Tensor, of_grad: Tensor, of_input: Tensor, constant: Tensor) -> Tensor:
        output = self._scaled(self._in_planes(grad), of_grad, constant - of_input * mean)
        output.addcmul_(self._planes, self._per_plane(of_input)[None, :, None])
        return self._like_input(output)
