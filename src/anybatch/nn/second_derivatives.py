"""How does a fast backward pass take part in a second derivative? Through a plain twin of its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def fast_gradients(
    fast: Callable[[], Sequence[Tensor | None]],
    twin: Callable[..., Sequence[Tensor]],
    tensors: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    is_needed: Sequence[bool],
) -> Sequence[Tensor | None]:
    """Return the gradients of a backward pass: the fast ones, or the twin's where they are to be differentiated again.

    Args:
        fast: returns one gradient per tensor; runs without autograd.
        twin: the function in differentiable operations, of `tensors`.
        tensors: that were saved for the backward pass. Those of `torch.func.vjp` say that they require a gradient, and
            have lost their history with the call they are from: a view of them tells.
        grads: of the twin's outputs.
        is_needed: which of the tensors want a gradient.

    Returns:
        One gradient per tensor, or None.
    """
    wanted = [each for each, needed in zip(tensors, is_needed, strict=True) if needed and each is not None]
    if torch.is_grad_enabled() and all(each.view_as(each).requires_grad for each in wanted):
        return differentiable_gradients(twin, tensors, grads, is_needed)
    with torch.no_grad():
        return fast()


def differentiable_gradients(
    twin: Callable[..., Sequence[Tensor]],
    tensors: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    is_needed: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of a function at tensors that were saved for its backward pass, with their history.

    One saved tensor may be made of another. Views stand in for them, so that each gets what goes through its own
    argument alone; the rest of the way is autograd's.

    Args:
        twin: the function in differentiable operations, of `tensors`.
        tensors: its arguments; None where there is none.
        grads: of its outputs; None for no gradient.
        is_needed: which of the tensors want a gradient.

    Returns:
        One gradient per tensor; None where none is needed, or none arrives.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> square = x**2
        >>> twin = lambda a, b: (a * b,)
        >>> [each.item() for each in differentiable_gradients(twin, (x, square), (torch.tensor(1.0),), (True, True))]
        [9.0, 3.0]
    """
    arguments = [None if each is None else each.view_as(each) for each in tensors]
    pairs = [
        (output, grad)
        for output, grad in zip(twin(*arguments), grads, strict=True)
        if grad is not None and output.requires_grad
    ]
    wanted = [each for each, needed in zip(arguments, is_needed, strict=True) if needed and each is not None]
    if not pairs or not wanted:
        return [None] * len(tensors)
    outputs, of_outputs = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, of_outputs, create_graph=True, allow_unused=True))
    return [
        next(found) if needed and each is not None else None for each, needed in zip(arguments, is_needed, strict=True)
    ]
