"""Does the generalization gap of large batches come from too few updates? Hoffer, Hubara and Soudry 2017, Table 1.

    python studies/hoffer_2017_train_longer/run.py --smoke   # a minute: every part, a few updates
    python studies/hoffer_2017_train_longer/run.py --quick   # 20 minutes: batch 1024 and a shorter regime
    python studies/hoffer_2017_train_longer/run.py --full    # the runs behind results.json

Runs are kept under --runs and go on after a kill; the same command in two terminals shares the work.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.data import Subset

sys.path.append(str(Path(__file__).parents[1]))

from command import is_own_record, keep_finished, read_arguments
from reporting import claims_section, rewrite_results
from verdicts import Claim, judge_difference, welch_error

import anybatch
from anybatch import AnybatchError, Milestones, Recipe, Workload
from anybatch.apply.sample_stream import Keys
from anybatch.decide import DistanceLaw, choose_distance_law, fit_distance_law
from anybatch.decide.distance_law import DECISIVE
from anybatch.stats.weight_distance import log_spaced
from anybatch.train.comparison import Comparison, Run
from anybatch.train.data import SeededDataset
from anybatch.train.plain import plain, write_text
from anybatch.workloads import load_workload
from anybatch.workloads.networks import F1 as F1Network

HERE = Path(__file__).parent
SLOPE_WINDOWS = {1024: (50, 530), 4096: (20, 130)}  # updates at the first rate, of both batch sizes
STRAIGHT = 0.9  # R2 below which a walk is no line against log updates
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
    from anybatch.workloads.mnist import f1_fashion_mnist

    return replace(f1_fashion_mnist(root, augment=False), name="f1-fashion-mnist, no augmentation")


def f1_postponed(root: Path) -> Workload:
    """F1 with every drop of the rate ten epochs later."""
    return replace(f1(root), name="f1-fashion-mnist, drops postponed", schedule=Milestones((20, 30, 40)), epochs=60)


def f1_longer(root: Path) -> Workload:
    """F1 as long as with its drops postponed, and without postponing them."""
    return replace(f1(root), name="f1-fashion-mnist, 60 epochs", epochs=60)


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
    "published": Part(f1_2017, [4096], [published(LB), published(LR), published(GBN)]),
    "published at 128": Part(f1_2017, [128], [published(SB)], seeds=1),
    "scales of 2017": Part(f1_2017, [4096], [LB, LR], seeds=1),
    "optimizer anew": Part(f1, [4096], [published(LB), published(LR, 256)], seeds=1),
    "postponed": Part(f1_postponed, [128], [SB], seeds=1),
    "not postponed": Part(f1_longer, [128], [SB], seeds=1),
    "resnet at 64": Part(resnet, [64], [SB]),
    "resnet at 512": Part(resnet, [512], [LB, LR, GBN, NOISE]),
    "resnet, adaptation": Part(resnet, [512], [RA]),
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


def train_part(part: Part, arguments: argparse.Namespace) -> Comparison:
    """Train what is missing of a part, or read what is there."""
    return anybatch.compare(
        part.workload(arguments.data_root),
        part.batch_sizes,
        part.recipes,
        seeds=part.seeds,
        epochs=part.epochs,
        lr_factors=part.lr_factors,
        runs=arguments.runs,
        num_evaluations=2 if arguments.size == "smoke" else 25,
        max_eval_samples=500 if arguments.size == "smoke" else 10_000,
        checkpoint_seconds=60,
        finished_only=arguments.finished_only,
    )


# what the runs say


@dataclass(frozen=True)
class Cell:
    """One recipe at one batch size and rate: what its finished runs came to.

    Attributes:
        metrics: figure -> one value per run, accuracies in percent.
        laws: of the walk of all weights, of the runs that have one.
        first_laws: the same of the first tensor alone.
        runs: themselves; empty where a row of earlier results tells of them.
        num_diverged: runs without figures.
    """

    metrics: Mapping[str, Sequence[float]]
    laws: tuple[DistanceLaw, ...]
    first_laws: tuple[DistanceLaw, ...] = ()
    runs: tuple[Run, ...] = ()
    num_diverged: int = 0

    @property
    def num_finished(self) -> int:
        """Runs with figures."""
        return max(map(len, self.metrics.values()), default=0)

    def values(self, name: str) -> Sequence[float]:
        """Return a figure per seed."""
        return self.metrics[name]

    def mean(self, name: str) -> float:
        """Return its mean."""
        return statistics.mean(self.values(name))

    def sd(self, name: str) -> float | None:
        """Return its standard deviation over seeds; None of one."""
        return statistics.stdev(self.values(name)) if self.num_finished > 1 else None


Key = tuple[str, str, int, float]  # part, recipe, batch size, factor on the rate
Found = dict[Key, Cell]


def collect(comparisons: Mapping[str, Comparison]) -> Found:
    """Return what the runs came to."""
    found: dict[Key, list[Run]] = {}
    for name, comparison in comparisons.items():
        for run in comparison.runs:
            found.setdefault((name, run.recipe, run.batch_size, run.lr_factor), []).append(run)
    return {key: _cell_of_runs(runs) for key, runs in found.items()}


def _cell_of_runs(runs: Sequence[Run]) -> Cell:
    done = tuple(run for run in runs if run.status == "done")
    metrics = {
        name: [100 * run.metrics[name] if "accuracy" in name else run.metrics[name] for run in done]
        for name in (done[0].metrics if done else ())
    }
    laws, first_laws = (
        tuple(law for run in done if (law := law_of(run))) for law_of in (lambda run: run.distance_law, _first_law)
    )
    return Cell(metrics, laws, first_laws, done, len(runs) - len(done))


def _first_law(run: Run) -> DistanceLaw | None:
    return run.tensor_laws.get(next(iter(run.distance[0]["tensors"])))


def _cell_of_row(row: Mapping[str, Any]) -> Cell:
    metrics = {name: figure["values"] for name, figure in row["metrics"].items()}
    laws, first_laws = (
        tuple(DistanceLaw(**law) for law in row.get(name, ()) if law) for name in ("distance", "distance_of_first")
    )
    return Cell(metrics, laws, first_laws, num_diverged=row["diverged"])


class Expected(NamedTuple):
    """One recipe at least as accurate as another, less a margin in points."""

    id: str
    statement: str
    source: str
    paper: str
    better: tuple[str, str, int]
    worse: tuple[str, str, int]
    margin: float = 0.0


F1, MALLADI = "Table 1, F1 on MNIST", "Malladi et al. 2022"
SMALL, AT_1024, AT_4096 = ("f1 at 128", "SB", 128), "f1 at 1024", "f1 at 4096"
RESNET, PUBLISHED, BARE = "resnet at 512", "published", "no augmentation at 4096"
SMALL_RESNET, SMALL_BARE = ("resnet at 64", "SB", 64), ("no augmentation at 128", "SB", 128)
ADAMW = "adamw at 512"
EXPECTED = (
    Expected("gap-1024", "LB < SB at 1024: a larger batch generalizes worse", "Figure 1", "grows with the batch",
             SMALL, (AT_1024, "LB", 1024)),
    Expected("gap-4096", "LB < SB at 4096", F1, "97.05 < 98.27", SMALL, (AT_4096, "LB", 4096)),
    Expected("lr-1024", "+LR > LB at 1024: the square-root rate closes a part of the gap", F1, "97.55 > 97.05",
             (AT_1024, "+LR", 1024), (AT_1024, "LB", 1024)),
    Expected("lr-4096", "+LR > LB at 4096", F1, "97.55 > 97.05", (AT_4096, "+LR", 4096), (AT_4096, "LB", 4096)),
    Expected("gbn-1024", "+GBN >= +LR at 1024: ghost batch norm closes more", F1, "97.60 >= 97.55",
             (AT_1024, "+GBN", 1024), (AT_1024, "+LR", 1024)),
    Expected("gbn-4096", "+GBN >= +LR at 4096", F1, "97.60 >= 97.55", (AT_4096, "+GBN", 4096), (AT_4096, "+LR", 4096)),
    Expected("ra-1024", "+RA >= SB - 0.2 at 1024: as many updates close it", F1, "98.53 >= 98.07",
             ("adaptation at 1024", "+RA", 1024), SMALL, 0.2),
    Expected("ra-4096", "+RA >= SB - 0.2 at 4096", F1, "98.53 >= 98.07",
             ("adaptation at 4096", "+RA", 4096), SMALL, 0.2),
    Expected("ra-long", "+RA at 1024 >= SB with as many samples", "control", "none",
             ("adaptation at 1024", "+RA", 1024), ("long", "SB long", 128)),
    Expected("noise-4096", "noise > LB at 4096: multiplicative noise does what the rate does", "section 4", "no figure",
             (AT_4096, "noise", 4096), (AT_4096, "LB", 4096)),
    Expected("postponed", "dropping the rate ten epochs later does not hurt, 60 epochs either way", "abstract",
             "it helps", ("postponed", "SB", 128), ("not postponed", "SB", 128)),
    Expected("published-gap", "LB < SB as published: batch norm of 2017, optimizer anew", F1, "97.05 < 98.27",
             ("published at 128", "SB (published)", 128), (PUBLISHED, "LB (published)", 4096)),
    Expected("published-lr", "+LR > LB in the same way", F1, "97.55 > 97.05",
             (PUBLISHED, "+LR (published)", 4096), (PUBLISHED, "LB (published)", 4096)),
    Expected("published-gbn", "+GBN >= +LR in the same way", F1, "97.60 >= 97.55",
             (PUBLISHED, "+GBN (published)", 4096), (PUBLISHED, "+LR (published)", 4096)),
    Expected("bare-gap", "LB < SB without augmentation", F1, "97.05 < 98.27", SMALL_BARE, (BARE, "LB", 4096)),
    Expected("bare-lr", "+LR > LB without augmentation", F1, "97.55 > 97.05", (BARE, "+LR", 4096), (BARE, "LB", 4096)),
    Expected("bare-gbn", "+GBN >= +LR without augmentation", F1, "97.60 >= 97.55",
             (BARE, "+GBN", 4096), (BARE, "+LR", 4096)),
    Expected("bare-warm", "warm-up helps +LR without augmentation", "slides", "clipping acts as warm-up",
             (BARE, "+LR, warm-up", 4096), (BARE, "+LR", 4096)),
    Expected("resnet-gap", "LB < SB, ResNet-8", "Table 1, ResNet44", "86.10 < 92.83",
             SMALL_RESNET, (RESNET, "LB", 512)),
    Expected("resnet-lr", "+LR > LB, ResNet-8", "Table 1, ResNet44", "89.30 > 86.10",
             (RESNET, "+LR", 512), (RESNET, "LB", 512)),
    Expected("resnet-gbn", "+GBN >= +LR, ResNet-8", "Table 1, ResNet44", "90.50 >= 89.30",
             (RESNET, "+GBN", 512), (RESNET, "+LR", 512)),
    Expected("resnet-noise", "noise > LB, ResNet-8", "section 4", "no figure",
             (RESNET, "noise", 512), (RESNET, "LB", 512)),
    Expected("resnet-ra", "+RA >= SB - 0.2, ResNet-8", "Table 1, ResNet44", "93.07 >= 92.63",
             ("resnet, adaptation", "+RA", 512), SMALL_RESNET, 0.2),
    Expected("warm-up", "warm-up helps +LR at 4096", "slides", "clipping acts as warm-up",
             ("warm-up", "+LR, warm-up", 4096), (AT_4096, "+LR", 4096)),
    Expected("scales-lr", "+LR > LB with the batch norm of 2017", F1, "97.55 > 97.05",
             ("scales of 2017", "+LR", 4096), ("scales of 2017", "LB", 4096)),
    Expected("anew-lr", "+LR (from 256) > LB with the optimizer made anew alone", F1, "97.55 > 97.05",
             ("optimizer anew", "+LR (published)", 4096), ("optimizer anew", "LB (published)", 4096)),
    Expected("adam-sqrt", "AdamW: sqrt, betas and epsilon moved > the rate as it is", MALLADI, "keeps the small batch",
             (ADAMW, "sqrt", 512), (ADAMW, "none", 512)),
    Expected("adam-keeps", "AdamW: sqrt at 512 >= the small batch, 64, - 0.2", MALLADI, "keeps the small batch",
             (ADAMW, "sqrt", 512), ("adamw at 64", "none", 64), 0.2),
    Expected("adam-linear", "AdamW: sqrt > linear", MALLADI, "linear fails", (ADAMW, "sqrt", 512),
             (ADAMW, "linear", 512)),
)  # fmt: skip


def judge(found: Found) -> list[Claim]:
    """Put every expected ordering beside its runs; one without runs is left out."""
    claims = []
    for expected in EXPECTED:
        better, worse = (found.get((*key, 1.0)) for key in (expected.better, expected.worse))
        if better is not None and worse is not None:
            claims.append(_judged(expected, better, worse))
    return [*claims, *judge_rates(found), *judge_laws(found)]


def judge_rates(found: Found) -> list[Claim]:
    """Say whether the rate that is best at 4096 is about the one of the square-root rule."""
    cells = {1.0: found.get((AT_4096, "LB", 4096, 1.0))}
    cells |= {float(factor): found.get(("rates at 4096", "LB", 4096, factor)) for factor in RATE_FACTORS}
    known = {factor: cell for factor, cell in cells.items() if cell is not None}
    means = {factor: cell.mean("eval_accuracy") for factor, cell in known.items() if cell.num_finished}
    if len(known) < len(cells) or not means:
        return []
    best, rule = max(means, key=lambda factor: means[factor]), math.sqrt(4096 / 128)
    words = [f"x{factor:g} {f'{means[factor]:.2f}' if factor in means else 'diverged'}" for factor in cells]
    claim = Claim(
        "rates-4096",
        "F1, Fashion-MNIST: of rates a factor 2 apart, the best at 4096 lies next to the square root's, x5.66",
        "section 3, +LR",
        "the rate grows with the square root of the batch",
        f"{', '.join(words)}: the best is x{best:g}",
        "one seed each, the rates compared on the evaluation set",
        1,
        "reproduced" if best / 2 < rule < 2 * best else "not",
    )
    return [claim]


def _judged(expected: Expected, better: Cell, worse: Cell) -> Claim:
    name, where = "eval_accuracy", expected.better[0]
    model = (
        "ResNet-8, 10,000 images" if "resnet" in where else "MLP, AdamW" if "adamw" in where else "F1, Fashion-MNIST"
    )
    about = (expected.id, f"{model}: {expected.statement}", expected.source, expected.paper)
    seeds = min(cell.num_finished + cell.num_diverged for cell in (better, worse))
    if not better.num_finished or not worse.num_finished:
        ours = f"all of {'the second' if better.num_finished else 'the first'} diverged"
        return Claim(*about, ours, "", seeds, "reproduced" if better.num_finished else "not")
    gap = better.mean(name) - worse.mean(name)
    error = welch_error(better.values(name), worse.values(name))
    spread = "one seed" if error is None else f"95% interval of the difference {gap - error:+.2f} to {gap + error:+.2f}"
    ours = f"{_shown(better, name)} against {_shown(worse, name)}: {gap:+.2f} points"
    return Claim(*about, ours, spread, seeds, judge_difference(gap + expected.margin, error))


def judge_laws(found: Found) -> list[Claim]:
    """Say which law the weights' walk follows at the first rate, and whether its slope keeps with the batch.

    Of all weights, and of the first tensor alone, which is what the authors' code measures.
    """
    cells = {key[1:3]: cell for key, cell in found.items() if key[3] == 1 and key[0] in (SMALL[0], AT_1024, AT_4096)}
    whole = _judge_law("log-law", "||w - w0||", {key: cell.laws for key, cell in cells.items()})
    first = _judge_law(
        "log-law-first", "the first tensor's ||w - w0||", {key: cell.first_laws for key, cell in cells.items()}
    )
    return [*whole, *first, *_judge_slopes(cells)]


def _judge_law(id_: str, what: str, laws: Mapping[tuple[str, int], Sequence[DistanceLaw]]) -> list[Claim]:
    known = {key: fits for key, fits in laws.items() if fits}
    if not known:
        return []
    totals = {key: sum(fit.aicc_difference for fit in fits) for key, fits in known.items()}
    better = [choose_distance_law([total]) for total in totals.values()]
    words = [
        f"{recipe} at {size}: {law} ({totals[recipe, size]:+.1f}; mean R2 "
        f"{statistics.mean(fit.r2_log for fit in fits):.3f} of the log, "
        f"{statistics.mean(fit.r2_power for fit in fits):.3f} of the power)"
        for ((recipe, size), fits), law in zip(known.items(), better, strict=True)
    ]
    claim = Claim(
        id_,
        f"F1, Fashion-MNIST: {what} grows as the logarithm of updates at the first rate, not as a power of them",
        "Figure 2, ResNet44 on CIFAR-10",
        "straight against log updates from 1,000 to 20,000",
        "; ".join(words),
        f"AICc of the power less that of the log, added over seeds; decisive from {DECISIVE:.1f}",
        min(map(len, known.values())),
        "reproduced" if set(better) == {"log"} else "not" if better.count("power") > better.count("log") else "partly",
    )
    return [claim]


def _judge_slopes(cells: dict[tuple[str, int], Cell]) -> list[Claim]:
    """Compare slopes over the same updates, since any curve that bends has another slope elsewhere."""
    claims = []
    for size, window in SLOPE_WINDOWS.items():
        wanted = {"SB": ("SB", 128), "LB": ("LB", size), "+GBN": ("+GBN", size)}
        if not all(key in cells and cells[key].runs and cells[key].laws for key in wanted.values()):
            continue
        laws = {name: [_law(run, window) for run in cells[key].runs] for name, key in wanted.items()}
        slopes = {name: [law.slope for law in fitted] for name, fitted in laws.items()}
        worst = min(law.r2_log for fitted in laws.values() for law in fitted)
        small, large, ghost = (statistics.mean(slopes[name]) for name in wanted)
        falls, returns = large < small, abs(ghost - small) < abs(large - small)
        if worst < STRAIGHT:  # what is no line has no slope to compare
            falls = returns = False
        sds = [f"{name} {statistics.stdev(v):.2f}" for name, v in slopes.items() if len(v) > 1]
        claims.append(
            Claim(
                f"slopes-{size}",
                f"F1, Fashion-MNIST: the slope falls with the batch ({size} for 128), and +LR with +GBN restores it",
                "Figure 2, ResNet44 on CIFAR-10",
                "2.05 at 128, 1.36 at 1024 before; 2.1 and 2.0 after",
                f"slope per ln t of SB {small:.2f}, LB {large:.2f}, +GBN {ghost:.2f}, all over updates {window}",
                "sd over seeds: " + (", ".join(sds) or "one seed") + f"; R2 of the worst line {worst:.2f}",
                min(map(len, slopes.values())),
                "reproduced" if falls and returns else "partly" if falls or returns else "not",
            )
        )
    return claims


def _distance_at(run: Run, update: int) -> float:
    return next(line["distance"] for line in run.distance if line["updates"] == update)


def _law(run: Run, window: tuple[int, int]) -> DistanceLaw:
    lines = [line for line in run.distance if line["updates"] in set(log_spaced(run.updates))]
    updates, distances = zip(*[(line["updates"], line["distance"]) for line in lines], strict=True)
    return fit_distance_law(updates, distances, window)


def _shown(cell: Cell, name: str) -> str:
    sd = cell.sd(name)
    return f"{cell.mean(name):.2f}" + ("" if sd is None else f" ± {sd:.2f}")


def join_results(
    comparisons: Mapping[str, Comparison], earlier: Mapping[str, Any], more: Sequence[Claim] = ()
) -> dict[str, Any]:
    """Return what results.json holds: what the runs came to, and earlier rows that as many runs do not replace.

    Args:
        comparisons: by part.
        earlier: what results.json held before; empty for nothing.
        more: claims that no row tells of.

    Returns:
        Plain values; claims are judged over all rows, and earlier ones stay where that takes more than rows.
    """
    found = collect(comparisons)
    rows = {key: _row_of(key, cell) for key, cell in found.items() if cell.runs}
    for row in earlier.get("rows", ()):
        key = (row["part"], row["recipe"], row["batch_size"], row["lr_factor"])
        cell = found.get(key)
        is_replaced = cell is not None and cell.num_finished + cell.num_diverged >= row["seeds"] + row["diverged"]
        if row["part"] in FULL and not is_replaced:
            rows[key], found[key] = row, _cell_of_row(row)
    claims = {claim.id: plain(claim) for claim in [*judge(found), *more]}
    environments = [run.environment for cell in found.values() for run in cell.runs]
    missing = set(earlier.get("incomplete", ())) - comparisons.keys()
    missing |= {name for name, comparison in comparisons.items() if comparison.partial}
    return {
        "environment": next(iter(environments), earlier.get("environment")),
        "incomplete": [name for name in FULL if name in missing],
        "rows": sorted(rows.values(), key=lambda row: list(FULL).index(row["part"])),
        "claims": list({**claims, **{c["id"]: c for c in earlier.get("claims", ()) if c["id"] not in claims}}.values()),
    }


def _row_of(key: Key, cell: Cell) -> dict[str, Any]:
    part, recipe, batch_size, lr_factor = key
    first = cell.runs[0]
    return {
        "part": part,
        "recipe": recipe,
        "batch_size": batch_size,
        "lr_factor": lr_factor,
        "lr": first.settings["lr"],
        "seeds": cell.num_finished,
        "diverged": cell.num_diverged,
        "updates": first.updates,
        "samples": first.samples,
        "first_updates": first.curve[0]["updates"],
        "first_loss": statistics.mean(run.curve[0]["loss"] for run in cell.runs),
        "first_distance": statistics.mean(_distance_at(run, run.curve[0]["updates"]) for run in cell.runs),
        "minutes": statistics.mean(run.seconds for run in cell.runs) / 60,
        "metrics": {
            name: {"mean": cell.mean(name), "sd": cell.sd(name), "values": list(values)}
            for name, values in cell.metrics.items()
        },
        "distance": [plain(run.distance_law) for run in cell.runs],
        "distance_of_first": [plain(_first_law(run)) for run in cell.runs],
    }


# section 2: the loss as a random potential


def measure_potential(root: Path, num_directions: int, num_samples: int) -> dict[str, list[float]]:
    """Return how the loss scatters over random directions, against the distance from fresh weights.

    Args:
        root: of the data.
        num_directions: drawn on the unit sphere of all weights.
        num_samples: of the training set, not augmented.

    Returns:
        "distance" and "sd" of L(w0 + z v) over directions v, for z from 0 to 10.
    """
    workload = f1_plain(root)
    batch = SeededDataset(workload, workload.train_set, 0).__getitems__(
        Keys(np.zeros(num_samples, dtype=np.int64), np.arange(num_samples))
    )
    torch.manual_seed(0)
    model = workload.model()  # in train mode, as when the walk is on
    start = parameters_to_vector(model.parameters()).detach()
    distances = [float(z) for z in range(11)]
    losses = np.empty((num_directions, len(distances)))
    with torch.no_grad():
        for row in losses:
            direction = torch.randn_like(start)
            direction /= direction.norm()
            for column, distance in enumerate(distances):
                vector_to_parameters(start + distance * direction, model.parameters())
                row[column] = workload.loss(model, batch).item()
    return {"distance": distances, "sd": losses.std(0, ddof=1).tolist()}


def judge_potential(potential: dict[str, list[float]]) -> Claim:
    """Fit sd = c z^gam; the logarithmic walk of the weights needs gam = 1."""
    distance, sd = (np.array(potential[name][1:]) for name in ("distance", "sd"))
    gam, log_c = np.polyfit(np.log(distance), np.log(sd), 1)
    scatter = np.log(sd) - gam * np.log(distance) - log_c
    error = scatter.std(ddof=2) / np.log(distance).std() / math.sqrt(len(distance))
    return Claim(
        "potential",
        "F1, Fashion-MNIST: the sd of the loss grows linearly with the distance from fresh weights (gam = 1)",
        "section 2 and poster, ResNet44",
        "gam = 1: 0.001 at distance 0 to 0.0075 at 9",
        f"gam = {gam:.2f}; sd {sd[0]:.4f} at distance 1, {sd[8]:.4f} at 9",
        f"standard error of the fit {error:.2f}, one initialisation",
        1,
        "reproduced" if abs(gam - 1) < 2 * error else "partly" if abs(gam - 1) < 0.3 else "not",
    )


# figures


def draw(rows: Sequence[Mapping[str, Any]], comparisons: Mapping[str, Comparison], folder: Path) -> None:
    """Draw figure 1 of the paper from the rows, 2 and 3 from the runs, as far as they are there."""
    matplotlib.use("svg")
    results = {(r["part"], r["recipe"], r["batch_size"]): _cell_of_row(r) for r in rows if r["lr_factor"] == 1}
    cells = {key[:3]: cell for key, cell in collect(comparisons).items() if key[3] == 1 and cell.runs}
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    for axis, (recipe, colour) in zip([axes[0]] * 3, (("LB", "C0"), ("+LR", "C1"), ("+GBN", "C2")), strict=True):
        sizes = {128: SMALL, 1024: (AT_1024, recipe, 1024), 4096: (AT_4096, recipe, 4096)}
        known = [(size, results[key]) for size, key in sizes.items() if key in results]
        error = [100 - cell.mean("eval_accuracy") for _, cell in known]
        spread = [cell.sd("eval_accuracy") or 0 for _, cell in known]
        axis.errorbar([size for size, _ in known], error, spread, label=recipe, color=colour, capsize=3, marker="o")
    axes[0].set(
        xscale="log",
        xticks=[128, 1024, 4096],
        xticklabels=["128", "1024", "4096"],
        xlabel="batch size",
        ylabel="error on the evaluation set (%)",
        title="Figure 1",
    )
    for (part, recipe, size), cell in cells.items():
        if part in (SMALL[0], AT_1024, AT_4096) and recipe != "noise":
            walk = [(line["updates"], line["distance"]) for line in cell.runs[0].distance]
            axes[1].plot(*zip(*walk, strict=True), label=f"{recipe} at {size}", lw=1.2)
        if recipe in ("SB", "+RA") and part in (SMALL[0], "adaptation at 1024", "adaptation at 4096"):
            curve = [(line["updates"], 100 - 100 * line["eval_accuracy"]) for line in cell.runs[0].curve]
            axes[2].plot(*zip(*curve, strict=True), label=f"{recipe} at {size}", lw=1.2)
    axes[0].minorticks_off()
    axes[1].set(xscale="log", xlabel="updates", ylabel="||w - w0||", title="Figure 2")
    axes[2].set(xlabel="updates", ylabel="error on the evaluation set (%)", title="Figure 3")
    for axis in axes:
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8)
        axis.grid(alpha=0.25)
    figure.savefig(folder / "figures.svg", metadata={"Date": None})
    plt.close(figure)


def write_readme(path: Path, rows: Sequence[dict[str, Any]], claims: Sequence[Claim]) -> None:
    """Rewrite the generated part of the study's README."""
    head = ["part", "recipe", "batch", "rate", "seeds", "updates", "eval (%)", "train (%)", "gap"]
    rewrite_results(path, [claims_section(claims), ("Runs", head, map(_cells_of, rows))])


