"""Does the generalization gap of large batches come from too few updates? Hoffer, Hubara and Soudry 2017, Table 1.

    python studies/hoffer_2017_train_longer/run.py --smoke   # a minute: every part, a few updates
    python studies/hoffer_2017_train_longer/run.py --quick   # 20 minutes: batch 1024 and a shorter regime
    python studies/hoffer_2017_train_longer/run.py --full    # the runs behind results.json

Runs are kept under --runs and go on after a kill; the same command in two terminals shares the work.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.data import Subset

import anybatch
from anybatch import Milestones, Recipe, Workload
from anybatch.train.comparison import Comparison
from anybatch.workloads import load_workload

HERE = Path(__file__).parent
CLIP = 5.0  # in every published run

SB = Recipe("SB", "small batch", clip_norm=CLIP)
LB = Recipe("LB", "large batch, same regime", clip_norm=CLIP)
LR = Recipe("+LR", "square-root rate", lr_rule="sqrt", clip_norm=CLIP)
GBN = replace(LR, name="+GBN", description="+LR and ghost batch norm", ghost_batch_size="base")
RA = replace(GBN, name="+RA", description="+GBN and regime adaptation", adapts_regime=True)
NOISE = Recipe("noise", "base rate, multiplicative gradient noise", adds_noise=True, clip_norm=CLIP)
WARM = replace(LR, name="+LR, warm-up", description="+LR with 5 epochs in 90 of warm-up", warmup_share=1 / 18)
LONG = Recipe("SB long", "small batch, as many samples as +RA at 1024", clip_norm=CLIP)


def published(recipe: Recipe, reference_batch_size: int | None = None) -> Recipe:
    """Return a recipe as the published code runs it: the optimizer is made anew at each epoch."""
    return replace(
        recipe, name=f"{recipe.name} (published)", resets_momentum=True, reference_batch_size=reference_batch_size
    )


@dataclass(frozen=True)
class Part:
    """Some rows of the study, trained by one call of `compare`.

    Attributes:
        workload: builds it from the data's folder.
        batch_sizes: samples per step.
        recipes: tried at each.
        seeds: how many.
        epochs: at the base batch; None for the workload's own.
        lr_factors: on the recipe's rate.
    """

    workload: Callable[[Path], Workload]
    batch_sizes: Sequence[int]
    recipes: Sequence[Recipe]
    seeds: int = 3
    epochs: float | None = None
    lr_factors: Sequence[float] = (1.0,)


def f1(root: Path) -> Workload:
    """F1 on Fashion-MNIST in the published regime, crops and flips included."""
    return load_workload("f1-fashion-mnist", root)


def f1_plain(root: Path) -> Workload:
    """F1 without augmentation."""
    from anybatch.workloads.mnist import f1_fashion_mnist

    return replace(f1_fashion_mnist(root, augment=False), name="f1-fashion-mnist, no augmentation")


def f1_postponed(root: Path) -> Workload:
    """F1 with every drop of the rate ten epochs later."""
    return replace(f1(root), name="f1-fashion-mnist, drops postponed", schedule=Milestones((20, 30, 40)), epochs=60)


def resnet(root: Path) -> Workload:
    """ResNet-8 on 10,000 images of Fashion-MNIST at batch 64: a scale that two cores can train."""
    whole = load_workload("fashion-mnist-resnet", root)
    return replace(
        whole,
        name="resnet8, 10,000 images",
        train_set=Subset(whole.train_set, range(10_000)),
        base_batch_size=64,
        epochs=20,
        schedule=Milestones((10, 15)),
    )


def adamw(root: Path) -> Workload:
    """A perceptron of two hidden layers under AdamW."""
    whole = load_workload("fashion-mnist", root)
    return replace(
        whole, name="fashion-mnist, AdamW", optimizer=_adamw, epochs=10, schedule=Milestones((6, 8)), base_batch_size=64
    )


def _adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)


PLAIN, LINEAR, SQRT = (Recipe(rule, lr_rule=rule) for rule in ("none", "linear", "sqrt"))

# in the order of their worth, so that an early end leaves whole claims
FULL = {
    "f1 at 128": Part(f1, [128], [SB]),
    "f1 at 4096": Part(f1, [4096], [LB, LR, GBN, NOISE]),
    "f1 at 1024": Part(f1, [1024], [LB, LR, GBN]),
    "published": Part(f1, [4096], [published(LB), published(LR, 256), published(GBN)]),
    "published at 128": Part(f1, [128], [published(SB)]),
    "adaptation at 1024": Part(f1, [1024], [RA]),
    "no augmentation at 128": Part(f1_plain, [128], [SB]),
    "no augmentation at 4096": Part(f1_plain, [4096], [LB, LR, GBN, WARM]),
    "rates at 4096": Part(f1, [4096], [LB], seeds=1, lr_factors=[2, 4, 8, 16]),
    "resnet at 64": Part(resnet, [64], [SB]),
    "resnet at 512": Part(resnet, [512], [LB, LR, GBN, NOISE]),
    "resnet, adaptation": Part(resnet, [512], [RA]),
    "adamw at 64": Part(adamw, [64], [PLAIN]),
    "adamw at 2048": Part(adamw, [2048], [PLAIN, LINEAR, SQRT]),
    "postponed": Part(f1_postponed, [128], [SB], seeds=1),
    "long": Part(f1, [128], [LONG], seeds=1, epochs=400),
    "adaptation at 4096": Part(f1, [4096], [RA], seeds=1),
}


def run_part(part: Part, runs: Path, root: Path) -> Comparison:
    """Train what is missing of a part."""
    return anybatch.compare(
        part.workload(root),
        part.batch_sizes,
        part.recipes,
        seeds=part.seeds,
        epochs=part.epochs,
        lr_factors=part.lr_factors,
        runs=runs,
        num_evaluations=25,
        checkpoint_seconds=60,
    )


def main() -> None:
    """Train the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=HERE / "runs")
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", nargs="*", choices=FULL, help="some parts")
    arguments = parser.parse_args()
    for name in arguments.only or FULL:
        print(name, flush=True)
        comparison = run_part(FULL[name], arguments.runs, arguments.data_root)
        for row in comparison.table:
            print("  ", row.recipe, row.batch_size, row.lr_factor, row.metrics, flush=True)


if __name__ == "__main__":
    main()
