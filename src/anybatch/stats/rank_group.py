"""What do the ranks of a data-parallel model tell each other about a measurement?"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from anybatch.stats.groups import find_ddp
from anybatch.stats.moments import widest_dtype

SAME = 1e-3


class RankGroup:
    """The ranks that a model is trained on.

    Args:
        group: of theirs.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Return every rank's tensor, (W, ...)."""
        out = tensor.new_empty(self.size, *tensor.shape)
        dist.all_gather(list(out.unbind()), tensor, group=self.group)
        return out

    def gather_rows(self, row: Tensor) -> Tensor:
        """Gather a row of every rank.

        Args:
            row: (N,), the first number not 0.

        Returns:
            (W, N).

        Raises:
            RuntimeError: another rank has called `report_failure`.
        """
        rows = self.all_gather(row)
        counts = rows[:, 0].tolist()
        if 0 in counts:
            raise RuntimeError(f"finish() failed on rank {counts.index(0)}; see its error.")
        return rows

    def report_failure(self, length: int, device: torch.device) -> None:
        """Take part in a gathering of rows with one of zeros, so that no rank waits for this one."""
        self.all_gather(torch.zeros(length, dtype=widest_dtype(device), device=device))

    def check_averaged(self, sq_norms: Tensor) -> None:
        """Check that all ranks hold the same gradient.

        Args:
            sq_norms: (W, M), of the gradient on every rank.

        Raises:
            RuntimeError: they do not.
        """
        if not _are_alike(sq_norms.tolist()):
            raise RuntimeError(
                "gradients must be averaged over ranks before finish(); ranks hold different ones. "
                "Run the last sub_batch() of the step outside no_sync()."
            )


def find_ranks(model: nn.Module, source: str, source_of_one: str) -> tuple[DistributedDataParallel, RankGroup]:
    """Return the data-parallel wrapper of a model and its ranks.

    Args:
        model: wrapped in DistributedDataParallel, over at least 2 ranks.
        source: name of the class that measures them.
        source_of_one: name of the one that measures one device, or a model that fully_shard shards.

    Returns:
        Both.

    Raises:
        TypeError: the model is not wrapped in DistributedDataParallel.
        ValueError: fewer than two ranks.
    """
    ddp = find_ddp(model)
    if ddp is None:
        raise TypeError(
            f"{source} needs a DistributedDataParallel model; got {type(model).__name__}. "
            f"Wrap it, or use anybatch.stats.{source_of_one} on one device or under fully_shard."
        )
    assert isinstance(ddp.process_group, dist.ProcessGroup)
    ranks = RankGroup(ddp.process_group)
    if ranks.size < 2:
        raise ValueError(f"{source} needs at least 2 ranks; got 1. Use anybatch.stats.{source_of_one}.")
    return ddp, ranks


def refuse_ranks(model: nn.Module, source: str, source_of_ranks: str) -> None:
    """Refuse a data-parallel model over more than one rank.

    Args:
        model: the model.
        source: name of the class that measures one device.
        source_of_ranks: name of the one that measures ranks.

    Raises:
        TypeError: there are several ranks.
    """
    ddp = find_ddp(model)
    if ddp is not None and dist.get_world_size(ddp.process_group) > 1:
        raise TypeError(
            f"{source} measures one device; got a DistributedDataParallel model. Use anybatch.stats.{source_of_ranks}."
        )


def _are_alike(rows: list[list[float]]) -> bool:
    """Tell whether all ranks hold the same numbers, up to rounding; what is not finite is alike."""
    return not any(
        abs(mine - first) > SAME * max(abs(mine), abs(first))
        for row in rows[1:]
        for mine, first in zip(row, rows[0], strict=True)
    )
