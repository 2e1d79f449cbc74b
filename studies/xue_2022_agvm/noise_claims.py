"""Are the modules' noise fractions what Figure 1 says, and is it the pyramid and the proposals that set them apart?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from verdicts import Claim, judge_difference, mean_error, shown, welch_error

Point = dict[str, Any]
Noise = Mapping[str, Sequence[Point]]
FIGURE, COUPLING = "Figure 1", "section 5.3 of our digest: synchronized batch norm"
ORDER = ("backbone", "fpn", "rpn", "box_head", "mask_head", "semantic_head", "head")
ALIGNED_SPREAD, ALIGNED_LEAST = 0.15, 0.7  # read off the paper's curves at 32
CLOSE, NEAR = 0.1, 0.25  # mean relative error of a predicted scale
PUBLISHED_SCALES = {  # roots of the anchor's fraction over the others, read off the curves
    "segmentation": "1.4 falling to 1.1 at 512, Semantic FPN",
    "instances": "1.4 to 1.7 at 256, 1.5 to 2.2 at 512, Mask R-CNN",
}
CLAMP = (0.5, 10.0)  # of AGVM, on the square of a scale
RUN_16, RUN_256, RUN_AGVM = "SGD at 16", "plain scaling at 256", "AGVM at 256"
FOLLOWED = {"segmentation": RUN_256, "instances": RUN_16}  # where 512 images are judged
LEAST_RAISE = 1.25  # our choice


def judge_noise(noise: Noise) -> list[Claim]:
    """Judge what the followed trainings show; what is not there is left out.

    Args:
        noise: step -> its points.

    Returns:
        Claims.
    """
    claims: list[Claim] = []
    for task in ("segmentation", "instances"):
        small, large, aligned = (noise.get(f"noise of {task}, {name}") for name in (RUN_16, RUN_256, RUN_AGVM))
        if small:
            claims.append(_aligned_small(task, small))
        if followed := noise.get(f"noise of {task}, {FOLLOWED[task]}"):
            claims += [_apart_large(task, followed), _ordered(task, followed), *_dropped(task, followed)]
            claims += [*_predicted(task, followed), *_raised(task, followed), *_normalized(task, followed)]
        if large:
            claims.append(_warmed(task, large))
        if large and aligned:
            claims.append(_closer(task, large, aligned))
    return [*claims, *_proposals(noise), *_pyramid(noise)]


def middle(points: Sequence[Point]) -> list[Point]:
    """Return the points after the first quarter and before the rate drops."""
    top = max(point["lr"] for point in points)
    last = points[-1]["updates"]
    found = [point for point in points if point["updates"] >= last / 4 and point["lr"] > 0.5 * top]
    return found or list(points[-1:])


def mean_of(points: Sequence[Point], column: str) -> dict[str, float]:
    """Return the mean over points, per module; a module without a gradient is left out."""
    values = {name: [point[column][name] for point in points] for name in points[0][column]}
    return {name: statistics.mean(v) for name, v in values.items() if all(x is not None for x in v)}


def spread_of(fractions: Mapping[str, float | None]) -> float:
    """Return the largest less the smallest."""
    known = [value for value in fractions.values() if value is not None]
    return max(known) - min(known)


def joined(verdicts: Sequence[str]) -> str:
    """Return the verdict that all share, else "partly" where one holds at least in part, "not" where none does."""
    holds = {"reproduced", "partly"} & set(verdicts)
    return verdicts[0] if len(set(verdicts)) == 1 else "partly" if holds else "not"


def _listed(fractions: Mapping[str, float]) -> str:
    ordered = sorted(fractions, key=ORDER.index)
    return ", ".join(f"{name} {fractions[name]:.2f}" for name in ordered)


def _aligned_small(task: str, points: Sequence[Point]) -> Claim:
    fractions = mean_of(middle(points), "small")
    spread, least = spread_of(fractions), min(fractions.values())
    holds = spread <= ALIGNED_SPREAD, least >= ALIGNED_LEAST
    return Claim(
        f"aligned-small-{task}",
        f"{task}: at a small batch all modules are alike, 0.7 to 1, within 0.15",
        FIGURE,
        "0.7 to 1.0 at 32",
        f"at 32, trained at 16: {_listed(fractions)}",
        f"spread {spread:.2f}, mean of {len(middle(points))} points",
        1,
        "reproduced" if all(holds) else "partly" if any(holds) else "not",
    )


def _apart_large(task: str, points: Sequence[Point]) -> Claim:
    pairs = [(spread_of(point["small"]), spread_of(point["large"])) for point in middle(points)]
    wider = [large > small for small, large in pairs]
    small, large = (statistics.mean(column) for column in zip(*pairs, strict=True))
    return Claim(
        f"apart-large-{task}",
        f"{task}: at a large batch the modules fall apart",
        FIGURE,
        "spread 0.8 at 256, 0.15 at 32",
        f"{_run_of(task)}: spread {large:.2f} at the large batch, {small:.2f} at 32, at the same weights",
        f"wider at {sum(wider)} of {len(wider)} points",
        1,
        "reproduced" if all(wider) else "partly" if large > small else "not",
    )


def _ordered(task: str, points: Sequence[Point]) -> Claim:
    """Judge each module against the next by the 95% interval of their difference over the points."""
    fractions = mean_of(middle(points), "large")
    expected = sorted(fractions, key=ORDER.index)
    found = sorted(fractions, key=lambda name: -fractions[name])
    pairs = list(pairwise(expected))
    gaps = [[point["large"][one] - point["large"][next_] for point in middle(points)] for one, next_ in pairs]
    verdicts = [judge_difference(statistics.mean(gap), mean_error(gap)) for gap in gaps]
    clear = [f"{one} > {next_}" for (one, next_), v in zip(pairs, verdicts, strict=True) if v == "reproduced"]
    return Claim(
        f"order-{task}",
        f"{task}: the noise falls from the backbone over the pyramid to the heads",
        FIGURE,
        " > ".join(expected),
        f"{_run_of(task)}: {' > '.join(found)} ({_listed(fractions)})",
        f"mean of {len(middle(points))} points of one run; beyond their scatter: {', '.join(clear) or 'none'}",
        1,
        joined(verdicts),
    )


def _dropped(task: str, points: Sequence[Point]) -> list[Claim]:
    """Compare the points on both sides of each drop of the rate."""
    drops = [(before, after) for before, after in pairwise(points[1:]) if after["lr"] < 0.5 * before["lr"]]
    if not drops:
        return []
    jumps = {
        name: statistics.mean(after["large"][name] - before["large"][name] for before, after in drops)
        for name in mean_of(points, "large")
    }
    others = [jump for name, jump in jumps.items() if name != "backbone"]
    up = [jump > 0 and jump > abs(jumps["backbone"]) for jump in others]
    return [
        Claim(
            f"drop-{task}",
            f"{task}: at the drops of the rate all but the backbone jump up",
            FIGURE,
            "heads to 0.85 to 1, backbone hardly",
            f"{_run_of(task)}: change of the fraction: "
            + ", ".join(f"{name} {jump:+.2f}" for name, jump in jumps.items()),
            f"{len(drops)} drops, one run",
            1,
            "reproduced" if all(up) else "partly" if any(up) else "not",
        )
    ]


def _warmed(task: str, points: Sequence[Point]) -> Claim:
    """Follow the modules from the first update over the peak of the rate into the middle."""
    top = max(point["lr"] for point in points)
    at_peak = next(index for index, point in enumerate(points) if point["lr"] > 0.99 * top)
    first, later = mean_of(points[:1], "large"), mean_of(middle(points), "large")
    before, peak = mean_of(points[max(at_peak - 1, 0) :][:1], "large"), mean_of(points[at_peak:][:1], "large")
    rises = [later[name] > first[name] for name in later.keys() & first.keys()]
    dips = [peak[name] < min(before[name], later[name]) for name in later.keys() & before.keys() & peak.keys()]
    told = (("before the first update", first), ("before the peak", before), ("at it", peak), ("later", later))
    return Claim(
        f"warmup-{task}",
        f"{task}: noise fractions start near 0, rise, and dip when the rate peaks",
        FIGURE,
        "from near 0 during warm-up; a dip when the rate peaks",
        "; ".join(f"{when} {_listed(fractions)}" for when, fractions in told),
        f"one run; {sum(rises)} of {len(rises)} modules rise, {sum(dips)} of {len(dips)} dip",
        1,
        joined([_judged(max(first.values()) < 0.2), _judged(all(rises), any(rises)), _judged(all(dips), any(dips))]),
    )


def _judged(holds: bool, in_part: bool = False) -> str:
    return "reproduced" if holds else "partly" if in_part else "not"


def _predicted(task: str, points: Sequence[Point]) -> list[Claim]:
    """Compare the scales that follow from small batches with those of the large one, before AGVM clamps them.

    A pair that is clamped on both sides, to the same end, would agree whatever is predicted, and is left out.
    """
    pairs = []
    for point in middle(points):
        predicted, measured = (_scales(point[column]) for column in ("predicted", "large"))
        pairs += [(predicted[name], measured[name]) for name in measured.keys() & predicted.keys() - {"backbone"}]
    free = [pair for pair in pairs if not _is_clamped(*pair)]
    if not free:
        return []
    error = statistics.mean(abs(math.log(predicted / measured)) for predicted, measured in free)
    none = statistics.mean(abs(math.log(measured)) for _, measured in free)
    return [
        Claim(
            f"predicted-{task}",
            f"{task}: AGVM's scales at a large batch follow from noise scales at a small one",
            "s = 1 / (1 + B / (2 noise scale)), derived here",
            "none: not tested before",
            f"{_run_of(task)}: mean error of a scale {100 * error:.0f}% (with no scale at all it would be "
            f"{100 * none:.0f}%)",
            f"{len(free)} scales, {len(pairs) - len(free)} more left out that are clamped on both sides; one run",
            1,
            "reproduced" if error <= CLOSE and error < none else "partly" if error <= NEAR and error < none else "not",
        )
    ]


def _raised(task: str, points: Sequence[Point]) -> list[Claim]:
    """Tell by how much AGVM would raise rates at the large batch, and judge each module over the points."""
    scales = [found for point in middle(points) if len(found := _scales(point["large"])) == len(point["large"])]
    if not scales:
        return []
    raised = {name: [each[name] for each in scales] for name in sorted(scales[0], key=ORDER.index)[1:]}
    beyond = [[math.log(scale / LEAST_RAISE) for scale in values] for values in raised.values()]
    return [
        Claim(
            f"raised-{task}",
            f"{task}: at the large batch AGVM would raise the rates of all other modules by at least a quarter",
            FIGURE,
            PUBLISHED_SCALES[task],
            f"{_run_of(task)}: " + ", ".join(f"{name} {shown(values)}" for name, values in raised.items()),
            f"{len(scales)} points of one run",
            1,
            joined([judge_difference(statistics.mean(values), mean_error(values)) for values in beyond]),
        )
    ]


def _run_of(task: str) -> str:
    return f"trained {FOLLOWED[task].removeprefix('SGD ').removeprefix('plain scaling ')}"


def _scales(fractions: Mapping[str, float | None]) -> dict[str, float]:
    """Return the roots of the anchor's fraction over each, as they are; a fraction below 0 has none."""
    anchor = fractions["backbone"]
    if anchor is None or anchor <= 0:
        return {}
    return {name: math.sqrt(anchor / s) for name, s in fractions.items() if s is not None and s > 0}


