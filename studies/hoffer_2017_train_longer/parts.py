"""Which trainings does the study consist of? Workloads, recipes, and the parts in the order of what they tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.utils.data import Subset

from anybatch import Milestones, Recipe, Workload
from anybatch.workloads import load_workload
from anybatch.workloads.mnist import f1_fashion_mnist
from anybatch.workloads.networks import F1 as F1Network

RATE_FACTORS = (2.0, 4.0, 8.0, 16.0)  # tried on the rate of LB at 4096
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
    return replace(f1_fashion_mnist(root, augment=False), name="f1-fashion-mnist, no augmentation")


def f1_postponed(root: Path) -> Workload:
    """F1 with every drop of the rate ten epochs later."""
    return replace(f1(root), name="f1-fashion-mnist, drops postponed", schedule=Milestones((20, 30, 40)), epochs=60)


def f1_longer(root: Path) -> Workload:
    """F1 as long as with its drops postponed, and without postponing them."""
    return replace(f1(root), name="f1-fashion-mnist, 60 epochs", epochs=60)


def f1_short(root: Path) -> Workload:
    """F1 in a fifth of its regime, so that as many updates at 4096 take half an hour."""
    return replace(f1(root), name="f1-fashion-mnist, 10 epochs", schedule=Milestones((2, 4, 6)), epochs=10)


def f1_2017(root: Path) -> Workload:
    """F1 as the framework of 2017 made it: the scales of batch norm drawn from U(0, 1)."""

    def model() -> torch.nn.Module:
        network = F1Network()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                torch.nn.init.uniform_(module.weight)
        return network

    return replace(f1(root), name="f1-fashion-mnist, batch norm of 2017", model=model)


def resnet(root: Path) -> Workload:
    """ResNet-8 on 10,000 images of Fashion-MNIST at batch 64, drops at the published shares of ten epochs."""
    whole = load_workload("fashion-mnist-resnet", root)
    return replace(
        whole,
        name="resnet8, 10,000 images",
        train_set=Subset(whole.train_set, range(10_000)),
        base_batch_size=64,
        epochs=10,
        schedule=Milestones((4, 6, 8)),
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

# in the order of what they tell for their time, so that an early end leaves whole claims
FULL = {
    "f1 at 128": Part(f1, [128], [SB]),
    "f1 at 4096": Part(f1, [4096], [LB, LR, GBN, NOISE]),
    "warm-up": Part(f1, [4096], [WARM], seeds=1),
    "no augmentation at 128": Part(f1_plain, [128], [SB], seeds=1),
    "no augmentation at 4096": Part(f1_plain, [4096], [LB, LR, GBN, WARM], seeds=1),
    "rates at 4096": Part(f1, [4096], [LB], seeds=1, lr_factors=RATE_FACTORS),
    "adamw at 64": Part(adamw, [64], [PLAIN]),
    "adamw at 512": Part(adamw, [512], [PLAIN, LINEAR, SQRT]),
    "f1 at 1024": Part(f1, [1024], [LB, LR, GBN]),
    "adaptation at 1024": Part(f1, [1024], [RA]),
    "short at 128": Part(f1_short, [128], [SB]),
    "short at 4096": Part(f1_short, [4096], [LB, LR, GBN]),
    "short, adaptation at 4096": Part(f1_short, [4096], [RA], seeds=1),
    "resnet at 64": Part(resnet, [64], [SB]),
    "resnet at 512": Part(resnet, [512], [LB, LR, GBN, NOISE]),
    "resnet, adaptation": Part(resnet, [512], [RA], seeds=1),
    "published": Part(f1_2017, [4096], [published(LB), published(LR), published(GBN)]),
    "published at 128": Part(f1_2017, [128], [published(SB)], seeds=1),
    "scales of 2017": Part(f1_2017, [4096], [LB, LR], seeds=1),
    "optimizer anew": Part(f1, [4096], [published(LB), published(LR, 256)], seeds=1),
    "postponed": Part(f1_postponed, [128], [SB], seeds=1),
    "not postponed": Part(f1_longer, [128], [SB], seeds=1),
    "long": Part(f1, [128], [LONG], seeds=1, epochs=400),
    "adaptation at 4096": Part(f1, [4096], [RA], seeds=1),
}


QUICK = {
    "f1 at 128": Part(f1, [128], [SB], epochs=6),
    "f1 at 1024": Part(f1, [1024], [LB, LR, GBN], epochs=6),
    "adaptation at 1024": Part(f1, [1024], [RA], epochs=6),
}


def smoke(part: Part) -> Part:
    """Return a part that takes seconds: one seed, a slice of the data, a few updates."""

    def workload(root: Path) -> Workload:
        whole = part.workload(root)
        return replace(whole, train_set=Subset(whole.train_set, range(4096)))

    return replace(part, workload=workload, seeds=1, epochs=0.5)
