"""What does measuring add to a training step, in percent?

Whole steps scatter by more than the answer, so the added work is timed by itself: the backward pass of a loss that is
linear in the parameters costs next to nothing and hands the same gradients to the same hooks; its time with and
without measuring differs by what measuring adds. That is set against the median of real steps.

    python benchmarks/measuring_overhead.py --json benchmarks/results/measuring_overhead.json
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

from anybatch.stats import MicroBatches, Ranks
from anybatch.stats.sub_batches import SubBatchSource
from anybatch.workloads.fashion_mnist import SmallResNet

MICRO_BATCH_SIZE = 32
NUM_PARTS = 4
NUM_STEPS = 40
NUM_PAIRS = 300


def main() -> None:
    """Time both sources and print the overhead of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few repetitions, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    steps, pairs = (3, 5) if arguments.smoke else (NUM_STEPS, NUM_PAIRS)
    rows = {
        f"MicroBatches, {NUM_PARTS} x {MICRO_BATCH_SIZE}": micro_batches(steps, pairs),
        f"Ranks, 2 processes x {MICRO_BATCH_SIZE}": ranks(steps, pairs),
    }
    for name, row in rows.items():
        print(
            f"{name}: {row['added_ms']:.3f} ms ({row['added_ms_low']:.3f} to {row['added_ms_high']:.3f}) "
            f"on a step of {row['step_ms']:.1f} ms: {row['overhead_percent']:.2f} %"
        )
    if arguments.json:
        about = {"torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"environment": about, "results": rows}, indent=2) + "\n")


def micro_batches(num_steps: int, num_pairs: int) -> dict[str, float]:
    """Time one accumulation step on one device."""
    torch.manual_seed(0)
    model = SmallResNet()
    return measure(model, model, MicroBatches(model), NUM_PARTS, num_steps, num_pairs)


def ranks(num_steps: int, num_pairs: int) -> dict[str, float]:
    """Time one data-parallel step of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results: Any = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_rank, args=(port, num_steps, num_pairs, results), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    return results.get()


def _rank(rank: int, port: int, num_steps: int, num_pairs: int, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = SmallResNet()
    ddp = DistributedDataParallel(model)
    row = measure(ddp, model, Ranks(ddp), 1, num_steps, num_pairs)
    if rank == 0:
        results.put(row)
    dist.barrier()  # a rank that leaves while another one still talks can abort
    dist.destroy_process_group()


def measure(
    model: nn.Module, inner: nn.Module, source: SubBatchSource, num_parts: int, num_steps: int, num_pairs: int
) -> dict[str, float]:
    """Return the median step, and the median of what measuring adds to it with its quartiles."""
    images, labels = torch.randn(MICRO_BATCH_SIZE, 1, 28, 28), torch.randint(10, (MICRO_BATCH_SIZE,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        for part in range(num_parts):
            last = part == num_parts - 1
            with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
                (nn.functional.cross_entropy(model(images), labels) / num_parts).backward()
        optimizer.step()

    step_seconds = median(_times(step, num_steps))
    gradients = [parameter.grad.clone() for parameter in inner.parameters() if parameter.grad is not None]

    def linear_loss() -> Tensor:
        pairs = zip(inner.parameters(), gradients, strict=True)
        return torch.stack([torch.dot(p.flatten(), g.flatten()) for p, g in pairs]).sum()

    def plain() -> None:
        for loss in losses:
            loss.backward()

    def recorded() -> None:
        for loss in losses:
            with source.sub_batch(MICRO_BATCH_SIZE, 1 / num_parts):
                loss.backward()

    added = []
    with model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext():
        for _ in range(num_pairs):
            seconds = []
            for action in (plain, recorded):
                losses = [linear_loss() for _ in range(num_parts)]
                inner.zero_grad()
                seconds += _times(action, 1)
            # ranks meet before finish(), as they do when the step's own all-reduce ends
            added.append(seconds[1] - seconds[0] + _times(source.finish, 1)[0])
    low, middle, high = quantiles(added, n=4)
    return {
        "step_ms": 1e3 * step_seconds,
        "added_ms": 1e3 * middle,
        "added_ms_low": 1e3 * low,
        "added_ms_high": 1e3 * high,
        "overhead_percent": 100 * middle / step_seconds,
    }


def _times(action: Callable[[], object], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        if dist.is_initialized():
            dist.barrier()
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
