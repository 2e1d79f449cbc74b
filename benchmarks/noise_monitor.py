"""What does `NoiseMonitor` cost at `every=50`, in percent of a plain step, averaged over measured and other steps?

Plain steps and measured ones (with `log()`) take turns; the monitor's calls on a step between, which only count, are
timed by themselves. The median difference and 49 such steps make the cost of 50. `measured_ratio` is one measured
step's.

    python benchmarks/noise_monitor.py --json benchmarks/results/noise_monitor.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from anybatch import NoiseMonitor
from anybatch.workloads.char_lm import CharTransformer
from anybatch.workloads.digits import SmallCNN
from anybatch.workloads.fashion_mnist import SmallResNet

EVERY = 50
NEVER = 10**9
NUM_ROUNDS = 40


def main() -> None:
    """Time every way to measure and print what it costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few repetitions, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    rounds = 4 if arguments.smoke else NUM_ROUNDS
    rows = {name: one_device(*setting, rounds) for name, setting in SETTINGS.items()}
    rows["ranks: small ResNet, 2 processes x 32"] = ranks(rounds)
    for name, row in rows.items():
        print(
            f"{name}: step {row['step_ms']:.1f} ms, measured {row['measured_ms']:+.2f} ms "
            f"({row['measured_ms_low']:+.2f} to {row['measured_ms_high']:+.2f}), between {row['between_ms']:+.4f} ms: "
            f"{row['overhead_percent']:.2f} % at every={EVERY}"
        )
    if arguments.json:
        about = {"torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"environment": about, "results": rows}, indent=2) + "\n")


def one_device(
    make: Callable[[], nn.Module],
    inputs: Tensor,
    num_classes: int,
    num_parts: int,
    options: dict[str, Any],
    rounds: int,
) -> dict[str, float]:
    """Time one device, in one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return measure(make(), inputs, num_classes, num_parts, options, rounds)


def ranks(rounds: int) -> dict[str, float]:
    """Time two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results: Any = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_rank, args=(port, rounds, results), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    return results.get()


def _rank(rank: int, port: int, rounds: int, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    row = measure(DistributedDataParallel(SmallResNet()), torch.randn(32, 1, 28, 28), 10, 1, {}, rounds)
    if rank == 0:
        results.put(row)
    dist.barrier()  # a rank that leaves while another one still talks can abort
    dist.destroy_process_group()


def measure(
    model: nn.Module, inputs: Tensor, num_classes: int, num_parts: int, options: dict[str, Any], rounds: int
) -> dict[str, float]:
    """Return the median plain step, and what measured steps and the ones between add to it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    monitor = NoiseMonitor(model, every=1, optimizer=optimizer, **options)
    parts = inputs.chunk(num_parts)
    plain, added = [], []
    for _ in range(rounds + 3):
        seconds = [_time(lambda way=way: step(model, optimizer, way, parts, num_classes)) for way in (None, monitor)]
        plain.append(seconds[0])
        added.append(seconds[1] - seconds[0])
    step_seconds = median(plain[3:])  # the first ones warm up, and check that samples are apart
    low, middle, high = quantiles(added[3:], n=4)
    between = counting(model, inputs)
    return {
        "step_ms": 1e3 * step_seconds,
        "measured_ms": 1e3 * middle,
        "measured_ms_low": 1e3 * low,
        "measured_ms_high": 1e3 * high,
        "between_ms": 1e3 * between,
        "measured_ratio": 1 + middle / step_seconds,
        "overhead_percent": 100 * (middle + (EVERY - 1) * between) / EVERY / step_seconds,
    }


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    monitor: NoiseMonitor | None,
    parts: tuple[Tensor, ...],
    num_classes: int,
) -> None:
    """Train one step, as a loop with the monitor's four lines does."""
    optimizer.zero_grad()
    for index, part in enumerate(parts):
        is_last = index == len(parts) - 1
        synced = model.no_sync() if isinstance(model, DistributedDataParallel) and not is_last else nullcontext()
        with synced, monitor.sub_batch(len(part)) if monitor else nullcontext():
            outputs = model(part).flatten(0, -2)
            targets = torch.zeros(len(outputs), dtype=torch.long).random_(num_classes)
            (nn.functional.cross_entropy(outputs, targets) / len(parts)).backward()
    if monitor and monitor.finish():
        monitor.log()
    optimizer.step()


def counting(model: nn.Module, inputs: Tensor, repetitions: int = 1000) -> float:
    """Return the seconds that the monitor's calls take on a step that is not measured: too few to see in a step."""
    monitor = NoiseMonitor(model, every=NEVER, source="micro_batches")

    def calls() -> None:
        for _ in range(repetitions):
            with monitor.sub_batch(len(inputs)):
                pass
            monitor.finish()

    return _time(calls) / repetitions


def _time(action: Callable[[], object]) -> float:
    """Return processor seconds of one thread, which other work does not stretch; of ranks, which wait, seconds."""
    clock = time.process_time
    if dist.is_initialized():
        clock = time.perf_counter
        dist.barrier()
    started = clock()
    action()
    return clock() - started


SETTINGS: dict[str, tuple[Callable[[], nn.Module], Tensor, int, int, dict[str, Any]]] = {
    "micro-batches: small ResNet, 4 x 32": (SmallResNet, torch.randn(128, 1, 28, 28), 10, 4, {}),
    "micro-batches, Adam's geometry: small ResNet, 4 x 32": (
        SmallResNet,
        torch.randn(128, 1, 28, 28),
        10,
        4,
        {"geometry": "adam"},
    ),
    "samples: digits CNN, 64": (SmallCNN, torch.randn(64, 1, 8, 8), 10, 1, {}),
    "samples: character transformer, 16 windows": (CharTransformer, torch.randint(0, 97, (16, 64)), 97, 1, {}),
    "samples: character transformer, 64 windows": (CharTransformer, torch.randint(0, 97, (64, 64)), 97, 1, {}),
    "samples, Adam's geometry: character transformer, 16 windows": (
        CharTransformer,
        torch.randint(0, 97, (16, 64)),
        97,
        1,
        {"geometry": "adam"},
    ),
}


if __name__ == "__main__":
    main()
