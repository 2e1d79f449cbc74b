"""What every rank of `test_rank_halves.py` runs, in its own process; findings go back through a file per rank."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from stats import ranks_worker
from stats.nets import BodyAndHead, make_samples, mean_loss, split, stack
from stats.ranks_worker import refusal
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from anybatch import AGVM
from anybatch.stats import HalfBatches, RankHalves

# how many samples each rank's parts have
SIZES = {
    "even": {2: [[4]] * 2, 3: [[4]] * 3, 4: [[4]] * 4},
    "uneven": {2: [[3], [7]], 3: [[2], [5], [3]], 4: [[1], [4], [2], [6]]},
    "accumulated": {2: [[3, 1], [2, 4, 1]], 3: [[2, 2], [3], [1, 4]], 4: [[1, 2], [3], [2, 2], [4, 1]]},
}
MODULES = ["body", "head"]


def run(rank: int, world_size: int, port: int, folder: str) -> None:
    ranks_worker.run(rank, world_size, port, folder, CHECKS)


def parts_of_ranks(case: str, world_size: int, seed: int = 1) -> list[list[list]]:
    """Return per rank its parts of samples."""
    sizes = SIZES[case][world_size]
    flat = split(make_samples(sum(map(sum, sizes)), seed), [size for own in sizes for size in own])
    return [[flat.pop(0) for _ in own] for own in sizes]


def step(
    ddp: DistributedDataParallel, parts: Sequence[list], total: int, source: RankHalves | None
) -> HalfBatches | None:
    """Accumulate this rank's parts, so that p.grad ends as the mean over all samples of all ranks."""
    ddp.zero_grad()
    for index, part in enumerate(parts):
        factor = dist.get_world_size(ddp.process_group) * len(part) / total
        with (
            contextlib.nullcontext() if index == len(parts) - 1 else ddp.no_sync(),
            source.sub_batch(len(part), factor) if source else contextlib.nullcontext(),
        ):
            (factor * mean_loss(ddp, *stack(part))).backward()
    return source.finish() if source else None


def as_dict(halves: HalfBatches | None) -> dict[str, Any]:
    assert halves is not None
    return {"modules": halves.modules, "cosines": halves.cosines()} | {
        name: getattr(halves, name) for name in ("sizes", "weights", "sq_norms", "products")
    }


def gradients(ddp: DistributedDataParallel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in ddp.module.named_parameters() if p.grad is not None}


@contextlib.contextmanager
def counting_collectives() -> Iterator[dict[str, int]]:
    """Count what is asked of torch.distributed, by name and number of members."""
    counts: dict[str, int] = {}
    kept = {name: getattr(dist, name) for name in ("all_reduce", "all_gather", "broadcast")}

    def counted(name: str) -> Any:
        def call(*args: Any, group: Any = None, **kwargs: Any) -> Any:
            key = f"{name} over {dist.get_world_size(group)}"
            counts[key] = counts.get(key, 0) + 1
            return kept[name](*args, group=group, **kwargs)

        return call

    for name in kept:
        setattr(dist, name, counted(name))
    try:
        yield counts
    finally:
        for name, function in kept.items():
            setattr(dist, name, function)


