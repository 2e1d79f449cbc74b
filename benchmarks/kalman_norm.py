"""What does Kalman normalization cost, as a multiple of batch norm in the same network?

A training step (forward and backward, fixed random upstream gradient) and an evaluation of torchvision's ResNet-18 with
the stem of CIFAR, one thread: on 32 images in micro-batches of 2, where the layer has its bar, and on a real batch of
2, where work per weight and per layer weighs most. Batch norm and each way are timed in turn, by processor time
and in random order, so that other work on the machine meets both alike; a figure is the best of three medians. Peak
memory of a training step is beside it: what the step holds at most, as the allocator of the CPU reports it to the
profiler.

    OMP_NUM_THREADS=1 python benchmarks/kalman_norm.py --json benchmarks/results/kalman_norm.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from shared.turns import medians_of, seconds_of
from torch import Tensor, nn

from anybatch.nn import convert

KINDS = ("training_s", "evaluation_s", "peak_mib")
WAYS: dict[str, dict[str, Any] | None] = {
    "batch": None,
    "kalman": {},
    "kalman, raw": {"state_space": "raw"},
    "kalman, detached": {"detach_prior": True},
    "kalman, no prior": {"gain": "fixed", "prior_weight": 0.0},
}


def main() -> None:
    """Time every way and print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a tiny batch, one round, to see that it runs")
    parser.add_argument("--rounds", type=int, default=7, help="pairs per median")
    parser.add_argument("--json", type=Path, help="write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    num_rounds, batch_sizes = (1, (4,)) if arguments.smoke else (arguments.rounds, (32, 2))
    figures = {batch_size: measure(batch_size, num_rounds) for batch_size in batch_sizes}
    for batch_size, of_size in figures.items():
        for name, figure in of_size.items():
            ratios = {
                kind: figure[kind] / of_size["batch"][kind] for kind in ("training_s", "evaluation_s", "peak_mib")
            }
            texts = [f"{kind} {figure[kind]:.3g} ({ratio:.3f})" for kind, ratio in ratios.items()]
            spread = f"training by median {min(figure['training_ratios']):.3f} to {max(figure['training_ratios']):.3f}"
            print(f"{batch_size:>2} images, {name}:", ", ".join((*texts, spread)))
    if arguments.json:
        about = {"torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count(), "threads": 1}
        report = {"environment": about, "micro_batch_size": 2, "results": figures}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(batch_size: int, num_rounds: int) -> dict[str, dict[str, Any]]:
    """Return seconds of a training step and of an evaluation, mebibytes at the peak of a step, and ratios by median."""
    torch.manual_seed(0)
    images, grad = torch.randn(batch_size, 3, 32, 32), torch.randn(batch_size, 10)
    networks = {name: network(options, images) for name, options in WAYS.items()}
    steps = {name: _training_step(model, images, grad) for name, model in networks.items()}
    peaks = {name: peak_mebibytes(step) for name, step in steps.items()}
    in_training = medians_of(steps, num_rounds)
    for model in networks.values():
        model.eval()
    in_evaluation = seconds_of({name: _evaluation(model, images) for name, model in networks.items()}, num_rounds)
    return {
        name: {
            "training_s": min(seconds),
            "evaluation_s": in_evaluation[name],
            "peak_mib": peaks[name],
            "training_ratios": [own / batch for own, batch in zip(seconds, in_training["batch"], strict=True)],
        }
        for name, seconds in in_training.items()
    }


def network(options: dict[str, Any] | None, images: Tensor) -> nn.Module:
    """Return a ResNet-18 for small images with the norms of a way, always from the same weights."""
    torch.manual_seed(1)
    model = torchvision.models.resnet18(num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.add_module("maxpool", nn.Identity())
    if options is not None:
        convert(model, "kalman", example_inputs=images, micro_batch_size=2, **options)
    return model


def _training_step(model: nn.Module, images: Tensor, grad: Tensor) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad()
        model(images).backward(grad)

    return step


def _evaluation(model: nn.Module, images: Tensor) -> Callable[[], None]:
    def evaluate() -> None:
        with torch.no_grad():
            model(images)

    return evaluate


def peak_mebibytes(step: Callable[[], None]) -> float:
    """Return how much memory a step allocates at most, above what was there before, in MiB."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    assert profile.profiler is not None
    events: Any = profile.profiler.kineto_results
    held = most = 0
    for event in events.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / 2**20


if __name__ == "__main__":
    main()
