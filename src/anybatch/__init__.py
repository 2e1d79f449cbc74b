"""Train PyTorch models at any batch size.

`probe` measures which batch size a workload deserves, `compare` trains it by several recipes at several batch sizes.
`stats` measures, `decide` turns measurements into decisions, `apply` and `nn` carry them out.
"""

from importlib.metadata import version

from anybatch import apply, decide, nn, stats
from anybatch.apply.agvm import AGVM
from anybatch.apply.noise_monitor import NoiseMonitor
from anybatch.errors import AnybatchError, InputError, RunError
from anybatch.probing import ProbeInterrupted, ProbeResult, Verification, probe, verify
from anybatch.train.compare import compare
from anybatch.train.comparison import Comparison
from anybatch.train.plan import ModuleRates
from anybatch.train.recipe_kinds import DetectorRecipe, LayerwiseRecipe, NormRecipe, Recipe
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
    "Verification",
    "probe",
    "verify",
    # how it moves in a loop of your own
    "NoiseMonitor",
    # which recipe keeps it good at another one
    "Comparison",
    "DetectorRecipe",
    "LayerwiseRecipe",
    "ModuleRates",
    "NormRecipe",
    "Recipe",
    "compare",
    # what carries a method out
    "AGVM",
    # the pieces
    "apply",
    "decide",
    "nn",
    "stats",
    # what goes wrong
    "AnybatchError",
    "InputError",
    "RunError",
]
