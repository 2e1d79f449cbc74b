"""Which claims do the runs bear out, and by what bar?"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from authors import CART_POLE, CHECKPOINTS, LQ
from lq_units import MAX_BATCH, stopping_batch
from units import Results, by_label
from verdicts import Claim

RETURN_TOLERANCE, BATCH_TOLERANCE, GROWTH_TOLERANCE = 0.05, 0.1, 0.2  # of returns, and shares of the authors' batches
MARGIN_TOLERANCE = 0.05  # below a milestone
RARE = 0.01  # share of steps
VERDICTS = ("reproduced", "partly", "not")
COMPARED = (
    "lq-adabatch",
    "lq-corrected-faster",
    "lq-return-",
    "lq-curve-",
    "lq-batch-",
    "lq-grows-",
    "cart-pole-return-",
    "cart-pole-batch-",
    "cart-pole-order",
)
Rows = Mapping[str, Mapping[str, Any]]  # numbers of a method by name, lists over seeds


def rows_of(results: Results, kinds: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what every method came to: lists over seeds, by method."""
    return {
        label: {key: [run[key] for run in runs] for key in runs[0]}
        for kind in kinds
        for label, runs in by_label(results, kind).items()
    }


def judge(lq: Rows, pole: Rows) -> list[Claim]:
    """Put every claim beside the runs that measure it."""
    claims = [*_judge_figures(lq), *_judge_curves(lq), judge_adabatch(lq), judge_corrected_speed(lq)]
    claims += [judge_promise(lq), judge_monotony(lq), judge_sub_gaussian(lq), judge_corrected(lq)]
    claims += [*_judge_pole_figures(pole), judge_order(pole), judge_milestone(pole), judge_features(pole)]
    return [*claims, judge_scaled(pole)]


def split_claims(claims: Sequence[Claim], is_whole: bool) -> tuple[list[Claim], dict[str, str]]:
    """Return the claims that stand, and why others are left out: a short run cannot bear them out."""
    kept = [claim for claim in claims if is_whole or not claim.id.startswith(COMPARED)]
    reason = "it is of whole runs; take --full"
    return kept, {claim.id: reason for claim in claims if claim not in kept}


def near(away: float, tolerance: float) -> str:
    """Return "reproduced" within the tolerance, "partly" within three times that, else "not"."""
    return VERDICTS[sum(abs(away) > bar * (1 + 1e-9) for bar in (tolerance, 3 * tolerance))]


def worst(*verdicts: str) -> str:
    """Return the least of several verdicts."""
    return max(verdicts, key=VERDICTS.index)


def _judge_figures(lq: Rows) -> Iterator[Claim]:
    for label, theirs in LQ.items():
        row = lq[label]
        mean, end, size, count, first, last = (
            statistics.mean(row[key])
            for key in ("mean_return", "end_return", "mean_batch", "num_updates", "first_batch", "last_batch")
        )
        is_alike = [near(mean - theirs.mean_return, RETURN_TOLERANCE), near(end - theirs.end_return, RETURN_TOLERANCE)]
        yield _claim(
            f"lq-return-{label}", f"{label}: return per update, over the run and at its end", "notebook",
            f"{theirs.mean_return:.3f} and {theirs.end_return:.2f}", f"{mean:.3f} and {end:.3f}",
            _sd(row["mean_return"]), row, worst(*is_alike),
        )  # fmt: skip
        yield _claim(
            f"lq-batch-{label}", f"{label}: mean batch and number of updates", "notebook",
            f"{theirs.mean_batch:.0f} in {theirs.num_updates}", f"{size:.0f} in {count:.0f}", _sd(row["mean_batch"]),
            row, near(size / theirs.mean_batch - 1, BATCH_TOLERANCE),
        )  # fmt: skip
        ends = worst(*(near(ours / figure - 1, GROWTH_TOLERANCE) for ours, figure in
                       ((first, theirs.first_batch), (last, theirs.last_batch))))  # fmt: skip
        yield _claim(
            f"lq-grows-{label}", f"{label}: the batch grows along the run", "notebook",
            f"{theirs.first_batch:.0f} to {theirs.last_batch:.0f}", f"{first:.0f} to {last:.0f}",
            _sd(row["last_batch"]), row, ends if last > first else "not",
        )  # fmt: skip


def _judge_curves(lq: Rows) -> Iterator[Claim]:
    for label, theirs in LQ.items():
        if not theirs.returns:
            continue
        ours = np.mean([np.interp(CHECKPOINTS, *np.array(curve).T[:2]) for curve in lq[label]["curve"]], axis=0)
        apart = ours - np.array(theirs.returns)
        farthest = int(np.abs(apart).argmax())
        yield _claim(
            f"lq-curve-{label}", f"{label}: the curve of the return", "stored curve, means of five runs",
            ", ".join(f"{value:.3f}" for value in theirs.returns) + " at 1e6, 2e6, 5e6, 9.8e6",
            ", ".join(f"{value:.3f}" for value in ours), f"at most {apart[farthest]:+.3f} away", lq[label],
            near(float(apart[farthest]), RETURN_TOLERANCE),
        )  # fmt: skip


