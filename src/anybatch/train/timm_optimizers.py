"""With which optimizers made for large batches is one compared? LARS and LAMB, as timm has them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch.optim import Optimizer

from anybatch.errors import InputError

Name = Literal["lars", "lamb"]
PUBLISHED_BATCH_SIZE = 512


@dataclass(frozen=True)
class Published:
    """An optimizer with the settings that it was published with for images.

    Attributes:
        kind: its class in `timm.optim`.
        lr: at a batch of 512; it scales as the square root.
        options: others.
        weight_decay: of parameter groups that have any; None: as they have it.
    """

    kind: str
    lr: float
    options: Mapping[str, Any] = field(default_factory=dict)
    weight_decay: float | None = None


PUBLISHED: Mapping[Name, Published] = {
    "lars": Published("Lars", 2.0, {"momentum": 0.9}),  # You et al. 2017, AlexNet-BN; trust coefficient 0.001
    "lamb": Published("Lamb", 0.005, {}, 0.01),  # You et al. 2019, ResNet-50
}


def published_rate(name: Name, batch_size: int) -> float:
    """Return an optimizer's rate at a batch size: the published one times sqrt(batch_size / 512).

    Args:
        name: "lars" or "lamb".
        batch_size: samples per step.

    Returns:
        The rate.

    Example:
        >>> published_rate("lamb", 32768)
        0.04

    Source:
        You et al. 2017, arXiv:1708.03888 (LARS); You et al. 2019, arXiv:1904.00962 (LAMB and the square root). Both
        were tuned for the classification of ImageNet: elsewhere they are a place to start from, not an answer.
    """
    return PUBLISHED[name].lr * math.sqrt(batch_size / PUBLISHED_BATCH_SIZE)


def make_optimizer(name: Name, lr: float, like: Optimizer) -> Optimizer:
    """Return LARS or LAMB over the parameter groups of another optimizer.

    Args:
        name: "lars" or "lamb".
        lr: of every group.
        like: whose groups it takes over: parameters, and which of them have no weight decay.

    Returns:
        timm's optimizer.

    Raises:
        InputError: timm is not installed.
    """
    published = PUBLISHED[name]
    groups = []
    for group in like.param_groups:
        decay = group.get("weight_decay", 0.0)
        if decay and published.weight_decay is not None:
            decay = published.weight_decay
        groups.append({"params": group["params"], "weight_decay": decay})
    return getattr(import_timm(name), published.kind)(groups, lr=lr, **published.options)


def import_timm(name: Name) -> Any:
    """Return `timm.optim`.

    Args:
        name: of the optimizer that needs it.

    Returns:
        The module.

    Raises:
        InputError: timm is not installed.
    """
    try:
        return importlib.import_module("timm.optim")
    except ImportError as error:
        raise InputError(f"recipe {name!r} needs timm. Run: pip install 'anybatch[studies]'") from error
