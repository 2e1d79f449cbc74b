"""How do means and variances meet a convolution's weights in one pass over them, each way?

The weights of a network outweigh its moments by far. They are taken in chunks that stay in the cache, and neither
their squares nor a copy in another order is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_VALUES_OF_A_CHUNK = 2**19


def tap_products(
    mean: Tensor, var: Tensor, taps: Tensor, fractions: Sequence[float], groups: int
) -> tuple[Tensor, Tensor]:
    """Return sum over c of mean_sc w_ock, and sum over c and k of var_sc f_k w_ock^2.

    Args:
        mean: (S, C).
        var: (S, C).
        taps: (O, C / groups, K), w.
        fractions: K numbers, f.
        groups: of the channels.

    Returns:
        (S, O, K) and (S, O).
    """
    if groups > 1 or torch.compiler.is_compiling():
        return _plain_products(mean, var, taps, fractions, groups)
    by_tap, spread, _ = _Products.apply(mean, var, taps, fractions)
    return by_tap, spread


def _plain_products(
    mean: Tensor, var: Tensor, taps: Tensor, fractions: Sequence[float], groups: int = 1
) -> tuple[Tensor, Tensor]:
    means, variances = mean.unflatten(1, (groups, -1)), var.unflatten(1, (groups, -1))
    grouped = taps.unflatten(0, (groups, -1))
    by_tap = torch.einsum("sgc,gock->sgok", means, grouped).flatten(1, 2)
    weights = torch.tensor(fractions, device=taps.device, dtype=taps.dtype)
    return by_tap, torch.einsum("sgc,goc->sgo", variances, grouped.square() @ weights).flatten(1)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(mean: Tensor, var: Tensor, taps: Tensor, fractions: Sequence[float]) -> tuple[Tensor, ...]:
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
        mean, var, taps, squares = ctx.saved_tensors
        of_by_tap, of_spread, _ = grad_outputs
        if torch.is_grad_enabled():  # a second derivative is wanted
            return *_differentiable_gradients(ctx, of_by_tap, of_spread), None
        of_mean = torch.zeros_like(mean)
        of_taps = torch.empty_like(taps)
        of_squares = of_spread.T @ (2 * var)
        for rows, of_rows in _chunks(taps):
            by_tap = of_by_tap[:, rows].flatten(1)
            of_mean += by_tap @ of_rows.flatten(0, 1)
            gradient = (by_tap.T @ mean).view_as(of_rows)
            for k, fraction in enumerate(ctx.fractions):
                gradient[:, k].addcmul_(of_rows[:, k], of_squares[rows], value=fraction)
            of_taps[rows] = gradient.transpose(1, 2)
        return of_mean, of_spread @ squares, of_taps, None


def _differentiable_gradients(ctx: Any, *grads: Tensor) -> list[Tensor | None]:
    mean, var, taps, _ = ctx.saved_tensors
    tensors = (mean, var, taps)
    wanted = [each for each, is_needed in zip(tensors, ctx.needs_input_grad, strict=False) if is_needed]
    outputs = _plain_products(mean, var, taps, ctx.fractions)
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True))
    return [next(found) if is_needed else None for is_needed in ctx.needs_input_grad[:3]]


def _chunks(taps: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of the output channels, and the taps of each as (O, K, C) in a row."""
    size = max(1, _VALUES_OF_A_CHUNK // max(1, taps[0].numel()))
    for start in range(0, len(taps), size):
        rows = slice(start, start + size)
        yield rows, taps[rows].transpose(1, 2).contiguous()