def judge_adabatch(lq: Rows) -> Claim:
    """Judge AdaBatch against the published SPG."""
    ours, theirs = lq["adabatch"], lq["spg"]
    is_smaller = max(ours["mean_batch"]) < min(theirs["mean_batch"])
    is_slower = max(ours["mean_return"]) < min(theirs["mean_return"])
    return _claim(
        "lq-adabatch", "AdaBatch has smaller batches than SPG and learns slower per trajectory", "LQ figures",
        "batch 17502 against 37870, return -6.647 against -6.394",
        f"batch {_mean(ours['mean_batch'])} against {_mean(theirs['mean_batch'])}, return "
        f"{statistics.mean(ours['mean_return']):.3f} against {statistics.mean(theirs['mean_return']):.3f}",
        "every seed of one against every seed of the other", ours, VERDICTS[2 - is_smaller - is_slower],
    )  # fmt: skip


def judge_corrected_speed(lq: Rows) -> Claim:
    """Judge the corrected rule against the rule of 2017."""
    ours, rivals = lq["corrected_bernstein"], ("adabatch_theoretical", "adabatch_empirical")
    beaten = [min(ours["end_return"]) > max(lq[rival]["end_return"]) for rival in rivals]
    return _claim(
        "lq-corrected-faster", "A rule of 2022 that keeps its guarantee learns faster than that of 2017",
        "LQ figures, for rules with the guarantee", "SPG above AdaBatch",
        f"end {statistics.mean(ours['end_return']):.3f} (Bernstein's bound, corrected) against "
        + " and ".join(f"{statistics.mean(lq[rival]['end_return']):.3f} ({rival})" for rival in rivals),
        "every seed of one against every seed of the other", ours, VERDICTS[2 - sum(beaten)],
    )  # fmt: skip


def judge_promise(lq: Rows) -> Claim:
    """Judge whether the published updates have the guarantee that is claimed for them."""
    rows = [lq["spg"], lq["fspg"]]
    steps, unpromised = (sum(sum(row[key]) for row in rows) for key in ("num_steps", "num_unpromised"))
    return _claim(
        "lq-published-promise", "Updates of the published runs have an error that allows the step, as is guaranteed",
        "abstract, sentences 5 and 7", "all", f"{steps - unpromised} of {steps}",
        "error below half the gradient", rows[0],
        "reproduced" if not unpromised else "partly" if unpromised < steps / 2 else "not",
    )  # fmt: skip


def judge_monotony(lq: Rows) -> Claim:
    """Judge whether the published updates improved the policy, guaranteed or not."""
    rows = [lq["spg"], lq["fspg"]]
    counts = [(sum(row["num_worse"]), sum(row["num_steps"])) for row in rows]
    worse, steps = map(sum, zip(*counts, strict=True))
    return _claim(
        "lq-published-monotonic", "No update of the published runs lowers the performance", "abstract, sentence 7",
        "none",
        ", ".join(f"{bad} of {all_} ({name})" for (bad, all_), name in zip(counts, ("SPG", "fSPG"), strict=True)),
        "exact performance of the clipped process", rows[0],
        "reproduced" if not worse else "partly" if worse < RARE * steps else "not",
    )  # fmt: skip


def judge_sub_gaussian(lq: Rows) -> Claim:
    """Judge whether the published bound can be met within the largest batch, once the square is back."""
    row = lq["corrected_sub_gaussian"]
    moved, updates = sum(row["num_steps"]), sum(row["num_updates"])
    asked = stopping_batch(statistics.mean(row["first_gradient"]), "corrected")
    return _claim(
        "lq-corrected-sub-gaussian", f"The sub-Gaussian bound allows a step within {MAX_BATCH} trajectories",
        "LQ settings", "batches from 7480 on",
        f"{moved} of {updates} updates moved the policy; the first would ask for {asked}",
        "the rule with the square", row, "reproduced" if moved == updates else "partly" if moved else "not",
    )  # fmt: skip


def judge_corrected(lq: Rows) -> Claim:
    """Judge whether corrected updates lowered the performance."""
    rows = {label: row for label, row in lq.items() if label.startswith("corrected_")}
    worse, steps = (sum(sum(row[key]) for row in rows.values()) for key in ("num_worse", "num_steps"))
    return _claim(
        "lq-corrected-monotonic", "No update of the corrected rule lowers the performance", "abstract, sentence 7",
        "none", f"{worse} of {steps}",
        ", ".join(f"{label.removeprefix('corrected_')} {sum(row['num_steps'])} steps" for label, row in rows.items()),
        rows["corrected_bernstein"], "not" if not steps else "reproduced" if not worse else "partly",
    )  # fmt: skip


