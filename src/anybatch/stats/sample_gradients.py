"""What is the squared norm of each sample's own gradient, seen from one operation that uses a parameter?

From the operation's inputs and the gradient of its output, a sample's gradient follows without another backward pass,
and where the operation is a matrix product, its norm follows without the gradient. Dimensions: N samples, G groups of
channels, T positions of a sequence or a picture, I inputs, O outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

MOST_ELEMENTS = 2**20  # held at a time: what a processor's cache holds


class Use(ABC):
    """One operation's use of one parameter.

    Attributes:
        parameter: the parameter.
        out_grad: (N, ...), the gradient of the operation's output; None until `backward()` has come by.
    """

    def __init__(self, parameter: nn.Parameter, num_samples: int) -> None:
        self.parameter = parameter
        self.num_samples = num_samples
        self.out_grad: Tensor | None = None

    @abstractmethod
    def grads(self, samples: slice) -> Tensor:
        """Return some samples' own gradients, (n, *parameter.shape), in float32 or wider."""

    def elements_per_sample(self) -> int:
        """Return how many numbers `sq_norms` holds for each sample on its way."""
        return self.parameter.numel()

    def sq_norms(self, weights: Tensor | None = None, stride: int = 1) -> Tensor:
        """Return g^T P g of samples.

        Args:
            weights: P, as the parameter's shape; None for |g|^2.
            stride: 1 for every sample, 2 for every other one, and so on.

        Returns:
            (n,), in float32 or wider.
        """
        parts = slices(self.num_samples, self.elements_per_sample(), stride)
        norms = [self._sq_norms(part, weights) for part in parts]
        return norms[0] if len(norms) == 1 else torch.cat(norms)

    def _sq_norms(self, samples: slice, weights: Tensor | None) -> Tensor:
        return weighted_sq_norms(self.grads(samples), weights)

    def _out_grad(self, samples: slice) -> Tensor:
        assert self.out_grad is not None
        return wide(self.out_grad[samples])