def _is_clamped(*scales: float) -> bool:
    low, high = (math.sqrt(ratio) for ratio in CLAMP)
    return max(scales) <= low or min(scales) >= high


def _normalized(task: str, points: Sequence[Point]) -> list[Claim]:
    found = [point for point in middle(points) if "together" in point]
    if not found:
        return []
    together, apart = (mean_of(found, column)["backbone"] for column in ("together", "apart"))
    return [
        Claim(
            f"batch-norm-{task}",
            f"{task}: batch norm over both halves lifts the backbone's fraction, above 1",
            COUPLING,
            "1.15 to 1.45 under synchronized batch norm",
            f"backbone {together:.2f} normalized together, {apart:.2f} by halves, at 64 images",
            f"mean of {len(found)} points",
            1,
            "reproduced" if together > max(1.0, apart) else "partly" if together > apart else "not",
        )
    ]


def _closer(task: str, plain: Sequence[Point], aligned: Sequence[Point]) -> Claim:
    """Compare the spread of fractions over modules, point by point.

    That of (scale^2 x fraction) is told beside it: AGVM makes those equal by its construction.
    """
    pairs = list(zip(middle(plain), middle(aligned), strict=True))
    gains = [spread_of(one["large"]) - spread_of(other["large"]) for one, other in pairs]
    without, bare = (statistics.mean(spread_of(pair[side]["large"]) for pair in pairs) for side in (0, 1))
    scaled = statistics.mean(
        spread_of({name: s and s * point["scales"][name] ** 2 for name, s in point["large"].items()})
        for point in middle(aligned)
    )
    return Claim(
        f"closer-{task}",
        f"{task}: with AGVM the modules move closer",
        "Figure 5",
        "closer at large batches",
        f"spread of the fractions {bare:.2f}, without AGVM {without:.2f}; of scale^2 x fraction {scaled:.2f}",
        f"{_interval(gains)} over {len(gains)} points of one run each",
        1,
        judge_difference(statistics.mean(gains), mean_error(gains)),
    )


