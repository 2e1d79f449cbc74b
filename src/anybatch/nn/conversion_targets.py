"""What can a batch normalization become? One entry per kind; a new kind is one more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch.distributed
from torch import nn

from anybatch.errors import InputError
from anybatch.nn.batch_renorm import BatchRenorm1d, BatchRenorm2d, BatchRenorm3d
from anybatch.nn.ghost_batch_norm import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d
from anybatch.nn.group_kalman_norm import GroupKalmanNorm
from anybatch.nn.kalman_norm import KalmanNorm1d, KalmanNorm2d, KalmanNorm3d
from anybatch.nn.kalman_options import OF_SPLITS, OPTION_NAMES
from anybatch.nn.layer_settings import is_count
from anybatch.nn.moving_average_batch_norm import (
    MovingAverageBatchNorm1d,
    MovingAverageBatchNorm2d,
    MovingAverageBatchNorm3d,
)

Kind = Literal["ghost", "batch", "kalman", "group_kalman", "batch_renorm", "moving_average", "group", "layer", "sync"]
DIMENSION = "batch_norm_dimension"  # attribute of a SyncBatchNorm that `convert` made
MOST_GROUPS = 32
CHANNELS_OF_A_GROUP = 4
_NO_STATISTICS = "the running statistics have no home in GroupNorm, so evaluation changes: train or fine-tune after it"
_KALMAN_ATTRIBUTES = ("options", "program", "latest", "was_recorded", "calls", "evaluated_size")


@dataclass(frozen=True)
class Target:
    """A kind of normalization layer.

    Attributes:
        types: what takes the place of BatchNorm1d, 2d and 3d, in this order.
        options: keyword arguments of the constructor that `convert` hands on, each an attribute of the layer too, or of
            its `options`.
        checks: option -> what refuses a value of it that the layer would take.
        alternatives: options of which a layer has one.
        attributes: of the layer, that it sets by itself; never taken over from another layer.
        model_options: options of `convert` that concern the model and not a layer.
        is_wired: whether its layers get priors from each other.
        needs_statistics: whether a layer without running statistics is refused.
        arguments: from a layer's number of channels and the options to arguments instead of `num_features`.
        note: what the user must know, for the printed table.
    """

    types: tuple[type[nn.Module], type[nn.Module], type[nn.Module]]
    options: tuple[str, ...] = ()
    checks: Mapping[str, Callable[[Any], None]] = field(default_factory=dict)
    alternatives: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    model_options: tuple[str, ...] = ()
    is_wired: bool = False
    needs_statistics: bool = False
    arguments: Callable[[int, Mapping[str, Any]], dict[str, Any]] | None = None
    note: str = ""


def group_arguments(num_channels: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Choose the groups of GroupNorm.

    Args:
        num_channels: C.
        options: with `num_groups`, or without it.

    Returns:
        Arguments of GroupNorm; by default as many groups as divide C, at most 32 and of at least 4 channels.

    Raises:
        InputError: `num_groups` does not divide the channels.

    Example:
        >>> [group_arguments(channels, {})["num_groups"] for channels in (3, 16, 64, 96, 512)]
        [1, 4, 16, 24, 32]
    """
    most = max(1, min(MOST_GROUPS, num_channels // CHANNELS_OF_A_GROUP))
    divisors = [number for number in range(1, num_channels + 1) if num_channels % number == 0]
    num_groups = options.get("num_groups", max(number for number in divisors if number <= most))
    if not is_count(num_groups) or num_groups not in divisors:
        near = sorted(divisors, key=lambda number: abs(number - num_groups))[:2] if is_count(num_groups) else divisors
        raise InputError(
            f"num_groups must divide the channels of every layer; got {num_groups!r} for {num_channels}. "
            f"Choose {' or '.join(map(str, sorted(near)))}, or leave it out to choose by layer."
        )
    return {"num_groups": num_groups, "num_channels": num_channels}


def _check_process_group(value: Any) -> None:
    if not isinstance(value, getattr(torch.distributed, "ProcessGroup", ())):
        raise InputError(
            f"process_group must be a process group of torch.distributed; got {value!r}. Leave it out for all ranks."
        )


def _check_centered_weights(value: Any) -> None:
    is_named = isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)
    if not isinstance(value, (bool, str)) and not is_named:
        raise InputError(
            f"centered_weights must be True, False or names of layers; got {value!r}. See `named_modules()` for these."
        )


def _one_group(num_channels: int, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"num_groups": 1, "num_channels": num_channels}


TARGETS: Mapping[Kind, Target] = {
    "ghost": Target(
        (GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d), options=("ghost_batch_size", "running_update")
    ),
    "batch": Target((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)),
    "kalman": Target(
        (KalmanNorm1d, KalmanNorm2d, KalmanNorm3d),
        options=OPTION_NAMES,
        alternatives=("splits", "micro_batch_size"),
        attributes=_KALMAN_ATTRIBUTES,
        model_options=("sources",),
        is_wired=True,
    ),
    "group_kalman": Target(
        (GroupKalmanNorm, GroupKalmanNorm, GroupKalmanNorm),
        options=("num_groups", *(name for name in OPTION_NAMES if name not in OF_SPLITS)),
        attributes=_KALMAN_ATTRIBUTES,
        model_options=("sources",),
        is_wired=True,
        arguments=group_arguments,
        note=_NO_STATISTICS,
    ),
    "batch_renorm": Target(
        (BatchRenorm1d, BatchRenorm2d, BatchRenorm3d),
        options=("micro_batch_size", "r_max", "d_max", "relaxation", "momentum"),
        attributes=("_passes",),
        needs_statistics=True,
    ),
    "moving_average": Target(
        (MovingAverageBatchNorm1d, MovingAverageBatchNorm2d, MovingAverageBatchNorm3d),
        options=("micro_batch_size", "num_averaged", "warmup_updates", "r_max", "momentum"),
        checks={"centered_weights": _check_centered_weights},
        model_options=("centered_weights",),
        needs_statistics=True,
    ),
    "group": Target(
        (nn.GroupNorm, nn.GroupNorm, nn.GroupNorm),
        options=("num_groups",),
        arguments=group_arguments,
        note=_NO_STATISTICS,
    ),
    "layer": Target((nn.GroupNorm, nn.GroupNorm, nn.GroupNorm), arguments=_one_group, note=_NO_STATISTICS),
    "sync": Target(
        (nn.SyncBatchNorm, nn.SyncBatchNorm, nn.SyncBatchNorm),
        options=("process_group",),
        checks={"process_group": _check_process_group},
        attributes=(DIMENSION,),
    ),
}
BATCH_TYPES = TARGETS["batch"].types
OWN_TYPES = tuple(
    layer_type
    for kind, target in TARGETS.items()
    for layer_type in target.types
    if kind != "batch" and issubclass(layer_type, BATCH_TYPES)
)
WITHOUT_STATISTICS = (GroupKalmanNorm,)
OWN_ATTRIBUTES = {name for target in TARGETS.values() for name in (*target.options, *target.attributes)}


def is_frozen_batch_norm(module: nn.Module) -> bool:
    """Return whether a layer is torchvision's FrozenBatchNorm2d, without importing torchvision."""
    kind = type(module)
    return kind.__name__ == "FrozenBatchNorm2d" and kind.__module__.startswith("torchvision.")


def knows_dimension(module: nn.Module) -> bool:
    """Return whether a layer is a SyncBatchNorm that `convert` put in the place of a BatchNorm1d, 2d or 3d."""
    return isinstance(module, nn.SyncBatchNorm) and DIMENSION in vars(module)


def dimension_of(layer: nn.Module) -> int:
    """Return which of the types of a target takes a layer's place: 0 for BatchNorm1d, 1 for 2d, 2 for 3d."""
    if knows_dimension(layer):
        return vars(layer)[DIMENSION]
    return next((index for index, kind in enumerate(BATCH_TYPES) if isinstance(layer, kind)), 1)
