"""Does everything hold on a GPU, and what does it cost there?

    make gpu-check

runs the tests that need a GPU, then times measuring and ghost batch norm on it, and writes one JSON to attach.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor, nn

from anybatch.nn import GhostBatchNorm2d
from anybatch.stats import MicroBatches
from anybatch.train.environment import describe_environment
from anybatch.train.runtime import Runtime
from anybatch.workloads.char_lm import CONTEXT, CharTransformer
from anybatch.workloads.fashion_mnist import SmallResNet

ROOT = Path(__file__).parent.parent.parent
NO_GPU = "gpu-check needs a CUDA device, and torch sees none. Run it on a machine with one; nothing was written."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run tests and benchmarks and write the record; return 1 without a GPU or where a test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"), help="where the record is written")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 1
    device = torch.device("cuda")
    outcomes = run_tests(["-m", "gpu", "tests"], ROOT)
    record = {
        "environment": describe_environment(Runtime(device)) | {"cuda": torch.version.cuda},
        "tests": outcomes,
        "benchmarks": [measure(device) for measure in (measure_micro_batches, measure_ghost_batch_norm, time_char_lm)],
    }
    options.json.write_text(json.dumps(record, indent=1) + "\n")
    failed = [name for name, outcome in outcomes.items() if outcome not in ("passed", "skipped")]
    print(f"{len(outcomes)} tests, {len(failed)} failed; wrote {options.json}")
    return int(bool(failed) or not outcomes)


def run_tests(options: Sequence[str], folder: Path) -> dict[str, str]:
    """Return the outcome of each test that pytest runs: passed, skipped, failure or error."""
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "tests.xml"
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *options], cwd=folder, check=False
        )
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    return {f"{case.get('classname')}.{case.get('name')}": _outcome(case) for case in cases}


def _outcome(case: ElementTree.Element) -> str:
    return next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")


def measure_micro_batches(device: torch.device, rounds: int = 30, size: int = 256) -> dict[str, Any]:
    """Time a step of four micro-batches with and without `MicroBatches`, in turn."""
    model = SmallResNet().to(device)
    images, labels = torch.randn(size, 1, 28, 28, device=device), torch.randint(10, (size,), device=device)
    parts = [(images, labels)] * 4

    def loss(part: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(part[0]), part[1]) / len(parts)

    def plain() -> None:
        model.zero_grad()
        for part in parts:
            loss(part).backward()

    source = MicroBatches(model)

    def measured() -> None:
        model.zero_grad()
        for part in parts:
            with source.sub_batch(size):
                loss(part).backward()
        source.finish()

    return compare(f"MicroBatches, small ResNet, 4 x {size}", measured, plain, device, rounds)


def measure_ghost_batch_norm(device: torch.device, rounds: int = 30, size: int = 512) -> dict[str, Any]:
    """Time a ghost layer of parts of 32 beside `nn.BatchNorm2d`, forward and backward, in turn."""
    images = torch.randn(size, 64, 16, 16, device=device, requires_grad=True)
    ghost = GhostBatchNorm2d(64, ghost_batch_size=min(32, size)).to(device)
    batch = nn.BatchNorm2d(64).to(device)

    def pass_through(layer: nn.Module) -> Callable[[], None]:
        return lambda: layer(images).square().sum().backward()

    return compare(f"ghost batch norm, {size} x 64 x 16 x 16", pass_through(ghost), pass_through(batch), device, rounds)


def time_char_lm(device: torch.device, rounds: int = 30, size: int = 64) -> dict[str, Any]:
    """Time a pass of the character model in bfloat16 beside one in full precision, in turn."""
    model = CharTransformer().to(device)
    tokens = torch.randint(97, (size, CONTEXT), device=device)

    def step(*, in_half: bool) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=in_half):
            logits = model(tokens)
        nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens.flatten()).backward()

    return compare(
        f"char-lm in bfloat16, {size} x {CONTEXT}",
        lambda: step(in_half=True),
        lambda: step(in_half=False),
        device,
        rounds,
    )


def compare(
    name: str, ours: Callable[[], None], theirs: Callable[[], None], device: torch.device, rounds: int
) -> dict[str, Any]:
    """Return medians and the median ratio of two functions called in turn, after two calls that do not count."""
    for function in (ours, theirs) * 2:
        _seconds(function, device)
    pairs = [(_seconds(ours, device), _seconds(theirs, device)) for _ in range(rounds)]
    ratios = [one / other for one, other in pairs]
    return {
        "name": name,
        "ours_s": median(one for one, _ in pairs),
        "theirs_s": median(other for _, other in pairs),
        "ratio": median(ratios),
        "rounds": rounds,
    }


def _seconds(function: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
