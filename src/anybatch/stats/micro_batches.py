"""What does gradient accumulation on one device, or with one sharded model, say about the gradient and its noise?"""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.optim import Optimizer

from anybatch.stats.geometry import Preconditioner, resolve_geometry
from anybatch.stats.groups import ModulePrefixes
from anybatch.stats.moments import Geometry, GradientMoments, MeasuredGeometry
from anybatch.stats.rank_group import refuse_ranks
from anybatch.stats.sub_batches import SubBatchSource


@final
class MicroBatches(SubBatchSource[GradientMoments]):
    """Measure the micro-batches of a gradient-accumulation step, on one device or under fully_shard.

    Changes no gradient, parameter, buffer or random state, and holds no gradient: hooks live inside
    `sub_batch()` only and reduce each one to a norm.

    Under `torch.distributed.fsdp.fully_shard` a part is what all ranks hold of it: each rank says the size and weight
    of its own share, as for `Ranks`, and `finish()` is a collective call that gathers a few numbers per module and no
    gradient. `sub_batch()` sets `set_requires_gradient_sync` and `set_is_last_backward`, so that every `backward()` of
    a measured step is reduced over ranks; until it is added its gradient lies beside the sum of those before, as one
    more copy of this rank's shards. Gradients are FSDP's mean over ranks, without a divide factor of your own.

    Args:
        model: the model; wrapped by torch.compile or not, sharded by fully_shard over a mesh of one axis or not.
        module_prefixes: see `group_parameters`.
        geometry: of the norms: "sgd", or "adam" for that of `AdamPreconditioner`.
        optimizer: whose second moments "adam" reads.
        preconditioner: see `MicroBatchHalves`; in place of a geometry.

    Raises:
        InputError: an unknown geometry, one beside a preconditioner, "adam" without an optimizer of its kind, or a
            model that fully_shard shards in part, or over a mesh of several axes.
        TypeError: parameters are sharded in another way (FSDP1, tensor parallelism), or the model is wrapped in
            DistributedDataParallel over more than one rank, where `Ranks` is the source.

    Example:
        >>> import torch
        >>> from anybatch.stats import MicroBatches
        >>> _ = torch.manual_seed(0)
        >>> model, data = torch.nn.Linear(3, 1), torch.randn(12, 3)
        >>> source = MicroBatches(model)
        >>> for part in data.split([4, 8]):
        ...     with source.sub_batch(size=len(part)):
        ...         (model(part).square().mean() * len(part) / len(data)).backward()
        >>> moments = source.finish()
        >>> moments.modules, moments.sizes.tolist()
        (('weight', 'bias'), [4.0, 8.0])
    """

    def __init__(
        self,
        model: nn.Module,
        module_prefixes: ModulePrefixes | None = None,
        *,
        geometry: Geometry = "sgd",
        optimizer: Optimizer | None = None,
        preconditioner: Preconditioner | None = None,
    ) -> None:
        self._geometry: MeasuredGeometry
        factor, self._geometry = resolve_geometry(geometry, optimizer, preconditioner)
        super().__init__(model, module_prefixes, factor, accepts_shards=True)
        refuse_ranks(model, "MicroBatches", "Ranks")

    def finish(self, loss_scale: float | Tensor = 1.0) -> GradientMoments:
        """Join the parts recorded since the last call; after the last `backward()`, before unscale, clip, step.

        Args:
            loss_scale: AMP's factor, `grad_scaler.get_scale()`, which is taken out.

        Returns:
            The moments of this step.

        Raises:
            ValueError: fewer than two parts.
            RuntimeError: no part at all, gradients changed since the last `backward()`, or another rank failed.
        """
        return GradientMoments.from_parts(self.modules, *self._take_parts(loss_scale), self._geometry)
