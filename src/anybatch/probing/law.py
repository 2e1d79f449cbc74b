"""How do samples and time to a target depend on the batch size?

samples(B) = E (1 + B / B_crit), and seconds(B) = samples(B) / rate(B). E, the samples that a very small batch needs,
cancels in every ratio.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from anybatch.decide.noise_scale import NoiseScale
from anybatch.probing.throughput import ThroughputCurve

WORTH_ACCUMULATING = 0.95
CHEAP_TO_EQUALIZE = 1.1
NO_LIMIT = 1e12


@dataclass(frozen=True)
class SampleLaw:
    """samples(B) = E (1 + B / B_crit), with the interval of B_crit.

    Attributes:
        critical_batch_size: in samples; where the noise scale is undetermined its lower limit, so that predictions
            lean towards small batches; where it has none either, `NO_LIMIT`.
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
            reason = (
                "samples to a given loss follow E (1 + B / critical batch size), which is the runs' mean noise scale"
            )
            return cls(noise.value, noise.low, noise.high, reason)
        if lower := noise.at_least or noise.low:
            reason = (
                "the noise scale has no upper limit, so predictions use its lower one and lean towards small batches"
            )
            return cls(lower, noise.low, None, reason)
        reason = "the noise scale has no limit on either side, so as far as was measured no batch is too large"
        return cls(NO_LIMIT, noise.low, None, reason)

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
    """Seconds of an optimizer step at any share of a batch, from the measured curve.

    A step is the forward and backward passes of its parts plus the optimizer, once. Between measured sizes the passes
    are interpolated, larger sizes taking no less; beyond the largest they are never faster per sample than the best
    one measured.
    """

    def __init__(self, curve: ThroughputCurve, max_micro_batch_size: int) -> None:
        seconds = np.array([point.seconds_per_step_with_loader for point in curve.points])
        seconds = np.minimum.accumulate(seconds[::-1])[::-1]  # a slow outlier must not make a smaller size slower
        self._sizes = np.array([point.micro_batch_size for point in curve.points], dtype=float)
        self._optimizer_seconds = min(curve.optimizer_seconds, 0.99 * float(seconds[0]))
        self._passes = seconds - self._optimizer_seconds
        self._least_per_sample = float((self._passes / self._sizes).min())
        self._largest = max_micro_batch_size
        self._plans: dict[int, StepPlan] = {}

    def plan(self, share: int) -> StepPlan:
        """Choose how a rank makes its share: whole where it fits, in parts where it must or where parts are faster.

        Args:
            share: samples per optimizer step on this rank.

        Returns:
            The fewest parts that fit, or more of them where that saves 5 % or more.
        """
        if share not in self._plans:
            self._plans[share] = self._choose(share)
        return self._plans[share]

    def _choose(self, share: int) -> StepPlan:
        largest = min(share, self._largest)
        smaller = [self._accumulated(share, int(size)) for size in self._sizes if size < largest]
        fewest_parts = self._accumulated(share, largest)
        fastest = min([*smaller, fewest_parts], key=lambda plan: plan.seconds)
        return fastest if fastest.seconds < WORTH_ACCUMULATING * fewest_parts.seconds else fewest_parts

    def _accumulated(self, share: int, largest: int) -> StepPlan:
        """Cut a share into the fewest parts, or into a few more that are equal where that costs little."""
        fewest = self._in_parts(share, -(-share // largest))
        counts = range(fewest.accumulation_steps, 2 * fewest.accumulation_steps + 1)
        equal = next((count for count in counts if share % count == 0), None)
        if equal is None:
            return fewest
        plan = self._in_parts(share, equal)
        return plan if plan.seconds <= CHEAP_TO_EQUALIZE * fewest.seconds else fewest

    def _in_parts(self, share: int, count: int) -> StepPlan:
        size, num_larger = divmod(share, count)
        passes = (count - num_larger) * self._of_one(size) + (num_larger * self._of_one(size + 1) if num_larger else 0)
        return StepPlan(size + bool(num_larger), count, passes + self._optimizer_seconds)

    def _of_one(self, size: float) -> float:
        sizes, passes = self._sizes, self._passes
        if size <= sizes[-1]:
            return float(np.interp(size, sizes, passes))
        slope = (passes[-1] - passes[-2]) / (sizes[-1] - sizes[-2]) if len(sizes) > 1 else 0.0
        return max(float(passes[-1] + slope * (size - sizes[-1])), self._least_per_sample * size)
