"""What do the two halves of a gradient-accumulation step say about each other?"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from anybatch.stats.geometry import Preconditioner
from anybatch.stats.groups import ModulePrefixes
from anybatch.stats.half_batches import HalfBatches, join_parts
from anybatch.stats.rank_group import refuse_ranks
from anybatch.stats.sub_batches import Row, SubBatchSource


@final
class MicroBatchHalves(SubBatchSource[HalfBatches]):
    """Measure the halves of a gradient-accumulation step: micro-batches 1, 3, 5, ... and 2, 4, 6, ...

    Taking turns keeps the halves alike where samples are sorted, and needs no count of the parts beforehand. Changes no
    gradient, parameter, buffer or random state. From the first `sub_batch()` to `finish()` it holds one copy of the
    gradient, at other times nothing. Under `torch.distributed.fsdp.fully_shard` the copy is of this rank's shards, and
    what `MicroBatches` says of it holds.

    Args:
        model: see `MicroBatches`.
        module_prefixes: see `group_parameters`.
        preconditioner: parameter -> what its gradient is multiplied with, element by element, before norms are taken,
            such as `AGVM.preconditioner`; sharded as the parameter is, and the same during a step. None, or None for
            a parameter: the gradient as it is.

    Raises:
        InputError: a model that fully_shard shards in part, or over a mesh of several axes.
        TypeError: as for `MicroBatches`.

    Example:
        >>> import torch
        >>> from anybatch.stats import MicroBatchHalves
        >>> _ = torch.manual_seed(0)
        >>> model, data = torch.nn.Linear(3, 1), torch.randn(12, 3)
        >>> source = MicroBatchHalves(model)
        >>> for part in data.split(4):
        ...     with source.sub_batch(size=len(part)):
        ...         (model(part).square().mean() * len(part) / len(data)).backward()
        >>> halves = source.finish()
        >>> halves.modules, halves.sizes.tolist()
        (('weight', 'bias'), [8.0, 4.0])
    """

    def __init__(
        self,
        model: nn.Module,
        module_prefixes: ModulePrefixes | None = None,
        preconditioner: Preconditioner | None = None,
    ) -> None:
        super().__init__(model, module_prefixes, preconditioner, accepts_shards=True)
        refuse_ranks(model, "MicroBatchHalves", "RankHalves")
        self._first_half: dict[int, Tensor] = {}  # the sum of its gradients

    def finish(self, loss_scale: float | Tensor = 1.0) -> HalfBatches:
        """Join the parts recorded since the last call; after the last `backward()`, before unscale, clip, step.

        Args:
            loss_scale: AMP's factor, `grad_scaler.get_scale()`, which is taken out.

        Returns:
            The halves of this step; with an odd number of parts the first has one more.

        Raises:
            ValueError: fewer than two parts.
            RuntimeError: no part at all, gradients changed since the last `backward()`, or another rank failed.
        """
        rows: tuple[Row, Row] = [], []
        for index, parameter in enumerate(self._parameters):
            for row, half in zip(rows, _split(self._first_half.get(index), parameter.grad), strict=True):
                row.append(None if half is None else self._sq_norm(parameter, half))
        sizes, factors, half_sq_norms, sum_sq_norm = self._take_parts(loss_scale, rows)
        if len(sizes) < 2:
            raise ValueError(
                "two halves need at least 2 sub-batches; got 1. Accumulate 2 or more micro-batches, or measure over "
                "ranks."
            )
        joined = [join_parts(sizes[side::2], factors[side::2]) for side in range(2)]
        half_sizes, half_factors = zip(*joined, strict=True)
        return HalfBatches.from_sums(self.modules, half_sizes, half_factors, half_sq_norms, sum_sq_norm)

    def _take(self, index: int, grad: Tensor) -> Tensor:
        if len(self._parts) % 2 == 0:
            kept = self._first_half.get(index)
            self._first_half[index] = grad.detach().clone() if kept is None else kept.add_(grad.detach())
        return self._nothing

    def _reset(self) -> None:
        super()._reset()
        self._first_half = {}


def _split(first: Tensor | None, whole: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the sums of the two halves from the first and `p.grad`; None where there is no gradient."""
    if first is None or whole is None:
        return None, whole
    wide = torch.promote_types(first.dtype, torch.float32)  # a difference in half precision would be rounded anew
    return first, whole.detach().to(wide) - first.to(wide)
