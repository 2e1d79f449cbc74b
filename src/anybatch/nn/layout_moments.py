"""What becomes of moments where values are moved, added, scaled or dropped rather than mixed by weights?"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anybatch.nn.moment_propagation import CannotPropagate, propagation_rule
from anybatch.nn.moments import Moments


@propagation_rule(nn.Identity)
def _same_module(module: nn.Module, input: Moments) -> Moments:
    return input


@propagation_rule(nn.Upsample)
def _upsampled(module: Any, input: Moments) -> Moments:
    return _resized(input, module.size, module.scale_factor)


@propagation_rule(torch.clone, torch.detach, "clone", "detach", "contiguous", "float")
def _same(input: Moments, **kwargs: Any) -> Moments:
    return input


@propagation_rule(F.interpolate)
def _interpolated(input: Moments, size: Any = None, scale_factor: Any = None, *rest: Any, **kwargs: Any) -> Moments:
    return _resized(input, size, scale_factor)


def _resized(input: Moments, size: Any, scale_factor: Any) -> Moments:
    """Keep the moments; interpolation between positions narrows the variance by what is not known."""
    if input.size is None:
        return input
    if size is None:
        factors = (scale_factor,) * len(input.size) if isinstance(scale_factor, (int, float)) else scale_factor
        resized = tuple(int(each * factor) for each, factor in zip(input.size, factors, strict=True))
    else:
        resized = (size,) * len(input.size) if isinstance(size, int) else tuple(size)
    return Moments(input.mean, input.var, resized)


@propagation_rule(torch.add, operator.add, operator.iadd, "add", "add_", kind="sum")
def through_sum(input: Any, other: Any, alpha: float = 1) -> Moments:
    """Return the moments of input + alpha other, which are independent, or of which one is a constant.

    Args:
        input: `Moments`, a number or a tensor of the model.
        other: `Moments`, a number or a tensor of the model.
        alpha: factor.

    Returns:
        The moments of the sum.

    Raises:
        CannotPropagate: shapes that do not fit.

    Example:
        >>> branches = (Moments(torch.tensor([[m]]), torch.tensor([[v]])) for m, v in ((1.0, 2.0), (3.0, 4.0)))
        >>> total = through_sum(*branches)
        >>> total.mean.item(), total.var.item()
        (4.0, 6.0)
    """
    if isinstance(input, Moments) and isinstance(other, Moments):
        if input.mean.shape[1] != other.mean.shape[1] or input.size != other.size:
            raise CannotPropagate("a sum of maps of different shape")
        return Moments(input.mean + alpha * other.mean, input.var + alpha**2 * other.var, input.size)
    if isinstance(input, Moments):
        return Moments(input.mean + alpha * _per_channel(other, input), input.var, input.size)
    return Moments(alpha * other.mean + _per_channel(input, other), alpha**2 * other.var, other.size)


@propagation_rule(torch.sub, operator.sub, operator.isub, "sub", "sub_", kind="sum")
def _subtract(input: Any, other: Any, alpha: float = 1) -> Moments:
    return through_sum(input, other, -alpha)


@propagation_rule(torch.neg, operator.neg, "neg")
def _negate(input: Moments) -> Moments:
    return Moments(-input.mean, input.var, input.size)


@propagation_rule(torch.mul, operator.mul, operator.imul, "mul", "mul_")
def _multiply(input: Any, other: Any) -> Moments:
    if isinstance(input, Moments) and isinstance(other, Moments):
        raise CannotPropagate("a product of two tensors")
    moments, factor = (input, other) if isinstance(input, Moments) else (other, input)
    factor = _per_channel(factor, moments)
    return Moments(moments.mean * factor, moments.var * factor**2, moments.size)


@propagation_rule(torch.div, operator.truediv, operator.itruediv, "div", "div_")
def _divide(input: Any, other: Any) -> Moments:
    if not isinstance(input, Moments) or isinstance(other, Moments):
        raise CannotPropagate("a division by a tensor")
    return _multiply(input, 1 / _per_channel(other, input))


def _per_channel(value: Any, moments: Moments) -> Any:
    """Return a constant or a tensor of the model as what broadcasts to (S, C)."""
    if not isinstance(value, Tensor):
        return value
    num_dimensions = None if moments.size is None else len(moments.size)
    if value.numel() == 1:
        return value.reshape(1, 1).to(moments.mean)
    is_channels = value.numel() == moments.mean.shape[1] and (
        num_dimensions is not None
        and value.dim() > num_dimensions
        and value.shape[-1 - num_dimensions] == value.numel()
    )
    if not is_channels:
        raise CannotPropagate("a tensor that varies over samples or positions")
    return value.reshape(1, -1).to(moments.mean)


@propagation_rule(torch.cat, torch.concat)
def _concatenate(tensors: Sequence[Any], dim: int = 0) -> Moments:
    if not all(isinstance(each, Moments) for each in tensors):
        raise CannotPropagate("a concatenation with a tensor of the model")
    if dim != 1:
        raise CannotPropagate("a concatenation of something other than channels")
    if len({each.size for each in tensors}) != 1:
        raise CannotPropagate("a concatenation of maps of different size")
    num_rows = max(len(moment) for each in tensors for moment in each[:2])
    mean, var = (torch.cat([each[index].expand(num_rows, -1) for each in tensors], 1) for index in (0, 1))
    return Moments(mean, var, tensors[0].size)


@propagation_rule(F.pad)
def _pad(input: Moments, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Moments:
    """Pad channels, within each split."""
    if input.size is None or mode != "constant":
        raise CannotPropagate("a padding of positions")
    in_positions, in_channels = pad[: 2 * len(input.size)], tuple(pad[2 * len(input.size) : 2 * len(input.size) + 2])
    if any(in_positions) or any(pad[2 * len(input.size) + 2 :]) or not in_channels:
        raise CannotPropagate("a padding of positions")
    return Moments(F.pad(input.mean, in_channels, value=value or 0.0), F.pad(input.var, in_channels), input.size)


@propagation_rule(nn.Flatten)
def _flatten_module(module: nn.Flatten, input: Moments) -> Moments:
    return _flatten(input, module.start_dim, module.end_dim)


@propagation_rule(torch.flatten, "flatten")
def _flatten(input: Moments, start_dim: int = 0, end_dim: int = -1) -> Moments:
    if input.size is None or start_dim != 1 or end_dim not in (-1, len(input.size) + 1):
        raise CannotPropagate("a change of shape")
    repeats = 1
    for each in input.size:
        repeats *= each
    return Moments(input.mean.repeat_interleave(repeats, 1), input.var.repeat_interleave(repeats, 1), ())


@propagation_rule(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
def _dropout_module(module: Any, input: Moments) -> Moments:
    return _dropout(input, module.p, module.training)


@propagation_rule(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
def _dropout(input: Moments, p: float = 0.5, training: bool = True, inplace: bool = False) -> Moments:
    if not training or p == 0:
        return input
    if p == 1:
        return Moments(0 * input.mean, 0 * input.var, input.size)
    return Moments(input.mean, (input.var + input.mean.square()) / (1 - p) - input.mean.square(), input.size)


@propagation_rule("torchvision.ops.stochastic_depth.StochasticDepth")
def _stochastic_depth_module(module: Any, input: Moments) -> Moments:
    return _dropout(input, module.p, module.training)


@propagation_rule("torchvision.ops.stochastic_depth.stochastic_depth")
def _stochastic_depth(input: Moments, p: float, mode: str, training: bool = True) -> Moments:
    return _dropout(input, p, training)


@propagation_rule(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
def _average_pool_module(module: Any, input: Moments) -> Moments:
    return _average_pool(input, module.kernel_size, module.stride, module.padding, module.ceil_mode)


@propagation_rule(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
def _average_pool(
    input: Moments, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, *rest: Any
) -> Moments:
    """Keep the moments, as the official code does; the true variance is between this and that of independent values."""
    if input.size is None:
        return input
    kernels, strides, paddings = (
        (each,) * len(input.size) if isinstance(each, int) else tuple(each)
        for each in (kernel_size, kernel_size if stride is None else stride, padding)
    )
    if any(paddings) or ceil_mode:
        raise CannotPropagate("average pooling over the border")
    size = tuple((n - k) // s + 1 for n, k, s in zip(input.size, kernels, strides, strict=True))
    return Moments(input.mean, input.var, size)


@propagation_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, "torchvision.ops.misc.FrozenBatchNorm2d")
def _batch_norm_module(module: Any, input: Moments) -> Moments:
    """Return what batch norm normalizes to in training, and its scale and shift by stored statistics otherwise."""
    weight, bias = (
        torch.tensor(default) if tensor is None else tensor
        for tensor, default in ((module.weight, 1.0), (module.bias, 0.0))
    )
    weight, bias = weight.to(input.mean), bias.to(input.mean)
    is_frozen = not isinstance(module, nn.modules.batchnorm._BatchNorm)
    if module.running_mean is None or (module.training and not is_frozen):
        return Moments(bias.expand_as(input.mean), weight.square().expand_as(input.mean), input.size)
    scale = weight * (module.running_var.to(input.mean) + module.eps).rsqrt()
    mean = (input.mean - module.running_mean.to(input.mean)) * scale + bias
    return Moments(mean, input.var * scale.square(), input.size)