class MatrixUse(Use):
    """The weight of a linear layer: out = inputs W^T at every position, and convolutions, which are that on patches.

    With a sample's patches A (T, I) and output gradients B (T, O) its gradient is B^T A. Its squared norm is the sum of
    (A A^T) * (B B^T), T^2 (I + O) products, or is taken from the gradient itself, T I O products, whichever is less.

    Source: Goodfellow 2015, arXiv:1510.01799, for T = 1; Li et al. 2022, arXiv:2110.05679, section 4, for sequences; Bu
    et al. 2022, arXiv:2205.10683, for convolutions and the choice between the two.
    """

    num_groups = 1

    def __init__(self, parameter: nn.Parameter, inputs: Tensor) -> None:
        super().__init__(parameter, len(inputs))
        self.inputs = inputs.detach()

    def matrices(self, samples: slice) -> tuple[Tensor, Tensor]:
        """Return A, (n, G, T, I), and B, (n, G, T, O)."""
        inputs, out_grad = wide(self.inputs[samples]), self._out_grad(samples)
        return _rows(inputs)[:, None], _rows(out_grad)[:, None]

    def grads(self, samples: slice) -> Tensor:
        """Return B^T A."""
        inputs, out_grad = self.matrices(samples)
        return (out_grad.mT @ inputs).reshape(-1, *self.parameter.shape)

    def num_positions(self) -> int:
        """Return T."""
        return max(self.inputs[0].numel() // self.inputs.shape[-1], 1)

    def elements_per_sample(self) -> int:
        """Return the size of patches and of the gradient or the products of positions."""
        num_out, num_in, num_positions = self._sizes()
        patches = self.num_groups * num_positions * (num_in + num_out)
        return patches + self.num_groups * min(num_positions**2, num_in * num_out)

    def _sizes(self) -> tuple[int, int, int]:
        num_out = self.parameter.shape[0] // self.num_groups
        return num_out, self.parameter[0].numel(), self.num_positions()

    def _sq_norms(self, samples: slice, weights: Tensor | None) -> Tensor:
        num_out, num_in, num_positions = self._sizes()
        if num_positions == 1:
            inputs, out_grad = (matrix.squeeze(2).square() for matrix in self.matrices(samples))
            if weights is None:
                return (inputs.sum(-1) * out_grad.sum(-1)).sum(-1)
            grouped = weights.reshape(self.num_groups, num_out, num_in).to(inputs)
            return torch.einsum("ngo,goi,ngi->n", out_grad, grouped, inputs)
        if weights is None and num_positions * (num_in + num_out) < num_in * num_out:
            inputs, out_grad = self.matrices(samples)
            return ((inputs @ inputs.mT) * (out_grad @ out_grad.mT)).sum((1, 2, 3))
        return weighted_sq_norms(self.grads(samples), weights)


class ConvolutionUse(MatrixUse):
    """The weight of a convolution over 1, 2 or 3 dimensions: a linear layer on patches, in groups of channels."""

    def __init__(
        self,
        parameter: nn.Parameter,
        inputs: Tensor,
        stride: Sequence[int],
        padding: Sequence[tuple[int, int]],
        dilation: Sequence[int],
        num_groups: int,
    ) -> None:
        super().__init__(parameter, inputs)
        self.stride, self.padding, self.dilation, self.num_groups = stride, padding, dilation, num_groups

    def matrices(self, samples: slice) -> tuple[Tensor, Tensor]:
        """Return the patches and the gradients at their positions."""
        flat_padding = [side for pair in reversed(self.padding) for side in pair]
        patches = nn.functional.pad(wide(self.inputs[samples]), flat_padding)
        sizes = zip(self.parameter.shape[2:], self.stride, self.dilation, strict=True)
        for axis, (size, stride, dilation) in enumerate(sizes, start=2):
            patches = patches.unfold(axis, (size - 1) * dilation + 1, stride)[..., ::dilation]
        num_axes = len(self.stride)  # patches are (n, channels, positions ..., kernel ...)
        patches = patches.unflatten(1, (self.num_groups, -1)).movedim(2, 2 + num_axes)
        out_grad = self._out_grad(samples).flatten(2).unflatten(1, (self.num_groups, -1)).mT
        return patches.flatten(2, 1 + num_axes).flatten(3), out_grad

    def num_positions(self) -> int:
        """Return T, the size of the output map."""
        total = 1
        sizes = zip(self.inputs.shape[2:], self.parameter.shape[2:], strict=True)
        for (size, kernel), stride, pad, dilation in zip(sizes, self.stride, self.padding, self.dilation, strict=True):
            total *= (size + sum(pad) - (kernel - 1) * dilation - 1) // stride + 1
        return total


class RowsUse(Use):
    """The table of an embedding: each position adds its output gradient to the row that it has read."""

    def __init__(self, parameter: nn.Parameter, inputs: Tensor, padding_idx: int | None) -> None:
        super().__init__(parameter, len(inputs))
        self.inputs = inputs
        self.padding_idx = padding_idx

    def elements_per_sample(self) -> int:
        """Return the size of a sample's output."""
        return 2 * self.inputs[0].numel() * self.parameter.shape[1]

    def grads(self, samples: slice) -> Tensor:
        """Return the tables."""
        indices, out_grad = self._read(samples)
        tables = out_grad.new_zeros(len(indices), *self.parameter.shape)
        return tables.scatter_add_(1, indices[..., None].expand_as(out_grad), out_grad)

    def _read(self, samples: slice) -> tuple[Tensor, Tensor]:
        indices = self.inputs[samples].reshape(-1, self.inputs[0].numel()).long()
        out_grad = self._out_grad(samples).reshape(*indices.shape, -1)
        if self.padding_idx is not None:
            out_grad = out_grad * (indices != self.padding_idx)[..., None]
        return indices, out_grad

    def _sq_norms(self, samples: slice, weights: Tensor | None) -> Tensor:
        """Add up the gradients of positions that have read the same row, in the order of rows; no table is held."""
        indices, out_grad = self._read(samples)
        owners = torch.arange(len(indices), device=indices.device).repeat_interleave(indices.shape[1])
        keys, order = (owners * len(self.parameter) + indices.flatten()).sort()
        is_first = torch.cat([keys.new_ones(1, dtype=torch.bool), keys[1:] != keys[:-1]])
        runs = is_first.cumsum(0) - 1
        rows = out_grad.flatten(0, 1)[order]
        squares = torch.zeros_like(rows).index_add_(0, runs, rows).square()[runs] * is_first[:, None]
        squares = squares if weights is None else squares * weights.to(squares)[indices.flatten()[order]]
        return squares.new_zeros(len(indices)).index_add_(0, owners[order], squares.sum(1))


class SumUse(Use):
    """A parameter that is added to something, or multiplied with it, element by element after broadcasting.

    Biases, the affine part of normalization layers, learned positions, class tokens and scales: the gradient is the
    output's, times the factor, summed over where the parameter was repeated.
    """

    def __init__(
        self, parameter: nn.Parameter, outputs: Tensor, factor: Tensor | None = None, channel_axis: int | None = None
    ) -> None:
        super().__init__(parameter, len(outputs))
        self._elements, self._num_axes = outputs[0].numel(), outputs.ndim
        self.factor = None if factor is None else factor.detach()
        self.channel_axis = channel_axis  # of a vector along this axis of the output; None: aligned at the last axes

    def elements_per_sample(self) -> int:
        """Return the size of a sample's output."""
        return self._elements

    def grads(self, samples: slice) -> Tensor:
        """Return the sums."""
        grads = self._out_grad(samples)
        factor = self._factor(samples)
        grads = grads if factor is None else grads * wide(factor)
        shape = self._shape(grads.ndim)
        repeated = [axis for axis in range(1, grads.ndim) if shape[axis] == 1]
        grads = grads.sum(repeated) if repeated else grads
        return grads.reshape(-1, *self.parameter.shape)

    def _factor(self, samples: slice) -> Tensor | None:
        if self.factor is None or self.factor.ndim < self._num_axes or len(self.factor) == 1:
            return self.factor
        return self.factor[samples]

    def _shape(self, num_axes: int) -> tuple[int, ...]:
        shape = tuple(self.parameter.shape)
        if self.channel_axis is not None:
            return tuple(shape[0] if axis == self.channel_axis else 1 for axis in range(num_axes))
        return (1,) * (num_axes - len(shape)) + shape


class NormalizedUse(SumUse):
    """The factor of a normalization layer; what it multiplies is computed anew."""

    def __init__(
        self,
        parameter: nn.Parameter,
        inputs: Tensor,
        normalize: Callable[[Tensor], Tensor],
        channel_axis: int | None = None,
    ) -> None:
        super().__init__(parameter, inputs, channel_axis=channel_axis)
        self.inputs = inputs.detach()
        self.normalize = normalize

    def _factor(self, samples: slice) -> Tensor:
        return self.normalize(wide(self.inputs[samples]))


def weighted_sq_norms(grads: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return g^T P g of each row.

    Args:
        grads: (n, ...).
        weights: P, (...); None for |g|^2.

    Returns:
        (n,).
    """
    squares = grads.square() if weights is None else grads.square() * weights.to(grads)
    return squares.flatten(1).sum(1)


def slices(num_samples: int, elements_per_sample: int, stride: int = 1) -> Iterator[slice]:
    """Cut every `stride`-th sample into runs that hold at most `MOST_ELEMENTS` numbers, and at least one sample."""
    size = max(MOST_ELEMENTS // max(elements_per_sample, 1), 1) * stride
    return (slice(start, min(start + size, num_samples), stride) for start in range(0, num_samples, size))


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 or wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(len(tensor), -1, tensor.shape[-1])
