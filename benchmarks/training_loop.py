"""What do the training loop, gradient noise and tracking the weights' distance add to a step, in percent?

Whole steps scatter by more than the answer, so the added work is timed by itself: both loops drive a model that costs
next to nothing, on the same batches, in turn; the difference is what the loop adds. That is set against the median
of real steps. The bare loop gathers its batches from tensors in memory, the cheapest way there is.

    python benchmarks/training_loop.py --json benchmarks/results/training_loop.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from anybatch import Workload
from anybatch.stats.weight_distance import WeightDistance, log_spaced
from anybatch.train.loop import start_training, train
from anybatch.train.plan import Plan
from anybatch.train.runtime import Runtime
from anybatch.workloads.classification import cross_entropy
from anybatch.workloads.digits import SmallCNN
from anybatch.workloads.networks import F1

NUM_SAMPLES = 8192
CPU = Runtime(torch.device("cpu"))


class Tiny(nn.Module):
    """Ten logits of a learned bias: a step that costs next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(10))

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, 10) logits."""
        return self.bias.expand(len(images), 10)


def workload_of(model: Callable[[], nn.Module], side: int, batch_size: int) -> Workload:
    """Return random images of side x side pixels under SGD with momentum."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(NUM_SAMPLES, 1, side, side, generator=generator)
    labels = torch.randint(10, (NUM_SAMPLES,), generator=generator)
    return Workload(
        model=model,
        train_set=TensorDataset(images, labels),
        loss=cross_entropy,
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9),
        base_batch_size=batch_size,
        epochs=1,
    )


def bare_loop(workload: Workload, batch_size: int) -> Iterator[Tensor]:
    """Train as a user's own lines would."""
    assert isinstance(workload.train_set, TensorDataset)
    images, labels = workload.train_set.tensors
    model = workload.model()
    optimizer = workload.optimizer(model)
    for epoch in count():
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
        for indices in order.split(batch_size):
            optimizer.zero_grad()
            loss = cross_entropy(model, (images[indices], labels[indices]))
            loss.backward()
            optimizer.step()
            yield loss.detach()


def our_loop(workload: Workload, batch_size: int, plan: Plan) -> Iterator[Tensor]:
    """Train by anybatch's loop, with what a recorded run adds to every step."""
    training = start_training(workload, CPU, seed=0, plan=plan)
    total = torch.zeros((), dtype=torch.float64)
    for loss in train(workload, CPU, training, batch_size=batch_size, seed=0):
        total += loss
        yield loss


def added_ms(first: Iterator[Tensor], second: Iterator[Tensor], num_pairs: int) -> tuple[float, float, float]:
    """Return the median and quartiles of what a step of the second takes longer than one of the first."""
    differences = []
    for _ in range(num_pairs):
        seconds = []
        for steps in (first, second):
            started = time.perf_counter()
            next(steps)
            seconds.append(time.perf_counter() - started)
        differences.append(1e3 * (seconds[1] - seconds[0]))
    low, middle, high = quantiles(differences, n=4)
    return middle, low, high


def step_ms(workload: Workload, batch_size: int, num_steps: int) -> float:
    """Return the median step of the bare loop."""
    steps = bare_loop(workload, batch_size)
    next(steps)
    seconds = []
    for _ in range(num_steps):
        started = time.perf_counter()
        next(steps)
        seconds.append(time.perf_counter() - started)
    return 1e3 * median(seconds)


def measure(model: Callable[[], nn.Module], side: int, batch_size: int, num_pairs: int) -> dict[str, dict[str, float]]:
    """Return what each addition costs beside a step of a model."""
    workload = workload_of(model, side, batch_size)
    tiny = replace(workload, model=Tiny)
    step = step_ms(workload, batch_size, max(3, num_pairs // 20))
    loop = added_ms(bare_loop(tiny, batch_size), our_loop(tiny, batch_size, Plan()), num_pairs)
    noise = added_ms(our_loop(tiny, batch_size, Plan()), our_loop(tiny, batch_size, Plan(noise_variance=7)), num_pairs)
    distance = distance_ms(workload, num_pairs)
    rows = {"loop": loop, "gradient noise": noise, "distance of 1,000 updates": distance}
    return {
        name: {
            "step_ms": step,
            "added_ms": middle,
            "added_ms_low": low,
            "added_ms_high": high,
            "overhead_percent": 100 * middle / step,
        }
        for name, (middle, low, high) in rows.items()
    }


def distance_ms(workload: Workload, num_repetitions: int) -> tuple[float, float, float]:
    """Return what tracking adds to each of 1,000 updates, of which few are measured."""
    distance = WeightDistance(workload.model())
    share = len(log_spaced(1000)) / 1000
    times = []
    for _ in range(num_repetitions):
        started = time.perf_counter()
        distance.measure().whole.item()
        times.append(1e3 * share * (time.perf_counter() - started))
    low, middle, high = quantiles(times, n=4)
    return middle, low, high


def main() -> None:
    """Time all additions beside two models and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few repetitions, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    num_pairs = 10 if arguments.smoke else 300
    results = {
        f"{name} beside {model}": row
        for model, rows in (
            ("F1 at 128", measure(F1, 28, 128, num_pairs)),
            ("the digits' CNN at 32", measure(SmallCNN, 8, 32, num_pairs)),
        )
        for name, row in rows.items()
    }
    for name, row in results.items():
        print(
            f"{name}: {row['added_ms']:.3f} ms ({row['added_ms_low']:.3f} to {row['added_ms_high']:.3f}) "
            f"on a step of {row['step_ms']:.1f} ms: {row['overhead_percent']:.2f} %"
        )
    if arguments.json:
        about = {"torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"environment": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
