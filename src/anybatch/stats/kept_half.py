"""What do the sub-batches of one half of a step's batch add up to?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn


class KeptHalf:
    """The sum of the gradients of every other sub-batch: one copy of the gradient, while a step is measured.

    Taking turns keeps the halves alike where samples are sorted, and needs no count of the parts beforehand.
    """

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}

    @contextmanager
    def adding(self, part: int, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Add what the one `backward()` inside adds to `p.grad`, if its sub-batch is in this half.

        Args:
            part: of the step, from 0, which starts anew; even ones are in this half.
            parameters: in the order of `split`.

        Yields:
            Nothing.
        """
        if part == 0:
            self.clear()
        handles = [
            parameter.register_hook(partial(self._add, index))
            for index, parameter in enumerate(parameters)
            if parameter.requires_grad and part % 2 == 0
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def split(self, index: int, whole: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Split a parameter's gradient into the halves' sums.

        Args:
            index: of the parameter.
            whole: `p.grad`.

        Returns:
            This half's sum and the other's, None where there is no gradient.
        """
        kept = self._sums.get(index)
        if kept is None or whole is None:
            return None, whole
        wide = torch.promote_types(kept.dtype, torch.float32)  # a difference in half precision would be rounded anew
        return kept, whole.detach().to(wide) - kept.to(wide)

    def clear(self) -> None:
        """Forget the sums."""
        self._sums = {}

    def _add(self, index: int, grad: Tensor | None) -> None:
        if grad is not None:
            kept = self._sums.get(index)
            self._sums[index] = grad.detach().clone() if kept is None else kept.add_(grad.detach())
