"""Normalize: layers whose statistics fit the batch at hand, and the conversion of existing models to them."""

from anybatch.nn.activation_moments import through_function, through_pieces
from anybatch.nn.batch_renorm import (
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    BatchRenormalized,
    RenormLimits,
    batch_renorm,
    renorm_limits,
)
from anybatch.nn.centered_weights import center_weights, uncenter_weights
from anybatch.nn.conversion_targets import Kind
from anybatch.nn.convert import Conversion, convert
from anybatch.nn.ghost_batch_norm import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    RunningUpdate,
    advance_running_statistic,
    ghost_batch_norm,
)
from anybatch.nn.group_kalman_norm import GroupKalmanNorm, fold_channels
from anybatch.nn.kalman_correction import correct_moments
from anybatch.nn.kalman_layer import LayerMoments
from anybatch.nn.kalman_norm import KalmanNorm1d, KalmanNorm2d, KalmanNorm3d, kalman_norm
from anybatch.nn.kalman_options import KalmanOptions
from anybatch.nn.kalman_wiring import Wiring, unwire_kalman, wire_kalman
from anybatch.nn.layout_moments import through_sum
from anybatch.nn.linear_map_moments import through_convolution
from anybatch.nn.moment_propagation import CannotPropagate, PropagationRule, find_propagation_rule, propagation_rule
from anybatch.nn.moments import Moments
from anybatch.nn.moving_average_batch_norm import (
    MovingAverageBatchNorm1d,
    MovingAverageBatchNorm2d,
    MovingAverageBatchNorm3d,
)
from anybatch.nn.part_normalization import GhostNormalized

__all__ = [
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "BatchRenormalized",
    "CannotPropagate",
    "Conversion",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "GhostNormalized",
    "GroupKalmanNorm",
    "KalmanNorm1d",
    "KalmanNorm2d",
    "KalmanNorm3d",
    "KalmanOptions",
    "Kind",
    "LayerMoments",
    "Moments",
    "MovingAverageBatchNorm1d",
    "MovingAverageBatchNorm2d",
    "MovingAverageBatchNorm3d",
    "PropagationRule",
    "RenormLimits",
    "RunningUpdate",
    "Wiring",
    "advance_running_statistic",
    "batch_renorm",
    "center_weights",
    "convert",
    "correct_moments",
    "find_propagation_rule",
    "fold_channels",
    "ghost_batch_norm",
    "kalman_norm",
    "propagation_rule",
    "renorm_limits",
    "through_convolution",
    "through_function",
    "through_pieces",
    "through_sum",
    "uncenter_weights",
    "unwire_kalman",
    "wire_kalman",
]