def _interval(differences: Sequence[float]) -> str:
    mean, error = statistics.mean(differences), mean_error(differences)
    return f"{mean:+.2f}" if error is None else f"difference {mean - error:+.2f} to {mean + error:+.2f}"


def _proposals(noise: Noise) -> list[Claim]:
    points = noise.get("cause: proposals")
    if not points:
        return []
    heads = [point["large"]["box_head"] for point in points]
    backbones = [point["large"]["backbone"] for point in points]
    falls = heads[-1] < heads[0]
    steadily = all(after < before for before, after in pairwise(heads))
    alone = heads[0] - heads[-1] > abs(backbones[0] - backbones[-1])
    counts = f"{points[0]['proposals']} to {points[-1]['proposals']}"
    return [
        Claim(
            "proposals",
            "more proposals per image make the box head quieter, and not the backbone",
            "effective batch of a head: proposals x images",
            "no figure",
            f"{counts} proposals: box head {heads[0]:.2f} to {heads[-1]:.2f}, backbone {backbones[0]:.2f} to "
            f"{backbones[-1]:.2f}",
            f"{len(points)} counts at the same weights and images",
            1,
            "reproduced" if falls and steadily and alone else "partly" if falls else "not",
        )
    ]


def _pyramid(noise: Noise) -> list[Claim]:
    variants = {name: noise.get(f"cause: {name}") for name in ("shared head", "head per level", "no pyramid")}
    if not all(variants.values()):
        return []
    ratios = {
        name: [point["large"]["head"] / point["large"]["backbone"] for point in middle(points or [])]
        for name, points in variants.items()
    }
    distances = {name: [abs(math.log(ratio)) for ratio in values] for name, values in ratios.items()}
    shared, *others = (distances[name] for name in variants)
    verdicts = [
        judge_difference(statistics.mean(shared) - statistics.mean(other), welch_error(shared, other))
        for other in others
    ]
    listed = ", ".join(f"{name} {shown(values)}" for name, values in ratios.items())
    return [
        Claim(
            "pyramid",
            "RetinaNet: a head per level, or no pyramid, brings the head's noise nearer to the backbone's",
            "appendix, RetinaNet",
            "curves move together step by step",
            f"head over backbone: {listed}",
            f"{len(shared)} points of one run each, by the logarithm of the ratio",
            1,
            joined(verdicts),
        )
    ]


def judge_overhead(results: Mapping[str, Mapping[str, float]]) -> Claim:
    """Compare what the benchmark measured, averaged over an interval of 10 steps.

    Args:
        results: of `benchmarks/agvm.py`.

    Returns:
        The claim.
    """
    shares = {name: (figures["average_percent"], figures["average_ms_high"] / figures["step_ms"] * 100)
              for name, figures in results.items()}  # fmt: skip
    worst = max(share for share, _ in shares.values())
    return Claim(
        "overhead",
        "measuring costs next to nothing, averaged over an interval of 10 steps",
        "ablations, Faster R-CNN on 128 GPUs",
        "0.12% of an iteration",
        "; ".join(f"{name}: {share:.2f}%" for name, (share, _) in shares.items()),
        "; ".join(f"up to {high:.2f}%" for _, high in shares.values()),
        1,
        "reproduced" if worst <= 0.5 else "partly" if worst <= 3 else "not",
    )