def _cells_of(row: dict[str, Any]) -> tuple[object, ...]:
    shown, means = [], []
    for name in ("eval_accuracy", "train_accuracy"):
        figure = row["metrics"][name]
        means.append(figure["mean"])
        shown.append(f"{figure['mean']:.2f}" + ("" if figure["sd"] is None else f" ± {figure['sd']:.2f}"))
    about = (row["part"], row["recipe"], row["batch_size"], f"{row['lr']:.3g}", row["seeds"], row["updates"])
    return (*about, *shown, f"{means[1] - means[0]:.2f}")


def read_earlier(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the full study found before, where it is about to be written; empty for nothing."""
    is_there = arguments.size == "full" and arguments.json and arguments.json.exists()
    return json.loads(arguments.json.read_text()) if is_there else {}


def main() -> int:
    """Train the parts that are asked for and say what they show; return the exit code."""
    try:
        arguments = read_arguments(__doc__, HERE, parts=FULL)
    except AnybatchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    parts = QUICK if arguments.size == "quick" else {name: FULL[name] for name in arguments.only or FULL}
    comparisons = {}
    for name, part in parts.items():
        try:
            comparisons[name] = train_part(smoke(part) if arguments.size == "smoke" else part, arguments)
        except AnybatchError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return error.exit_code
        for row in comparisons[name].table:
            figures = {key: row.metrics.get(key) for key in ("eval_accuracy", "train_accuracy")}
            words = [f"{key} {100 * v.mean:.2f} (sd {100 * (v.sd or 0):.2f})" for key, v in figures.items() if v]
            print(
                f"{name}: {row.recipe} at {row.batch_size}, rate {row.lr:.3g}, {row.num_seeds} seeds:",
                *words,
                flush=True,
            )
    few = (
        {"num_directions": 3, "num_samples": 256}
        if arguments.size == "smoke"
        else {"num_directions": 50, "num_samples": 4096}
    )
    potential = measure_potential(arguments.data_root, **few)
    found = join_results(comparisons, read_earlier(arguments), [judge_potential(potential)])
    claims = [Claim(**claim) for claim in found["claims"]]
    for claim in claims:
        print(f"{claim.verdict}: {claim.statement}. {claim.ours} ({claim.spread}); paper: {claim.paper}")
    if arguments.json:
        write_text(arguments.json, json.dumps({**found, "potential": potential}, indent=1) + "\n")
        draw(found["rows"], comparisons, arguments.json.parent)
        keep_finished(arguments, HERE)
        if is_own_record(arguments, HERE):
            write_readme(HERE / "README.md", found["rows"], claims)
    return 0


if __name__ == "__main__":
    sys.exit(main())
