"""What does AGVM add to a step of a small Faster R-CNN, in percent?

As in `measuring_overhead.py` the added work is timed by itself, since whole steps scatter by more than the answer: the
backward pass of a loss that is linear in the parameters costs next to nothing and hands the same gradients to the same
hooks, buckets and optimizer. Its time plain, on a step between and on a measured step, in turns, tells what each adds;
that is set against the median of real steps.

    python benchmarks/agvm.py --json benchmarks/results/agvm.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from anybatch import AGVM
from anybatch.stats import MicroBatchHalves, RankHalves

IMAGES = 4  # per micro-batch and per rank
NUM_PARTS = 4
INTERVAL = 10
NUM_STEPS = 16
NUM_ROUNDS = 120


def main() -> None:
    """Time both sources and print what a step between, a measured one and their average add."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few repetitions, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    counts = (2, 3) if arguments.smoke else (NUM_STEPS, NUM_ROUNDS)
    rows = {
        f"accumulation, {NUM_PARTS} x {IMAGES} images": accumulation(*counts),
        f"2 processes x {IMAGES} images": ranks(*counts),
    }
    for name, row in rows.items():
        print(f"{name}: a step of {row['step_ms']:.0f} ms")
        for case in ("between", "measured", "average"):
            print(
                f"  {case}: {row[f'{case}_ms']:.2f} ms ({row[f'{case}_ms_low']:.2f} to {row[f'{case}_ms_high']:.2f}), "
                f"{row[f'{case}_percent']:.2f} %"
            )
    if arguments.json:
        about = {"torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"environment": about, "results": rows}, indent=2) + "\n")


def small_faster_rcnn() -> FasterRCNN:
    """Return a Faster R-CNN for images of 96x96: five convolutions and a pyramid of 32 channels."""
    widths = [3, 32, 64, 96, 128, 128]
    body = nn.Sequential()
    for index in range(5):
        convolution = nn.Conv2d(widths[index], widths[index + 1], 3, 1 if index == 4 else 2, padding=1, bias=False)
        body.append(nn.Sequential(convolution, nn.GroupNorm(8, widths[index + 1]), nn.ReLU()))
    backbone = BackboneWithFPN(body, {"1": "0", "2": "1", "4": "2"}, [64, 96, 128], 32)
    return FasterRCNN(
        backbone,
        min_size=96,
        max_size=96,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,), (96,)), ((0.5, 1.0, 2.0),) * 4),
        box_head=TwoMLPHead(32 * 7 * 7, 256),
        box_predictor=FastRCNNPredictor(256, num_classes=11),
        box_batch_size_per_image=64,
        rpn_pre_nms_top_n_train=200,
        rpn_post_nms_top_n_train=100,
    )


def loss_of_random_images(model: nn.Module) -> Tensor:
    """Return the loss on images of noise with three boxes each."""
    corners = torch.rand(IMAGES, 3, 2) * 48
    boxes = torch.cat([corners, corners + 16 + torch.rand(IMAGES, 3, 2) * 32], dim=2)
    targets = [{"boxes": own, "labels": torch.randint(1, 11, (3,))} for own in boxes]
    return sum(model(list(torch.rand(IMAGES, 3, 96, 96)), targets).values(), torch.zeros(()))


class LinearLoss(nn.Module):
    """A loss that costs next to nothing, and whose gradients are the model's of now, with noise of its own per part."""

    def __init__(self, model: nn.Module, num_parts: int, seed: int) -> None:
        super().__init__()
        self.model = model
        noise = torch.Generator().manual_seed(seed)
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        self._gradients = [
            [grad + grad.std() * torch.randn(grad.shape, generator=noise) for grad in grads] for _ in range(num_parts)
        ]

    def forward(self, part: int = 0) -> Tensor:
        """Return the scalar product of parameters and a part's gradient."""
        pairs = zip(self.model.parameters(), self._gradients[part], strict=True)
        return torch.stack([torch.dot(p.flatten(), g.flatten()) for p, g in pairs]).sum()


def accumulation(num_steps: int, num_rounds: int) -> dict[str, float]:
    """Time one accumulation step on one device."""
    model, step_ms = _trained(num_steps, NUM_PARTS, lambda model: model)
    linear = LinearLoss(model, NUM_PARTS, seed=0)
    bare, optimizer, agvm = _optimizers(linear)
    source = MicroBatchHalves(linear, agvm.module_prefixes)

    losses: list[Tensor] = []

    def prepare() -> None:
        losses[:] = [linear(part) for part in range(NUM_PARTS)]
        linear.zero_grad()

    def step(stepped: torch.optim.Optimizer, measures: bool = False) -> None:
        for loss in losses:
            with source.sub_batch(IMAGES, 1 / NUM_PARTS) if measures else nullcontext():
                loss.backward()
        if measures:
            agvm.observe(source.finish())
        stepped.step()

    actions = (lambda: step(bare), lambda: step(optimizer), lambda: step(optimizer, measures=True))
    return _row(step_ms, in_turns(actions, prepare, num_rounds))


