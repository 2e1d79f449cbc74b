"""Measure: gradients of sub-batches -> moments per module. Decides nothing and changes nothing."""

from anybatch.stats.groups import ModulePrefixes, group_parameters
from anybatch.stats.micro_batches import MicroBatches
from anybatch.stats.moments import GradientMoments
from anybatch.stats.ranks import Ranks

__all__ = ["GradientMoments", "MicroBatches", "ModulePrefixes", "Ranks", "group_parameters"]
