"""Where does training run: which device, which precision, how many ranks?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist

from anybatch.errors import InputError

Autocast = Literal["bfloat16"]


@dataclass(frozen=True)
class Runtime:
    """Device, precision and place among the ranks; the collectives that keep ranks in agreement.

    Attributes:
        device: of the model and its batches.
        rank: 0 in a single process.
        world_size: 1 in a single process.
        autocast: dtype of the forward pass, or None.
    """

    device: torch.device
    rank: int = 0
    world_size: int = 1
    autocast: torch.dtype | None = None

    @classmethod
    def detect(cls, device: str | None = None, autocast: Autocast | None = None) -> Runtime:
        """Find the device and, where a process group stands, the rank.

        Args:
            device: as torch names it; default: the local rank's CUDA device, else the CPU.
            autocast: name of the dtype of the forward pass, or None.

        Returns:
            The runtime; on CUDA the device is made current.

        Raises:
            InputError: no such device, or another precision.
        """
        if autocast is not None and autocast not in get_args(Autocast):
            raise InputError(f"autocast must be one of {', '.join(get_args(Autocast))}; got {autocast!r}.")
        dtype = None if autocast is None else getattr(torch, autocast)
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        try:
            chosen = torch.device(device or (f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"))
            torch.empty(0, device=chosen)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise InputError(f"device must be one torch can use here; got {device!r}.") from error
        if chosen.type == "cuda":
            chosen = chosen if chosen.index is not None else torch.device("cuda", local_rank)
            torch.cuda.set_device(chosen)
        if dist.is_available() and dist.is_initialized():
            return cls(chosen, dist.get_rank(), dist.get_world_size(), dtype)
        return cls(chosen, autocast=dtype)

    def precision(self) -> AbstractContextManager[object]:
        """Return the autocast context of a forward pass."""
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast)

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type not in ("cpu", "meta"):
            torch.accelerator.synchronize(self.device)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add up over ranks, each value by itself."""
        return self._reduce(values, "SUM")

    def max(self, values: Sequence[float]) -> list[float]:
        """Take the largest over ranks, of each value."""
        return self._reduce(values, "MAX")

    def min(self, values: Sequence[float]) -> list[float]:
        """Take the smallest over ranks, of each value."""
        return self._reduce(values, "MIN")

    def all(self, condition: bool) -> bool:
        """Return whether the condition holds on every rank."""
        return bool(self.min([float(condition)])[0])

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def _reduce(self, values: Sequence[float], operation: str) -> list[float]:
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
        return tensor.tolist()
