"""Which operation uses a parameter in a way from which each sample's gradient follows?

A reader takes the number of samples, what the operation gave and its arguments, and returns the uses of parameters, or
None where samples do not lie along the first axis or the arguments say something else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anybatch.stats.sample_gradients import ConvolutionUse, MatrixUse, NormalizedUse, RowsUse, SumUse, Use

Uses = list[Use] | None


def read_uses(num_samples: int, operation: Callable[..., Any], out: Any, args: Any, kwargs: dict[str, Any]) -> Uses:
    """Return what an operation uses its parameters for.

    Args:
        num_samples: N.
        operation: as a `TorchFunctionMode` sees it.
        out: what it gave.
        args: what it was given.
        kwargs: what it was given by name.

    Returns:
        The uses, None for an operation that is not known or whose output has not one row per sample.
    """
    reader = READERS.get(operation)
    if reader is None or not isinstance(out, Tensor) or not out.ndim or len(out) != num_samples:
        return None
    return reader(num_samples, out, *args, **kwargs)


def _linear(num_samples: int, out: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Uses:
    if input.ndim < 2 or len(input) != num_samples:
        return None
    return [*_of(weight, MatrixUse, input), *_of(bias, SumUse, out)]


def _convolution(
    num_samples: int,
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Uses:
    if input.ndim != weight.ndim or len(input) != num_samples:
        return None
    num_axes = weight.ndim - 2
    dilations = _each(dilation, num_axes)
    sides = _sides(padding, weight.shape[2:], dilations)
    uses = _of(weight, ConvolutionUse, input, _each(stride, num_axes), sides, dilations, groups)
    return [*uses, *_of(bias, SumUse, out, None, 1)]


def _sides(padding: int | str | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]) -> list[tuple[int, int]]:
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        totals = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    assert not isinstance(padding, str)
    return [(side, side) for side in _each(padding, len(kernel))]


def _embedding(
    num_samples: int,
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Uses:
    if scale_grad_by_freq:
        raise RuntimeError(
            "samples must not share a factor for PerSample; got an embedding with scale_grad_by_freq, which counts "
            "over the batch. Measure micro-batches."
        )
    return _of(weight, RowsUse, input, padding_idx)


def _layer_norm(
    num_samples: int,
    out: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Uses:
    if input.ndim <= len(normalized_shape):
        return None

    def normalize(rows: Tensor) -> Tensor:
        return F.layer_norm(rows, normalized_shape, None, None, eps)

    return [*_of(weight, NormalizedUse, input, normalize), *_of(bias, SumUse, out)]


def _rms_norm(
    num_samples: int,
    out: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Uses:
    if input.ndim <= len(normalized_shape):
        return None
    return _of(weight, NormalizedUse, input, lambda rows: F.rms_norm(rows, normalized_shape, None, eps))


def _group_norm(
    num_samples: int,
    out: Tensor,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Uses:
    def normalize(rows: Tensor) -> Tensor:
        return F.group_norm(rows, num_groups, None, None, eps)

    return [*_of(weight, NormalizedUse, input, normalize, 1), *_of(bias, SumUse, out, None, 1)]


def _batch_norm(
    num_samples: int,
    out: Tensor,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Uses:
    if training:
        raise RuntimeError(
            "samples must not see each other for PerSample; got batch norm in train mode, whose statistics join them. "
            "Measure micro-batches, or call eval() on it."
        )
    mean, var = (None if stat is None else stat.clone() for stat in (running_mean, running_var))

    def normalize(rows: Tensor) -> Tensor:
        return F.batch_norm(rows, mean, var, None, None, False, 0.0, eps)

    return [*_of(weight, NormalizedUse, input, normalize, 1), *_of(bias, SumUse, out, None, 1)]


def _add(num_samples: int, out: Tensor, input: Any, other: Any, *, alpha: float = 1) -> Uses:
    if alpha != 1:
        return None
    return _join(_broadcast(num_samples, out, term) for term in (input, other))


def _mul(num_samples: int, out: Tensor, input: Any, other: Any) -> Uses:
    pairs = ((input, other), (other, input))
    return _join(_broadcast(num_samples, out, term, torch.as_tensor(factor)) for term, factor in pairs)


def _expand(num_samples: int, out: Tensor, input: Tensor, *sizes: Any, implicit: bool = False) -> Uses:
    return _broadcast(num_samples, out, input)


def _repeat(num_samples: int, out: Tensor, input: Tensor, *sizes: Any) -> Uses:
    return _broadcast(num_samples, out, input) if out.shape[1:] == input.shape[1:] else None


def _broadcast(num_samples: int, out: Tensor, term: Any, factor: Tensor | None = None) -> Uses:
    if not isinstance(term, nn.Parameter):
        return []
    is_shared = term.ndim < out.ndim or (term.ndim == out.ndim and len(term) == 1)
    return [SumUse(term, out, factor)] if is_shared else None


def _join(found: Any) -> Uses:
    joined: list[Use] = []
    for uses in found:
        if uses is None:
            return None
        joined += uses
    return joined


def _of(parameter: Tensor | None, use: Callable[..., Use], *arguments: Any) -> list[Use]:
    return [use(parameter, *arguments)] if isinstance(parameter, nn.Parameter) else []


def _each(value: int | Sequence[int], num_axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * num_axes if len(values) == 1 else values


ADDITIONS = (torch.add, Tensor.add, Tensor.add_)
READERS: dict[Callable[..., Any], Callable[..., Uses]] = {
    F.linear: _linear,
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    Tensor.expand: _expand,
    Tensor.repeat: _repeat,
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution),
    **dict.fromkeys(ADDITIONS, _add),
    **dict.fromkeys((torch.mul, Tensor.mul), _mul),
}
