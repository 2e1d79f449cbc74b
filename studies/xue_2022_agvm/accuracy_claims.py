"""Which recipe is more accurate than which, as the paper says?"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import NamedTuple

from cells import Cell
from verdicts import Claim, judge_difference, welch_error

TABLE, ABLATION, KALMAN = "table of SGD", "ablations", "Wang et al. 2018, detection at 2 images per GPU"


class Expected(NamedTuple):
    """One recipe at least as accurate as another."""

    id: str
    statement: str
    source: str
    paper: str
    better: tuple[str, str]
    worse: tuple[str, str]


SEG, SEG_64, SEG_256 = (f"segmentation at {size}" for size in (16, 64, 256))
SEG_HALF, DET_HALF = "segmentation at 256, half the rate", "detection at 64, half the rate"
SEG_FEW_16, SEG_FEW_64 = (f"segmentation at {size}, as few updates as 256" for size in (16, 64))
DET_FEW_16 = "detection at 16, as few updates as 64"
DET, DET_64 = "detection at 16", "detection at 64"
SEG_RIVALS, DET_RIVALS = "segmentation, LARS and LAMB at 256", "detection, LARS and LAMB at 64"
ABLATIONS, NORMS = "ablations", "norms at 2"
ESTIMATORS = "estimators at 256"
SCALED, ALIGNED = "plain scaling", "AGVM"
CONTROLS, SAME, FIXED = "controls at 256", "the same scale for all modules", "final scales from the start"
SEMANTIC, FASTER = f"{TABLE}, Semantic FPN", f"{TABLE}, Faster R-CNN"
EXPECTED = (
    Expected("gap-seg-64", "segmentation: plain scaling loses at 64, of 16", SEMANTIC, "37.5 to 36.7 at 512 of 32",
             (SEG, "SGD"), (SEG_64, SCALED)),
    Expected("agvm-seg-64", "segmentation: AGVM recovers some of that at 64", SEMANTIC, "37.3 > 36.7 at 512",
             (SEG_64, ALIGNED), (SEG_64, SCALED)),
    Expected("gap-seg-256", "segmentation: plain scaling loses at 256, of 16", SEMANTIC, "37.5 to 36.7 at 512 of 32",
             (SEG, "SGD"), (SEG_256, SCALED)),
    Expected("agvm-seg-256", "segmentation: AGVM recovers some of that at 256", SEMANTIC, "37.3 > 36.7 at 512",
             (SEG_256, ALIGNED), (SEG_256, SCALED)),
    Expected("agvm-seg-half", "segmentation: AGVM recovers some of that at 256 and half the rate, for both", SEMANTIC,
             "37.3 > 36.7 at 512", (SEG_HALF, ALIGNED), (SEG_HALF, SCALED)),
    Expected("few-seg-16", "segmentation: 256 images come further than 16 in as many updates", "derived here", "none",
             (SEG_256, SCALED), (SEG_FEW_16, SCALED)),
    Expected("few-seg-64", "segmentation: 256 images come further than 64 in as many updates", "derived here", "none",
             (SEG_256, SCALED), (SEG_FEW_64, SCALED)),
    Expected("few-det-16", "detection: 64 images come further than 16 in as many updates", "derived here", "none",
             (DET_64, SCALED), (DET_FEW_16, SCALED)),
    Expected("gap-det-64", "detection: plain scaling loses at 64, of 16", FASTER, "36.8 to 35.3 at 512 of 32",
             (DET, "SGD"), (DET_64, SCALED)),
    Expected("agvm-det-64", "detection: AGVM recovers some of that at 64", FASTER, "36.7 > 35.3 at 512",
             (DET_64, ALIGNED), (DET_64, SCALED)),
    Expected("gap-det-half", "detection: plain scaling loses at 64 and half the rate, of 16", FASTER,
             "36.8 to 35.3 at 512 of 32", (DET, "SGD"), (DET_HALF, SCALED)),
    Expected("agvm-det-half", "detection: AGVM recovers some of that at 64 and half the rate, for both", FASTER,
             "36.7 > 35.3 at 512", (DET_HALF, ALIGNED), (DET_HALF, SCALED)),
    Expected("lars-seg-256", "segmentation: AGVM > LARS at 256", f"{TABLE}, Mask R-CNN", "34.1 > 32.0 at 256",
             (SEG_256, ALIGNED), (SEG_RIVALS, "LARS")),
    Expected("lamb-seg-256", "segmentation: AGVM > LAMB at 256", "table of AdamW, Faster R-CNN", "37.2 > 36.2 at 256",
             (SEG_256, ALIGNED), (SEG_RIVALS, "LAMB")),
    Expected("lars-det-64", "detection: AGVM > LARS at 64", f"{TABLE}, Mask R-CNN", "34.1 > 32.0 at 256",
             (DET_64, ALIGNED), (DET_RIVALS, "LARS")),
    Expected("lamb-det-64", "detection: AGVM > LAMB at 64", "table of AdamW, Faster R-CNN", "37.2 > 36.2 at 256",
             (DET_64, ALIGNED), (DET_RIVALS, "LAMB")),
    Expected("control-rate", "AGVM > all modules at the mean of its final scales", "derived here", "none",
             (SEG_256, ALIGNED), (CONTROLS, SAME)),
    Expected("control-fixed", "AGVM > its final scales from the first update on", "derived here", "none",
             (SEG_256, ALIGNED), (CONTROLS, FIXED)),
    Expected("anchor-pyramid", "the backbone is a better anchor than the pyramid", ABLATION, "33.9 > 33.3",
             (SEG_256, ALIGNED), (ABLATIONS, "anchor: pyramid")),
    Expected("anchor-head", "the backbone is a better anchor than the head", ABLATION, "33.9 > 33.1",
             (SEG_256, ALIGNED), (ABLATIONS, "anchor: head")),
    Expected("average", "without the moving average it is worse", ABLATION, "diverges",
             (SEG_256, ALIGNED), (ABLATIONS, "no moving average")),
    Expected("moments", "moments of 8 parts are no worse than the cosine of 2", "derived", "none",
             (ESTIMATORS, "moments of 8"), (ESTIMATORS, "cosine of 2")),
    Expected("kalman-batch", "at 2 images per step KN > BN", KALMAN, "no figure for segmentation",
             (NORMS, "KN"), (NORMS, "BN")),
    Expected("group-batch", "at 2 images per step GN > BN", "Wu and He 2018", "no figure for segmentation",
             (NORMS, "GN"), (NORMS, "BN")),
    Expected("kalman-group", "at 2 images per step KN > GN", KALMAN, "no figure for segmentation",
             (NORMS, "KN"), (NORMS, "GN")),
)  # fmt: skip
HARDLY = 1.0  # points; our choice
INSENSITIVE = {"interval 5": "5", "as published, 10 and 0.97": "10"}
Found = Mapping[tuple[str, str], Cell]


def control_scales(final: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return what could explain a gain without any alignment: a larger rate for all, or constants.

    Args:
        final: module -> the scale that AGVM came to.

    Returns:
        Control -> scale of each module, to three decimals; the mean is one over modules.
    """
    mean = round(statistics.mean(final.values()), 3)
    return {SAME: dict.fromkeys(final, mean), FIXED: {name: round(scale, 3) for name, scale in final.items()}}


