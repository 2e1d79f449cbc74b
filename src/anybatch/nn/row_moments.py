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

from anybatch.nn.eager_function import EagerFunction
from anybatch.nn.plain_tap_moments import Taps, plain_tap_moments
from anybatch.nn.second_derivatives import fast_gradients

MOST_TAPS = 32  # zeros make the means' product as many times as large as it need be
_VALUES_OF_A_CHUNK = 2**16  # what is made of a chunk stays in the cache of a CPU


def row_moments(mean: Tensor, var: Tensor, weight: Tensor, taps: Taps) -> tuple[Tensor, Tensor]:
    """Return what `tap_moments` does, of S = 1, from weights that are dense with the channels first or last."""
    mean, var = _RowMoments.apply(mean, var, weight, taps)[:2]
    return mean, var


class _RowMoments(EagerFunction):
    """The moments, and what the way back needs of the way there.

    That is the taps' fractions, half the gradient of the variance over positions by what each tap adds to the mean,
    (O, K), the means at the taps, (K, R), and the squares of `_Rows.squares`, (O, C), where there are several taps: of
    a single one they would be as large as the weights, and are taken again.
    """

    @staticmethod
    def forward(mean: Tensor, var: Tensor, weight: Tensor, taps: Taps) -> tuple[Tensor | None, ...]:
        fractions, covariance = taps.tensors(mean)
        rows = _Rows(weight, fractions)
        at_taps = rows.at_taps(mean)
        to_taps = at_taps.T
        by_tap, within = mean.new_empty(len(weight), len(fractions)), mean.new_empty(len(weight))
        squares = None if len(fractions) == 1 else mean.new_empty(weight.shape[:2])
        for weights, memory, of_by_tap, of_within, of_squares in rows.chunks(by_tap, within, squares):
            torch.mm(weights, to_taps, out=of_by_tap)  # as it is, autocast or not
            torch.mv(rows.squares(weights, memory, of_squares), var[0], out=of_within)
        by_position = None if covariance is None else torch.mm(by_tap, covariance, out=torch.empty_like(by_tap))
        if by_position is not None:
            within.add_((by_position * by_tap).sum(1).clamp_min_(0))
        overall = torch.mv(by_tap, fractions, out=torch.empty_like(within))
        return overall[None], within[None], fractions.clone(), by_position, at_taps, squares

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        *tensors, ctx.taps = inputs
        ctx.save_for_backward(*tensors, *output[2:])
        ctx.mark_non_differentiable(*(each for each in output[2:] if each is not None))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        mean, var, weight, *rest = ctx.saved_tensors  # a checkpoint hands them out once
        fast = partial(_gradients, var, weight, *rest, *grad_outputs[:2])
        twin = partial(plain_tap_moments, taps=ctx.taps)
        saved, needed = (mean, var, weight), ctx.needs_input_grad[:3]
        return *fast_gradients(fast, twin, saved, grad_outputs[:2], needed), None


def _gradients(
    var: Tensor,
    weight: Tensor,
    fractions: Tensor,
    by_position: Tensor | None,
    at_taps: Tensor,
    squares: Tensor | None,
    of_mean: Tensor,
    of_var: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of mean, variance and weight."""
    rows = _Rows(weight, fractions)
    column = of_var.T
    of_by_tap = torch.outer(of_mean[0], fractions)
    if by_position is not None:
        of_by_tap.addcmul_(by_position, column, value=2)
    of_weight = torch.empty_like(weight)  # no view, or it is copied when gradients are added
    spread = rows.spread(2 * var)
    of_at_taps = torch.zeros_like(at_taps)
    to_var = torch.zeros_like(var) if squares is None else torch.mm(of_var, squares, out=torch.empty_like(var))
    for weights, memory, of_rows, of_taps, of_column in rows.chunks(rows.as_they_lie(of_weight), of_by_tap, column):
        if squares is None:
            torch.addmm(to_var, of_column.T, rows.squares(weights, memory), out=to_var)
        torch.addmm(of_at_taps, of_taps.T, weights, out=of_at_taps)
        torch.mm(of_taps, at_taps, out=of_rows)
        of_rows.addcmul_(torch.mul(weights, spread, out=memory), of_column)
    to_mean = rows.as_taps(of_at_taps).diagonal(0, 0, 2).sum(1)
    return to_mean[None], to_var, of_weight


def is_channels_last(weight: Tensor) -> bool:
    """Return whether the channels of a convolution's weights are last in memory, and dense."""
    return not weight.is_contiguous() and weight.movedim(1, -1).is_contiguous()


class _Rows:
    """The weights of each output channel in the order of their memory, R = C K.

    Args:
        weight: (O, C, *).
        fractions: (K,), of its taps.
    """

    def __init__(self, weight: Tensor, fractions: Tensor) -> None:
        self._fractions = fractions
        self._shape = (weight.shape[1], fractions.shape[0])
        self._is_channels_last = is_channels_last(weight)
        self._weights = self.as_they_lie(weight)

    def as_they_lie(self, taps: Tensor) -> Tensor:
        """Return (B, C, *) as (B, R)."""
        return (taps.movedim(1, -1) if self._is_channels_last else taps).flatten(1)

    def as_taps(self, rows: Tensor) -> Tensor:
        """Return (B, R) as (B, C, K)."""
        if self._is_channels_last:
            return rows.unflatten(1, self._shape[::-1]).transpose(1, 2)
        return rows.unflatten(1, self._shape)

    def at_taps(self, mean: Tensor) -> Tensor:
        """Return (K, R), mean_c where the tap is k and zeros."""
        at_taps = mean.new_zeros(self._shape[1], *self._shape)
        at_taps.diagonal(0, 0, 2).copy_(mean.T)
        return self.as_they_lie(at_taps)

    def spread(self, var: Tensor) -> Tensor:
        """Return (R,), f_k var_c."""
        return self.as_they_lie((var.T * self._fractions)[None])[0]

    def squares(self, weights: Tensor, memory: Tensor, out: Tensor | None = None) -> Tensor:
        """Return sum over k of f_k w_ock^2 of a chunk, (B, C), in `out`, or, of a single tap, in its memory."""
        squares = torch.mul(weights, weights, out=memory)
        if out is None:
            return squares.mul_(self._fractions)
        # a copy of the chunk where the channels are last
        torch.mv(self.as_taps(squares).flatten(0, 1), self._fractions, out=out.view(-1))
        return out

    def chunks(self, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
        """Return the weights of each chunk of rows, memory for as many values, always the same, and tensors' rows."""
        num_rows, num_values = self._weights.shape
        most = max(1, _VALUES_OF_A_CHUNK // max(1, num_values)) if self._weights.is_cpu else max(1, num_rows)
        memory = self._weights.new_empty(min(most, num_rows), num_values)
        weights = self._weights.split(most)
        memories = [memory] * (len(weights) - 1) + [memory[: len(weights[-1])]]
        others = ([None] * len(weights) if each is None else each.split(most) for each in tensors)
        return zip(weights, memories, *others, strict=True)
