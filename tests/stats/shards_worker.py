"""What every rank of `test_shards.py` runs, in its own process; findings go back through a file per rank."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from stats import ranks_worker
from stats.halves_worker import as_dict as halves_as_dict
from stats.nets import BodyAndHead, make_samples, mean_loss, split, stack
from stats.ranks_worker import as_dict, refusal
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from anybatch import AGVM, NoiseMonitor
from anybatch.stats import MicroBatches, MicroBatchHalves, PerSample, RankHalves, Ranks

MODULES = ["body", "head", "spare"]
NUM_PARTS = 3
# of part k on rank r
SIZES = {"even": lambda k, r: 4, "uneven": lambda k, r: 1 + (2 * k + 3 * r) % 4}
WORLD_SIZES = [2, 3, 4]
OPTIMIZERS = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=0.01, foreach=True),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.1),
}
NUM_STEPS = 5


class Net(BodyAndHead):
    """Five and two rows do not divide by the ranks; one module is frozen and one never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4).requires_grad_(False)
        self.spare = nn.Linear(4, 3)
        with torch.no_grad():
            for parameter in (*self.stem.parameters(), *self.spare.parameters()):
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(torch.tanh(self.stem(inputs)))


def run(rank: int, world_size: int, port: int, folder: str) -> None:
    ranks_worker.run(rank, world_size, port, folder, [check_every_mesh, check_refusals_of_models])


def sizes_of(case: str, num_ranks: int) -> list[list[int]]:
    """Return the sizes of every rank's parts."""
    return [[SIZES[case](part, rank) for part in range(NUM_PARTS)] for rank in range(num_ranks)]


def parts_of_ranks(case: str, num_ranks: int, seed: int = 1) -> list[list[list]]:
    """Return per rank its parts of samples."""
    flat_sizes = [size for own in sizes_of(case, num_ranks) for size in own]
    flat = split(make_samples(sum(flat_sizes), seed), flat_sizes)
    return [flat[NUM_PARTS * rank : NUM_PARTS * (rank + 1)] for rank in range(num_ranks)]


def factors_of_ranks(case: str, num_ranks: int) -> list[list[float]]:
    """Return the factors of losses that make the mean over ranks the mean over all samples."""
    sizes = sizes_of(case, num_ranks)
    return [[num_ranks * size / sum(map(sum, sizes)) for size in own] for own in sizes]


def shard(mesh: DeviceMesh, model: nn.Module | None = None) -> Any:
    model = Net() if model is None else model
    fully_shard(model.body, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def step(
    model: Any, parts: Sequence[list], factors: Sequence[float], source: Any, *, says_weights: bool = True, scale=1.0
) -> Any:
    """Accumulate as loops do, reducing gradients over ranks in the last `backward()` alone."""
    model.zero_grad()
    for index, (part, factor) in enumerate(zip(parts, factors, strict=True)):
        model.set_requires_gradient_sync(index == len(parts) - 1)
        model.set_is_last_backward(index == len(parts) - 1)
        weight = factor if says_weights else None
        with source.sub_batch(len(part), weight) if source else contextlib.nullcontext():
            (scale * factor * mean_loss(model, *stack(part))).backward()
    return source.finish(scale) if source else None


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach().clone()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(parameter) for name, parameter in model.named_parameters()}


