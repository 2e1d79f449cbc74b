"""How good was the prediction? Measured time and samples beside it, the law fitted to them, and a verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from anybatch.decide.samples_law import SamplesLaw, fit_samples_law
from anybatch.probing.law import SampleLaw
from anybatch.probing.recommend import Band
from anybatch.probing.sweep import MeasuredSize, SizePlan
from anybatch.probing.target import LossTarget

Verdict = Literal["confirmed", "refuted", "undetermined"]
FACTOR = 2.0  # between predicted and measured B_crit that counts as confirmed
REACH = 8.0  # times the recommended size: sizes beyond are timed, but the law is not fitted to them


@dataclass(frozen=True)
class RateTrial:
    """One rate of a search: its factor on the workload's own, and samples to the target or None where given up."""

    lr_scale: float
    samples: float | None
    status: str


@dataclass(frozen=True)
class MeasuredPoint:
    """What one batch size took to the target, at its best rate.

    Attributes:
        batch_size: samples per step.
        micro_batch_size: samples per forward pass.
        lr_scale: factor of the best rate on the workload's own.
        is_bracketed: whether that rate lies between two that are worse.
        rates: all that were tried, ascending.
        num_runs: with seeds of their own, beside the search.
        samples: geometric mean over the runs; `*_low` and `*_high` are the least and the most.
        seconds: of training, without evaluations; as for samples.
    """

    batch_size: int
    micro_batch_size: int
    lr_scale: float
    is_bracketed: bool
    rates: tuple[RateTrial, ...]
    num_runs: int
    samples: float
    samples_low: float
    samples_high: float
    seconds: float
    seconds_low: float
    seconds_high: float


@dataclass(frozen=True)
class PredictedPoint:
    """What the probe predicts for one batch size; the one free number, E, is fitted to the measured samples."""

    batch_size: int
    samples: float
    samples_low: float
    samples_high: float
    seconds: float
    seconds_low: float
    seconds_high: float


@dataclass(frozen=True)
class SkippedSize:
    """A batch size that was not measured, and why."""

    batch_size: int
    reason: str


@dataclass(frozen=True)
class Verification:
    """The prediction of a probe against training at several batch sizes.

    Attributes:
        target: the loss that runs were timed to.
        points: measured, ascending in batch size.
        predicted: at all sizes that the probe predicted or that were meant to be measured, ascending.
        skipped: sizes that were meant to be measured, and why they were not.
        law: samples(B) = E (1 + B / B_crit), fitted to the points up to `REACH` times the recommended size: beyond, the
            best rate no longer grows with the batch, and one point would outweigh the others.
        predicted_critical_batch_size: B_crit on the way to the target, as the probe has it.
        whole_critical_batch_size: B_crit over the probe's whole runs, which the recommendation is made from.
        ratio: predicted over measured B_crit; None where the points do not determine it.
        verdict: "confirmed" within a factor 2, "refuted" beyond it, "undetermined" without a ratio or with a target
            too near the start.
        recommended: the recommended batch size.
        largest: the largest that fits at once.
        fastest: the measured size with the least time.
        time_of_recommended: its time over that of the fastest.
        time_of_largest: its measured time over that of the recommended one; None where it was not measured.
        slowdown: measured over predicted seconds of a sample, geometric mean over the points.
        sentence: what came out, for the user.
        reason: one sentence on the verdict.
        budget: seconds that were allowed.
        spent: seconds that the runs cost, in whatever call they were made.
    """

    target: LossTarget
    points: tuple[MeasuredPoint, ...]
    predicted: tuple[PredictedPoint, ...]
    skipped: tuple[SkippedSize, ...]
    law: SamplesLaw
    predicted_critical_batch_size: float
    whole_critical_batch_size: float
    ratio: float | None
    verdict: Verdict
    recommended: int
    largest: int
    fastest: int
    time_of_recommended: float
    time_of_largest: Band | None
    slowdown: float
    sentence: str
    reason: str
    budget: float
    spent: float


