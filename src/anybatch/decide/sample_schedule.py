"""What factor does the learning rate have after so many samples, whatever the batch size?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from anybatch.errors import InputError
from anybatch.workload import Milestones

ROUNDING = 1e-12  # of a stretched number of samples


@dataclass(frozen=True)
class SampleSchedule:
    """A warm-up and drops, counted in samples, so that a change of batch size does not move them.

    Attributes:
        milestones: when the rate is multiplied, in samples.
        decays: with what, one per milestone.
        warmup_samples: how many samples the warm-up takes; 0 for none.
        warmup_start: factor from which the warm-up grows exponentially; 0: linearly, from near 0.

    Raises:
        InputError: milestones that are not positive or do not ascend, another number of decays, a negative warm-up, or
            one that starts at a factor outside [0, 1).

    Example:
        >>> schedule = SampleSchedule(milestones=(1000,), decays=(0.1,), warmup_samples=100)
        >>> [schedule.factor(n) for n in (0, 49, 99, 999, 1000)]
        [0.01, 0.5, 1.0, 1.0, 0.1]

    Source:
        Gradual warm-up: Goyal et al. 2017, arXiv:1706.02677, section 2.2. Differs: it starts near zero, as You et al.
        2019, arXiv:1901.08256, do, rather than at the base rate, which would depend on the batch size. Exponential
        warm-up: the code of Xue et al. 2022, arXiv:2210.11078.
    """

    milestones: tuple[float, ...]
    decays: tuple[float, ...]
    warmup_samples: float = 0.0
    warmup_start: float = 0.0

    def __post_init__(self) -> None:
        if not all(before < after for before, after in zip((0, *self.milestones), self.milestones, strict=False)):
            raise InputError(f"milestones must be positive and ascend; got {tuple(self.milestones)}.")
        if len(self.decays) != len(self.milestones):
            raise InputError(
                f"decays must be one per milestone; got {len(self.decays)} for {len(self.milestones)} milestones."
            )
        if not 0 <= self.warmup_samples < math.inf:
            raise InputError(f"warmup_samples must be at least 0; got {self.warmup_samples}. Pass 0 for no warm-up.")
        if not 0 <= self.warmup_start < 1:
            raise InputError(f"warmup_start must be at least 0 and below 1; got {self.warmup_start}.")

    @classmethod
    def from_epochs(
        cls,
        milestones: Milestones | None,
        samples_per_epoch: int,
        stretch: float = 1.0,
        warmup_epochs: float = 0.0,
        warmup_start: float = 0.0,
    ) -> Self:
        """Count a schedule of epochs in samples.

        Args:
            milestones: in epochs of the base batch size; None for a constant rate.
            samples_per_epoch: samples.
            stretch: factor on the milestones, such as `Regime.stretch`.
            warmup_epochs: as they are, not stretched: those of `LrScale` and `Regime` already are.
            warmup_start: see the class.

        Returns:
            The schedule.

        Raises:
            InputError: samples or stretch that are not positive, or a negative warm-up.

        Example:
            >>> SampleSchedule.from_epochs(Milestones((81, 122)), 50000, stretch=32).milestones
            (129600000, 195200000)
        """
        for name, value in (("samples_per_epoch", samples_per_epoch), ("stretch", stretch)):
            if not 0 < value < math.inf:
                raise InputError(f"{name} must be positive; got {value}.")
        epochs, decays = ((), ()) if milestones is None else (milestones.epochs, milestones.decays)
        at = tuple(epoch * stretch * samples_per_epoch for epoch in epochs)
        return cls(at, decays, warmup_epochs * samples_per_epoch, warmup_start)

    def factor(self, num_samples: float) -> float:
        """Return the factor on the rate for the update that follows after `num_samples` samples.

        The product of the decays whose milestones are reached, times min(1, (num_samples + 1) / warmup_samples) during
        the warm-up: 1 / warmup_samples at the first update and 1 from its last sample on. An exponential warm-up has
        warmup_start ** (1 - num_samples / warmup_samples) instead.

        Args:
            num_samples: samples that the updates so far have seen.

        Returns:
            The factor, positive where the decays are.
        """
        decay = math.prod(
            (
                decay
                for at, decay in zip(self.milestones, self.decays, strict=True)
                if at * (1 - ROUNDING) <= num_samples
            ),
            start=1.0,
        )
        if self.warmup_start and num_samples < self.warmup_samples:
            return decay * self.warmup_start ** (1 - num_samples / self.warmup_samples)
        return decay * min(1.0, (num_samples + 1) / max(self.warmup_samples, 1.0))