def judge_accuracy(found: Found) -> list[Claim]:
    """Put every expected ordering beside its runs; one without runs is left out.

    Args:
        found: (step, recipe) -> its runs at the best rate.

    Returns:
        Claims.
    """
    claims = []
    for expected in EXPECTED:
        better, worse = found.get(expected.better), found.get(expected.worse)
        if better is None or worse is None:
            continue
        if better.finished or worse.finished:
            claims.append(_judged(expected, better, worse))
    return [*claims, *_insensitive(found)]


def _judged(expected: Expected, better: Cell, worse: Cell) -> Claim:
    about = (expected.id, expected.statement, expected.source, expected.paper)
    gap = sum(better.values) / len(better.values) - sum(worse.values) / len(worse.values)
    error = welch_error(better.values, worse.values)
    spread = "one seed" if error is None else f"95% interval of the difference {gap - error:+.2f} to {gap + error:+.2f}"
    ours = f"{better} against {worse}: {gap:+.2f} points"
    verdict = judge_difference(gap, error)
    for side, cell, wrongly in (("first", better, "not"), ("second", worse, "reproduced")):
        if cell.is_at_edge:  # it may be better than it looks
            spread += f"; the {side}'s best rate is at the edge of those tried"
            verdict = "undecided" if verdict == wrongly else verdict
    return Claim(*about, ours, spread, min(len(better.runs), len(worse.runs)), verdict)


def _insensitive(found: Found) -> list[Claim]:
    """Say whether interval and momentum hardly matter, of seed 0, where seeds scatter little enough to tell."""
    base = found.get((SEG_256, ALIGNED))
    others = {name: found[ABLATIONS, name] for name in INSENSITIVE if (ABLATIONS, name) in found}
    if base is None or len(others) < len(INSENSITIVE) or not base.finished:
        return []
    means = {name: cell.values[0] for name, cell in others.items()}
    alone = base.alone()
    spread = max(base.values) - min(base.values)
    worst = max(abs(value - alone.values[0]) for value in means.values())
    ours = ", ".join(f"{name}: {cell}" for name, cell in others.items())
    return [
        Claim(
            "interval",
            "interval and momentum hardly matter",
            ABLATION,
            "37.5 to 37.6 from 5 and 0.95 to 20 and 0.98",
            f"{base}; {ours}",
            f"range over seeds {spread:.2f}, furthest variant {worst:.2f} from seed 0, {alone.values[0]:.2f}",
            1,
            "not" if worst > 2 * spread else "reproduced" if max(worst, spread) <= HARDLY else "undecided",
        )
    ]
