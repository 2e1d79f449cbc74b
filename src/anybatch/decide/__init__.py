"""Decide: values in, a decision with its reason out. Knows no optimizer, loader or process group."""

from anybatch.decide.lr_scaling import LrScale, scale_learning_rate
from anybatch.decide.noise_scale import NoiseScale, average_noise_scale, estimate_noise_scale

__all__ = ["LrScale", "NoiseScale", "average_noise_scale", "estimate_noise_scale", "scale_learning_rate"]
