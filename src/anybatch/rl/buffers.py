"""Where do the large arrays of one chunk after another lie, without being allocated anew?"""

from __future__ import annotations

import torch
from torch import Tensor


class Buffers:
    """Tensors by name, kept as long as their shape stays. What is taken holds whatever was written last.

    Fresh memory costs a page fault per 4 KB, which took longer than the arithmetic of a chunk.

    Args:
        dtype: of all tensors.
        device: of all tensors.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> None:
        self.dtype = dtype
        self.device = torch.device(device)
        self._tensors: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """Return the tensor of a name, its values left as they are.

        Args:
            name: whose it is.
            shape: a new one is made where the last was of another.

        Returns:
            Of that shape.
        """
        tensor = self._tensors.get(name)
        if tensor is None or tensor.shape != shape:
            tensor = self._tensors[name] = torch.empty(shape, dtype=self.dtype, device=self.device)
        return tensor
