"""What does ghost batch norm cost, as a multiple of PyTorch's batch norm?

Forward and backward of the layers in training, one thread. Every round times every way once, by processor time and in
random order, so that other work on the machine and memory left over by another way meet all alike; the figures are
the least of three medians over rounds. Beside batch norm stand what a user would write without the layer: a Python loop
of batch norm over the ghost batches, and, for maps with the channels last in memory, a conversion to channels first and
back.

    OMP_NUM_THREADS=1 python benchmarks/ghost_batch_norm.py --json benchmarks/results/ghost_batch_norm.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from shared.turns import seconds_of
from torch import Tensor, nn

from anybatch.nn import GhostBatchNorm1d, GhostBatchNorm2d

# shape, ghost batch size, whether the channels are last in memory
CASES = (
    ((128, 64, 32, 32), 32, False),
    ((128, 128, 16, 16), 32, False),
    ((128, 256, 8, 8), 32, False),
    ((512, 512, 4, 4), 128, False),
    ((128, 512, 4, 4), 32, False),
    ((128, 512, 2, 2), 32, False),
    ((128, 64, 32, 32), 32, True),
    ((128, 256, 8, 8), 32, True),
    ((128, 512, 4, 4), 32, True),
    ((1024, 64), 32, False),
    ((128, 512), 32, False),
    ((512, 512), 128, False),
    ((1024, 512), 128, False),
    ((4096, 512), 128, False),
)
VALUES_PER_MEDIAN = 2e8


def main() -> None:
    """Time every case and print milliseconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="the smallest case, three rounds, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for shape, ghost_batch_size, channels_last in CASES[-5:-4] if arguments.smoke else CASES:
        num_rounds = 3 if arguments.smoke else num_rounds_for(shape)
        milliseconds = measure(shape, ghost_batch_size, channels_last, num_rounds)
        rows.append(
            {
                "shape": shape,
                "ghost_batch_size": ghost_batch_size,
                "channels_last": channels_last,
                "rounds_per_median": num_rounds,
                "milliseconds": milliseconds,
            }
        )
        times = ", ".join(
            f"{way} {each:.2f} ms ({each / milliseconds['batch']:.2f})" for way, each in milliseconds.items()
        )
        layout = ", channels last" if channels_last else ""
        print(f"{shape}{layout}, ghost batch size {ghost_batch_size}: {times}")
    if arguments.json:
        about = {"torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count(), "threads": 1}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"environment": about, "results": rows}, indent=2) + "\n")


def num_rounds_for(shape: tuple[int, ...]) -> int:
    """Return how many rounds give a steady median in seconds: more for a small input."""
    return max(25, min(400, int(VALUES_PER_MEDIAN / torch.Size(shape).numel())))


def measure(shape: tuple[int, ...], ghost_batch_size: int, channels_last: bool, num_rounds: int) -> dict[str, float]:
    """Return the milliseconds of each way, forward and backward: the least of three medians."""
    torch.manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    inputs, grad = (torch.randn(shape).contiguous(memory_format=memory_format) for _ in range(2))
    inputs.requires_grad_()
    ways = ways_for(shape, ghost_batch_size, channels_last)
    calls = {name: _step(way, inputs, grad) for name, way in ways.items()}
    return {name: 1e3 * seconds for name, seconds in seconds_of(calls, num_rounds).items()}


def ways_for(
    shape: tuple[int, ...], ghost_batch_size: int, channels_last: bool
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return batch norm, ghost batch norm and what could stand in for it."""
    is_flat = len(shape) == 2
    batch = (nn.BatchNorm1d if is_flat else nn.BatchNorm2d)(shape[1])
    chunked = (nn.BatchNorm1d if is_flat else nn.BatchNorm2d)(shape[1])
    ghost = (GhostBatchNorm1d if is_flat else GhostBatchNorm2d)(shape[1], ghost_batch_size=ghost_batch_size)

    def loop(x: Tensor) -> Tensor:
        return torch.cat([chunked(part) for part in x.split(ghost_batch_size)])

    def converted(x: Tensor) -> Tensor:
        return ghost(x.contiguous()).contiguous(memory_format=torch.channels_last)

    ways = {"batch": batch, "ghost": ghost, "loop": loop}
    return {**ways, "converted": converted} if channels_last else ways


def _step(way: Callable[[Tensor], Tensor], inputs: Tensor, grad: Tensor) -> Callable[[], None]:
    def step() -> None:
        way(inputs).backward(grad)
        inputs.grad = None

    return step


if __name__ == "__main__":
    main()
