"""Does the machine's memory hold the sums of a gradient estimate?"""

from __future__ import annotations

import math

from anybatch.decide.error_bounds import Estimator
from anybatch.errors import InputError
from anybatch.machine_memory import container_bytes, physical_bytes

LARGEST_SHARE = 0.75  # of the machine's memory
NUM_COPIES = 3  # the sums so far, those of a chunk, and both joined


def require_memory(estimator: Estimator, num_parameters: int, horizon: int, num_workers: int = 1) -> None:
    """Refuse an estimate whose sums the machine does not hold.

    G(PO)MDP keeps (H + 2)^2 products per parameter in float64, REINFORCE 9.

    Args:
        estimator: "gpomdp" or "reinforce".
        num_parameters: m.
        horizon: H.
        num_workers: threads, each of which holds the sums of a chunk.

    Raises:
        InputError: they would take too much of its memory.
    """
    num_rows = horizon + 2 if estimator == "gpomdp" else 3
    num_copies = NUM_COPIES if num_workers == 1 else NUM_COPIES + num_workers
    needed, memory = 8 * num_copies * num_parameters * num_rows**2, machine_bytes()
    if needed > LARGEST_SHARE * memory:
        advice = (
            'Take estimator="reinforce", whose sums do not grow with the horizon, or a shorter horizon.'
            if estimator == "gpomdp"
            else "Take fewer parameters."
        )
        raise InputError(
            f"the sums for the gradient must fit in {LARGEST_SHARE:.0%} of the machine's {memory:,.0f} bytes; got "
            f"{needed:,} bytes for {num_parameters} parameters and a horizon of {horizon} on {num_workers} thread(s). "
            + advice
        )


def machine_bytes() -> float:
    """Return the memory of the machine, or of the container; infinite where the system does not say."""
    return min((each for each in (physical_bytes(), container_bytes()) if each is not None), default=math.inf)