def check_numbers(rank: int, world_size: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for case in SIZES:
        parts = parts_of_ranks(case, world_size)
        total = sum(map(sum, SIZES[case][world_size]))
        ddp, plain = (DistributedDataParallel(BodyAndHead().double()) for _ in range(2))
        source = RankHalves(ddp, MODULES)
        doubled = [[(x.double(), y.double()) for x, y in part] for part in parts[rank]]
        found[case] = as_dict(step(ddp, doubled, total, source)) | {"gradients": gradients(ddp)}
        found[f"{case}, again"] = as_dict(step(ddp, doubled, total, source))
        step(ddp, doubled, total, None)
        for _ in range(3):  # after its first step DDP orders gradients anew
            step(plain, doubled, total, None)
        found[f"{case}, not measured"] = gradients(ddp)
        found[f"{case}, plain"] = gradients(plain)
    return found


def check_steps_between(rank: int, world_size: int) -> dict[str, Any]:
    """The same buckets are reduced once, over all ranks, and nothing is kept."""
    parts = parts_of_ranks("even", world_size)[rank]
    ddp = DistributedDataParallel(BodyAndHead())
    source = RankHalves(ddp, MODULES)
    step(ddp, parts, 4 * world_size, None)
    with counting_collectives() as between:
        step(ddp, parts, 4 * world_size, None)
    kept = sum(norm is not None for norm in source._own_half)
    with counting_collectives() as measured:
        step(ddp, parts, 4 * world_size, source)
    kept += sum(norm is not None for norm in source._own_half)
    return {"collectives between": between, "collectives measured": measured, "norms kept": kept}


class TwoHeads(nn.Module):
    """The second head is used by the first rank alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = BodyAndHead()
        self.spare = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.inner(inputs)
        return out + self.spare(inputs) if dist.get_rank() == 0 else out


def check_head_used_on_one_rank(rank: int, world_size: int) -> dict[str, Any]:
    torch.manual_seed(0)
    ddp = DistributedDataParallel(TwoHeads(), find_unused_parameters=True)
    source = RankHalves(ddp, ["inner", "spare"])
    return {"spare": as_dict(step(ddp, parts_of_ranks("even", world_size)[rank], 4 * world_size, source))}


def check_agvm(rank: int, world_size: int) -> dict[str, Any]:
    """Three steps with scales; every rank ends at the same weights."""
    ddp = DistributedDataParallel(BodyAndHead().double())
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05, momentum=0.9)
    agvm = AGVM(optimizer, ddp, MODULES, anchor="body", interval=2, momentum=0.5)
    source = RankHalves(ddp, MODULES, agvm.preconditioner)
    for index in range(3):
        parts = parts_of_ranks("even", world_size, seed=index)[rank]
        doubled = [[(x.double(), y.double()) for x, y in part] for part in parts]
        halves = step(ddp, doubled, 4 * world_size, source if agvm.is_due else None)
        if halves is not None:
            agvm.observe(halves)
        optimizer.step()
    return {"agvm scales": dict(agvm.scales), "agvm weights": ddp.module.state_dict()}


def check_agvm_as_published(rank: int, world_size: int) -> dict[str, Any]:
    """Four steps of SGD, each with the scales that are known by then."""
    ddp = DistributedDataParallel(BodyAndHead().double())
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    agvm = AGVM(optimizer, ddp, MODULES, anchor="body", interval=1, as_published=True)
    source = RankHalves(ddp, MODULES)
    found = []
    for index in range(4):
        parts = parts_of_ranks("even", world_size, seed=index)[rank]
        doubled = [[(x.double(), y.double()) for x, y in part] for part in parts]
        halves = step(ddp, doubled, 4 * world_size, source)
        assert halves is not None
        agvm.observe(halves)
        optimizer.step()
        found.append(dict(agvm.scales))
    return {"scales as published": found}


def check_overflow_on_one_rank(rank: int, world_size: int) -> dict[str, Any]:
    parts = parts_of_ranks("even", world_size)[rank]
    if rank == world_size - 1:
        parts[0][0] = (torch.full((4,), float("inf")), parts[0][0][1])
    ddp = DistributedDataParallel(BodyAndHead())
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    agvm = AGVM(optimizer, ddp, MODULES, anchor="body")
    halves = step(ddp, parts, 4 * world_size, RankHalves(ddp, MODULES))
    assert halves is not None
    agvm.observe(halves)
    return {"scales after overflow": dict(agvm.scales), "log after overflow": agvm.log()}


def check_refusals(rank: int, world_size: int) -> dict[str, Any]:
    parts = parts_of_ranks("even", world_size)[rank]
    ddp = DistributedDataParallel(BodyAndHead())
    source = RankHalves(ddp, MODULES)

    def under_no_sync() -> None:
        ddp.zero_grad()
        with ddp.no_sync(), source.sub_batch(4):
            mean_loss(ddp, *stack(parts[0])).backward()
        source.finish()

    def without_no_sync() -> None:
        for part in (parts[0][:2], parts[0][2:]):
            with source.sub_batch(2):
                mean_loss(ddp, *stack(part)).backward()

    found = {
        "refused: without no_sync": refusal(without_no_sync),
        "refused: second hook": refusal(lambda: RankHalves(ddp, MODULES)),
        "refused: finish without a part": refusal(source.finish),
        "kept after a refusal": str(sum(norm is not None for norm in source._own_half)),
        "refused: under no_sync": refusal(under_no_sync),
    }
    ddp.zero_grad()
    found["after refusals"] = as_dict(step(ddp, parts, 4 * world_size, source))
    group = dist.new_group([0])
    if rank == 0:
        alone = DistributedDataParallel(nn.Linear(2, 1), process_group=group)
        found["refused: one rank"] = refusal(lambda: RankHalves(alone))
    return found


CHECKS = [
    check_numbers,
    check_steps_between,
    check_head_used_on_one_rank,
    check_agvm,
    check_agvm_as_published,
    check_overflow_on_one_rank,
    check_refusals,
]