def _judge_pole_figures(pole: Rows) -> Iterator[Claim]:
    for label, theirs in CART_POLE.items():
        row = pole[label]
        end, size = statistics.mean(row["end_return"]), statistics.mean(row["mean_batch"])
        budget = f"{statistics.mean(row['num_trajectories']):.2g} trajectories"
        yield _claim(
            f"cart-pole-return-{label}", f"{label}: discounted return at the end", "notebook, 2e6 trajectories",
            f"{theirs.end_return:.2f}", f"{end:.3f} after {budget}", _sd(row["end_return"]), row,
            near(end - theirs.end_return, RETURN_TOLERANCE),
        )  # fmt: skip
        if label != "gpomdp":
            yield _claim(
                f"cart-pole-batch-{label}", f"{label}: mean batch", "notebook", f"{theirs.mean_batch:.0f}",
                f"{size:.0f}", _sd(row["mean_batch"]), row, near(size / theirs.mean_batch - 1, BATCH_TOLERANCE),
            )  # fmt: skip


def judge_order(pole: Rows) -> Claim:
    """Judge whether a larger tolerance is faster, down to no safety at all."""
    rows = [pole[label] for label in CART_POLE]
    returns, sizes = ([row[key] for row in rows] for key in ("end_return", "mean_batch"))
    is_apart = all(max(low) < min(high) for low, high in pairwise(returns))
    is_apart &= all(min(large) > max(small) for large, small in pairwise(sizes))
    means = [[statistics.mean(values) for values in each] for each in (returns, sizes)]
    is_ordered = means[0] == sorted(means[0]) and means[1] == sorted(means[1], reverse=True)
    return _claim(
        "cart-pole-order", "The more of the milestone may be lost, the smaller the batch and the faster the run",
        "cart-pole figures", "9.75 < 9.82 < 9.89 < 9.95",
        " < ".join(f"{value:.3f}" for value in means[0]) if is_ordered else ", ".join(f"{v:.3f}" for v in means[0]),
        "every seed of one above every seed of the other" if is_apart else "seeds overlap", rows[0],
        "reproduced" if is_apart else "partly" if is_ordered else "not",
    )  # fmt: skip


def judge_milestone(pole: Rows) -> Claim:
    """Judge whether each policy kept its share of the best return before it."""
    rows = {label: row for label, row in pole.items() if label.startswith("lambda_")}
    least = min(min(row["margin"]) for row in rows.values())
    return _claim(
        "cart-pole-milestone", "Every policy of every run returns at least (1 - lambda) times the best before it",
        "cart-pole figures", "kept", f"least margin {least:.3f}",
        ", ".join(f"{label}: least share of the best {min(row['least_share']):.3f}" for label, row in rows.items()),
        next(iter(rows.values())),
        "reproduced" if least >= 0 else "partly" if least >= -MARGIN_TOLERANCE else "not",
    )  # fmt: skip


def judge_features(pole: Rows) -> Claim:
    """Judge whether features have the norm that the bound rests on."""
    rows = [row for label, row in pole.items() if label.startswith("lambda_")]
    first, last = ([pair[place] for row in rows for pair in row["share_above"]] for place in (0, 1))
    void, updates = (sum(sum(row[key]) for row in rows) for key in ("num_void", "num_updates"))
    most = max(first + last)
    return _claim(
        "cart-pole-features", "Features have a norm of at most F = 1", "cart-pole settings", "assumed",
        f"above it in {statistics.mean(first):.1%} of the first policy's steps, in {statistics.mean(last):.1%} of "
        f"the last ones'; guarantee void in {void} of {updates} updates",
        f"at most {most:.1%}", rows[0], "reproduced" if most == 0 else "partly" if most < RARE else "not",
    )  # fmt: skip


def judge_scaled(pole: Rows) -> Claim:
    """Judge the run whose features are within the bound."""
    row = pole["scaled"]
    gains = [end - curve[0][1] for end, curve in zip(row["end_return"], row["curve"], strict=True)]
    is_kept = min(row["margin"]) >= 0 and not sum(row["num_void"]) and max(map(max, row["share_above"])) == 0
    return _claim(
        "cart-pole-scaled", "With features scaled to a norm of 1, so that the bound holds, lambda 0.2 still learns",
        "asked here", "no figure", f"return {statistics.mean(gains):+.3f} in "
        f"{statistics.mean(row['num_trajectories']):.2g} trajectories, batch {_mean(row['mean_batch'])}",
        f"least gain {min(gains):+.3f}, least margin {min(row['margin']):.3f}", row,
        "not" if not is_kept else "reproduced" if min(gains) > 0 else "partly",
    )  # fmt: skip


def _claim(
    id: str, statement: str, source: str, paper: str, ours: str, spread: str, row: Mapping[str, Any], verdict: str
) -> Claim:
    return Claim(id, statement, source, paper, ours, spread, len(row["seed"]), verdict)


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.0f}"


def _sd(values: Sequence[float]) -> str:
    return f"sd over seeds {statistics.stdev(values):.3g}" if len(values) > 1 else "one seed"
