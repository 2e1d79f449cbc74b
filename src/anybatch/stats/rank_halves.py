"""What do the two halves of the data-parallel ranks say about each other?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future

from anybatch.stats.geometry import Preconditioner
from anybatch.stats.groups import ModulePrefixes
from anybatch.stats.half_batches import HalfBatches
from anybatch.stats.rank_group import find_ranks
from anybatch.stats.sub_batches import Row, SubBatchSource


@final
class RankHalves(SubBatchSource[HalfBatches]):
    """Measure the halves of a data-parallel step: the first half of the ranks against the rest.

    A communication hook of DistributedDataParallel sums gradients within each half, takes their squared norms, and then
    sums across the halves, so that `p.grad` ends as the mean over all ranks. No gradient is gathered or copied. A
    step without `sub_batch()` is reduced as DistributedDataParallel does it, bit for bit. A measurement costs, beyond
    that, one more reduction within each half where it has several ranks, and an all-gather of a few numbers per module.
    With accumulation all but the last part run under `no_sync()`, here a must. Ranks measure the same steps.

    Args:
        ddp_model: the model wrapped in DistributedDataParallel, over at least 2 ranks; every rank makes one source of
            it, and keeps it: a communication hook cannot be taken off.
        module_prefixes: see `group_parameters`.
        preconditioner: see `MicroBatchHalves`.

    Raises:
        TypeError: the model is not wrapped in DistributedDataParallel, its parameters are sharded, or it has a
            communication hook already.
        ValueError: fewer than two ranks.

    Example:
        Every rank runs the same lines::

            source = RankHalves(ddp_model)
            with source.sub_batch(size=len(batch)):
                loss(ddp_model, batch).backward()
            halves = source.finish()  # the same numbers on every rank
            optimizer.step()

    Source:
        Xue et al. 2022, arXiv:2210.11078, and its code. Differs: any number of ranks, of any sizes; buckets instead of
        single parameters; norms instead of gathered gradients.
    """

    def __init__(
        self,
        ddp_model: nn.Module,
        module_prefixes: ModulePrefixes | None = None,
        preconditioner: Preconditioner | None = None,
    ) -> None:
        ddp, self._ranks = find_ranks(ddp_model, "RankHalves", "MicroBatchHalves")
        super().__init__(ddp_model, module_prefixes, preconditioner)
        self._index_of: dict[Tensor, int] = {parameter: index for index, parameter in enumerate(self._parameters)}
        self._own_half: Row = [None] * len(self._parameters)
        self._is_open = False
        self._middle = self._ranks.size // 2
        try:
            ddp.register_comm_hook(None, lambda state, bucket: self._reduce(bucket))
        except RuntimeError as error:
            raise TypeError(
                "the DistributedDataParallel model must have no communication hook yet; it has one. Make one "
                "RankHalves, and no hook of your own."
            ) from error
        members = dist.get_process_group_ranks(self._ranks.group)
        self._half_group = self._group_of(_half_of(self._ranks.rank, self._ranks.size), members)
        self._cross_group = self._group_of(_counterparts_of(self._ranks.rank, self._ranks.size), members)
        # of three counterparts the third one's half has been counted
        self._is_spare = self._ranks.rank == 2 * self._middle

    @contextmanager
    def sub_batch(self, size: float, weight: float | None = None) -> Iterator[None]:
        """Record the gradient that the one `backward()` inside adds; see `Ranks.sub_batch`."""
        self._is_open = True
        try:
            with super().sub_batch(size, weight):
                if any(sq_norm is not None for sq_norm in self._own_half):
                    raise RuntimeError(
                        "the last sub_batch() of a step alone must be reduced over ranks; an earlier one was, so that "
                        "both halves hold its mean. Run all but the last under no_sync()."
                    )
                yield
        finally:
            self._is_open = False

    def finish(self, loss_scale: float | Tensor = 1.0) -> HalfBatches:
        """Join the parts of all ranks; a collective call, after the last `backward()`, before the step.

        Args:
            loss_scale: AMP's factor, `grad_scaler.get_scale()`, which is taken out.

        Returns:
            The halves of this step, equal on every rank.

        Raises:
            RuntimeError: no part on this rank, gradients changed since the last `backward()`, gradients that were
                not averaged over ranks (the last part ran under `no_sync()`), or another rank failed.
        """
        try:
            sizes, factors, own, whole = self._take_parts(loss_scale, [self._own_half])
        except RuntimeError:
            self._ranks.report_failure(3 + 2 * len(self.modules), self._device)
            raise
        share = [factor / self._ranks.size for factor in factors]
        inverse_sizes = [factor**2 / size for factor, size in zip(share, sizes, strict=True)]
        head = whole.new_tensor([len(sizes), sum(share), sum(inverse_sizes)])
        rows = self._ranks.gather_rows(torch.cat([head, whole, own[0]]))
        wholes, halves = rows[:, 3:].split(len(self.modules), dim=1)
        self._ranks.check_averaged(wholes)
        ranks = rows[:, 1:3]
        joined = [part.sum(0).tolist() for part in (ranks[: self._middle], ranks[self._middle :])]
        return HalfBatches.from_sums(
            self.modules,
            [factor**2 / inverse for factor, inverse in joined],
            [factor for factor, _ in joined],
            halves[[0, self._middle]],
            wholes[0],
        )

    def _take(self, index: int, grad: Tensor) -> Tensor:
        return self._nothing

    def _reset(self) -> None:
        super()._reset()
        self._own_half = [None] * len(self._parameters)

    def _reduce(self, bucket: Any) -> Future[Tensor]:
        buffer = bucket.buffer().mul_(1 / self._ranks.size)  # as DistributedDataParallel divides, to the bit
        if not self._is_open:
            return _sum(buffer, self._ranks.group)
        if self._half_group is not None:
            dist.all_reduce(buffer, group=self._half_group)
        for parameter, grad in zip(bucket.parameters(), bucket.gradients(), strict=True):
            if (index := self._index_of.get(parameter)) is not None:
                self._own_half[index] = self._sq_norm(parameter, grad)
        return _sum(buffer.zero_() if self._is_spare else buffer, self._cross_group or self._ranks.group)

    def _group_of(self, ranks: Sequence[int], members: Sequence[int]) -> dist.ProcessGroup | None:
        """Return the process group of some ranks; None for one rank, the model's own for all."""
        if len(ranks) in (1, self._ranks.size):
            return self._ranks.group if len(ranks) > 1 else None
        group = dist.new_group([members[rank] for rank in ranks], use_local_synchronization=True)
        assert isinstance(group, dist.ProcessGroup)
        return group


def _half_of(rank: int, size: int) -> list[int]:
    middle = size // 2
    return list(range(middle) if rank < middle else range(middle, size))


def _counterparts_of(rank: int, size: int) -> list[int]:
    """Return the rank, its counterpart in the other half and, with the last pair, the odd rank out."""
    middle = size // 2
    place = min(rank % middle if rank < 2 * middle else middle, middle - 1)
    return [place, place + middle] + ([size - 1] if size % 2 and place == middle - 1 else [])


def _sum(buffer: Tensor, group: dist.ProcessGroup) -> Future[Tensor]:
    work = dist.all_reduce(buffer, group=group, async_op=True)
    assert work is not None
    return work.get_future().then(lambda future: future.value()[0])
