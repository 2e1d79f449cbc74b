"""What does training at another batch size change?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from anybatch.errors import InputError
from anybatch.nn.conversion_targets import Kind
from anybatch.train.timm_optimizers import Name


@dataclass(frozen=True)
class Plan:
    """Every change to a workload's own training, resolved to numbers. The default changes nothing.

    Attributes:
        lr_scale: factor on the rate of every parameter group.
        betas: of an Adam-like optimizer; None: its own.
        eps_factor: factor on an Adam-like optimizer's epsilon.
        stretch: epochs here for one of the workload's: on its schedule and its length.
        warmup_epochs: of linear warm-up, in epochs here.
        ghost_batch_size: samples that share batch norm's statistics; None: as the model has it.
        clip_norm: largest norm of the whole gradient, after averaging; None: no clipping.
        noise_variance: of multiplicative gradient noise.
        resets_momentum: whether the optimizer forgets its state at the start of each epoch, as the code published
            with Hoffer et al. 2017 does.
    """

    lr_scale: float = 1.0
    betas: tuple[float, ...] | None = None
    eps_factor: float = 1.0
    stretch: float = 1.0
    warmup_epochs: float = 0.0
    ghost_batch_size: int | None = None
    clip_norm: float | None = None
    noise_variance: float = 0.0
    resets_momentum: bool = False

    def stretched(self, factor: float) -> Self:
        """Return the plan of a training that takes so many times as long."""
        return replace(self, stretch=self.stretch * factor, warmup_epochs=self.warmup_epochs * factor)

    def clip_norm_at(self, epoch: float) -> float | None:
        """Return the largest norm of the gradient after so many epochs here; None: no clipping."""
        return self.clip_norm


@dataclass(frozen=True)
class NormPlan(Plan):
    """A plan whose model gets other normalization layers; a class of its own, so that the keys of other runs stay.

    Attributes:
        norm: what `anybatch.nn.convert` turns batch norm into.
        norm_options: names and values of its options.
    """

    norm: Kind = "batch"
    norm_options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class ModuleRates:
    """How AGVM scales the rates of a model's modules.

    Attributes:
        anchor: the module that keeps its rate, by the workload's `module_prefixes`; None: the one called "backbone", or
            the first.
        interval: updates between measurements.
        momentum: of the scales' moving average.
        clamp: smallest and largest ratio of noise fractions.
        start_step: the first update that is measured and scaled.
        estimator: "cosine" of two halves, as published; "moments" of `num_parts`, which scatter less. Both of the
            gradient as Adam preconditions it, where it does.
        num_parts: into how many micro-batches a measured batch is cut that one process does not accumulate anyway.
        as_published: see `AGVM`; for the cosine.

    Raises:
        InputError: an unknown estimator, fewer than two parts, or moments as published, which they were not.
    """

    anchor: str | None = None
    interval: int = 10
    momentum: float = 0.97
    clamp: tuple[float, float] = (0.5, 10.0)
    start_step: int = 0
    estimator: Literal["cosine", "moments"] = "cosine"
    num_parts: int = 2
    as_published: bool = False

    def __post_init__(self) -> None:
        if self.estimator not in ("cosine", "moments"):
            raise InputError(f"estimator of AGVM must be cosine or moments; got {self.estimator!r}.")
        if self.num_parts < 2:
            raise InputError(f"num_parts of AGVM must be at least 2; got {self.num_parts}.")
        if self.as_published and self.estimator != "cosine":
            raise InputError(
                f"estimator of AGVM as_published must be cosine; got {self.estimator!r}. Leave one of the two out."
            )

    def parts_of(self, step: int) -> int:
        """Return into how many parts a step's batch is cut at least."""
        return self.num_parts if step >= self.start_step and step % self.interval == 0 else 1


@dataclass(frozen=True)
class LayerwisePlan(Plan):
    """A plan whose model's parts have rates of their own; a class of its own, so that the keys of other runs stay.

    Attributes:
        optimizer: "lars" or "lamb" in place of the workload's; None: the workload's.
        optimizer_lr: its rate, to be multiplied with `lr_scale`.
        agvm: how AGVM is used; None: it is not.
        warmup_start: factor on the rate from which warm-up grows exponentially; 0: linearly.
        clip_epochs: epochs here between which gradients are clipped; None: throughout.
    """

    optimizer: Name | None = None
    optimizer_lr: float | None = None
    agvm: ModuleRates | None = None
    warmup_start: float = 0.0
    clip_epochs: tuple[float, float] | None = None

    def stretched(self, factor: float) -> Self:
        """Return the plan of a training that takes so many times as long."""
        agvm, clip_epochs = self.agvm, self.clip_epochs
        if agvm is not None:
            agvm = replace(agvm, start_step=round(agvm.start_step * factor))
        if clip_epochs is not None:
            clip_epochs = (clip_epochs[0] * factor, clip_epochs[1] * factor)
        return replace(super().stretched(factor), agvm=agvm, clip_epochs=clip_epochs)

    def clip_norm_at(self, epoch: float) -> float | None:
        """Return the largest norm of the gradient after so many epochs here; None: no clipping."""
        first, last = self.clip_epochs or (0.0, epoch)
        return self.clip_norm if first <= epoch <= last else None


AS_IT_IS = Plan()