def in_turns(actions: Sequence[Callable[[], None]], prepare: Callable[[], None], num_rounds: int) -> list[list[float]]:
    """Time actions round by round, each round beginning with another one, so that none is favoured by its place.

    Args:
        actions: what is timed.
        prepare: is called before each.
        num_rounds: how often.

    Returns:
        Per round the seconds of each action, in their order.
    """
    rounds = []
    for first in range(num_rounds):
        seconds = dict.fromkeys(range(len(actions)), 0.0)
        for place in range(len(actions)):
            index = (first + place) % len(actions)
            prepare()
            seconds[index] = _seconds(actions[index])
        rounds.append(list(seconds.values()))
    return rounds


def ranks(num_steps: int, num_rounds: int) -> dict[str, float]:
    """Time one data-parallel step of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results: Any = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_rank, args=(port, num_steps, num_rounds, results), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    return results.get()


def _rank(rank: int, port: int, num_steps: int, num_rounds: int, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model, step_ms = _trained(num_steps, 1, DistributedDataParallel)
    linear = LinearLoss(model, 1, seed=rank)
    plain_ddp, hooked_ddp = DistributedDataParallel(linear), DistributedDataParallel(linear)
    bare, optimizer, agvm = _optimizers(linear)
    source = RankHalves(hooked_ddp, agvm.module_prefixes)

    def step(ddp: nn.Module, stepped: torch.optim.Optimizer, measures: bool = False) -> None:
        with source.sub_batch(IMAGES) if measures else nullcontext():
            ddp().backward()
        if measures:
            agvm.observe(source.finish())
        stepped.step()

    def prepare() -> None:
        linear.zero_grad()
        dist.barrier()

    actions = (
        lambda: step(plain_ddp, bare),
        lambda: step(hooked_ddp, optimizer),
        lambda: step(hooked_ddp, optimizer, measures=True),
    )
    rounds = in_turns(actions, prepare, num_rounds)
    if rank == 0:
        results.put(_row(step_ms, rounds))
    dist.barrier()  # a rank that leaves while another one still talks can abort
    dist.destroy_process_group()


def _trained(num_steps: int, num_parts: int, wrap: Callable[[nn.Module], nn.Module]) -> tuple[nn.Module, float]:
    """Return the model with gradients, and the median milliseconds of a real step."""
    torch.manual_seed(0)
    inner = small_faster_rcnn()
    model = wrap(inner)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        for _ in range(num_parts):
            (loss_of_random_images(model) / num_parts).backward()
        optimizer.step()

    return inner, 1e3 * median(_seconds(step) for _ in range(num_steps))


def _optimizers(linear: LinearLoss) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer, AGVM]:
    """Return a bare optimizer and one with AGVM whose scales are at work, both over all parameters."""
    bare, optimizer = (torch.optim.SGD(linear.parameters(), lr=0.0, momentum=0.9) for _ in range(2))
    prefixes = {
        "backbone": "model.backbone.body",
        "fpn": "model.backbone.fpn",
        "rpn": "model.rpn",
        "box_head": "model.roi_heads",
    }
    agvm = AGVM(optimizer, linear, prefixes)
    agvm.observe({"backbone": 1.0, "fpn": 0.8, "rpn": 0.6, "box_head": 0.4})
    return bare, optimizer, agvm


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _row(step_ms: float, rounds: list[list[float]]) -> dict[str, float]:
    """Return what is added to a step: between measurements, on a measured one, and on average over an interval."""
    between = [1e3 * (hooked - plain) for plain, hooked, _ in rounds]
    measured = [1e3 * (recorded - plain) for plain, _, recorded in rounds]
    average = [((INTERVAL - 1) * b + m) / INTERVAL for b, m in zip(between, measured, strict=True)]
    row = {"step_ms": step_ms}
    for name, added in (("between", between), ("measured", measured), ("average", average)):
        low, middle, high = quantiles(added, n=4)
        row |= {f"{name}_ms": middle, f"{name}_ms_low": low, f"{name}_ms_high": high}
        row[f"{name}_percent"] = 100 * middle / step_ms
    return row


if __name__ == "__main__":
    main()
