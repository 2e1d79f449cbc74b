"""How is every split of a batch normalized by moments of one's own choice, at about the cost of batch norm?

A rule turns the observed moments of the splits into a scale and a shift, all of them small. What is as large as the
batch is passed over as often as batch norm does: once to observe, once to apply, and twice on the way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from anybatch.nn.eager_function import EagerFunction
from anybatch.nn.moments import Moments, wide_dtype
from anybatch.nn.second_derivatives import fast_gradients
from anybatch.nn.split_passes import passes_for


class Rule(Protocol):
    """What is made of the observed moments of the splits: a pure function, and its gradients."""

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return scale and shift of the centred input, mean and variance settled on, (S, C), from mean and variance."""
        ...

    def pull_back(
        self,
        observed: Moments,
        posterior: Moments,
        tensors: Sequence[Tensor | None],
        grads: Sequence[Tensor | None],
    ) -> tuple[Any, ...]:
        """Return the scale, and the gradients of mean, variance and `tensors`, of those of the four results.

        That of the mean is the whole of it, with what comes through the centring of the input.
        """
        ...


class SplitNormalized(NamedTuple):
    """A normalized batch, with what was observed and what the rule made of it.

    Attributes:
        output: the shape, dtype and memory format of the input.
        observed: (S, C) moments of the splits, differentiable.
        posterior: (S, C) moments that the rule settled on, differentiable. The way back needs them as they are.
    """

    output: Tensor
    observed: Moments
    posterior: Moments


def normalize_splits(input: Tensor, num_splits: int, rule: Rule, tensors: Sequence[Tensor | None]) -> SplitNormalized:
    """Normalize S equal, contiguous splits of a batch: scale (x - observed mean) + shift, as the rule says.

    Args:
        input: (N, C) or (N, C, *).
        num_splits: S, which divides N.
        rule: from the observed moments and `tensors` to scale, shift, mean and variance.
        tensors: what the rule takes besides; gradients flow to them.

    Returns:
        The output with observed moments and the rule's.
    """
    # a compiler differentiates and fuses for itself
    way = _normalize_plainly if torch.compiler.is_compiling() else _Normalize.apply
    output, *moments = way(input, num_splits, rule, *tensors)
    size = tuple(input.shape[2:])
    return SplitNormalized(output, Moments(moments[0], moments[1], size), Moments(moments[2], moments[3], size))


def observe_splits(input: Tensor, num_splits: int) -> Moments:
    """Return the moments of S equal, contiguous splits of a batch, differentiable.

    Args:
        input: (N, C) or (N, C, *).
        num_splits: S, which divides N.

    Returns:
        (S, C) moments; the variance is biased.

    Example:
        >>> moments = observe_splits(torch.tensor([[1.0], [3.0], [-2.0], [2.0]]), 2)
        >>> moments.mean.flatten().tolist(), moments.var.flatten().tolist()
        ([2.0, 0.0], [1.0, 4.0])
    """
    way = _observe_plainly if torch.compiler.is_compiling() else _Observe.apply
    mean, var = way(input, num_splits)
    return Moments(mean, var, tuple(input.shape[2:]))


def _parts(input: Tensor, num_splits: int) -> Tensor:
    """Return the input in its wide type as (S, samples of a split, C, positions)."""
    return input.to(wide_dtype(input)).reshape(num_splits, -1, input.shape[1], input.shape[2:].numel())


def _observe_plainly(input: Tensor, num_splits: int) -> tuple[Tensor, Tensor]:
    parts = _parts(input, num_splits)
    mean = parts.mean((1, 3))
    return mean, (parts - mean[:, None, :, None]).square().mean((1, 3))


def _normalize_plainly(input: Tensor, num_splits: int, rule: Rule, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """Do what `_Normalize` does; differentiable as often as one likes."""
    mean, var = _observe_plainly(input, num_splits)
    scale, shift, *posterior = rule(mean, var, *tensors)
    centred = _parts(input, num_splits) - mean[:, None, :, None]
    output = centred * scale[:, None, :, None] + shift[:, None, :, None]
    return output.reshape(input.shape).to(input.dtype), mean, var, *posterior


class _Observe(EagerFunction):
    """`_observe_plainly`, one pass each way."""

    @staticmethod
    def forward(input: Tensor, num_splits: int) -> tuple[Tensor, Tensor]:
        return passes_for(input, num_splits).observe()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, ctx.num_splits = inputs
        ctx.save_for_backward(input, output[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        input, mean = ctx.saved_tensors

        def fast() -> tuple[Tensor]:
            passes = passes_for(input, ctx.num_splits)
            of_mean, of_var = (grad / passes.num_values for grad in grads)
            return (passes.apply(mean, 2 * of_var, of_mean),)

        twin = partial(_observe_plainly, num_splits=ctx.num_splits)
        return *fast_gradients(fast, twin, (input,), grads, ctx.needs_input_grad[:1]), None


class _Normalize(EagerFunction):
    """`_normalize_plainly` in as many passes as batch norm has, and as much memory."""

    @staticmethod
    def forward(input: Tensor, num_splits: int, rule: Rule, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        passes = passes_for(input, num_splits)
        mean, var = passes.observe()
        scale, shift, *posterior = rule(mean, var, *tensors)
        # the rule may settle on what was observed, and an output must be an object of its own
        posterior = (each.clone() if each is mean or each is var else each for each in posterior)
        return passes.apply(mean, scale, shift), mean, var, *posterior

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        input, ctx.num_splits, ctx.rule, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, *output[1:], *tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        def twin(input: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
            return _normalize_plainly(input, ctx.num_splits, ctx.rule, *tensors)

        input, mean, var, posterior_mean, posterior_var, *tensors = (
            ctx.saved_tensors
        )  # a checkpoint hands them out once
        moments = Moments(mean, var), Moments(posterior_mean, posterior_var)
        fast = partial(_gradients, input, ctx.num_splits, ctx.rule, moments, tensors, *grad_outputs)
        is_needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[3:])
        of_input, *of_tensors = fast_gradients(fast, twin, (input, *tensors), grad_outputs, is_needed)
        return of_input, None, None, *of_tensors


def _gradients(
    input: Tensor,
    num_splits: int,
    rule: Rule,
    moments: tuple[Moments, Moments],
    tensors: Sequence[Tensor | None],
    grad: Tensor | None,
    *grads_of_moments: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the input and of the rule's tensors; moments are observed and posterior ones."""
    passes = passes_for(input, num_splits)
    mean = moments[0].mean
    grad = passes.laid_out(torch.zeros_like(input) if grad is None else grad)
    of_scale, of_shift = passes.reduce(grad, mean)
    grads = (of_scale, of_shift, *grads_of_moments[2:])
    scale, of_mean, of_var, *of_tensors = rule.pull_back(*moments, tensors, grads)
    pairs = zip((of_mean, of_var), grads_of_moments[:2], strict=True)
    of_mean, of_var = (own if other is None else own + other for own, other in pairs)
    factors = (scale, of_var * (2 / passes.num_values), of_mean / passes.num_values)
    return passes.combine(grad, mean, *factors), *of_tensors
