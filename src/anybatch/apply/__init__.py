"""Apply: a decision becomes calls of one host. Thin hands over torch, without formulas."""

from anybatch.apply.agvm import AGVM
from anybatch.apply.gradient_noise import GradientNoise
from anybatch.apply.noise_monitor import NoiseMonitor
from anybatch.apply.sample_scheduler import SampleScheduler
from anybatch.apply.sample_stream import SampleStream, StreamBatchSampler

__all__ = ["AGVM", "GradientNoise", "NoiseMonitor", "SampleScheduler", "SampleStream", "StreamBatchSampler"]
