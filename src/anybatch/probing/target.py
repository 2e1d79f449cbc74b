"""Which loss is worth timing the way to?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from anybatch.errors import InputError, RunError

SHARE_LEFT = 0.05
LAST_PART = 0.8
FEWEST_POINTS = 5
CLEARLY = 3.0
LEAST_DESCENT = 0.5  # of the way down that is known; our choice, as the next one
LEAST_EPOCHS = 0.02  # of the workload's


@dataclass(frozen=True)
class LossPoint:
    """The loss on a fixed draw of training samples at one point of a run.

    Attributes:
        samples: trained on before it.
        seconds: of training before it, without evaluations.
        loss: in eval mode.
    """

    samples: int
    seconds: float
    loss: float


@dataclass(frozen=True)
class LossTarget:
    """A loss that runs of every batch size are timed to.

    Attributes:
        loss: on a fixed draw of training samples.
        start_loss: of the untrained model.
        samples: after which the small-batch run reached it.
        reason: one sentence.
    """

    loss: float
    start_loss: float
    samples: float
    reason: str


def decide_target(curve: Sequence[LossPoint], batch_size: int, wanted: float | None = None) -> LossTarget:
    """Choose the loss at which a twentieth of the small-batch run's way down is left.

    target = end + 0.05 (start - end), the end being the median over the last fifth of the run: a loss that the run
    reached before it levelled off, and that one noisy point cannot move.

    Args:
        curve: of the small-batch run, from the untrained model on.
        batch_size: of that run.
        wanted: take this loss instead.

    Returns:
        The target.

    Raises:
        InputError: the loss that was wanted is not below the start.
        RunError: the run is too short, did not lower the loss beyond its scatter, or did not reach the one wanted.

    Example:
        >>> curve = [LossPoint(samples, 0.0, 0.1 + 2 * 0.5**samples) for samples in range(20)]
        >>> round(decide_target(curve, 8).loss, 3)
        0.2
    """
    start = curve[0].loss
    if wanted is not None:
        if not wanted < start:
            raise InputError(
                f"the target loss must lie below the loss at the start, {start:.4g}; got {wanted:.4g}. Give a lower "
                "--verify-target, or none."
            )
        samples = samples_to(curve, wanted)
        if samples is None:
            least = min(point.loss for point in curve)
            raise RunError(
                f"the target loss, {wanted:.4g}, was not reached by the small-batch run: {curve[-1].samples} samples "
                f"at batch {batch_size} came to {least:.4g}. Give a higher --verify-target, "
                "or a larger --verify-budget."
            )
        return LossTarget(wanted, start, samples, "it was asked for")
    last = [point.loss for point in curve if point.samples >= LAST_PART * curve[-1].samples]
    end = statistics.median(last)
    scatter = statistics.stdev(last) if len(last) > 1 else 0.0
    if len(curve) < FEWEST_POINTS or not start - end > max(CLEARLY * scatter, 1e-9 * abs(start)):
        raise RunError(
            f"the small-batch run must lower the loss to set a target; it went from {start:.4g} to {end:.4g} in "
            f"{curve[-1].samples} samples at batch {batch_size}. Give a larger --verify-budget, or check rate and data."
        )
    loss = end + SHARE_LEFT * (start - end)
    reason = (
        f"{SHARE_LEFT:.0%} of the way from {start:.3g} to {end:.3g} is left there, which a run of "
        f"{curve[-1].samples} samples at batch {batch_size} came down"
    )
    samples = samples_to(curve, loss)
    assert samples is not None  # the median of the end lies below
    return LossTarget(loss, start, samples, reason)


def samples_to_judge_by(
    target: LossTarget, seen: float, known: Sequence[Sequence[LossPoint]], whole: float
) -> float | None:
    """Return how long the small-batch run must be, where its target is too near the start to judge a law by.

    In the first few updates samples are cut in whole steps and rates have no time to differ, so that no law shows.

    Args:
        target: of the run.
        seen: samples, by the run.
        known: ways down from the start, this run's and others', of which the least loss is the lowest that is known.
        whole: samples in the workload's epochs.

    Returns:
        Samples, twice those seen or more; None where the target lies half of the known way down, and the run covers
        a fiftieth of the epochs.
    """
    start, least_samples = target.start_loss, LEAST_EPOCHS * whole
    lowest = min(point.loss for curve in known for point in curve if math.isfinite(point.loss))
    needed = [least_samples] if seen < least_samples else []
    if start - target.loss < LEAST_DESCENT * (start - lowest):
        end = start - LEAST_DESCENT / (1 - SHARE_LEFT) * (start - lowest)
        needed += [samples for curve in known if (samples := samples_to(curve, end)) is not None][:1]
    return max(*needed, 2 * seen) if needed else None


def samples_to(curve: Sequence[LossPoint], loss: float) -> float | None:
    """Return the samples at which a curve first reaches a loss, on the straight line between two points.

    Args:
        curve: in the order of training.
        loss: to reach.

    Returns:
        Samples; None where it is not reached.

    Example:
        >>> samples_to([LossPoint(0, 0.0, 2.0), LossPoint(10, 0.1, 1.0)], 1.5)
        5.0
    """
    crossing = crossing_of(curve, loss)
    return None if crossing is None else crossing[0]


def crossing_of(curve: Sequence[LossPoint], loss: float) -> tuple[float, float] | None:
    """Return samples and seconds at which a curve first reaches a loss; None where it does not."""
    if curve and curve[0].loss <= loss:
        return float(curve[0].samples), curve[0].seconds
    for before, after in pairwise(curve):
        if math.isfinite(after.loss) and after.loss <= loss:
            share = (before.loss - loss) / (before.loss - after.loss)
            return (
                before.samples + share * (after.samples - before.samples),
                before.seconds + share * (after.seconds - before.seconds),
            )
    return None
