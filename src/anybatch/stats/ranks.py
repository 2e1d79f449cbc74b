"""What do data-parallel ranks say about the gradient and its noise?"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from anybatch.stats.geometry import Preconditioner, resolve_geometry
from anybatch.stats.groups import ModulePrefixes
from anybatch.stats.moments import Geometry, GradientMoments, MeasuredGeometry
from anybatch.stats.rank_group import find_ranks
from anybatch.stats.sub_batches import SubBatchSource


@final
class Ranks(SubBatchSource[GradientMoments]):
    """Measure the sub-batches of a data-parallel step: one or more on each rank of DistributedDataParallel.

    Hooks see each rank's own gradients before they are reduced; the mean is what DDP leaves in `p.grad`. Each
    measurement costs an all-gather of a few numbers per module, two where ranks have several parts. With accumulation
    all but the last part run under `no_sync()`, as usual.

    Args:
        ddp_model: the model wrapped in DistributedDataParallel, over at least 2 ranks.
        module_prefixes: see `group_parameters`.
        geometry: see `MicroBatches`.
        optimizer: see `MicroBatches`.
        preconditioner: see `MicroBatches`.

    Raises:
        InputError: an unknown geometry, one beside a preconditioner, or "adam" without an optimizer of its kind.
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

    def __init__(
        self,
        ddp_model: nn.Module,
        module_prefixes: ModulePrefixes | None = None,
        *,
        geometry: Geometry = "sgd",
        optimizer: Optimizer | None = None,
        preconditioner: Preconditioner | None = None,
    ) -> None:
        _, self._ranks = find_ranks(ddp_model, "Ranks", "MicroBatches")
        self._geometry: MeasuredGeometry
        factor, self._geometry = resolve_geometry(geometry, optimizer, preconditioner)
        super().__init__(ddp_model, module_prefixes, factor)

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
            self._ranks.report_failure(3 + 2 * len(self.modules), self._device)
            raise
        own = torch.cat([part_sq_norms.new_tensor([sizes, factors]).T, part_sq_norms], dim=1)
        sums, rows = self._gather_parts(sum_sq_norm, own)
        self._ranks.check_averaged(sums)
        mean_factors = (rows[:, 1] / self._ranks.size).tolist()
        mean_sq_norms = rows[:, 2:] / self._ranks.size**2
        return GradientMoments.from_parts(
            self.modules, rows[:, 0].tolist(), mean_factors, mean_sq_norms, sums[0], self._geometry
        )

    def _gather_parts(self, sum_sq_norm: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        # One collective where each rank has one part; a second one, padded, for the rest.
        num_modules = len(sum_sq_norm)
        heads = self._ranks.gather_rows(torch.cat([sum_sq_norm.new_tensor([len(own)]), sum_sq_norm, own[0]]))
        counts = [int(count) for count in heads[:, 0].tolist()]
        sums, rows = heads[:, 1 : 1 + num_modules], heads[:, 1 + num_modules :]
        if max(counts) > 1:
            rest = own.new_zeros(max(counts) - 1, own.shape[1])
            rest[: len(own) - 1] = own[1:]
            pairs = zip(rows, self._ranks.all_gather(rest), counts, strict=True)
            rows = torch.cat([part for first, others, count in pairs for part in (first[None], others[: count - 1])])
        return sums, rows