class Traffic(TorchDispatchMode):
    """Notes every collective, those that a DTensor asks for too, with the numbers that this rank sends."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it comes back as what it asks for
        namespace, name = str(func).split(".")[:2]
        if "c10d" in namespace:
            self.log.append((name, max(tensor.numel() for tensor in _tensors(args))))
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def check_every_mesh(rank: int, world_size: int) -> dict[str, Any]:
    """The first 2, 3 and 4 ranks in turn; the others have no part in it."""
    found: dict[str, Any] = {}
    for num_ranks in WORLD_SIZES:
        mesh = DeviceMesh("cpu", list(range(num_ranks)))
        if rank < num_ranks:
            found[str(num_ranks)] = {}
            for check in CHECKS + (CHECKS_OF_THREE if num_ranks == 3 else []):
                found[str(num_ranks)] |= check(mesh, rank, num_ranks)
    return found


def check_numbers(mesh: DeviceMesh, rank: int, num_ranks: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for case in SIZES:
        parts, factors = parts_of_ranks(case, num_ranks)[rank], factors_of_ranks(case, num_ranks)[rank]
        model = shard(mesh)
        halves, moments = MicroBatchHalves(model, MODULES), MicroBatches(model, MODULES)
        found[case] = halves_as_dict(step(model, parts, factors, halves)) | {"gradients": gradients(model)}
        found[f"{case}, again"] = halves_as_dict(step(model, parts, factors, halves, scale=1024.0))
        found[f"{case}, moments"] = as_dict(step(model, parts, factors, moments))
        own = [len(part) / sum(map(len, parts)) for part in parts]
        found[f"{case}, default weights"] = halves_as_dict(step(model, parts, own, halves, says_weights=False))
        found[f"{case}, copies kept"] = len(halves._first_half)
    return found


def check_traffic(mesh: DeviceMesh, rank: int, num_ranks: int) -> dict[str, Any]:
    """Of a step that is not measured beside a model without a source, and of what a measurement adds."""
    found: dict[str, Any] = {}
    parts, factors = parts_of_ranks("even", num_ranks)[rank], factors_of_ranks("even", num_ranks)[rank]
    for name in ("plain", "with a source"):
        model = shard(mesh)
        sources = [MicroBatchHalves(model, MODULES), MicroBatches(model, MODULES)] if name != "plain" else []
        for source in (*sources, None):
            step(model, parts, factors, source)
        with Traffic() as traffic:
            step(model, parts, factors, None)
        found[f"{name}, traffic"] = traffic.log
        found[f"{name}, gradients"] = gradients(model)
    for source in (MicroBatchHalves(model, MODULES), MicroBatches(model, MODULES)):
        with Traffic() as measured:
            step(model, parts, factors, source)
        with Traffic() as plain:
            for part, factor in zip(parts, factors, strict=True):
                (factor * mean_loss(model, *stack(part))).backward()
        added = sorted(measured.log)
        for each in plain.log:
            added.remove(each)
        found[f"{type(source).__name__}, added"] = added
    return found


def check_agvm(mesh: DeviceMesh, rank: int, num_ranks: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, make in OPTIMIZERS.items():
        model = shard(mesh)
        optimizer = make(model.parameters())
        agvm = AGVM(optimizer, model, MODULES, anchor="body", interval=2, momentum=0.5)
        source = MicroBatchHalves(model, MODULES, agvm.preconditioner)
        rates = []
        for index in range(NUM_STEPS):
            parts = parts_of_ranks("uneven", num_ranks, seed=index)[rank]
            factors = factors_of_ranks("uneven", num_ranks)[rank]
            halves = step(model, parts, factors, source if agvm.is_due else None)
            if halves is not None:
                agvm.observe(halves)
            optimizer.step()
            rates += [group["lr"] for group in optimizer.param_groups]
        found[f"agvm, {name}"] = {"scales": dict(agvm.scales), "weights": weights(model), "rates": rates}
    return found


def check_overflow_on_one_rank(mesh: DeviceMesh, rank: int, num_ranks: int) -> dict[str, Any]:
    parts, factors = parts_of_ranks("even", num_ranks)[rank], factors_of_ranks("even", num_ranks)[rank]
    if rank == num_ranks - 1:
        parts[0][0] = (parts[0][0][0], torch.full((2,), float("inf")))
    model = shard(mesh)
    agvm = AGVM(torch.optim.SGD(model.parameters(), lr=0.05), model, MODULES, anchor="body")
    agvm.observe(step(model, parts, factors, MicroBatchHalves(model, MODULES)))
    return {"scales after overflow": dict(agvm.scales), "log after overflow": agvm.log()}


def check_monitor(mesh: DeviceMesh, rank: int, num_ranks: int) -> dict[str, Any]:
    """The forward pass lies before `sub_batch()`, and an evaluation between steps.

    In float64, since Adam's geometry divides by gradients of one step, of which some are small.
    """
    found: dict[str, Any] = {}
    for geometry in ("sgd", "adam"):
        model = shard(mesh, Net().double())
        optimizer = OPTIMIZERS["AdamW"](model.parameters())
        monitor = NoiseMonitor(model, 2, module_prefixes=MODULES, geometry=geometry, optimizer=optimizer)
        for index in range(NUM_STEPS):
            optimizer.zero_grad()
            parts = parts_of_ranks("uneven", num_ranks, seed=index)[rank]
            for part, factor in zip(parts, factors_of_ranks("uneven", num_ranks)[rank], strict=True):
                inputs, targets = stack(part)
                loss = factor * mean_loss(model, inputs.double(), targets.double())
                with monitor.sub_batch(len(part), factor):
                    loss.backward()
            monitor.finish()
            optimizer.step()
            with torch.no_grad():
                model(torch.ones(1, 4).double())
        found[f"monitor, {geometry}"] = monitor.state_dict()["measurements"]
    return found


def check_refusals(mesh: DeviceMesh, rank: int, num_ranks: int) -> dict[str, Any]:
    """What is changed before `finish()` shows on the first rank alone, which holds the smallest parameter's rows."""
    parts, factors = parts_of_ranks("even", num_ranks)[rank], factors_of_ranks("even", num_ranks)[rank]
    model = shard(mesh, BodyOnly())
    source = MicroBatchHalves(model)
    found = {"refused: finish without a part": refusal(source.finish)}
    for part in parts:
        with source.sub_batch(len(part)):
            mean_loss(model, *stack(part)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    found["refused: clipped"] = refusal(source.finish)
    model.zero_grad()

    def without_backward() -> None:
        with source.sub_batch(1):
            pass

    found["refused: no backward"] = refusal(without_backward)
    found["after refusals"] = halves_as_dict(step(model, parts, factors, source))["sizes"]
    monitor = NoiseMonitor(model, 2)
    with monitor.sub_batch(4):
        mean_loss(model, *stack(parts[0])).backward()
    found["refused: monitor of one part"] = refusal(monitor.finish)
    for kind in (PerSample, Ranks, RankHalves):
        found[f"refused: {kind.__name__}"] = refusal(lambda kind=kind: kind(model))
    return found


class BodyOnly(nn.Module):
    """Its smallest parameter has one row, which lies on the first rank."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 5)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs)[:, :2] * self.scale


def check_refusals_of_models(rank: int, world_size: int) -> dict[str, Any]:
    replicas = DeviceMesh("cpu", torch.arange(4).view(2, 2), mesh_dim_names=("replicate", "shard"))
    everywhere = DeviceMesh("cpu", list(range(world_size)))
    replicated, partly = shard(replicas), Net()
    fully_shard(partly, mesh=everywhere, ignored_params={partly.head.bias})
    fsdp1 = FullyShardedDataParallel(BodyAndHead(), device_id=torch.device("cpu"))
    sources = {"MicroBatches": MicroBatches, "MicroBatchHalves": MicroBatchHalves, "PerSample": PerSample}
    models = {"replicas": replicated, "a whole one": partly, "FSDP1": fsdp1}
    return {
        f"refused: {name}, {kind}": refusal(lambda make=make, model=model: make(model))
        for name, make in sources.items()
        for kind, model in models.items()
    }


CHECKS = [check_numbers, check_traffic, check_agvm]
CHECKS_OF_THREE = [check_overflow_on_one_rank, check_monitor, check_refusals]
