"""What is trained, on what, and how? The value a user hands over."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset, IterableDataset

from anybatch.errors import InputError
from anybatch.stats.groups import ModulePrefixes


class Metric(Protocol):
    """What is counted over an evaluation set: accuracy, mAP and mIoU alike.

    The first figure of `compute()` is the one that recipes are ranked by; higher is better unless the metric has an
    attribute `higher_is_better` that is False. A figure that is not a number is left out.
    """

    def update(self, model: nn.Module, batch: Any) -> None:
        """Count one batch; the model is in eval mode and gradients are off."""

    def merge(self, other: Self) -> None:
        """Add what another rank's metric has counted."""

    def compute(self) -> dict[str, float]:
        """Return the figures by name."""
        ...


@dataclass(frozen=True)
class Milestones:
    """A step schedule: the rate is multiplied with `decay` at each of `epochs`.

    Attributes:
        epochs: when, in epochs of training at `base_batch_size`.
        decay: the factor, or one factor per milestone.

    Raises:
        InputError: milestones that do not ascend, or another number of factors.

    Example:
        >>> Milestones((60, 120), decay=(10, 0.1)).factor(60)
        10.0
    """

    epochs: tuple[float, ...]
    decay: float | tuple[float, ...] = 0.1

    def __post_init__(self) -> None:
        if list(self.epochs) != sorted(set(self.epochs)) or any(epoch <= 0 for epoch in self.epochs):
            raise InputError(f"epochs of Milestones must be positive and ascend; got {tuple(self.epochs)}.")
        if isinstance(self.decay, tuple) and len(self.decay) != len(self.epochs):
            raise InputError(
                f"decay of Milestones must be one factor, or one per milestone; got {len(self.decay)} factors for "
                f"{len(self.epochs)} milestones."
            )

    @property
    def decays(self) -> tuple[float, ...]:
        """The factor at each milestone."""
        return self.decay if isinstance(self.decay, tuple) else (self.decay,) * len(self.epochs)

    def factor(self, epoch: float) -> float:
        """Return the factor on the rate after so many epochs."""
        return math.prod((decay for at, decay in zip(self.epochs, self.decays, strict=True) if at <= epoch), start=1.0)


Schedule = Milestones | Callable[[Optimizer], LRScheduler]


@dataclass(frozen=True)
class Workload:
    """A model, its data and how it is trained.

    Attributes:
        model: `() -> nn.Module`, freshly initialised from torch's global random state, on any device.
        train_set: a dataset with a length, or an `IterableDataset` (then there is no correction for a small
            training set and no epoch).
        loss: `(model, batch) -> scalar Tensor`, the mean over the batch's samples; the batch comes as `collate`
            made it, on the model's device.
        optimizer: `(model) -> Optimizer`, with the rate tuned at `base_batch_size`. It sees the model, so it can
            keep norms and biases outside weight decay.
        eval_set: a dataset to evaluate on.
        metric: `() -> Metric`.
        collate: list of samples -> batch. Default: torch's `default_collate`.
        module_prefixes: module groups, see `stats.group_parameters`.
        base_batch_size: samples per step at which rate, epochs and schedule were tuned. None: no advice on rates.
        epochs: epochs of a full training at `base_batch_size`; None where unknown.
        schedule: `Milestones`, or `(optimizer) -> LRScheduler` stepped once per epoch; None: a constant rate.
        batch_size_of: `(batch) -> float`, what the loss averages over; the batch is as `collate` made it. Default: the
            number of samples; tokens or boxes by a function.
        name: for reports.

    Raises:
        InputError: a field that cannot be used.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torch.utils.data import TensorDataset
        >>> workload = Workload(
        ...     model=lambda: nn.Linear(4, 2),
        ...     train_set=TensorDataset(torch.randn(64, 4), torch.randint(2, (64,))),
        ...     loss=lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        ...     optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
        ...     base_batch_size=16,
        ... )
        >>> workload.num_samples
        64
    """

    model: Callable[[], nn.Module]
    train_set: Dataset[Any]
    loss: Callable[[nn.Module, Any], Tensor]
    optimizer: Callable[[nn.Module], Optimizer]
    eval_set: Dataset[Any] | None = None
    metric: Callable[[], Metric] | None = None
    collate: Callable[[list[Any]], Any] | None = None
    module_prefixes: ModulePrefixes | None = None
    base_batch_size: int | None = None
    epochs: float | None = None
    schedule: Schedule | None = None
    batch_size_of: Callable[[Any], float] | None = None
    name: str = "workload"

    def __post_init__(self) -> None:
        for field in ("model", "loss", "optimizer"):
            _require(callable(getattr(self, field)), field, "a function", getattr(self, field))
        for field in ("metric", "collate", "batch_size_of"):
            value = getattr(self, field)
            _require(value is None or callable(value), field, "a function or None", value)
        for field, kind, rule in (
            ("base_batch_size", int, "a positive whole number or None"),
            ("epochs", int | float, "a positive number or None"),
        ):
            value = getattr(self, field)
            is_positive = isinstance(value, kind) and not isinstance(value, bool) and value > 0
            _require(value is None or is_positive, field, rule, value)
        _require(isinstance(self.schedule, Milestones | None) or callable(self.schedule), "schedule",
                 "Milestones, a function or None", self.schedule)  # fmt: skip
        _require(isinstance(self.module_prefixes, Sequence | Mapping | None), "module_prefixes",
                 "a sequence of prefixes, a mapping or None", self.module_prefixes)  # fmt: skip
        _require(hasattr(self.train_set, "__getitem__") or isinstance(self.train_set, IterableDataset),
                 "train_set", "a dataset", self.train_set)  # fmt: skip
        size = self.num_samples
        _require(size is not None or self.schedule is None, "schedule", "None where train_set has no epochs", "one")
        _require(size is None or size >= 2, "train_set", "of at least 2 samples", size)

    @property
    def num_samples(self) -> int | None:
        """Samples in the training set; None where it has no length."""
        if isinstance(self.train_set, IterableDataset):
            return None
        try:
            return len(self.train_set)  # pyright: ignore[reportArgumentType]
        except TypeError as error:
            raise InputError(
                f"train_set must have a length or be an IterableDataset; {type(self.train_set).__name__} has "
                "neither. Define __len__, or derive it from torch.utils.data.IterableDataset."
            ) from error


def _require(condition: bool, field: str, rule: str, value: object) -> None:
    if not condition:
        shown = value if isinstance(value, int | float | str) else type(value).__name__
        raise InputError(f"{field} of a Workload must be {rule}; got {shown}.")
