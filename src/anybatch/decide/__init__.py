"""Decide: values in, a decision with its reason out. Knows no optimizer, loader or process group."""

from anybatch.decide.distance_law import DistanceLaw, fit_distance_law
from anybatch.decide.lr_scaling import LrScale, scale_learning_rate
from anybatch.decide.noise_scale import NoiseScale, average_noise_scale, estimate_noise_scale
from anybatch.decide.regime import Regime, large_batch_regime
from anybatch.decide.sample_schedule import SampleSchedule

__all__ = [
    "DistanceLaw",
    "LrScale",
    "NoiseScale",
    "Regime",
    "SampleSchedule",
    "average_noise_scale",
    "estimate_noise_scale",
    "fit_distance_law",
    "large_batch_regime",
    "scale_learning_rate",
]
