"""How are the parts of one batch normalized, each by its own statistics, without copying or looping over them?

Moments are taken of each sample, merged into those of the parts, and handed back to the samples as a scale and a
shift per channel. Shapes: N samples in K parts, C channels, S positions; a batch is seen as (N, C, S) or (N, S, C).
Where channels come last in memory, the samples of a part lie in one piece and count as one sample of many positions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


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
    layout = _Layout.of(input, num_parts)
    flat = layout.flatten(input)
    parts = _Parts.of(len(flat), num_parts, input.device)
    # a compiler fuses and differentiates the plain form itself
    normalize = _normalize if torch.compiler.is_compiling() else _Normalize.apply
    output, mean, biased = normalize(flat, weight, bias, parts, layout.positions, eps)
    num_values = parts.sizes * flat.shape[layout.positions]
    var = biased.detach() * num_values / (num_values - 1)
    return GhostNormalized(layout.restore(output).to(input.dtype), mean.detach(), var)


@dataclass(frozen=True)
class _Layout:
    shape: torch.Size
    is_channels_last: bool
    num_samples: int  # N as the arithmetic sees it

    @classmethod
    def of(cls, input: Tensor, num_parts: int) -> _Layout:
        wanted = {4: torch.channels_last, 5: torch.channels_last_3d}.get(input.dim())
        is_last = wanted is not None and not input.is_contiguous() and input.is_contiguous(memory_format=wanted)
        is_last = is_last or math.prod(input.shape[2:]) == 1
        is_joined = is_last and len(input) % num_parts == 0
        return cls(input.shape, is_last, num_parts if is_joined else len(input))

    @property
    def positions(self) -> int:
        """Which dimension holds the positions."""
        return 1 if self.is_channels_last else 2

    def flatten(self, maps: Tensor) -> Tensor:
        """Return (N, C, S) or (N, S, C), in float32 or wider."""
        wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
        if self.is_channels_last:
            return wide.movedim(1, -1).reshape(self.num_samples, -1, self.shape[1])
        return wide.reshape(self.num_samples, self.shape[1], -1)

    def restore(self, flat: Tensor) -> Tensor:
        if self.is_channels_last:
            return flat.view(self.shape[0], *self.shape[2:], self.shape[1]).movedim(-1, 1)
        return flat.view(self.shape)


class _Parts(NamedTuple):
    sizes: Tensor  # (K, 1), samples
    of_sample: Tensor  # (N,), which part it is in

    @classmethod
    def of(cls, num_samples: int, num_parts: int, device: torch.device) -> _Parts:
        size, num_larger = num_samples // num_parts, num_samples % num_parts
        index = torch.arange(num_parts, device=device)
        sample = torch.arange(num_samples, device=device)
        of_sample = torch.maximum(sample // (size + 1), (sample - num_larger) // size)
        return cls((size + (index < num_larger))[:, None], of_sample)

    def mean(self, values_NC: Tensor) -> Tensor:
        sums_KC = values_NC.new_zeros(len(self.sizes), values_NC.shape[1]).index_add(0, self.of_sample, values_NC)
        return sums_KC / self.sizes

    def per_sample(self, values_KC: Tensor, positions: int) -> Tensor:
        return values_KC.index_select(0, self.of_sample).unsqueeze(positions)


def _normalize(
    flat: Tensor, weight: Tensor | None, bias: Tensor | None, parts: _Parts, positions: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output and the means and biased variances of the parts; differentiable as often as one likes."""
    mean = parts.mean(flat.mean(positions))
    centred = flat - parts.per_sample(mean, positions)
    biased = parts.mean(centred.square().mean(positions))
    output = centred * parts.per_sample(_scale(biased, weight, eps), positions)
    return output if bias is None else output + bias.to(flat).unsqueeze(positions - 1), mean, biased


def _scale(biased: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    inverse_std = (biased + eps).rsqrt()
    return inverse_std if weight is None else inverse_std * weight.to(biased)


class _Normalize(torch.autograd.Function):
    """`_normalize` with as few passes over memory as batch norm has, one tensor of the batch's size each way."""

    @staticmethod
    def forward(
        flat: Tensor, weight: Tensor | None, bias: Tensor | None, parts: _Parts, positions: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean = parts.mean(flat.mean(positions))
        output = flat - parts.per_sample(mean, positions)
        biased = parts.mean(_mean_of_squares(output, positions))
        output.mul_(parts.per_sample(_scale(biased, weight, eps), positions))
        if bias is not None:
            output.add_(bias.to(flat).unsqueeze(positions - 1))
        return output, mean, biased

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        flat, weight, bias, *ctx.rest = inputs
        ctx.save_for_backward(flat, weight, bias, *output[1:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad_outputs[0]
        if torch.is_grad_enabled():  # a second derivative is wanted
            return *_differentiable_gradients(ctx, grad), None, None, None
        flat, weight, bias, mean, biased = ctx.saved_tensors
        parts, positions, eps = ctx.rest
        scratch = (flat - parts.per_sample(mean, positions)).mul_(grad)
        mean_dot = parts.mean(scratch.sum(positions))
        mean_grad = parts.mean(grad.sum(positions))
        inverse_std = (biased + eps).rsqrt()
        grad_weight = None if weight is None else (parts.sizes * mean_dot * inverse_std).sum(0).to(weight)
        grad_bias = None if bias is None else (parts.sizes * mean_grad).sum(0).to(bias)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, grad_bias, None, None, None
        # scale (grad - mean of grad - x_hat mean of (grad x_hat)), as scale grad + slope x + shift
        scale = _scale(biased, weight, eps)
        slope = -scale * inverse_std.square() * mean_dot / flat.shape[positions]
        shift = -scale * mean_grad / flat.shape[positions] - slope * mean
        torch.mul(grad, parts.per_sample(scale, positions), out=scratch)
        scratch.addcmul_(flat, parts.per_sample(slope, positions)).add_(parts.per_sample(shift, positions))
        return scratch, grad_weight, grad_bias, None, None, None


def _mean_of_squares(flat: Tensor, positions: int) -> Tensor:
    if positions == 2:  # the norm spares a tensor of squares, and is slow over any dimension but the last
        return torch.linalg.vector_norm(flat, dim=2).square() / flat.shape[2]
    return flat.square().mean(positions)


def _differentiable_gradients(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    tensors = ctx.saved_tensors[:3]
    output, *_ = _normalize(*tensors, *ctx.rest)
    wanted = [tensor for tensor, is_needed in zip(tensors, ctx.needs_input_grad, strict=False) if is_needed]
    gradients = iter(torch.autograd.grad(output, wanted, grad, create_graph=True))
    return [next(gradients) if is_needed else None for is_needed in ctx.needs_input_grad[:3]]
