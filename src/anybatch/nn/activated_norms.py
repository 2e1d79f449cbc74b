"""How does a normalization layer keep the activation that the batch norm in its place applied?

timm's `BatchNormAct2d` drops and activates what it normalized. Each layer that takes its place does so too.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

from anybatch.nn.batch_renorm import BatchRenorm2d
from anybatch.nn.ghost_batch_norm import GhostBatchNorm2d
from anybatch.nn.group_kalman_norm import GroupKalmanNorm
from anybatch.nn.kalman_norm import KalmanNorm2d
from anybatch.nn.moving_average_batch_norm import MovingAverageBatchNorm2d

OF_TIMM = ("timm.layers.norm_act", "BatchNormAct2d")


class Activated(nn.Module):
    """Mixed in before a normalization layer; its output goes through the layer's `drop` and `act`.

    Attributes:
        drop: a dropout, or the identity.
        act: the activation, or the identity.
    """

    drop: nn.Module
    act: nn.Module

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drop, self.act = nn.Identity(), nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        """Normalize, drop and activate."""
        return self.act(self.drop(super().forward(input)))


class ActivatedGhostBatchNorm2d(Activated, GhostBatchNorm2d):
    """GhostBatchNorm2d with an activation."""


class ActivatedKalmanNorm2d(Activated, KalmanNorm2d):
    """KalmanNorm2d with an activation."""


class ActivatedGroupKalmanNorm(Activated, GroupKalmanNorm):
    """GroupKalmanNorm with an activation."""


class ActivatedBatchRenorm2d(Activated, BatchRenorm2d):
    """BatchRenorm2d with an activation."""


class ActivatedMovingAverageBatchNorm2d(Activated, MovingAverageBatchNorm2d):
    """MovingAverageBatchNorm2d with an activation."""


class ActivatedGroupNorm(Activated, nn.GroupNorm):
    """GroupNorm with an activation."""


class ActivatedSyncBatchNorm(Activated, nn.SyncBatchNorm):
    """SyncBatchNorm with an activation."""


ACTIVATED: dict[type[nn.Module], type[Activated]] = {
    GhostBatchNorm2d: ActivatedGhostBatchNorm2d,
    KalmanNorm2d: ActivatedKalmanNorm2d,
    GroupKalmanNorm: ActivatedGroupKalmanNorm,
    BatchRenorm2d: ActivatedBatchRenorm2d,
    MovingAverageBatchNorm2d: ActivatedMovingAverageBatchNorm2d,
    nn.GroupNorm: ActivatedGroupNorm,
    nn.SyncBatchNorm: ActivatedSyncBatchNorm,
}


def is_activated(module: nn.Module) -> bool:
    """Return whether a layer is timm's BatchNormAct2d, or one that takes its place, without importing timm."""
    kind = type(module)
    return kind in ACTIVATED.values() or (kind.__module__, kind.__name__) == OF_TIMM


def activated_type(kind: type[nn.Module]) -> Any:
    """Return the type with an activation that goes with a normalization layer's.

    Args:
        kind: what takes the place of BatchNorm2d; BatchNorm2d itself for timm's layer.

    Returns:
        The type.
    """
    return ACTIVATED[kind] if kind in ACTIVATED else getattr(importlib.import_module(OF_TIMM[0]), OF_TIMM[1])
