"""What do data-parallel ranks say about the gradient and its noise?"""

from __future__ import annotations

from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from anybatch.stats.groups import ModulePrefixes, find_ddp
from anybatch.stats.moments import GradientMoments, widest_dtype
from anybatch.stats.sub_batches import SubBatchSource

SAME = 1e-3


@final
class Ranks(SubBatchSource):
    """Measure the sub-batches of a data-parallel step: one or more on each rank of DistributedDataParallel.

    Hooks see each rank's own gradients before they are reduced; the mean is what DDP leaves in `p.grad`. Each
    measurement costs an all-gather of a few numbers per module, two where ranks have several parts. With accumulation
    all but the last part run under `no_sync()`, as usual.

    Args:
        ddp_model: the model wrapped in DistributedDataParallel, over at least 2 ranks.
        module_prefixes: see `group_parameters`.

    Raises:
        TypeError: the model is not wrapped in DistributedDataParallel, or its parameters are sharded.
        ValueError: fewer than two ranks.

    Example:
        Every rank runs the same lines::

            source = Ranks(ddp_model)
            with source.sub_batch(size=len(batch)):
                loss(ddp_model, batch).backward()
            moments = source.finish()  # the same numbers on every rank
            optimizer.step()
    """

    def __init__(self, ddp_model: nn.Module, module_prefixes: ModulePrefixes | None = None) -> None:
        ddp = find_ddp(ddp_model)
        if ddp is None:
            raise TypeError(
                f"Ranks needs a DistributedDataParallel model; got {type(ddp_model).__name__}. "
                "Wrap it, or use anybatch.stats.MicroBatches on one device."
            )
        super().__init__(ddp_model, module_prefixes)
        self._group = ddp.process_group
        self._world_size = dist.get_world_size(self._group)
        if self._world_size < 2:
            raise ValueError("Ranks needs at least 2 ranks; got 1. Use anybatch.stats.MicroBatches.")

    def finish(self, loss_scale: float | Tensor = 1.0) -> GradientMoments:
        """Join the parts of all ranks; a collective call, after the last `backward()`, before the step.

        Args:
            loss_scale: AMP's factor, `grad_scaler.get_scale()`, which is taken out.

        Returns:
            The moments of this step, equal on every rank; parts in the order of ranks.

        Raises:
            RuntimeError: no part on this rank, gradients changed since the last `backward()`, gradients that were
                not averaged over ranks (the last part ran under `no_sync()`), or another rank failed.
        """
        try:
            sizes, factors, part_sq_norms, sum_sq_norm = self._take_parts(loss_scale)
        except RuntimeError:
            self._all_gather(self._failed())  # so that no rank waits for this one
            raise
        own = torch.cat([part_sq_norms.new_tensor([sizes, factors]).T, part_sq_norms], dim=1)
        sums, rows = self._gather_parts(sum_sq_norm, own)
        if not _are_alike(sums.tolist()):
            raise RuntimeError(
                "gradients must be averaged over ranks before finish(); ranks hold different ones. "
                "Run the last sub_batch() of the step outside no_sync()."
            )
        mean_factors = (rows[:, 1] / self._world_size).tolist()
        mean_sq_norms = rows[:, 2:] / self._world_size**2
        return GradientMoments.from_parts(self.modules, rows[:, 0].tolist(), mean_factors, mean_sq_norms, sums[0])

    def _gather_parts(self, sum_sq_norm: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        # One collective where each rank has one part; a second one, padded, for the rest.
        num_modules = len(sum_sq_norm)
        heads = self._all_gather(torch.cat([sum_sq_norm.new_tensor([len(own)]), sum_sq_norm, own[0]]))
        counts = [int(count) for count in heads[:, 0].tolist()]
        if 0 in counts:
            raise RuntimeError(f"finish() failed on rank {counts.index(0)}; see its error.")
        sums, rows = heads[:, 1 : 1 + num_modules], heads[:, 1 + num_modules :]
        if max(counts) > 1:
            rest = own.new_zeros(max(counts) - 1, own.shape[1])
            rest[: len(own) - 1] = own[1:]
            pairs = zip(rows, self._all_gather(rest), counts, strict=True)
            rows = torch.cat([part for first, others, count in pairs for part in (first[None], others[: count - 1])])
        return sums, rows

    def _failed(self) -> Tensor:
        return torch.zeros(3 + 2 * len(self.modules), dtype=widest_dtype(self._device), device=self._device)

    def _all_gather(self, tensor: Tensor) -> Tensor:
        out = tensor.new_empty(self._world_size, *tensor.shape)
        dist.all_gather(list(out.unbind()), tensor, group=self._group)
        return out


def _are_alike(rows: list[list[float]]) -> bool:
    """Tell whether all ranks hold the same numbers, up to rounding; what is not finite is alike."""
    return not any(
        abs(mine - first) > SAME * max(abs(mine), abs(first))
        for row in rows[1:]
        for mine, first in zip(row, rows[0], strict=True)
    )
