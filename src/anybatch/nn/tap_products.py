"""How do means and variances meet a convolution's weights in one pass over them, each way?

The weights of a network outweigh its moments by far. They are taken in chunks that stay in the cache, and neither
their squares nor a copy in another order is kept. Moments that all splits share meet them where they lie.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_VALUES_OF_A_CHUNK = 2**19
_VALUES_OF_SQUARES = 2**17
_MOST_TAPS = 32  # a row is multiplied with as many zeros as there are taps beside each


def tap_products(
    mean: Tensor, var: Tensor, weight: Tensor, fractions: Sequence[float], groups: int
) -> tuple[Tensor, Tensor]:
    """Return sum over c of mean_sc w_ock, and sum over c and k of var_sc f_k w_ock^2.

    Args:
        mean: (S, C).
        var: (S, C).
        weight: (O, C / groups, *), w; its K taps are flattened.
        fractions: K numbers, f.
        groups: of the channels.

    Returns:
        (S, O, K) and (S, O).
    """
    if groups > 1 or torch.compiler.is_compiling():
        return _plain_products(mean, var, weight, fractions, groups)
    weight = weight if _is_channels_last(weight) else weight.contiguous()
    if len(mean) == 1 and len(fractions) <= _MOST_TAPS:
        return _ProductsOfOneRow.apply(mean, var, weight, fractions)
    by_tap, spread, _ = _Products.apply(mean, var, weight, fractions)
    return by_tap, spread


def _taps_of(weight: Tensor) -> Tensor:
    """Return (O, C, K)."""
    return weight.flatten(2) if weight.dim() > 2 else weight[:, :, None]


def _is_channels_last(weight: Tensor) -> bool:
    return not weight.is_contiguous() and weight.movedim(1, -1).is_contiguous()


def _plain_products(
    mean: Tensor, var: Tensor, weight: Tensor, fractions: Sequence[float], groups: int = 1
) -> tuple[Tensor, Tensor]:
    means, variances = mean.unflatten(1, (groups, -1)), var.unflatten(1, (groups, -1))
    grouped = _taps_of(weight).unflatten(0, (groups, -1))
    by_tap = torch.einsum("sgc,gock->sgok", means, grouped).flatten(1, 2)
    weights = torch.tensor(fractions, device=weight.device, dtype=weight.dtype)
    return by_tap, torch.einsum("sgc,goc->sgo", variances, grouped.square() @ weights).flatten(1)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(mean: Tensor, var: Tensor, weight: Tensor, fractions: Sequence[float]) -> tuple[Tensor, ...]:
        taps = _taps_of(weight)
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
        mean, var, weight, squares = ctx.saved_tensors
        of_by_tap, of_spread, _ = grad_outputs
        if torch.is_grad_enabled():  # a second derivative is wanted
            return *_differentiable_gradients(ctx, of_by_tap, of_spread), None
        of_mean = torch.zeros_like(mean)
        of_weight = torch.empty_like(weight)
        of_squares = of_spread.T @ (2 * var)
        for rows, of_rows in _chunks(_taps_of(weight)):
            by_tap = of_by_tap[:, rows].flatten(1)
            of_mean += by_tap @ of_rows.flatten(0, 1)
            gradient = (by_tap.T @ mean).view_as(of_rows)
            for k, fraction in enumerate(ctx.fractions):
                gradient[:, k].addcmul_(of_rows[:, k], of_squares[rows], value=fraction)
            _taps_of(of_weight)[rows] = gradient.transpose(1, 2)
        return of_mean, of_spread @ squares, of_weight, None


def _chunks(taps: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of the output channels, and the taps of each as (O, K, C) in a row."""
    size = max(1, _VALUES_OF_A_CHUNK // max(1, taps[0].numel()))
    for start in range(0, len(taps), size):
        rows = slice(start, start + size)
        yield rows, taps[rows].transpose(1, 2).contiguous()


class _ProductsOfOneRow(torch.autograd.Function):
    """Of S = 1: the weights are a matrix of the output channels as they lie, and none of them is moved."""

    @staticmethod
    def forward(mean: Tensor, var: Tensor, weight: Tensor, fractions: Sequence[float]) -> tuple[Tensor, Tensor]:
        row = _Row(mean, var, weight, fractions)
        by_tap = mean.new_empty(len(weight), len(fractions))
        spread = var.new_empty(len(weight))
        at_taps = row.at_taps.T
        for rows, weights, squares in row.chunks():
            torch.mm(weights, at_taps, out=by_tap[rows])
            torch.mv(squares, row.spread, out=spread[rows])
        return by_tap[None], spread[None]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.fractions = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # a second derivative is wanted
            return *_differentiable_gradients(ctx, *grad_outputs), None
        mean, var, weight = ctx.saved_tensors
        row = _Row(mean, var, weight, ctx.fractions)
        of_by_tap, of_spread = grad_outputs[0][0], grad_outputs[1][0]
        of_weight = torch.empty_like(weight)  # no view, or it is copied when gradients are added
        to, of_at_taps, of_row_spread = (
            row.as_it_lies(of_weight),
            torch.zeros_like(row.at_taps),
            torch.zeros_like(row.spread),
        )
        for rows, weights, squares in row.chunks():
            of_at_taps.addmm_(of_by_tap[rows].T, weights)
            of_row_spread.addmv_(squares.T, of_spread[rows])
            gradient = torch.mul(weights, row.spread, out=to[rows])
            gradient.mul_(2 * of_spread[rows, None]).addmm_(of_by_tap[rows], row.at_taps)
        of_mean = row.as_taps(of_at_taps).diagonal(0, 0, 2).sum(1)
        of_var = row.as_taps(of_row_spread[None])[0] @ row.fractions
        return of_mean[None], of_var[None], of_weight, None


class _Row:
    """One mean and variance per channel beside weights in the order of their memory, R = C K to an output channel.

    Attributes:
        fractions: (K,), f.
        at_taps: (K, R), mean_c where the tap is k, and zeros.
        spread: (R,), f_k var_c.
    """

    def __init__(self, mean: Tensor, var: Tensor, weight: Tensor, fractions: Sequence[float]) -> None:
        self._shape = (weight.shape[1], len(fractions))
        self._is_channels_last = _is_channels_last(weight)
        self._weights = self.as_it_lies(weight)
        self.fractions = torch.tensor(fractions, device=weight.device, dtype=weight.dtype)
        is_tap = torch.eye(len(fractions), device=weight.device, dtype=weight.dtype)
        self.at_taps = self.as_it_lies(is_tap[:, None, :] * mean[0, :, None])
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
        """Yield slices of the output channels, their weights, and the squares in memory that is used again."""
        size = max(1, _VALUES_OF_SQUARES // max(1, self._weights.shape[1]))
        memory = self._weights.new_empty(min(size, len(self._weights)), self._weights.shape[1])
        for start in range(0, len(self._weights), size):
            rows = slice(start, start + size)
            chunk = self._weights[rows]
            yield rows, chunk, torch.mul(chunk, chunk, out=memory[: len(chunk)])


def _differentiable_gradients(ctx: Any, *grads: Tensor) -> list[Tensor | None]:
    mean, var, weight, *_ = ctx.saved_tensors
    tensors = (mean, var, weight)
    wanted = [each for each, is_needed in zip(tensors, ctx.needs_input_grad, strict=False) if is_needed]
    outputs = _plain_products(mean, var, weight, ctx.fractions)
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True))
    return [next(found) if is_needed else None for is_needed in ctx.needs_input_grad[:3]]
