"""What is the noise scale of a model at rest?"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from anybatch.decide.noise_scale import NoiseScale, Target, estimate_noise_scale
from anybatch.errors import InputError, RunError
from anybatch.stats import GradientMoments, MicroBatches, Ranks
from anybatch.stats.sub_batches import SubBatchSource
from anybatch.train.data import SampleDraws, near_equal_parts
from anybatch.train.loop import accumulate
from anybatch.train.preserve import preserved
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload

STEPS_PER_ROUND = 16
PARTS_PER_STEP = 4
LARGEST_STEP_SIZE = 16_384
TOLERANCE = 0.25


class MicroBatchSizes(NamedTuple):
    """The smallest micro-batch that trains and the largest that fits, on one rank."""

    smallest: int
    largest: int


@dataclass(frozen=True)
class Precision:
    """When a point is known well enough: its error is a share of itself, or small beside the run's mean."""

    mean_inverse: float = 0.0

    def reached(self, noise: NoiseScale) -> bool:
        """Return whether two standard errors are within `TOLERANCE` of the inverse, or of the mean."""
        return 2 * noise.inverse_std_error <= TOLERANCE * max(noise.inverse, self.mean_inverse)


class NoiseMeter:
    """Measures the noise scale of a model at rest, with as many samples as its interval needs."""

    def __init__(
        self,
        workload: Workload,
        runtime: Runtime,
        model: nn.Module,
        micro_batch_sizes: MicroBatchSizes,
        step_size: int,
        target: Target,
        seed: int,
    ) -> None:
        self._workload = workload
        self._runtime = runtime
        self._model = model
        self._micro_batch_sizes = micro_batch_sizes
        self._target: Target = target
        self._draws = SampleDraws(workload, runtime, seed, "noise")
        source = MicroBatches if runtime.world_size == 1 else Ranks
        self._source: SubBatchSource = source(model, workload.module_prefixes)  # pyright: ignore[reportArgumentType]
        self._step_size = step_size

    def measure(self, budget: float, precision: Precision) -> tuple[float, NoiseScale]:
        """Measure in rounds of steps until the noise scale is precise or another round would overrun the budget.

        A step that is too small to tell the gradient from its noise is doubled and the round thrown away, since
        larger steps tell more than more steps; at the largest step rounds add up.

        Args:
            budget: seconds, about; one round is made in any case.
            precision: when to stop.

        Returns:
            The mean loss over the samples and the noise scale.

        Raises:
            InputError: the training set is too small for two parts a step.
            RunError: the loss or the gradients are not finite.
        """
        started = time.monotonic()
        moments: list[GradientMoments] = []
        losses: list[float] = []
        with preserved(self._model):
            while True:
                self._round(moments, losses)
                noise = self._estimate(moments, losses)
                spent = time.monotonic() - started
                if precision.reached(noise) or not self._runtime.all(spent * 3 < budget):
                    return sum(losses) / len(losses), noise
                if 2 * self._step_size <= self._most_per_step():
                    self._step_size *= 2
                    moments, losses = [], []

    def _most_per_step(self) -> int:
        """Return the largest step that draws no sample twice, as far as is known of a stream."""
        population = self._workload.num_samples
        if population is None and self._draws.stream_length is not None:
            population = self._draws.stream_length * self._runtime.world_size
        return min(population or LARGEST_STEP_SIZE, LARGEST_STEP_SIZE)

    def _round(self, moments: list[GradientMoments], losses: list[float]) -> None:
        sizes = self._part_sizes()
        for _ in range(STEPS_PER_ROUND):
            self._model.zero_grad(set_to_none=True)
            loss = accumulate(self._workload, self._runtime, self._model, self._draws.parts(sizes), self._source)
            moments.append(self._source.finish())
            losses.append(self._runtime.sum([float(loss)])[0] / self._runtime.world_size)

    def _part_sizes(self) -> list[int]:
        """Cut a rank's share of a step into parts that train and fit."""
        ranks = self._runtime.world_size
        share = min(self._step_size, self._most_per_step()) // ranks
        most = share // self._micro_batch_sizes.smallest
        count = max(min(-(-PARTS_PER_STEP // ranks), most), -(-share // self._micro_batch_sizes.largest))
        if count * ranks < 2 or most < 1:
            raise InputError(
                f"the noise scale needs 2 micro-batches of at least {self._micro_batch_sizes.smallest} samples a step; "
                f"the training set has {self._most_per_step()} samples for {ranks} ranks."
            )
        return near_equal_parts(share, -(-share // count))

    def _estimate(self, moments: list[GradientMoments], losses: list[float]) -> NoiseScale:
        finite = sum(not int(one.num_non_finite) for one in moments)
        if finite < 2 or not math.isfinite(sum(losses)):
            raise RunError(
                f"loss and gradients must be finite; {len(moments) - finite} of {len(moments)} gradients are not "
                f"and the mean loss is {sum(losses) / len(losses):.4g}. The rate may be too high, or the data hold NaN."
            )
        return estimate_noise_scale(moments, target=self._target, population_size=self._population(moments))

    def _population(self, moments: list[GradientMoments]) -> float | None:
        """Return the training set's size in the unit of sizes: samples, or what `batch_size_of` counts."""
        num_samples = self._workload.num_samples
        if num_samples is None or self._workload.batch_size_of is None:
            return num_samples
        counted = sum(float(one.sizes.sum()) for one in moments) / len(moments)
        return num_samples * counted / (sum(self._part_sizes()) * self._runtime.world_size)
