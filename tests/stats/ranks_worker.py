"""What every rank of `test_ranks.py` runs, in its own process; findings go back through a file per rank."""

import contextlib
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from stats.nets import PART_SIZES, BodyAndHead, make_samples, mean_loss, split, stack
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from anybatch.stats import GradientMoments, MicroBatches, Ranks

# which of the six parts each rank holds
SPREADS = {
    2: {"even": [[0, 1, 2], [3, 4, 5]], "uneven": [[0, 1], [2, 3, 4, 5]], "shuffled": [[5], [3, 0, 4, 1, 2]]},
    3: {
        "even": [[0, 1], [2, 3], [4, 5]],
        "uneven": [[0], [1, 2], [3, 4, 5]],
        "shuffled": [[5, 2, 0], [4], [1, 3]],
    },
}
Check = Callable[[int, int], dict[str, Any]]
INIT_TIMEOUT = timedelta(seconds=60)


def run(rank: int, world_size: int, port: int, folder: str, checks: Sequence[Check] = ()) -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux" and "lo" in dict(socket.if_nameindex()).values():
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    found: dict[str, Any] = {}
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=INIT_TIMEOUT)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=INIT_TIMEOUT)
        for check in checks or CHECKS:
            found.update(check(rank, world_size))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        found["error"] = traceback.format_exc()
    torch.save(found, Path(folder) / f"rank{rank}.pt")


class Wrapper(nn.Module):
    """Holds its model as torch.compile does, without the seconds that importing the compiler takes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model


def all_parts() -> list[list]:
    return split(make_samples(sum(PART_SIZES)), PART_SIZES)


def step(
    ddp: DistributedDataParallel,
    parts: Sequence[list],
    factors: Sequence[float],
    source: Ranks | None,
    *,
    default_weights: bool = False,
    loss_scale: float = 1.0,
) -> dict[str, Any]:
    """Accumulate this rank's parts, all but the last under no_sync(); return moments and gradients."""
    ddp.zero_grad()
    for index, (part, factor) in enumerate(zip(parts, factors, strict=True)):
        last = index == len(parts) - 1
        weight = None if default_weights else factor
        with (
            contextlib.nullcontext() if last else ddp.no_sync(),
            source.sub_batch(len(part), weight) if source else contextlib.nullcontext(),
        ):
            (loss_scale * factor * mean_loss(ddp, *stack(part))).backward()
    moments = source.finish(loss_scale) if source else None
    return {
        "moments": moments and as_dict(moments),
        "gradients": {name: p.grad.clone() for name, p in ddp.module.named_parameters()},
    }


def as_dict(moments: GradientMoments) -> dict[str, Any]:
    names = ("modules", "sizes", "weights", "mean_of_sq_norms", "sq_norm_of_mean", "num_non_finite")
    return {name: getattr(moments, name) for name in names}


def refusal(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def check_spreads(rank: int, world_size: int) -> dict[str, Any]:
    """Weights that make p.grad the mean over all samples: DDP divides by the number of ranks."""
    found, parts = {}, all_parts()
    for name, spread in SPREADS[world_size].items():
        view = name == "shuffled"
        ddp = DistributedDataParallel(BodyAndHead(), gradient_as_bucket_view=view)
        untouched = DistributedDataParallel(BodyAndHead(), gradient_as_bucket_view=view)
        own = [parts[i] for i in spread[rank]]
        factors = [world_size * len(part) / sum(PART_SIZES) for part in own]
        source = Ranks(ddp)
        found[name] = step(ddp, own, factors, source)
        found[name + ", again"] = step(ddp, own, factors, source)
        found[name + ", scaled"] = step(ddp, own, factors, source, loss_scale=1024.0)
        found[name + ", not measured"] = step(untouched, own, factors, None)
        found[name + ", hooks"] = any(p._backward_hooks for p in ddp.parameters())
    return found


def check_default_weights(rank: int, world_size: int) -> dict[str, Any]:
    parts = all_parts()
    own = [parts[i] for i in SPREADS[world_size]["uneven"][rank]]
    factors = [len(part) / sum(map(len, own)) for part in own]
    ddp = DistributedDataParallel(BodyAndHead())
    return {"default weights": step(ddp, own, factors, Ranks(ddp), default_weights=True)}


def check_plain(rank: int, world_size: int) -> dict[str, Any]:
    """One part per rank, of unequal sizes, and nothing said about weights."""
    ddp = DistributedDataParallel(BodyAndHead())
    source = Ranks(ddp, {"all": ["body", "head"]})
    return {"plain": step(ddp, [all_parts()[rank]], [1.0], source, default_weights=True)}


def check_part_that_is_not_finite(rank: int, world_size: int) -> dict[str, Any]:
    part = all_parts()[rank]
    if rank == 1:
        part[0] = (torch.full((4,), float("nan")), part[0][1])
    ddp = DistributedDataParallel(BodyAndHead())
    return {"not finite": step(ddp, [part], [1.0], Ranks(ddp))}


def check_subgroup(rank: int, world_size: int) -> dict[str, Any]:
    """The model's own process group counts, not the world."""
    if world_size < 3:
        return {}
    members = [0, 2]
    group = dist.new_group(members)
    if rank not in members:
        return {}
    ddp = DistributedDataParallel(BodyAndHead(), process_group=group)
    return {"subgroup": step(ddp, [all_parts()[rank]], [1.0], Ranks(ddp))}


def check_refusals(rank: int, world_size: int) -> dict[str, Any]:
    ddp = DistributedDataParallel(BodyAndHead())
    part, source = all_parts()[rank], Ranks(ddp)

    def all_under_no_sync() -> None:
        for _ in range(2):
            with ddp.no_sync(), source.sub_batch(len(part)):
                mean_loss(ddp, *stack(part)).backward()
        source.finish()

    found = {
        "refused: finish without a part": refusal(source.finish),
        "refused: last part under no_sync": refusal(all_under_no_sync),
        "refused: MicroBatches": refusal(lambda: MicroBatches(ddp)),
        "refused: MicroBatches, wrapped": refusal(lambda: MicroBatches(Wrapper(ddp))),
    }
    ddp.zero_grad()
    found["after refusals"] = step(ddp, [part], [1.0], source)
    group = dist.new_group([0])
    if rank == 0:
        alone = DistributedDataParallel(nn.Linear(2, 1), process_group=group)
        found["refused: one rank"] = refusal(lambda: Ranks(alone))
        found["MicroBatches of one rank"] = refusal(lambda: MicroBatches(alone))
    return found


CHECKS = [
    check_spreads,
    check_default_weights,
    check_plain,
    check_part_that_is_not_finite,
    check_subgroup,
    check_refusals,
]
