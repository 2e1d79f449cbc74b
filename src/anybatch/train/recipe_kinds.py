"""What can be combined to make a large batch train well, or a small one? The kinds of recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from anybatch.decide.lr_scaling import Rule
from anybatch.errors import InputError
from anybatch.nn.conversion_targets import Kind
from anybatch.train.plan import ModuleRates
from anybatch.train.timm_optimizers import Name


@dataclass(frozen=True)
class Recipe:
    """A combination of methods, relative to a workload's base batch size.

    Attributes:
        name: as it is called on the command line and in the report.
        description: one line.
        lr_rule: what becomes of the rate: "none", "linear" or "sqrt"; for Adam-like optimizers with their betas.
        warmup_share: share of the training that warms up linearly, at batches above the base.
        warmup_epochs: warm-up at the base batch size, multiplied with the batch (LEGW).
        ghost_batch_size: samples that share batch norm's statistics; "base" for the batch size that rate and regime
            are scaled from. A batch that is not above it keeps plain batch norm.
        adapts_regime: whether every epoch is stretched to keep the number of updates.
        adds_noise: whether gradients get multiplicative noise, instead of a scaled rate.
        clip_norm: largest norm of the whole gradient, after averaging.
        reference_batch_size: the batch size from which rate and regime are scaled; None: the workload's base.
        resets_momentum: see `Plan`.

    Raises:
        InputError: methods that contradict each other, or an unknown rule.

    Example:
        >>> Recipe("mine", lr_rule="sqrt", ghost_batch_size=64).name
        'mine'
    """

    name: str
    description: str = ""
    lr_rule: Rule = "none"
    warmup_share: float = 0.0
    warmup_epochs: float = 0.0
    ghost_batch_size: int | Literal["base"] | None = None
    adapts_regime: bool = False
    adds_noise: bool = False
    clip_norm: float | None = None
    reference_batch_size: int | None = None
    resets_momentum: bool = False

    def __post_init__(self) -> None:
        if self.lr_rule not in ("none", "linear", "sqrt"):
            raise InputError(f"lr_rule of a Recipe must be none, linear or sqrt; got {self.lr_rule!r}.")
        if self.adds_noise and self.lr_rule != "none":
            raise InputError(
                f"recipe {self.name!r} must scale the rate or add noise; it does both. They are alternatives."
            )
        if self.warmup_share and self.warmup_epochs:
            raise InputError(f"recipe {self.name!r} must give warmup_share or warmup_epochs; it gives both.")
        if not 0 <= self.warmup_share < 1 or self.warmup_epochs < 0:
            raise InputError(f"warm-up of recipe {self.name!r} must be a share below 1, or epochs that are positive.")
        for name in ("clip_norm", "ghost_batch_size", "reference_batch_size"):
            value = getattr(self, name)
            is_base = name == "ghost_batch_size" and value == "base"
            if value is not None and not is_base and (isinstance(value, str) or not value > 0):
                raise InputError(f"{name} of recipe {self.name!r} must be positive; got {value!r}.")


@dataclass(frozen=True)
class NormRecipe(Recipe):
    """A combination of methods with other normalization layers than the model's batch norm.

    Attributes:
        norm: what `anybatch.nn.convert` turns batch norm into.
        norm_options: of that kind, by name.
        relaxation_shares: of "batch_renorm", as shares of the training: when the limits begin to grow, when that of d
            is reached, and that of r.

    Raises:
        InputError: an unknown norm, or ghost batches beside it.

    Example:
        >>> NormRecipe("small batches", norm="group", norm_options={"num_groups": 8}).norm
        'group'
    """

    norm: Kind = "batch"
    norm_options: Mapping[str, Any] = field(default_factory=dict)
    relaxation_shares: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in get_args(Kind):
            raise InputError(
                f"norm of recipe {self.name!r} must be one of {', '.join(get_args(Kind))}; got {self.norm!r}."
            )
        if self.ghost_batch_size is not None:
            raise InputError(f"recipe {self.name!r} must give a norm or ghost batches; it gives both.")


@dataclass(frozen=True)
class LayerwiseRecipe(Recipe):
    """A combination of methods that give parts of the model rates of their own, with the warm-up they come with.

    Attributes:
        optimizer: "lars" or "lamb", at its published rate in place of the workload's own; None: the workload's.
        agvm: how AGVM is used; None: it is not. Its `start_step` follows from `agvm_share`.
        agvm_share: share of the training after which AGVM starts; some steps after the end of warm-up.
        warmup_start: factor on the rate from which warm-up grows exponentially; 0: linearly, from near 0.
        clip_share: shares of the training between which gradients are clipped; None: throughout.

    Raises:
        InputError: an unknown optimizer, a share that is none, or a window without a norm to clip at.

    Example:
        >>> LayerwiseRecipe("mine", lr_rule="sqrt", agvm=ModuleRates(interval=5), agvm_share=0.1).agvm.interval
        5
    """

    optimizer: Name | None = None
    agvm: ModuleRates | None = None
    agvm_share: float = 0.0
    warmup_start: float = 0.0
    clip_share: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer is not None and self.optimizer not in get_args(Name):
            raise InputError(
                f"optimizer of recipe {self.name!r} must be {' or '.join(get_args(Name))}; got {self.optimizer!r}."
            )
        for name in ("agvm_share", "warmup_start"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"{name} of recipe {self.name!r} must be at least 0 and below 1; got {getattr(self, name)}."
                )
        if self.clip_share is not None and (self.clip_norm is None or not 0 <= self.clip_share[0] < self.clip_share[1]):
            raise InputError(
                f"clip_share of recipe {self.name!r} must be two shares that ascend, beside a clip_norm; got "
                f"{self.clip_share} and clip_norm {self.clip_norm}."
            )


@dataclass(frozen=True)
class DetectorRecipe(LayerwiseRecipe):
    """Detectors as AGVM's authors train them with SGD: rate, warm-up and clipping follow from the batch size.

    `detector_schedule` says how; the rate is relative to the workload's own at its base batch size. Of AGVM, start and
    interval follow too.

    Attributes:
        rates: batch size -> rate where it is not that of `detector_rate`.

    Raises:
        InputError: something is given that follows from the batch size.

    Example:
        >>> DetectorRecipe("without AGVM", agvm=None).clip_norm
        1.0
    """

    clip_norm: float | None = 1.0
    agvm: ModuleRates | None = field(default_factory=ModuleRates)
    warmup_start: float = 0.001
    rates: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("warmup_share", "warmup_epochs", "clip_share", "agvm_share", "adapts_regime", "optimizer"):
            if getattr(self, name):
                raise InputError(
                    f"{name} of recipe {self.name!r} must be left out, since the batch size decides it; got "
                    f"{getattr(self, name)!r}. Give a LayerwiseRecipe to choose it."
                )
        if self.lr_rule != "none":
            raise InputError(
                f"lr_rule of recipe {self.name!r} must be 'none', since it has a rule of its own; got {self.lr_rule!r}."
            )
