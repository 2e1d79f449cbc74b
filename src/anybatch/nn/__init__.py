"""Normalize: layers whose statistics fit the batch at hand, and the conversion of existing models to them."""

from anybatch.nn.convert import Conversion, Kind, convert
from anybatch.nn.ghost_batch_norm import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    RunningUpdate,
    advance_running_statistic,
    ghost_batch_norm,
)
from anybatch.nn.part_normalization import GhostNormalized

__all__ = [
    "Conversion",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "GhostNormalized",
    "Kind",
    "RunningUpdate",
    "advance_running_statistic",
    "convert",
    "ghost_batch_norm",
]
