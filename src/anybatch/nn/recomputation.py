"""What did a layer go by in the forward pass that a checkpoint computes again?

Activation checkpointing runs parts of a pass once more within the backward pass. Buffers have moved since then, and a
layer that is called several times holds what its last call left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor


class HasHistory(Protocol):
    """A value made of tensors."""

    def detached(self) -> Self:
        """Return the same values without their history."""
        ...


T = TypeVar("T", bound=HasHistory)


class Calls(Generic[T]):
    """What a place of the network held after each call within a pass; copies are empty.

    Attributes:
        held: what was seen and what was made of it, by call. There is nothing where no pass was begun, nor under a
            compiler, which sees to checkpoints itself.
    """

    def __init__(self) -> None:
        self.held: list[tuple[Tensor, T]] = []
        self._num_uses: list[int] = []
        self._is_open = False

    def open(self) -> None:
        """Begin a pass."""
        self.held, self._num_uses = [], []
        self._is_open = not torch.compiler.is_compiling()

    def add(self, seen: Tensor, value: T) -> None:
        """Take what a call saw, and made of it."""
        if self._is_open and not torch.compiler.is_compiling():
            self.held.append((seen, value))
            self._num_uses.append(0)

    def close(self) -> None:
        """End the pass: let go of its graph, and keep the values."""
        if self._is_open:
            self.held = [(seen.detach(), value.detached()) for seen, value in self.held]
            self._is_open = False

    def index_of(self, seen: Tensor) -> int:
        """Return which call saw this."""
        return nearest(seen, [each for each, _ in self.held])[0]

    def take(self, seen: Tensor) -> T:
        """Return what the call that saw this made of it; of several that did, each in its turn from the last."""
        index, _ = nearest(seen, [each for each, _ in self.held], self._num_uses)
        self._num_uses[index] += 1
        return self.held[index][1]

    def __getstate__(self) -> dict[str, Any]:
        return {"held": [], "_num_uses": [], "_is_open": False}


def is_computed_again() -> bool:
    """Return whether this forward pass runs inside a backward pass, as activation checkpointing has it."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


@torch.no_grad()
def nearest(seen: Tensor, others: Sequence[Tensor], num_uses: Sequence[int] | None = None) -> tuple[int, float]:
    """Return which of several tensors is the one that is seen again, give or take rounding.

    Args:
        seen: of any shape.
        others: one at least; those of another shape or elsewhere are none.
        num_uses: how often each was found before; of those that are as near the least used one is found.

    Returns:
        The index of the nearest, of the last of them where several are as near, and its squared distance.

    Example:
        >>> nearest(torch.ones(2), [torch.zeros(2), torch.ones(2), torch.full((2,), 1.1)])
        (1, 0.0)
    """
    away = [
        (each - seen).square().sum()
        if each.shape == seen.shape and each.device == seen.device
        else seen.new_tensor(torch.inf)
        for each in others
    ]
    distances = torch.stack(away).tolist()
    uses = [0] * len(others) if num_uses is None else num_uses
    index = min(range(len(distances)), key=lambda index: (distances[index], uses[index], -index))
    return index, distances[index]
