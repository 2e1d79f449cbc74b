"""Probe a workload: memory, speed and noise, and the batch size that follows from them."""

from anybatch.probing.probe import ProbeInterrupted, probe
from anybatch.probing.result import ProbeResult

__all__ = ["ProbeInterrupted", "ProbeResult", "probe"]
