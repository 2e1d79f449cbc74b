"""What is there to run, in which size, and for how long?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cart_pole_units
import lq_units
from units import Kinds, Unit

KINDS: Kinds = {
    "lq-smoothing": lq_units.run_smoothing,
    "lq-adabatch": lq_units.run_adabatch,
    "lq-fixed": lq_units.run_fixed_steps,
    "pole-relaxed": cart_pole_units.run_relaxed,
    "pole-fixed": cart_pole_units.run_fixed_steps,
}
LQ_KINDS, POLE_KINDS = ("lq-smoothing", "lq-adabatch", "lq-fixed"), ("pole-relaxed", "pole-fixed")
SECONDS = {  # per trajectory, on a quiet core, about
    "spg": 1.1e-5, "fspg": 1.1e-5, "corrected_bernstein": 1.7e-6, "gpomdp": 1.2e-5, "pole": 1.0e-4, "scaled": 2.0e-4,
}  # fmt: skip
SMOOTHING: dict[str, dict[str, Any]] = {
    "spg": {"bound": "sub_gaussian", "rule": "published", "growth": 1.0},
    "fspg": {"bound": "sub_gaussian", "rule": "published_fast", "growth": 1.0},
    "corrected_sub_gaussian": {"bound": "sub_gaussian", "rule": "corrected", "growth": 2.0},
    "corrected_chebyshev": {"bound": "sample_chebyshev", "rule": "corrected", "growth": 2.0},
    "corrected_bernstein": {"bound": "bernstein", "rule": "corrected", "growth": 1.2},
}
ADABATCH = {"adabatch": "stored", "adabatch_theoretical": "theoretical", "adabatch_empirical": "empirical"}
TOLERANCES = (0.1, 0.2, 0.4)
SCALED_TOLERANCE = 0.2


@dataclass(frozen=True)
class Scale:
    """How much is run; trajectories of each run.

    Attributes:
        num_seeds: of everything.
        lq: of the adaptive methods on the LQ task.
        lq_fixed: of G(PO)MDP there.
        pole: of relaxed SPG on the cart-pole.
        pole_fixed: of G(PO)MDP there.
        pole_scaled: of relaxed SPG with scaled features.
    """

    num_seeds: int
    lq: int
    lq_fixed: int
    pole: int
    pole_fixed: int
    pole_scaled: int


SCALES = {
    "smoke": Scale(1, 30_000, 2000, 2500, 500, 1000),
    "quick": Scale(1, 1_000_000, 200_000, 150_000, 100_000, 50_000),
    "full": Scale(5, 10_000_000, 2_000_000, 2_000_000, 1_000_000, 300_000),
}


def plan_units(scale: Scale) -> list[Unit]:
    """Return all units, the long ones first, so that workers end together."""
    units = [unit for seed in range(scale.num_seeds) for unit in (*_lq_units(scale, seed), *_pole_units(scale, seed))]
    return sorted(units, key=lambda unit: -unit.seconds)


def _lq_units(scale: Scale, seed: int) -> Iterator[Unit]:
    budget = {"num_trajectories": scale.lq, "seed": seed}
    for label, settings in SMOOTHING.items():
        yield Unit("lq-smoothing", label, settings | budget, 1 + scale.lq * SECONDS.get(label, 3.5e-7))
    for label, range_ in ADABATCH.items():
        yield Unit("lq-adabatch", label, {"range": range_, **budget}, 1 + scale.lq * 4e-7)
    fixed = {"num_trajectories": scale.lq_fixed, "seed": seed}
    yield Unit("lq-fixed", "gpomdp", fixed, 1 + scale.lq_fixed * SECONDS["gpomdp"])


def _pole_units(scale: Scale, seed: int) -> Iterator[Unit]:
    for tolerance in TOLERANCES:
        settings = {"tolerance": tolerance, "is_scaled": False, "num_trajectories": scale.pole, "seed": seed}
        yield Unit("pole-relaxed", f"lambda_{tolerance:g}", settings, scale.pole * SECONDS["pole"])
    settings = {"tolerance": SCALED_TOLERANCE, "is_scaled": True, "num_trajectories": scale.pole_scaled, "seed": seed}
    yield Unit("pole-relaxed", "scaled", settings, scale.pole_scaled * SECONDS["scaled"])
    fixed = {"num_trajectories": scale.pole_fixed, "seed": seed}
    yield Unit("pole-fixed", "gpomdp", fixed, scale.pole_fixed * SECONDS["pole"])
