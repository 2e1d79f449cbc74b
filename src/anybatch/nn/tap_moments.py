"""How do means and variances meet a convolution's weights in one pass over them, each way?

The weights of a network outweigh its moments by far. They are taken in chunks that stay in the cache. Of their squares
at most sums over taps are kept for the way back, and no copy in another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from anybatch.nn.eager_function import EagerFunction
from anybatch.nn.plain_tap_moments import Taps, over_positions, plain_tap_moments, taps_of
from anybatch.nn.row_moments import MOST_TAPS, is_channels_last, row_moments
from anybatch.nn.second_derivatives import fast_gradients

_VALUES_OF_A_CHUNK = 2**19


def tap_moments(mean: Tensor, var: Tensor, weight: Tensor, taps: Taps, groups: int) -> tuple[Tensor, Tensor]:
    """Return the moments behind a convolution without bias, over samples and the positions of its output.

    Args:
        mean: (S, C).
        var: (S, C).
        weight: (O, C / groups, *), w; its K taps are flattened.
        taps: K of them.
        groups: of the channels.

    Returns:
        (S, O) mean, sum over c and k of f_k mean_sc w_ock, and variance, sum of f_k var_sc w_ock^2 and the variance of
        the mean over positions.
    """
    if groups > 1 or torch.compiler.is_compiling():
        return plain_tap_moments(mean, var, weight, taps, groups)
    weight = weight if is_channels_last(weight) else weight.contiguous()
    if len(mean) == len(var) == 1 and len(taps.fractions) <= MOST_TAPS:
        return row_moments(mean, var, weight, taps)
    by_tap, within, _ = _Products.apply(mean, var, weight, taps.fractions)
    return over_positions(by_tap, within, taps)


def _plain_products(mean: Tensor, var: Tensor, weight: Tensor, fractions: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return what `_Products` does, differentiable as often as one likes."""
    taps = taps_of(weight)
    by_tap = torch.einsum("sc,ock->sok", mean, taps)
    return by_tap, var @ (taps.square() @ weight.new_tensor(fractions)).T


class _Products(EagerFunction):
    @staticmethod
    def forward(mean: Tensor, var: Tensor, weight: Tensor, fractions: Sequence[float]) -> tuple[Tensor, ...]:
        taps = taps_of(weight)
        by_tap = mean.new_empty(len(mean), len(taps), taps.shape[2])
        squares = torch.zeros_like(taps[:, :, 0], memory_format=torch.contiguous_format)
        for rows, of_rows in _chunks(taps):
            by_tap[:, rows] = (mean @ of_rows.flatten(0, 1).T).unflatten(1, (-1, taps.shape[2]))
            for k, fraction in enumerate(fractions):
                squares[rows].addcmul_(of_rows[:, k], of_rows[:, k], value=fraction)
        return by_tap, var @ squares.T, squares

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.fractions = inputs
        ctx.save_for_backward(*tensors, output[2])
        ctx.mark_non_differentiable(output[2])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # a checkpoint hands them out once
        fast = partial(_gradients, *saved, ctx.fractions, *grad_outputs[:2])
        twin = partial(_plain_products, fractions=ctx.fractions)
        needed = ctx.needs_input_grad[:3]
        return *fast_gradients(fast, twin, saved[:3], grad_outputs[:2], needed), None


def _gradients(
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    squares: Tensor,
    fractions: Sequence[float],
    of_by_tap: Tensor,
    of_spread: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of mean, variance and weight."""
    of_mean = torch.zeros_like(mean)
    of_weight = torch.empty_like(weight)
    of_squares = of_spread.T @ (2 * var)
    for rows, of_rows in _chunks(taps_of(weight)):
        by_tap = of_by_tap[:, rows].flatten(1)
        of_mean += by_tap @ of_rows.flatten(0, 1)
        gradient = (by_tap.T @ mean).view_as(of_rows)
        for k, fraction in enumerate(fractions):
            gradient[:, k].addcmul_(of_rows[:, k], of_squares[rows], value=fraction)
        taps_of(of_weight)[rows] = gradient.transpose(1, 2)
    return of_mean, of_spread @ squares, of_weight


def _chunks(taps: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of the output channels, and the taps of each as (O, K, C) in a row."""
    size = max(1, _VALUES_OF_A_CHUNK // max(1, taps.shape[1:].numel()))
    for start in range(0, len(taps), size):
        rows = slice(start, start + size)
        yield rows, taps[rows].transpose(1, 2).contiguous()
