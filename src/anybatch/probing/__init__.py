"""Probe a workload: memory, speed and noise, the batch size that follows from them, and its verification."""

from anybatch.probing.probe import ProbeInterrupted, probe
from anybatch.probing.result import ProbeResult
from anybatch.probing.verification import Verification
from anybatch.probing.verify import verify

__all__ = ["ProbeInterrupted", "ProbeResult", "Verification", "probe", "verify"]
