"""Which recipes does the paper say are more accurate than others, and are they?"""

from __future__ import annotations

import math
from typing import NamedTuple

from cells import Cell, Found
from parts import RATE_FACTORS
from verdicts import Claim, judge_difference, welch_error


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
ADAMW, SMALL_SHORT = "adamw at 512", ("short at 128", "SB", 128)
EXPECTED = (
    Expected("gap-1024", "a batch of 1024 generalizes worse than 128 (LB < SB)", "Figure 1", "grows with the batch",
             SMALL, (AT_1024, "LB", 1024)),
    Expected("gap-4096", "a batch of 4096 generalizes worse than 128 (LB < SB)", F1, "97.05 < 98.27",
             SMALL, (AT_4096, "LB", 4096)),
    Expected("lr-1024", "the square-root rate helps at 1024 (+LR > LB)", F1, "97.55 > 97.05",
             (AT_1024, "+LR", 1024), (AT_1024, "LB", 1024)),
    Expected("lr-4096", "the square-root rate helps at 4096 (+LR > LB)", F1, "97.55 > 97.05",
             (AT_4096, "+LR", 4096), (AT_4096, "LB", 4096)),
    Expected("gbn-1024", "ghost batch norm helps at 1024 (+GBN >= +LR)", F1, "97.60 >= 97.55",
             (AT_1024, "+GBN", 1024), (AT_1024, "+LR", 1024)),
    Expected("gbn-4096", "ghost batch norm helps at 4096 (+GBN >= +LR)", F1, "97.60 >= 97.55",
             (AT_4096, "+GBN", 4096), (AT_4096, "+LR", 4096)),
    Expected("ra-1024", "as many updates at 1024, on 8 times the samples, close the gap (+RA >= SB - 0.2)", F1,
             "98.53 >= 98.07", ("adaptation at 1024", "+RA", 1024), SMALL, 0.2),
    Expected("ra-4096", "as many updates at 4096, on 32 times the samples, close the gap (+RA >= SB - 0.2)", F1,
             "98.53 >= 98.07", ("adaptation at 4096", "+RA", 4096), SMALL, 0.2),
    Expected("ra-long", "+RA at 1024 >= SB with as many samples", "control", "none",
             ("adaptation at 1024", "+RA", 1024), ("long", "SB long", 128)),
    Expected("short-gap", "in a fifth of the regime, LB at 4096 < SB", F1, "97.05 < 98.27",
             SMALL_SHORT, ("short at 4096", "LB", 4096)),
    Expected("short-lr", "in a fifth of the regime, +LR > LB at 4096", F1, "97.55 > 97.05",
             ("short at 4096", "+LR", 4096), ("short at 4096", "LB", 4096)),
    Expected("short-gbn", "in a fifth of the regime, +GBN >= +LR at 4096", F1, "97.60 >= 97.55",
             ("short at 4096", "+GBN", 4096), ("short at 4096", "+LR", 4096)),
    Expected("short-ra", "in a fifth of the regime, as many updates at 4096, on 32 times the samples, close the gap "
             "(+RA >= SB - 0.2)", F1, "98.53 >= 98.07", ("short, adaptation at 4096", "+RA", 4096), SMALL_SHORT, 0.2),
    Expected("noise-4096", "multiplicative noise helps at 4096 (noise > LB)", "section 4", "no figure",
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
    Expected("resnet-gap", "LB < SB", "Table 1, ResNet44", "86.10 < 92.83",
             SMALL_RESNET, (RESNET, "LB", 512)),
    Expected("resnet-lr", "+LR > LB", "Table 1, ResNet44", "89.30 > 86.10",
             (RESNET, "+LR", 512), (RESNET, "LB", 512)),
    Expected("resnet-gbn", "+GBN >= +LR", "Table 1, ResNet44", "90.50 >= 89.30",
             (RESNET, "+GBN", 512), (RESNET, "+LR", 512)),
    Expected("resnet-noise", "noise > LB", "section 4", "no figure",
             (RESNET, "noise", 512), (RESNET, "LB", 512)),
    Expected("resnet-ra", "+RA >= SB - 0.2", "Table 1, ResNet44", "93.07 >= 92.63",
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


def judge_orderings(found: Found) -> list[Claim]:
    """Put every expected ordering beside its runs; one without runs is left out."""
    claims = []
    for expected in EXPECTED:
        better, worse = (found.get((*key, 1.0)) for key in (expected.better, expected.worse))
        if better is not None and worse is not None:
            claims.append(_judged(expected, better, worse))
    return [*claims, *judge_rates(found)]


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
        "ResNet-8, 10,000 images, ten epochs"
        if "resnet" in where
        else "MLP, AdamW"
        if "adamw" in where
        else "F1, Fashion-MNIST"
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


def _shown(cell: Cell, name: str) -> str:
    sd = cell.sd(name)
    return f"{cell.mean(name):.2f}" + ("" if sd is None else f" ± {sd:.2f}")
