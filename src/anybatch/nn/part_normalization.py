"""How are the parts of one batch normalized, each by its own statistics, at about the cost of batch norm?

Batch norm's own kernels take one part after another, from and to the memory of the whole batch. A call costs as much
as thousands of values do, so small parts are laid side by side and become the channels of a single batch norm. Large
maps on a CPU are passed over by those kernels that are vectorized there.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anybatch.nn.eager_function import EagerFunction
from anybatch.nn.moments import wide_dtype
from anybatch.nn.plane_passes import PlanePasses
from anybatch.nn.second_derivatives import fast_gradients

_VALUES_OF_A_CALL = 8192  # per part; about where both ways took the same time on a CPU
# positions of planes that are passed over in less time than batch norm's kernels take; float32 sums keep their digits
_PLANES_FORWARD, _PLANES_BACKWARD = range(64, 64**2 + 1), range(16, 64**2 + 1)
_VALUES_OF_A_PART = 2**17
_backward_of_batch_norm = torch.ops.aten.native_batch_norm_backward.out


class GhostNormalized(NamedTuple):
    """A normalized batch of K ghost batches, with what each was normalized by.

    Attributes:
        output: the shape, dtype and memory format of the input.
        mean: (K, C), detached; float32 or wider.
        var: (K, C), unbiased, detached; float32 or wider.
    """

    output: Tensor
    mean: Tensor
    var: Tensor


def normalize_parts(
    input: Tensor, num_parts: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> GhostNormalized:
    """Normalize contiguous, near-equal parts of a batch, the larger ones first.

    Args:
        input: (N, C) or (N, C, *).
        num_parts: K, at most N.
        weight: (C,) or None.
        bias: (C,) or None.
        eps: added to the biased variance.

    Returns:
        The output and the statistics of the parts.
    """
    weight, bias = (None if tensor is None else tensor.to(wide_dtype(input)) for tensor in (weight, bias))
    memory_format = _memory_format(input)
    # a compiler differentiates for itself
    if torch.compiler.is_compiling() or input.numel() < num_parts * _VALUES_OF_A_CALL:
        output, mean, var = _normalize_together(input, weight, bias, num_parts, eps)
        return GhostNormalized(output.contiguous(memory_format=memory_format), mean, var)
    input = input.contiguous(memory_format=memory_format)
    output, mean, var, _ = _NormalizeInTurn.apply(input, weight, bias, num_parts, eps)
    return GhostNormalized(output, mean, var)


def _memory_format(input: Tensor) -> torch.memory_format:
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(input.dim(), torch.contiguous_format)
    is_last = not input.is_contiguous() and input.is_contiguous(memory_format=channels_last)
    return channels_last if is_last else torch.contiguous_format


def _normalize_together(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, num_parts: int, eps: float
) -> tuple[Tensor, ...]:
    """Return the output and the means and unbiased variances of the parts; differentiable as often as one likes."""
    size, num_larger = len(input) // num_parts, len(input) % num_parts
    if num_larger == 0:
        return _normalize_side_by_side(input, weight, bias, num_parts, eps)
    samples_of_larger = num_larger * (size + 1)
    larger = _normalize_side_by_side(input[:samples_of_larger], weight, bias, num_larger, eps)
    others = _normalize_side_by_side(input[samples_of_larger:], weight, bias, num_parts - num_larger, eps)
    return tuple(torch.cat(pair) for pair in zip(larger, others, strict=True))


def _normalize_side_by_side(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, num_parts: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = (input.new_zeros(num_parts * input.shape[1], dtype=wide_dtype(input)) for _ in range(2))
    weight, bias = (None if tensor is None else tensor.expand(num_parts, -1).reshape(-1) for tensor in (weight, bias))
    side_by_side = input.unflatten(0, (num_parts, -1)).transpose(0, 1).flatten(1, 2)
    # running statistics of momentum 1 are the statistics of the batch
    output = nn.functional.batch_norm(side_by_side, mean, var, weight, bias, training=True, momentum=1.0, eps=eps)
    output = output.unflatten(1, (num_parts, -1)).transpose(0, 1).flatten(0, 1)
    return output, mean.view(num_parts, -1), var.view(num_parts, -1)


class _NormalizeInTurn(EagerFunction):
    """`_normalize_together` without its copies: as batch norm, one tensor of the batch's size each way."""

    @staticmethod
    def forward(
        input: Tensor, weight: Tensor | None, bias: Tensor | None, num_parts: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        is_in_planes = _is_in_planes(input, num_parts, _PLANES_FORWARD)
        normalize = _normalize_in_planes if is_in_planes else _normalize_as_batch_norm
        return normalize(input, weight, bias, num_parts, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, weight, bias, ctx.num_parts, ctx.eps = inputs
        _, means, variances, inverse_stds = output
        ctx.save_for_backward(input, weight, bias, means, inverse_stds)
        ctx.mark_non_differentiable(means, variances, inverse_stds)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # a checkpoint hands them out once
        fast = partial(_gradients, *saved, ctx.num_parts, ctx.eps, grad_outputs[0])
        twin = partial(_normalize_together, num_parts=ctx.num_parts, eps=ctx.eps)
        grads = (grad_outputs[0], None, None)
        return *fast_gradients(fast, twin, saved[:3], grads, ctx.needs_input_grad[:3]), None, None


def _gradients(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    means: Tensor,
    inverse_stds: Tensor,
    num_parts: int,
    eps: float,
    grad: Tensor,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of input, weight and bias."""
    is_in_planes = _is_in_planes(input, num_parts, _PLANES_BACKWARD)
    gradients = _gradients_in_planes if is_in_planes else _gradients_as_batch_norm
    grad_input, grads_weight, grads_bias = gradients(grad, input, weight, means, inverse_stds, eps)
    grad_weight = None if weight is None else grads_weight.sum(0)
    return grad_input, grad_weight, None if bias is None else grads_bias.sum(0)


def _is_in_planes(input: Tensor, num_parts: int, sizes: range) -> bool:
    is_wide = input.dtype == wide_dtype(input)
    is_large = input.numel() >= num_parts * _VALUES_OF_A_PART
    return input.is_cpu and is_wide and is_large and input.is_contiguous() and input.shape[2:].numel() in sizes


def _normalize_as_batch_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, num_parts: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return output, means, unbiased variances and inverse standard deviations, (K, C), of the parts."""
    output = torch.empty_like(input)
    statistics = input.new_zeros((4, num_parts, input.shape[1]), dtype=wide_dtype(input)).unbind()
    parts = (input.tensor_split(num_parts), output.tensor_split(num_parts), *(each.unbind() for each in statistics))
    for part, output_part, mean, var, *kept in zip(*parts, strict=True):
        torch.native_batch_norm(part, weight, bias, mean, var, True, 1.0, eps, out=(output_part, *kept))
    means, variances, _, inverse_stds = statistics
    return output, means, variances, inverse_stds


def _normalize_in_planes(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, num_parts: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what `_normalize_as_batch_norm` does."""
    passes = PlanePasses(input, num_parts)
    means, variances = passes.observe()
    inverse_stds = (variances + eps).rsqrt_()
    scale = inverse_stds if weight is None else inverse_stds * weight
    shift = torch.zeros_like(means) if bias is None else bias.expand_as(means)
    num_values = passes.num_values
    return passes.apply(means, scale, shift), means, variances * (num_values / (num_values - 1)), inverse_stds


def _gradients_as_batch_norm(
    grad: Tensor, input: Tensor, weight: Tensor | None, means: Tensor, inverse_stds: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the input and, (K, C), of weight and bias in each part."""
    num_parts = len(means)
    grad_input, grads_weight, grads_bias = (torch.empty_like(tensor) for tensor in (input, means, means))
    of_samples = (tensor.tensor_split(num_parts) for tensor in (grad, input, grad_input))
    of_parts = (tensor.unbind() for tensor in (means, inverse_stds, grads_weight, grads_bias))
    for part_grad, part, out0, mean, inverse_std, out1, out2 in zip(*of_samples, *of_parts, strict=True):
        fixed = (weight, None, None, mean, inverse_std, True, eps, [True] * 3)
        _backward_of_batch_norm(part_grad, part, *fixed, out0=out0, out1=out1, out2=out2)
    return grad_input, grads_weight, grads_bias


def _gradients_in_planes(
    grad: Tensor, input: Tensor, weight: Tensor | None, means: Tensor, inverse_stds: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `_gradients_as_batch_norm` does, without the memory that batch norm's kernel asks for in each part.

    With n values per channel the input has of_grad grad + of_input (x - mean) + constant: of_grad = weight / std,
    of_input = -of_grad grad_weight / (n std), constant = -of_grad grad_bias / n.
    """
    passes = PlanePasses(input, len(means))
    grad = passes.laid_out(grad)
    products, grads_bias = passes.reduce(grad, means)
    grads_weight = products * inverse_stds
    of_grad = inverse_stds if weight is None else inverse_stds * weight
    per_value = -of_grad / passes.num_values
    of_input, constant = per_value * inverse_stds * grads_weight, per_value * grads_bias
    return passes.combine(grad, means, of_grad, of_input, constant), grads_weight, grads_bias
