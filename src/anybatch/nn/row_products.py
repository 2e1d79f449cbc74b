"""How does one mean and variance per channel meet a convolution's weights where they lie?

The weights are a matrix with an output channel to each row, as they are in memory, and none of them is moved. A mean
stands at every place that its channel has in such a row, with a row for each tap and zeros at the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from anybatch.nn.plain_tap_products import plain_tap_products
from anybatch.nn.second_derivatives import fast_gradients

MOST_TAPS = 32  # zeros make the means' product as many times as large as it need be
_VALUES_OF_A_CHUNK = 2**17  # what is made of a chunk stays in the cache of a CPU


def row_products(mean: Tensor, var: Tensor, weight: Tensor, fractions: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return what `tap_products` does, of S = 1, from weights that are dense with the channels first or last."""
    return _RowProducts.apply(mean, var, weight, fractions)


class _RowProducts(torch.autograd.Function):
    @staticmethod
    def forward(mean: Tensor, var: Tensor, weight: Tensor, fractions: Sequence[float]) -> tuple[Tensor, Tensor]:
        row = _Row(mean, var, weight, fractions)
        spread = var.new_empty(len(weight))
        for rows, weights, memory in row.chunks():
            torch.mv(torch.mul(weights, weights, out=memory), row.spread, out=spread[rows])
        by_tap = mean.new_empty(len(weight), len(fractions))
        torch.mm(row.weights, row.at_taps.T, out=by_tap)  # as it is, autocast or not
        return by_tap[None], spread[None]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.fractions = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # a checkpoint hands them out once
        fast = partial(_gradients, *saved, ctx.fractions, *grad_outputs)
        twin = partial(plain_tap_products, fractions=ctx.fractions)
        return *fast_gradients(fast, twin, saved, grad_outputs, ctx.needs_input_grad[:3]), None


def _gradients(
    mean: Tensor, var: Tensor, weight: Tensor, fractions: Sequence[float], of_by_tap: Tensor, of_spread: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of mean, variance and weight."""
    of_by_tap, of_spread = of_by_tap[0], of_spread[0]
    row = _Row(mean, var, weight, fractions)
    of_weight = torch.empty_like(weight)  # no view, or it is copied when gradients are added
    gradients = torch.mm(of_by_tap, row.at_taps, out=row.as_it_lies(of_weight))
    of_row_spread = torch.zeros_like(row.spread)
    for rows, weights, memory in row.chunks():
        squares = torch.mul(weights, weights, out=memory)
        of_row_spread.addmv_(squares.T, of_spread[rows])
        scaled = torch.mul(weights, row.spread, out=memory)
        gradients[rows].addcmul_(scaled, of_spread[rows, None], value=2)
    of_at_taps = torch.mm(of_by_tap.T, row.weights, out=torch.empty_like(row.at_taps))
    of_mean = row.as_taps(of_at_taps).diagonal(0, 0, 2).sum(1)
    of_var = (row.as_taps(of_row_spread[None])[0] * row.fractions).sum(1)
    return of_mean[None], of_var[None], of_weight


def is_channels_last(weight: Tensor) -> bool:
    """Return whether the channels of a convolution's weights are last in memory, and dense."""
    return not weight.is_contiguous() and weight.movedim(1, -1).is_contiguous()


class _Row:
    """Means and variances beside the weights of an output channel in the order of their memory, R = C K.

    Attributes:
        fractions: (K,), f.
        weights: (O, R).
        at_taps: (K, R), mean_c where the tap is k, and zeros.
        spread: (R,), f_k var_c.
    """

    def __init__(self, mean: Tensor, var: Tensor, weight: Tensor, fractions: Sequence[float]) -> None:
        self._shape = (weight.shape[1], len(fractions))
        self._is_channels_last = is_channels_last(weight)
        self.weights = self.as_it_lies(weight)
        self.fractions = torch.tensor(fractions, device=weight.device, dtype=weight.dtype)
        at_taps = mean.new_zeros(len(fractions), *self._shape)
        at_taps.diagonal(0, 0, 2).copy_(mean[0, :, None])
        self.at_taps = self.as_it_lies(at_taps)
        self.spread = self.as_it_lies((var[0][:, None] * self.fractions)[None])[0]

    def as_it_lies(self, taps: Tensor) -> Tensor:
        """Return (B, C, *) as (B, R)."""
        return (taps.movedim(1, -1) if self._is_channels_last else taps).flatten(1)

    def as_taps(self, rows: Tensor) -> Tensor:
        """Return (B, R) as (B, C, K)."""
        if self._is_channels_last:
            return rows.unflatten(1, self._shape[::-1]).transpose(1, 2)
        return rows.unflatten(1, self._shape)

    def chunks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield slices of the output channels, their weights, and memory for as many values, the same every time."""
        num_rows, num_values = self.weights.shape
        size = max(1, _VALUES_OF_A_CHUNK // max(1, num_values)) if self.weights.is_cpu else max(1, num_rows)
        memory = self.weights.new_empty(min(size, num_rows), num_values)
        for start in range(0, num_rows, size):
            rows = slice(start, start + size)
            weights = self.weights[rows]
            yield rows, weights, memory[: len(weights)]
