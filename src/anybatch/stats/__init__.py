"""Measure: gradients of sub-batches -> moments per module. Decides nothing and changes nothing."""

from anybatch.stats.groups import ModulePrefixes, group_parameters
from anybatch.stats.micro_batches import MicroBatches
from anybatch.stats.moments import GradientMoments
from anybatch.stats.ranks import Ranks
from anybatch.stats.weight_distance import Distance, WeightDistance

__all__ = [
    "Distance",
    "GradientMoments",
    "MicroBatches",
    "ModulePrefixes",
    "Ranks",
    "WeightDistance",
    "group_parameters",
]
