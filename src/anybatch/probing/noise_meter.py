"""What is the noise scale of a model at rest?"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn
from torch.optim import Optimizer

from anybatch.decide.noise_scale import NoiseScale, Target, estimate_noise_scale
from anybatch.errors import InputError, RunError
from anybatch.stats import GradientMoments, MicroBatches, Ranks
from anybatch.stats.moments import Geometry
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
class StoppingRule:
    """When a point is known well enough: its error is a share of itself, or small beside the run's mean."""

    mean_inverse: float = 0.0

    def is_met(self, noise: NoiseScale) -> bool:
        """Return whether two standard errors are within `TOLERANCE` of the inverse, or of the mean."""
        return 2 * noise.inverse_std_error <= TOLERANCE * max(noise.inverse, self.mean_inverse)


class NoiseMeter:
    """Measures the noise scale of a model at rest, with as many samples as its interval needs.

    A step is cut into a few parts, or into parts of `part_size` where that matters: under batch norm.
    """

    def __init__(
        self,
        workload: Workload,
        runtime: Runtime,
        model: nn.Module,
        micro_batch_sizes: MicroBatchSizes,
        step_size: int,
        target: Target,
        seed: int,
        part_size: int | None = None,
        geometry: Geometry = "sgd",
        optimizer: Optimizer | None = None,
    ) -> None:
        self._workload = workload
        self._runtime = runtime
        self._model = model
        self._micro_batch_sizes = micro_batch_sizes
        self._target: Target = target
        self._draws = SampleDraws(workload, runtime, seed, "noise")
        source = MicroBatches if runtime.world_size == 1 else Ranks
        prefixes = workload.module_prefixes
        self._source: SubBatchSource = source(model, prefixes, geometry=geometry, optimizer=optimizer)  # pyright: ignore[reportArgumentType]
        self._step_size = max(step_size, max(2, runtime.world_size) * (part_size or micro_batch_sizes.smallest))
        self._part_size = part_size
        self.size_per_sample = 1.0

    def measure(self, budget: float, rule: StoppingRule) -> tuple[float, NoiseScale]:
        """Measure in rounds of steps until the noise scale is precise or another round would overrun the budget.

        A step that is too small to tell the gradient from its noise is doubled and the round thrown away, since
        larger steps tell more than more steps; at the largest step rounds add up.

        Args:
            budget: seconds, about; one round is made in any case.
            rule: when to stop.

        Returns:
            The mean loss over the samples, and the noise scale in samples: where a batch's size counts tokens or
            boxes, in samples of `size_per_sample` each.

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
                if rule.is_met(noise) or not self._runtime.all(spent * 3 < budget):
                    return sum(losses) / len(losses), noise
                if 2 * self._step_size <= self._most_per_step():
                    self._step_size *= 2
                    moments, losses = [], []

    def _most_per_step(self) -> int:
        """Return the largest step that draws no sample twice, as far as is known of a stream."""
        population = self._workload.num_samples
        if population is None:
            own = float("inf") if self._draws.stream_length is None else self._draws.stream_length
            shortest = self._runtime.min([own])[0]
            population = LARGEST_STEP_SIZE if shortest == float("inf") else int(shortest) * self._runtime.world_size
        return min(population, LARGEST_STEP_SIZE)

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
        wanted = -(-PARTS_PER_STEP // ranks) if self._part_size is None else max(1, share // self._part_size)
        count = max(min(wanted, most), -(-share // self._micro_batch_sizes.largest))
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
        counted = sum(float(one.sizes.sum()) for one in moments) / len(moments)
        self.size_per_sample = counted / (sum(self._part_sizes()) * self._runtime.world_size)
        num_samples = self._workload.num_samples
        population = None if num_samples is None else num_samples * self.size_per_sample
        noise = estimate_noise_scale(moments, target=self._target, population_size=population)
        return noise.in_units_of(self.size_per_sample)
