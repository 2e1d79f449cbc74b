"""Where do the large arrays of one chunk after another lie, without being allocated anew?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Buffers:
    """Tensors by name, in memory that is kept. What is taken holds whatever was written there last.

    Fresh memory costs a page fault per 4 KB, which took longer than the arithmetic of a chunk.

    Args:
        dtype: of all tensors.
        device: of all tensors.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.dtype = dtype
        self.device = torch.device(device)
        self._memory: dict[str, Tensor] = {}
        self._taken: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return the tensor of a name, its values left as they are.

        Args:
            name: whose memory it is.
            shape: new memory is taken where the last was too small.

        Returns:
            Of that shape.
        """
        taken = self._taken.get(name)
        if taken is None or taken.shape != shape:
            taken = self._taken[name] = self._memory_of(name, math.prod(shape)).view(shape)
        return taken

    def _memory_of(self, name: str, size: int) -> Tensor:
        memory = self._memory.get(name)
        if memory is None or memory.shape[0] < size:
            memory = self._memory[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return memory[:size]


_FREE: defaultdict[torch.dtype, list[Buffers]] = defaultdict(list)


@contextmanager
def borrowed(dtype: torch.dtype) -> Iterator[Buffers]:
    """Lend buffers on the CPU, which are kept for the next borrower, in this thread or another.

    There are never more than were lent at once.

    Args:
        dtype: of all tensors.

    Yields:
        The buffers.
    """
    free = _FREE[dtype]
    buffers = free.pop() if free else Buffers(dtype)
    try:
        yield buffers
    finally:
        free.append(buffers)