def join_measured(
    target: LossTarget,
    sizes: Mapping[int, MeasuredSize],
    skipped: Mapping[int, str],
    plans: Mapping[int, SizePlan],
    law: SampleLaw,
    *,
    whole_critical_batch_size: float,
    recommended: int,
    largest: int,
    budget: float,
    spent: float,
    objection: str | None = None,
) -> Verification:
    """Lay the measured sizes beside the prediction.

    Args:
        target: the runs' loss.
        sizes: measured, with a run each at least, the recommended one among them and two in all.
        skipped: batch size -> why it was not measured.
        plans: of all sizes predicted.
        law: as the probe has it, on the way to the target.
        whole_critical_batch_size: over the whole runs.
        recommended: batch size.
        largest: that fits at once.
        budget: seconds.
        spent: seconds.
        objection: why these runs cannot judge the law, whatever they show.

    Returns:
        The verification.
    """
    points = tuple(measured_point(sizes[size]) for size in sorted(sizes))
    fitted = points_to_fit(points, recommended)
    fit = fit_samples_law(
        [point.batch_size for point in fitted],
        [[record.samples for record in sizes[point.batch_size].runs.values()] for point in fitted],
    )
    predicted = predict_points(law, plans, fitted)
    by_size = {point.batch_size: point for point in points}
    fastest = min(points, key=lambda point: point.seconds)
    mine = by_size[recommended]
    ratio = None if fit.critical_batch_size is None else law.critical_batch_size / fit.critical_batch_size
    verdict = "undetermined" if objection else judge(ratio, fit)
    time_of_largest = _ratio_of(by_size.get(largest), mine) if largest != recommended else None
    return Verification(
        target=target,
        points=points,
        predicted=predicted,
        skipped=tuple(SkippedSize(size, why) for size, why in sorted(skipped.items())),
        law=fit,
        predicted_critical_batch_size=law.critical_batch_size,
        whole_critical_batch_size=whole_critical_batch_size,
        ratio=None if verdict == "undetermined" else ratio,
        verdict=verdict,
        recommended=recommended,
        largest=largest,
        fastest=fastest.batch_size,
        time_of_recommended=mine.seconds / fastest.seconds,
        time_of_largest=time_of_largest,
        slowdown=_slowdown(points, plans),
        sentence=_sentence(mine, largest, time_of_largest, predicted),
        reason=objection or _why(law, whole_critical_batch_size, fit, ratio, verdict),
        budget=budget,
        spent=spent,
    )


def points_to_fit(points: Sequence[MeasuredPoint], recommended: int) -> Sequence[MeasuredPoint]:
    """Leave out what lies far beyond the recommended size, as long as two points remain."""
    near = [point for point in points if point.batch_size <= REACH * recommended]
    return near if len(near) > 1 else points


def judge(ratio: float | None, fit: SamplesLaw) -> Verdict:
    """Judge a prediction of B_crit.

    Args:
        ratio: predicted over measured; None where samples do not grow with the batch.
        fit: to the measured points.

    Returns:
        "undetermined" where the interval has no upper end, so that the measured points show no bend.
    """
    if ratio is None or fit.high is None:
        return "undetermined"
    return "confirmed" if 1 / FACTOR <= ratio <= FACTOR else "refuted"


def measured_point(size: MeasuredSize) -> MeasuredPoint:
    """Return what the runs at one size come to.

    Args:
        size: with a best rate and a run at least.

    Returns:
        The point.
    """
    assert size.best is not None
    samples = [record.samples for record in size.runs.values()]
    seconds = [record.seconds for record in size.runs.values()]
    trials = [RateTrial(2.0**k, size.costs[k], size.rates[k].status) for k in sorted(size.rates)]
    return MeasuredPoint(
        batch_size=size.plan.batch_size,
        micro_batch_size=size.plan.micro_batch_size,
        lr_scale=2.0**size.best,
        is_bracketed=size.is_bracketed,
        rates=tuple(trials),
        num_runs=len(samples),
        samples=statistics.geometric_mean(samples),
        samples_low=min(samples),
        samples_high=max(samples),
        seconds=statistics.geometric_mean(seconds),
        seconds_low=min(seconds),
        seconds_high=max(seconds),
    )


