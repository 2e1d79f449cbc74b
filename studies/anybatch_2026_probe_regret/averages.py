"""What does the noise scale along a run come to? Several averages, over the whole run or cut at a loss."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from anybatch.probing.noise import NoisePoint

LEAST_INVERSE = 1e-6  # of a point whose gradient is lost in its noise


class Stretch(NamedTuple):
    """What lies between two points of a run.

    Attributes:
        small_batch_samples: that it stands for, n / (1 + batch x inverse) of n.
        fall: of the logarithm of the loss.
        inverse: of the noise scale, in its middle.
    """

    small_batch_samples: float
    fall: float
    inverse: float


class Way(NamedTuple):
    """A run up to a loss: its stretches, and the inverse noise scale at both ends."""

    stretches: list[Stretch]
    first: float
    last: float


def way_to(points: Sequence[NoisePoint], batch_size: int, until: float) -> Way:
    """Cut a run where its loss first gets to `until`, between two points; one that does not is taken as a whole.

    Args:
        points: in the order of training.
        batch_size: of the run.
        until: a loss.

    Returns:
        The way.
    """
    stretches, last = [], _inverse(points[0])
    for before, after in pairwise(points):
        if before.loss <= until:
            break
        share = 1.0 if after.loss > until else (before.loss - until) / (before.loss - after.loss)
        last = (1 - share) * _inverse(before) + share * _inverse(after)
        inverse = (_inverse(before) + last) / 2
        samples = share * (after.num_samples - before.num_samples) / (1 + batch_size * inverse)
        fall = math.log(before.loss / max(after.loss, until))
        stretches.append(Stretch(samples, fall, inverse))
    at_rest = Stretch(1.0, 1.0, _inverse(points[0]))  # the run starts below the loss
    return Way(stretches or [at_rest], _inverse(points[0]), last)


def _inverse(point: NoisePoint) -> float:
    return max(point.noise_scale.inverse, LEAST_INVERSE)


def harmonic(way: Way) -> float:
    """Weigh 1 / noise scale by small-batch samples, as the probe does."""
    weights = [stretch.small_batch_samples for stretch in way.stretches]
    return 1 / _mean([stretch.inverse for stretch in way.stretches], weights)


def arithmetic(way: Way) -> float:
    """Weigh the noise scale by small-batch samples."""
    weights = [stretch.small_batch_samples for stretch in way.stretches]
    return _mean([1 / stretch.inverse for stretch in way.stretches], weights)


def harmonic_over_loss(way: Way) -> float:
    """Weigh 1 / noise scale by the fall of the logarithm of the loss; rises count negatively."""
    total = sum(stretch.fall for stretch in way.stretches)
    mean = sum(stretch.fall * stretch.inverse for stretch in way.stretches) / total if total > 0 else 0.0
    return 1 / max(mean, LEAST_INVERSE)


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


AVERAGES: dict[str, Callable[[Way], float]] = {
    "harmonic": harmonic,
    "harmonic over log loss": harmonic_over_loss,
    "arithmetic": arithmetic,
    "last": lambda way: 1 / way.last,
    "first": lambda way: 1 / way.first,
}
NAMES = [*AVERAGES, *(f"{name}, whole run" for name in AVERAGES if name != "first")]


def averages(runs: Sequence[Sequence[NoisePoint]], batch_size: int, until: float) -> dict[str, float]:
    """Return every average, joined over runs by the harmonic mean.

    Args:
        runs: points of each.
        batch_size: of the runs.
        until: the loss that the first ones of `NAMES` are cut at; a loss below the start.

    Returns:
        Name -> samples.
    """
    found = {}
    for name, average in AVERAGES.items():
        for label, loss in ((name, until), (f"{name}, whole run", -math.inf)):
            found[label] = statistics.harmonic_mean([average(way_to(points, batch_size, loss)) for points in runs])
    return {name: found[name] for name in NAMES}
