"""Which kernels pass over the parts of a batch, each with moments of its own, as fast as batch norm over the whole?

Each channel of each sample is a plane. Planes are handed to group norm's kernel as groups, and to batch norm's as the
channels of a single sample: so no part needs a call of its own, and none needs to be as large as another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anybatch.nn.channel_kernels import scale_channels, sum_channels
from anybatch.nn.moments import wide_dtype


class PlanePasses:
    """The passes over a contiguous batch on a CPU; moments and factors are (K, C).

    Args:
        input: (N, C, *).
        num_parts: K, at most N; parts are contiguous and near-equal, the larger ones first.

    Attributes:
        num_values: per part and channel; (K, 1) where parts differ.
    """

    def __init__(self, input: Tensor, num_parts: int) -> None:
        self._input = input
        self._planes = self._in_planes(input)
        self._memory: Tensor | None = None
        samples, num_larger = divmod(len(input), num_parts)
        blocks = ((num_larger, samples + 1), (num_parts - num_larger, samples))
        self._blocks = [(number, size) for number, size in blocks if number]
        self.num_values: int | Tensor = samples * self._planes.shape[2]
        if num_larger:
            sizes = [size * self._planes.shape[2] for number, size in self._blocks for _ in range(number)]
            self.num_values = self._planes.new_tensor(sizes)[:, None]

    def _in_planes(self, tensor: Tensor) -> Tensor:
        num_samples, num_channels = self._input.shape[:2]
        dtype = wide_dtype(tensor)
        tensor = tensor if tensor.dtype == dtype else tensor.to(dtype)
        return tensor.contiguous().view(1, num_samples * num_channels, -1)

    def _per_plane(self, *moments: Tensor) -> Sequence[Tensor]:
        """Return (N C,) of each moment, (K, C); all in one call, which costs as much as a moment's values."""
        stacked = torch.stack(moments)
        if len(self._blocks) == 1:
            return self._spread(stacked, self._blocks[0][1]).unbind()
        parts = zip(stacked.split([number for number, _ in self._blocks], 1), self._blocks, strict=True)
        return torch.cat([self._spread(part, size) for part, (_, size) in parts], 1).unbind()

    @staticmethod
    def _spread(moments: Tensor, size: int) -> Tensor:
        return moments.unsqueeze(2).expand(-1, -1, size, -1).reshape(len(moments), -1)

    def _by_part(self, of_planes: Tensor) -> Sequence[Tensor]:
        """Return (N C,) in blocks of (parts, samples, C)."""
        if len(self._blocks) == 1:
            return (of_planes.view(*self._blocks[0], -1),)
        samples = of_planes.view(len(self._input), -1).split([number * size for number, size in self._blocks])
        return [block.unflatten(0, shape) for block, shape in zip(samples, self._blocks, strict=True)]

    def _per_part(self, of_planes: Tensor) -> Tensor:
        """Return sums, (K, C), of (N C,)."""
        return _joined([block.sum(1) for block in self._by_part(of_planes)])

    def observe(self) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance. What the kernel writes besides, as large as the input, is for `apply`."""
        _, num_planes, size = self._planes.shape
        # a plane to each group: a third of the time of batch norm's kernel, which sums in float64; the variance is off
        # by a few roundings of float32, as long as the mean is not above a hundred standard deviations
        of_kernel = torch.native_group_norm(self._planes, None, None, 1, num_planes, size, num_planes, 0.0)
        self._memory, means, inverse_stds = of_kernel
        blocks = zip(self._by_part(means), self._by_part(inverse_stds), strict=True)
        moments = [_pooled(means, inverse_stds) for means, inverse_stds in blocks]
        mean, var = zip(*moments, strict=True)
        return _joined(mean), _joined(var)

    def apply(self, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return scale (x - mean) + shift."""
        output, self._memory = self._memory, None
        output = torch.empty_like(self._planes) if output is None else output
        mean, scale, shift = self._per_plane(mean, scale, shift)
        scale_channels(self._planes, mean, torch.ones_like(mean), scale, shift, out=output)
        return self._like_input(output)

    def _like_input(self, planes: Tensor) -> Tensor:
        """Return planes in the shape and the dtype of the input, and no view: it may be changed in place."""
        planes.as_strided_(self._input.shape, self._input.stride())
        return planes if planes.dtype == self._input.dtype else planes.to(self._input.dtype)

    def laid_out(self, grad: Tensor) -> Tensor:
        """Return a gradient of the input's shape as `reduce` and `combine` take it."""
        return self._in_planes(grad)

    def reduce(self, grad: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of grad (x - mean) and of grad, which is laid out."""
        (mean,) = self._per_plane(mean)
        products, sums = sum_channels(grad, self._planes, mean)
        return self._per_part(products), self._per_part(sums)

    def combine(self, grad: Tensor, mean: Tensor, of_grad: Tensor, of_input: Tensor, constant: Tensor) -> Tensor:
        """Return of_grad grad + of_input (x - mean) + constant; grad is laid out."""
        constant = torch.addcmul(constant, of_input, mean, value=-1)
        of_grad, of_input, constant = self._per_plane(of_grad, of_input, constant)
        output = torch.empty_like(grad)
        scale_channels(grad, torch.zeros_like(of_grad), torch.ones_like(of_grad), of_grad, constant, out=output)
        output.addcmul_(self._planes, of_input.view(1, -1, 1))
        return self._like_input(output)


def _pooled(means: Tensor, inverse_stds: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance, (parts, C), of planes of one size, (parts, samples, C)."""
    mean = means.mean(1, keepdim=True)
    distances = means - mean
    return mean.squeeze(1), inverse_stds.pow(-2).addcmul_(distances, distances).mean(1)


def _joined(blocks: Sequence[Tensor]) -> Tensor:
    return blocks[0] if len(blocks) == 1 else torch.cat(list(blocks))
