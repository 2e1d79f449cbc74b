"""Which kernels pass over the parts of a batch, each with moments of its own, as fast as batch norm over the whole?

Each channel of each sample is a plane. Planes are handed to group norm's kernel as groups, and to batch norm's as the
channels of a single sample: so no part needs a call of its own, and none needs to be as large as another.
"""

from __future__ import annotations

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
        self._num_samples: int | Tensor = samples
        if num_larger:
            sizes = [size for number, size in self._blocks for _ in range(number)]
            self._num_samples = self._planes.new_tensor(sizes)[:, None]
        self.num_values = self._num_samples * self._planes.shape[2]

    def _in_planes(self, tensor: Tensor) -> Tensor:
        shape = self._input.shape
        return tensor.to(wide_dtype(tensor)).contiguous().view(1, shape[0] * shape[1], shape[2:].numel())

    def _per_plane(self, moment: Tensor) -> Tensor:
        """Return (N C,) of (K, C)."""
        parts = moment.split([number for number, _ in self._blocks])
        spread = [
            block[:, None].expand(-1, size, -1).reshape(-1)
            for block, (_, size) in zip(parts, self._blocks, strict=True)
        ]
        return spread[0] if len(spread) == 1 else torch.cat(spread)

    def _per_part(self, of_planes: Tensor) -> Tensor:
        """Return sums, (K, C), of (N C,)."""
        samples = of_planes.view(-1, self._input.shape[1]).split([number * size for number, size in self._blocks])
        sums = [block.unflatten(0, shape).sum(1) for block, shape in zip(samples, self._blocks, strict=True)]
        return sums[0] if len(sums) == 1 else torch.cat(sums)

    def observe(self) -> tuple[Tensor, Tensor]:
        """Return mean and biased variance. What the kernel writes besides, as large as the input, is for `apply`."""
        _, num_planes, size = self._planes.shape
        # a plane to each group: a third of the time of batch norm's kernel, which sums in float64; the variance is off
        # by a few roundings of float32, as long as the mean is not above a hundred standard deviations
        of_kernel = torch.native_group_norm(self._planes, None, None, 1, num_planes, size, num_planes, 0.0)
        self._memory, means, inverse_stds = of_kernel
        mean = self._per_part(means) / self._num_samples
        distances = means[0] - self._per_plane(mean)
        return mean, self._per_part(inverse_stds[0].pow(-2).addcmul_(distances, distances)) / self._num_samples

    def apply(self, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return scale (x - mean) + shift."""
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

    def laid_out(self, grad: Tensor) -> Tensor:
        """Return a gradient of the input's shape as `reduce` and `combine` take it."""
        return self._in_planes(grad)

    def reduce(self, grad: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums of grad (x - mean) and of grad, which is laid out."""
        products, sums = sum_channels(grad, self._planes, self._per_plane(mean))
        return self._per_part(products), self._per_part(sums)

    def combine(self, grad: Tensor, mean: Tensor, of_grad: Tensor, of_input: Tensor, constant: Tensor) -> Tensor:
        """Return of_grad grad + of_input (x - mean) + constant; grad is laid out."""
        output = self._scaled(grad, of_grad, constant - of_input * mean)
        output.addcmul_(self._planes, self._per_plane(of_input)[None, :, None])
        return self._like_input(output)
