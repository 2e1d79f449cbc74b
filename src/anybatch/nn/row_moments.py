"""How does one mean and variance per channel meet a convolution's weights where they lie?

The weights are a matrix with an output channel to each row, as they are in memory, and none of them is moved. A mean
stands at every place that its channel has in such a row, with a row for each tap and zeros at the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from anybatch.nn.plain_tap_moments import Taps, plain_tap_moments
from anybatch.nn.second_derivatives import fast_gradients

MOST_TAPS = 32  # zeros make the means' product as many times as large as it need be
_VALUES_OF_A_CHUNK = 2**17  # what is made of a chunk stays in the cache of a CPU


def row_moments(mean: Tensor, var: Tensor, weight: Tensor, taps: Taps) -> tuple[Tensor, Tensor]:
    """Return what `tap_moments` does, of S = 1, from weights that are dense with the channels first or last."""
    mean, var = _RowMoments.apply(mean, var, weight, taps)[:2]
    return mean, var


class _RowMoments(torch.autograd.Function):
    @staticmethod
    def forward(mean: Tensor, var: Tensor, weight: Tensor, taps: Taps) -> tuple[Tensor | None, ...]:
        rows = _Rows(weight, len(taps.fractions))
        fractions, covariance = taps.tensors(mean)
        at_taps, spread = rows.beside(mean, var, fractions)
        within = var.new_empty(len(weight))
        for weights, memory, out in rows.chunks(within):
            torch.mv(torch.mul(weights, weights, out=memory), spread, out=out)
        by_tap = mean.new_empty(len(weight), len(fractions))
        torch.mm(rows.weights, at_taps.T, out=by_tap)  # as it is, autocast or not
        by_position = None if covariance is None else torch.mm(by_tap, covariance, out=torch.empty_like(by_tap))
        if by_position is not None:
            within.add_((by_position * by_tap).sum(1).clamp_min_(0))
        return (by_tap * fractions).sum(1)[None], within[None], fractions.clone(), by_position, at_taps, spread

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        *tensors, ctx.taps = inputs
        ctx.save_for_backward(*tensors, *output[2:])
        ctx.mark_non_differentiable(*(each for each in output[2:] if each is not None))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        mean, var, weight, *rest = ctx.saved_tensors  # a checkpoint hands them out once
        fast = partial(_gradients, weight, *rest, *grad_outputs[:2])
        twin = partial(plain_tap_moments, taps=ctx.taps)
        saved, needed = (mean, var, weight), ctx.needs_input_grad[:3]
        return *fast_gradients(fast, twin, saved, grad_outputs[:2], needed), None


def _gradients(
    weight: Tensor,
    fractions: Tensor,
    by_position: Tensor | None,
    at_taps: Tensor,
    spread: Tensor,
    of_mean: Tensor,
    of_var: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of mean, variance and weight."""
    rows = _Rows(weight, len(fractions))
    of_var = of_var[0]
    column = of_var[:, None]
    of_by_tap = torch.outer(of_mean[0], fractions)
    if by_position is not None:
        of_by_tap.addcmul_(by_position, column, value=2)
    of_weight = torch.empty_like(weight)  # no view, or it is copied when gradients are added
    gradients = torch.mm(of_by_tap, at_taps, out=rows.as_they_lie(of_weight))
    of_spread = torch.zeros_like(spread)
    for weights, memory, of_rows, of_row_vars, of_row_column in rows.chunks(gradients, of_var, column):
        of_spread.addmv_(torch.mul(weights, weights, out=memory).T, of_row_vars)
        of_rows.addcmul_(torch.mul(weights, spread, out=memory), of_row_column, value=2)
    of_at_taps = torch.mm(of_by_tap.T, rows.weights, out=torch.empty_like(at_taps))
    of_mean = rows.as_taps(of_at_taps).diagonal(0, 0, 2).sum(1)
    of_var = (rows.as_taps(of_spread[None])[0] * fractions).sum(1)
    return of_mean[None], of_var[None], of_weight


def is_channels_last(weight: Tensor) -> bool:
    """Return whether the channels of a convolution's weights are last in memory, and dense."""
    return not weight.is_contiguous() and weight.movedim(1, -1).is_contiguous()


class _Rows:
    """The weights of each output channel in the order of their memory, R = C K.

    Attributes:
        weights: (O, R).
    """

    def __init__(self, weight: Tensor, num_taps: int) -> None:
        self._shape = (weight.shape[1], num_taps)
        self._is_channels_last = is_channels_last(weight)
        self.weights = self.as_they_lie(weight)

    def as_they_lie(self, taps: Tensor) -> Tensor:
        """Return (B, C, *) as (B, R)."""
        return (taps.movedim(1, -1) if self._is_channels_last else taps).flatten(1)

    def as_taps(self, rows: Tensor) -> Tensor:
        """Return (B, R) as (B, C, K)."""
        if self._is_channels_last:
            return rows.unflatten(1, self._shape[::-1]).transpose(1, 2)
        return rows.unflatten(1, self._shape)

    def beside(self, mean: Tensor, var: Tensor, fractions: Tensor) -> tuple[Tensor, Tensor]:
        """Return (K, R), mean_c where the tap is k and zeros, and (R,), f_k var_c."""
        at_taps = mean.new_zeros(len(fractions), *self._shape)
        at_taps.diagonal(0, 0, 2).copy_(mean.T)
        return self.as_they_lie(at_taps), self.as_they_lie((var.T * fractions)[None])[0]

    def chunks(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield the weights of a chunk of rows, memory for as many values, the same every time, and tensors' rows."""
        num_rows, num_values = self.weights.shape
        size = max(1, _VALUES_OF_A_CHUNK // max(1, num_values)) if self.weights.is_cpu else max(1, num_rows)
        memory = self.weights.new_empty(min(size, num_rows), num_values)
        for weights, *others in zip(*(each.split(size) for each in (self.weights, *tensors)), strict=True):
            yield weights, memory if len(weights) == len(memory) else memory[: len(weights)], *others