def predict_points(
    law: SampleLaw, plans: Mapping[int, SizePlan], points: Sequence[MeasuredPoint]
) -> tuple[PredictedPoint, ...]:
    """Scale the prediction to the measured samples, by one number for B_crit and each end of its interval.

    Args:
        law: as the probe has it.
        plans: of all sizes predicted.
        points: measured.

    Returns:
        Ascending in batch size; times are the predicted samples at the throughput measured before.
    """
    columns = [_scaled([(size, _factor(law, size, end)) for size in plans], points) for end in range(3)]
    found = []
    for size in sorted(plans):
        samples = [column[size] for column in columns]
        value, low, high = samples[0], min(samples), max(samples)
        speed = plans[size].seconds_per_sample
        found.append(PredictedPoint(size, value, low, high, value * speed, low * speed, high * speed))
    return tuple(found)


def _factor(law: SampleLaw, size: int, end: int) -> float:
    factor = law.samples(size)[end]
    return float(size) if math.isinf(factor) else factor  # B_crit of 0: samples in proportion to the batch


def _scaled(factors: Sequence[tuple[int, float]], points: Sequence[MeasuredPoint]) -> dict[int, float]:
    by_size = dict(factors)
    scale = statistics.geometric_mean([point.samples / by_size[point.batch_size] for point in points])
    return {size: scale * factor for size, factor in by_size.items()}


def _slowdown(points: Sequence[MeasuredPoint], plans: Mapping[int, SizePlan]) -> float:
    return statistics.geometric_mean(
        [point.seconds / (point.samples * plans[point.batch_size].seconds_per_sample) for point in points]
    )


def _ratio_of(point: MeasuredPoint | None, reference: MeasuredPoint) -> Band | None:
    if point is None:
        return None
    return Band(
        point.seconds / reference.seconds,
        point.seconds_low / reference.seconds_high,
        point.seconds_high / reference.seconds_low,
    )


def _sentence(
    mine: MeasuredPoint, largest: int, time_of_largest: Band | None, predicted: Sequence[PredictedPoint]
) -> str:
    start = f"Recommended {mine.batch_size}: {mine.seconds:.2g} s to target"
    if largest == mine.batch_size:
        return f"{start}; it is the largest that fits."
    if time_of_largest is not None:
        return f"{start}; the largest that fits, {largest}: {_slower(time_of_largest.value)}."
    seconds = {point.batch_size: point.seconds for point in predicted}
    if largest not in seconds:
        return f"{start}; the largest that fits, {largest}, was not measured."
    ratio = seconds[largest] / seconds[mine.batch_size]
    return f"{start}; the largest that fits, {largest}, was not measured: predicted {_slower(ratio)}."


def _slower(ratio: float) -> str:
    return f"{ratio:.2g}x slower" if ratio >= 1 else f"{1 / ratio:.2g}x faster"


def _why(law: SampleLaw, whole: float, fit: SamplesLaw, ratio: float | None, verdict: Verdict) -> str:
    if ratio is None or verdict == "undetermined":
        return f"the measured sizes do not determine the critical batch size: {fit.reason}"
    words = "within" if verdict == "confirmed" else "beyond"
    return (
        f"on the way to this loss the predicted critical batch size, {law.critical_batch_size:.3g}, is {ratio:.3g} "
        f"times the measured one, {fit.critical_batch_size:.3g} ({fit.low:.3g} to {_upper(fit)}): {words} a factor "
        f"{FACTOR:g}; over the probe's whole runs it is {whole:.3g}, since the noise scale moves as training goes on"
    )


def _upper(fit: SamplesLaw) -> str:
    return "no end" if fit.high is None else f"{fit.high:.3g}"
