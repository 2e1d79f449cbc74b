"""Train PyTorch models at any batch size.

`probe` measures which batch size a workload deserves. `stats` measures gradients, `decide` turns measurements into
decisions.
"""

from importlib.metadata import version

from anybatch import decide, stats
from anybatch.errors import AnybatchError, InputError, RunError
from anybatch.probing import ProbeInterrupted, ProbeResult, probe
from anybatch.workload import Metric, Milestones, Workload

__version__ = version("anybatch")


__all__ = [
    # what is trained
    "Metric",
    "Milestones",
    "Workload",
    # which batch size it deserves
    "ProbeInterrupted",
    "ProbeResult",
    "probe",
    # the pieces
    "decide",
    "stats",
    # what goes wrong
    "AnybatchError",
    "InputError",
    "RunError",
]
