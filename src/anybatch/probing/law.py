"""How do samples and time to a target depend on the batch size?

samples(B) = E (1 + B / B_crit), and seconds(B) = samples(B) / rate(B). E, the samples that a very small batch needs,
cancels in every ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anybatch.decide.noise_scale import NoiseScale
from anybatch.probing.throughput import ThroughputCurve
from anybatch.train.data import near_equal_parts

WORTH_ACCUMULATING = 0.95
CHEAP_TO_EQUALIZE = 1.1


@dataclass(frozen=True)
class SampleLaw:
    """samples(B) = E (1 + B / B_crit), with the interval of B_crit.

    Attributes:
        critical_batch_size: in samples; where the noise scale is undetermined its lower limit, so that predictions
            lean towards small batches.
        low: lower end of the interval.
        high: upper end; None where there is none.
        reason: one sentence.

    Source:
        McCandlish et al. 2018, arXiv:1812.06162, equation 2.11. Differs: B_crit is the harmonic mean of the noise
        scale over the run, not a fit to finished trainings.
    """

    critical_batch_size: float
    low: float
    high: float | None
    reason: str

    @classmethod
    def from_noise_scale(cls, noise: NoiseScale) -> SampleLaw:
        """Take B_crit from the mean noise scale of a run.

        Args:
            noise: of `average_noise_scale`.

        Returns:
            The law.
        """
        if noise.value is not None:
            reason = "samples to a target follow E (1 + B / critical batch size), which is the run's mean noise scale"
            return cls(noise.value, noise.low, noise.high, reason)
        lower = max(noise.at_least or noise.low, 1e-6)
        reason = "the noise scale has no upper limit, so predictions use its lower one and lean towards small batches"
        return cls(lower, noise.low, None, reason)

    def samples(self, batch_size: float) -> tuple[float, float, float]:
        """Return samples over E at a batch size: at the estimate, at the interval's low and at its high end.

        Args:
            batch_size: in samples.

        Returns:
            Three factors of at least 1; the second is the largest, infinite where the interval starts at 0.
        """
        at_low = 1 + batch_size / self.low if self.low > 0 else math.inf
        at_high = 1.0 if self.high is None else 1 + batch_size / self.high
        return 1 + batch_size / self.critical_batch_size, at_low, at_high


@dataclass(frozen=True)
class StepPlan:
    """How one rank makes its share of a batch: parts of at most `micro_batch_size`, and the seconds that takes."""

    micro_batch_size: int
    accumulation_steps: int
    seconds: float


class StepTimes:
    """Seconds of an optimizer step at any share of a batch, from the measured curve."""

    def __init__(self, curve: ThroughputCurve, max_micro_batch_size: int) -> None:
        self._sizes = np.array([point.micro_batch_size for point in curve.points], dtype=float)
        self._seconds = np.array([point.seconds_per_step_with_loader for point in curve.points])
        self._optimizer_seconds = curve.optimizer_seconds
        self._largest = max_micro_batch_size

    def plan(self, share: int) -> StepPlan:
        """Choose how a rank makes its share: whole where it fits, in parts where it must or where parts are faster.

        Args:
            share: samples per optimizer step on this rank.

        Returns:
            The fewest parts that fit, or more of them where that saves 5 % or more.
        """
        largest = min(share, self._largest)
        smaller = [self._accumulated(share, int(size)) for size in self._sizes if size < largest]
        fewest_parts = self._accumulated(share, largest)
        fastest = min([*smaller, fewest_parts], key=lambda plan: plan.seconds)
        return fastest if fastest.seconds < WORTH_ACCUMULATING * fewest_parts.seconds else fewest_parts

    def _accumulated(self, share: int, largest: int) -> StepPlan:
        """Cut a share into the fewest parts, or into a few more that are equal where that costs little."""
        fewest = self._in_parts(near_equal_parts(share, largest))
        counts = range(fewest.accumulation_steps, 2 * fewest.accumulation_steps + 1)
        equal = next((count for count in counts if share % count == 0), None)
        if equal is None:
            return fewest
        plan = self._in_parts([share // equal] * equal)
        return plan if plan.seconds <= CHEAP_TO_EQUALIZE * fewest.seconds else fewest

    def _in_parts(self, parts: Sequence[int]) -> StepPlan:
        backward = sum(self._of_one(part) - self._optimizer_seconds for part in parts)
        return StepPlan(parts[0], len(parts), backward + self._optimizer_seconds)

    def _of_one(self, size: float) -> float:
        sizes, seconds = self._sizes, self._seconds
        if len(sizes) == 1:
            return float(seconds[0] * max(size / sizes[0], 1.0))
        if size <= sizes[-1]:
            return float(np.interp(size, sizes, seconds))
        slope = max((seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2]), 0.0)
        return float(seconds[-1] + slope * (size - sizes[-1]))
