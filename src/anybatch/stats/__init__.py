"""Measure: gradients of sub-batches -> moments per module. Decides nothing and changes nothing."""

from anybatch.stats.dense_predictors import PredictorModules, find_predictor_modules
from anybatch.stats.groups import ModulePrefixes, group_parameters
from anybatch.stats.half_batches import HalfBatches
from anybatch.stats.micro_batch_halves import MicroBatchHalves
from anybatch.stats.micro_batches import MicroBatches
from anybatch.stats.moments import GradientMoments
from anybatch.stats.per_sample import PerSample
from anybatch.stats.rank_halves import RankHalves
from anybatch.stats.ranks import Ranks
from anybatch.stats.weight_distance import Distance, WeightDistance

__all__ = [
    "Distance",
    "GradientMoments",
    "HalfBatches",
    "MicroBatchHalves",
    "MicroBatches",
    "ModulePrefixes",
    "PerSample",
    "PredictorModules",
    "RankHalves",
    "Ranks",
    "WeightDistance",
    "find_predictor_modules",
    "group_parameters",
]
