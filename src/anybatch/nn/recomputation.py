"""What did a layer go by in the forward pass that a checkpoint computes again?

Activation checkpointing runs parts of a pass once more within the backward pass. Buffers have moved since then, and a
layer that is called several times holds what its last call left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_computed_again() -> bool:
    """Return whether this forward pass runs inside a backward pass, as activation checkpointing has it."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def nearest(seen: Tensor, others: Sequence[Tensor]) -> int:
    """Return which of several tensors is the one that is seen again, give or take rounding.

    Args:
        seen: of any shape.
        others: one at least; those of another shape are none.

    Returns:
        The index of the nearest, of the last of them where several are as near.

    Example:
        >>> nearest(torch.ones(2), [torch.zeros(2), torch.ones(2), torch.full((2,), 1.1)])
        1
    """
    if len(others) == 1:
        return 0
    away = [(each - seen).square().sum() if each.shape == seen.shape else seen.new_tensor(torch.inf) for each in others]
    distances = torch.stack(away).tolist()
    return min(range(len(distances)), key=lambda index: (distances[index], -index))
