"""What can be measured of parameters that FSDP2, `torch.distributed.fsdp.fully_shard`, shards over ranks?

It writes the shard of each micro-batch's mean gradient over ranks into `p.grad`, and no hook of autograd sees it. The
squared norm of a gradient is the sum of its shards', so that ranks tell each other a few numbers and no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.stats.groups import find_fully_sharded
from anybatch.stats.half_batches import join_parts
from anybatch.stats.rank_group import RankGroup


class Shards:
    """The ranks over which a model is sharded.

    Args:
        modules: those that fully_shard was called on.
        mesh: of one axis.
    """

    def __init__(self, modules: Sequence[Any], mesh: Any) -> None:
        self._modules = modules
        self._ranks = RankGroup(mesh.get_group())
        self._device = torch.device(mesh.device_type)

    @contextmanager
    def watch(self, parameters: Sequence[nn.Parameter], record: Callable[[int, Tensor], None]) -> Iterator[None]:
        """Reduce gradients over ranks at the end of every `backward()` inside, and record what they add.

        What was there before is put aside, so that `p.grad` holds the new gradient alone, and added afterwards.

        Args:
            parameters: sharded ones.
            record: takes the index of a parameter and its new gradient, sharded as it is.

        Yields:
            Nothing.
        """
        for module in self._modules:
            module.set_requires_gradient_sync(True, recurse=False)
            module.set_is_last_backward(True)  # backward() ends when gradients are there
        before = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        try:
            yield
            for index, parameter in enumerate(parameters):
                if parameter.grad is not None:
                    record(index, parameter.grad)
        finally:
            for parameter, kept in zip(parameters, before, strict=True):
                if kept is not None:
                    parameter.grad = kept if parameter.grad is None else kept.add_(parameter.grad)

    def join(
        self, sizes: Sequence[float], factors: Sequence[float], sq_norms: Tensor
    ) -> tuple[list[float], list[float], Tensor]:
        """Join the parts of all ranks, part by part; a collective call.

        Args:
            sizes: of this rank's K parts.
            factors: that their mean gradients carry.
            sq_norms: (R, M), of this rank's shards.

        Returns:
            Sizes (K) and factors (K) of the means over ranks, and (R, M), squared norms of whole gradients; equal on
            every rank.

        Raises:
            RuntimeError: another rank failed.
        """
        num_parts = len(sizes)
        head = sq_norms.new_tensor([num_parts, *sizes, *(factor / self._ranks.size for factor in factors)])
        rows = self._ranks.gather_rows(torch.cat([head, sq_norms.flatten()]).to(self._device)).to(sq_norms)
        sizes_K, shares_K, norms = rows[:, 1:].split([num_parts, num_parts, sq_norms.numel()], dim=1)
        joined = [join_parts(*part) for part in zip(sizes_K.T.tolist(), shares_K.T.tolist(), strict=True)]
        return [size for size, _ in joined], [factor for _, factor in joined], norms.sum(0).view_as(sq_norms)

    def report_failure(self, num_parts: int, num_sq_norms: int) -> None:
        """Take part in a `join` without numbers, so that no rank waits for this one."""
        self._ranks.report_failure(1 + 2 * num_parts + num_sq_norms, self._device)


def find_shards(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Shards | None:
    """Return what a model is sharded over.

    Args:
        model: after `fully_shard`, or not sharded.
        parameters: those of it that are measured.

    Returns:
        None where it is not sharded.

    Raises:
        InputError: it is sharded by fully_shard, but not all of it or over a mesh of several axes.
        TypeError: it is sharded by something else.
    """
    modules = find_fully_sharded(model)
    if not modules:
        return refuse_shards(model, parameters)
    mesh = getattr(parameters[0], "device_mesh", None)
    for parameter in parameters:
        if not _is_shard(parameter, mesh):
            raise InputError(
                "trainable parameters must be sharded by fully_shard over one mesh of one axis; got one of shape "
                f"{tuple(parameter.shape)} {_placing(parameter)}. Call fully_shard on the whole model, without ignored "
                "parameters, replicas and tensor parallelism."
            )
    return Shards(modules, mesh)


def refuse_shards(model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Refuse a model that is sharded.

    Args:
        model: the model.
        parameters: those of it that are measured.

    Raises:
        TypeError: it is.
    """
    names = {base.__name__ for module in model.modules() for base in type(module).__mro__}
    if names & {"FullyShardedDataParallel", "FSDPModule"} or any(hasattr(p, "placements") for p in parameters):
        raise TypeError(
            "parameters must be whole tensors on each rank; got sharded ones (FSDP or DTensor), whose gradients "
            "leaf hooks cannot see. Measure on one device, under DistributedDataParallel, or micro-batches of a model "
            "that fully_shard shards."
        )


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, which is all of one that is not sharded; detached."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _is_shard(parameter: Any, mesh: Any) -> bool:
    is_sharded = mesh is not None and getattr(parameter, "device_mesh", None) == mesh
    return is_sharded and [placement.is_shard() for placement in parameter.placements] == [True]


def _placing(parameter: Any) -> str:
    if not hasattr(parameter, "placements"):
        return "that is whole"
    return f"with placements {parameter.placements} on {parameter.device_mesh}"
