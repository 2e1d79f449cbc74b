"""Decide: values in, a decision with its reason out. Knows no optimizer, loader or process group."""

from anybatch.decide import error_bounds, vector_error_bounds
from anybatch.decide.agvm import (
    agvm_scales,
    measure_noise_fractions,
    precondition_as_published,
    precondition_like_adam,
)
from anybatch.decide.distance_law import DistanceLaw, choose_distance_law, fit_distance_law
from anybatch.decide.lr_scaling import LrScale, scale_learning_rate
from anybatch.decide.milestone import ReturnInterval, milestone_budget, return_interval
from anybatch.decide.noise_scale import NoiseScale, average_noise_scale, estimate_noise_scale
from anybatch.decide.regime import Regime, large_batch_regime
from anybatch.decide.safe_step import SafeStep, choose_safe_step, gaussian_penalty, optimal_batch_size
from anybatch.decide.sample_schedule import SampleSchedule
from anybatch.decide.samples_law import SamplesLaw, fit_samples_law
from anybatch.decide.smoothing_policies import (
    SmoothingConstants,
    gaussian_smoothing,
    smoothness_constant,
    softmax_smoothing,
)
from anybatch.decide.smoothing_step import (
    SmoothingStep,
    choose_relaxed_step,
    choose_smoothing_step,
    confidence_schedule,
)

__all__ = [
    "DistanceLaw",
    "LrScale",
    "NoiseScale",
    "Regime",
    "ReturnInterval",
    "SafeStep",
    "SampleSchedule",
    "SamplesLaw",
    "SmoothingConstants",
    "SmoothingStep",
    "agvm_scales",
    "average_noise_scale",
    "choose_distance_law",
    "choose_relaxed_step",
    "choose_safe_step",
    "choose_smoothing_step",
    "confidence_schedule",
    "error_bounds",
    "estimate_noise_scale",
    "fit_distance_law",
    "fit_samples_law",
    "gaussian_penalty",
    "gaussian_smoothing",
    "large_batch_regime",
    "measure_noise_fractions",
    "milestone_budget",
    "optimal_batch_size",
    "precondition_as_published",
    "precondition_like_adam",
    "return_interval",
    "scale_learning_rate",
    "smoothness_constant",
    "softmax_smoothing",
    "vector_error_bounds",
]
