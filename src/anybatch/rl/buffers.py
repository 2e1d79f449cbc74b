"""Where do the large arrays of one chunk after another lie, without being allocated anew?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Buffers:
    """Memory by name, which is kept. What is taken holds whatever was written there last.

    Fresh memory costs a page fault per 4 KB, which took longer than the arithmetic of a chunk.

    Args:
        dtype: of all tensors, which are on the CPU.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._memory: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return a tensor in the memory of a name, its values left as they are.

        Args:
            name: whose memory it is; all tensors that were taken by it lie there.
            shape: where it does not fit, new memory takes the place of the old.

        Returns:
            Of that shape.
        """
        size = math.prod(shape)
        if name not in self._memory or len(self._memory[name]) < size:
            self._memory.pop(name, None)
            self._memory[name] = torch.empty(size, dtype=self.dtype)
        return self._memory[name][:size].view(shape)


_FREE: list[Buffers] = []


@contextmanager
def borrowed() -> Iterator[Buffers]:
    """Lend buffers of float32 on the CPU, which are kept for the next borrower, in this thread or another.

    As many are kept as were lent at once, each as large as its largest chunk: some 20 MB of the default one at most. No
    gradient is recorded meanwhile.

    Yields:
        The buffers.
    """
    try:
        buffers = _FREE.pop()
    except IndexError:
        buffers = Buffers(torch.float32)
    try:
        with torch.no_grad():
            yield buffers
    finally:
        _FREE.append(buffers)
