"""Gradient moments from data-parallel ranks."""

from __future__ import annotations

from typing import final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from anybatch.stats.groups import ModulePrefixes
from anybatch.stats.moments import GradientMoments
from anybatch.stats.sub_batches import SubBatchSource


@final
class Ranks(SubBatchSource):
    """Measure the sub-batches of a data-parallel step: one or more on each rank of DistributedDataParallel.

    Hooks see each rank's own gradients before they are reduced; the mean is what DDP leaves in `p.grad`. Each
    measurement costs two all-gathers of a few numbers per module and part. With accumulation all but the last
    part run under `no_sync()`, as usual.

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

    def __init__(self, ddp_model: DistributedDataParallel, module_prefixes: ModulePrefixes | None = None) -> None:
        if not isinstance(ddp_model, DistributedDataParallel):
            raise TypeError(
                f"Ranks needs a DistributedDataParallel model; got {type(ddp_model).__name__}. "
                "Wrap it, or use anybatch.stats.MicroBatches on one device."
            )
        super().__init__(ddp_model, module_prefixes)
        self._group = ddp_model.process_group
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
            RuntimeError: no part on this rank, gradients changed since the last `backward()`, or gradients that
                were not averaged over ranks (the last part ran under `no_sync()`).
        """
        sizes, factors, part_sq_norms, sum_sq_norm = self._take_parts(loss_scale)
        heads = self._all_gather(torch.cat([sum_sq_norm.new_tensor([len(sizes)]), sum_sq_norm]))
        sums = torch.stack([head[1:] for head in heads])
        if not torch.allclose(sums, sums[:1].expand_as(sums), rtol=1e-3, atol=0.0, equal_nan=True):
            raise RuntimeError(
                "gradients must be averaged over ranks before finish(); ranks hold different ones. "
                "Run the last sub_batch() of the step outside no_sync()."
            )
        counts = [int(head[0]) for head in heads]
        columns = part_sq_norms.new_tensor([sizes, factors]).T
        rows = torch.cat([columns, part_sq_norms], dim=1)
        padded = rows.new_zeros(max(counts), rows.shape[1])
        padded[: len(rows)] = rows
        gathered = self._all_gather(padded)
        rows = torch.cat([rank[:count] for rank, count in zip(gathered, counts, strict=True)])
        mean_factors = (rows[:, 1] / self._world_size).tolist()
        mean_sq_norms = rows[:, 2:] / self._world_size**2
        return GradientMoments.from_parts(self.modules, rows[:, 0].tolist(), mean_factors, mean_sq_norms, sum_sq_norm)

    def _all_gather(self, tensor: Tensor) -> list[Tensor]:
        out = [torch.empty_like(tensor) for _ in range(self._world_size)]
        dist.all_gather(out, tensor, group=self._group)
        return out
