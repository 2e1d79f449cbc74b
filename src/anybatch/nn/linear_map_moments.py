"""What moments has the output of a convolution or a linear layer, whose inputs are independent?

At the border of a zero-padded map some taps see zeros. That moves the mean of the map, by a third and more on small
maps, and gives it a variance over positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anybatch.nn.moment_propagation import CannotPropagate, propagation_rule
from anybatch.nn.moments import Moments
from anybatch.nn.plain_tap_moments import Taps
from anybatch.nn.tap_moments import tap_moments


def through_convolution(
    moments: Moments,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Moments:
    """Return the moments of a convolution of independent values; exact at zero-padded borders.

    Tap k is inside the map at a fraction f_k of the output positions: mean_o = sum over c, k of f_k w_ock mean_c,
    var_o = sum of f_k w_ock^2 var_c, plus the variance over positions of the expected map.

    Args:
        moments: (S, C) of a map of a known size; of an unknown one all positions are taken as interior.
        weight: (O, C / groups, *), as of the convolution; (O, C) of a linear map.
        bias: (O,) or None.
        stride: as of the convolution.
        padding: as of the convolution; zeros.
        dilation: as of the convolution.
        groups: as of the convolution.

    Returns:
        (S, O) moments, with the size of the output.

    Example:
        >>> relu = Moments(torch.tensor([[0.398942]]), torch.tensor([[0.340845]]), (5,))
        >>> through = through_convolution(relu, torch.tensor([[[1.0, -2.0]]]))
        >>> print(f"{through.mean.item():.4f} {through.var.item():.4f} {through.size}")
        -0.3989 1.7042 (4,)
    """
    weight = weight.to(moments.mean)
    kernel = weight.shape[2:]
    strides, dilations = (_per_dimension(each, len(kernel)) for each in (stride, dilation))
    paddings = _paddings(padding, kernel, dilations)
    taps, size = Taps((1.0,) * math.prod(kernel)), None
    if moments.size is not None:
        geometry = tuple(zip(moments.size, kernel, strides, paddings, dilations, strict=True))
        size = tuple(_output_size(*each) for each in geometry)
        if any(map(any, paddings)):
            # a compiler warns of what is cached
            taps = (_padded_taps.__wrapped__ if torch.compiler.is_compiling() else _padded_taps)(geometry)
    mean, var = tap_moments(moments.mean, moments.var, weight, taps, groups)
    return Moments(mean if bias is None else mean + bias.to(mean), var, size)


def _per_dimension(value: int | Sequence[int], num_dimensions: int) -> tuple[int, ...]:
    return (value,) * num_dimensions if isinstance(value, int) else tuple(value)


def _paddings(padding: Any, kernel: Sequence[int], dilations: Sequence[int]) -> list[tuple[int, int]]:
    """Return zeros before and after, per dimension."""
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        totals = [dilation * (taps - 1) for taps, dilation in zip(kernel, dilations, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(each, each) for each in _per_dimension(padding, len(kernel))]


def _output_size(size: int, taps: int, stride: int, padding: tuple[int, int], dilation: int) -> int:
    return (size + sum(padding) - dilation * (taps - 1) - 1) // stride + 1


@lru_cache(maxsize=1024)
def _padded_taps(geometry: tuple[tuple[int, int, int, tuple[int, int], int], ...]) -> Taps:
    inside = [[1.0]]  # fractions of output positions where two taps both see the map
    for of_dimension in geometry:
        overlaps = _overlaps(*of_dimension)
        inside = [[x * y for x in left for y in right] for left in inside for right in overlaps]
    fractions = tuple(row[k] for k, row in enumerate(inside))
    covariance = tuple(
        tuple(both - first * second for both, second in zip(row, fractions, strict=True))
        for row, first in zip(inside, fractions, strict=True)
    )
    return Taps(fractions, covariance)


def _overlaps(size: int, taps: int, stride: int, padding: tuple[int, int], dilation: int) -> list[list[float]]:
    num_positions = _output_size(size, taps, stride, padding, dilation)
    offsets = [padding[0] - tap * dilation for tap in range(taps)]  # a tap sees position * stride - offset
    first = [max(0, -(-offset // stride)) for offset in offsets]
    last = [min(num_positions - 1, (size - 1 + offset) // stride) for offset in offsets]
    pairs = [[(max(first[k], first[j]), min(last[k], last[j])) for j in range(taps)] for k in range(taps)]
    return [[max(0, stop - start + 1) / num_positions for start, stop in row] for row in pairs]


@propagation_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, kind="linear map")
def _convolution_module(module: Any, input: Moments) -> Moments:
    padding = module.padding if module.padding_mode == "zeros" else 0
    if module.padding_mode != "zeros" and input.size is not None:
        paddings = _paddings(module.padding, module.kernel_size, module.dilation)
        padded = tuple(size + sum(each) for size, each in zip(input.size, paddings, strict=True))
        input = Moments(input.mean, input.var, padded)
    return through_convolution(
        input, module.weight, module.bias, module.stride, padding, module.dilation, module.groups
    )


@propagation_rule(F.conv1d, F.conv2d, F.conv3d, kind="linear map")
def _convolution(input: Moments, weight: Tensor, bias: Tensor | None = None, *rest: Any, **kwargs: Any) -> Moments:
    return through_convolution(input, weight, bias, *rest, **kwargs)


@propagation_rule(nn.Linear, kind="linear map")
def _linear_module(module: nn.Linear, input: Moments) -> Moments:
    return _linear(input, module.weight, module.bias)


@propagation_rule(F.linear, kind="linear map")
def _linear(input: Moments, weight: Tensor, bias: Tensor | None = None) -> Moments:
    if input.size:
        raise CannotPropagate("a linear map of the last dimension, which is not the channels")
    return through_convolution(Moments(input.mean, input.var, ()), weight, bias)
