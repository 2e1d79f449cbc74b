"""What is there to run, in which size, and for how long?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from authors import CURVES, FIXED_BATCH, IMPROVEMENT_RATES, RATES_START, STEP_SIZES
from cart_pole_unit import run_cart_pole
from lqg_units import ESTIMATORS, measure_moments, run_curve, run_fixed_steps
from promise_units import NUM_STARTS, RUN_SETTINGS, VARIANTS, RunSetting, count_runs, count_updates
from units import Kinds, Unit

THETAS = (0.0, -0.1, -0.2, -0.3, -0.4, -0.5, -0.55, -0.58)  # along every curve
DELTAS = (0.05, 0.25)
RUN_CONTROL, CONTROL_SHARE = 1000.0, 4  # divides the error of whole runs, of which so many fewer are needed
SECONDS_PER_TRAJECTORY, SECONDS_PER_BATCH, CART_POLE_SECONDS = 3.5e-7, 1.5e-3, 4.3e-5  # on a quiet core, about
PROMISED_PER_TRAJECTORY, PROMISED_PER_UPDATE, PROMISED_PER_LOOK = 2.6e-7, 6e-3, 8e-4  # of the promise, likewise

KINDS: Kinds = {
    "curve": run_curve,
    "fixed-batch": run_curve,
    "fixed-steps": run_fixed_steps,
    "cart-pole": run_cart_pole,
    "moments": measure_moments,
    "updates": count_updates,
    "runs": count_runs,
}


@dataclass(frozen=True)
class Scale:
    """How much is run.

    Attributes:
        num_trajectories: of a curve.
        num_seeds: of curves.
        fixed_batch_seeds: of fixed batches.
        rate_trajectories: of a cell of the table of improvement rates.
        rate_seeds: of that table.
        pole_trajectories: of a run of the cart-pole.
        pole_seeds: of it.
        num_updates: independent ones from each start.
        update_batch: trajectories of each of these.
        num_runs: whole runs of 2022.
        moment_trajectories: at each policy.
    """

    num_trajectories: int
    num_seeds: int
    fixed_batch_seeds: int
    rate_trajectories: int
    rate_seeds: int
    pole_trajectories: int
    pole_seeds: int
    num_updates: int
    update_batch: int
    num_runs: int
    moment_trajectories: int


SCALES = {
    "smoke": Scale(25_000, 1, 1, 10_000, 1, 6_000, 1, 4, 500, 5, 2_000),
    "quick": Scale(1_000_000, 1, 1, 200_000, 1, 100_000, 1, 200, 10_000, 100, 200_000),
    "full": Scale(30_000_000, 5, 3, 1_000_000, 2, 1_150_000, 3, 250, 60_000, 1000, 1_000_000),
}


def plan_units(scale: Scale) -> list[Unit]:
    """Return all units, the long ones first, so that workers end together."""
    units = [*_curves(scale), *_fixed_steps(scale), *_cart_poles(scale), *_moments(scale), *_promises(scale)]
    return sorted(units, key=lambda unit: -unit.seconds)


def _curves(scale: Scale) -> Iterator[Unit]:
    keys = ("estimator", "bound", "range", "delta", "min_batch_size", "max_batch_size")
    for seed in range(scale.num_seeds):
        budget = {"num_trajectories": scale.num_trajectories, "seed": seed}
        seconds = scale.num_trajectories * SECONDS_PER_TRAJECTORY
        for label, curve in CURVES.items():
            settings = {key: getattr(curve, key) for key in keys}
            extra = 3.4 if curve.range == "empirical" else 1.25  # small batches cost more
            yield Unit("curve", label, settings | budget, extra * seconds)
        for size in FIXED_BATCH if seed < scale.fixed_batch_seeds else ():
            settings = {key: getattr(CURVES["chebyshev_gpomdp_095"], key) for key in keys}
            limits = {"min_batch_size": size, "max_batch_size": size}
            cost = seconds + scale.num_trajectories / size * SECONDS_PER_BATCH
            yield Unit("fixed-batch", str(size), settings | limits | budget, cost)


def _fixed_steps(scale: Scale) -> Iterator[Unit]:
    for seed in range(scale.rate_seeds):
        for std, size in IMPROVEMENT_RATES:
            settings = {
                "std": std, "batch_size": size, "step_sizes": list(STEP_SIZES), "start": RATES_START, "seed": seed,
                "num_trajectories": scale.rate_trajectories,
            }  # fmt: skip
            cost = scale.rate_trajectories * (SECONDS_PER_TRAJECTORY + SECONDS_PER_BATCH / size)
            yield Unit("fixed-steps", f"{std:g} {size}", settings, 2 + cost * len(STEP_SIZES))


def _cart_poles(scale: Scale) -> Iterator[Unit]:
    for seed in range(scale.pole_seeds):
        for kind in ("adaptive", "fixed"):
            settings = {"kind": kind, "num_trajectories": scale.pole_trajectories, "seed": seed}
            yield Unit("cart-pole", kind, settings, scale.pole_trajectories * CART_POLE_SECONDS)


def _moments(scale: Scale) -> Iterator[Unit]:
    for estimator in ESTIMATORS:
        for theta in THETAS:
            settings = {
                "estimator": estimator,
                "theta": theta,
                "num_trajectories": scale.moment_trajectories,
                "seed": 0,
            }
            yield Unit("moments", estimator, settings, 2 * scale.moment_trajectories * SECONDS_PER_TRAJECTORY)


def _promises(scale: Scale) -> Iterator[Unit]:
    for label, (estimator, baseline) in VARIANTS.items():
        for place in range(NUM_STARTS):
            settings = {
                "estimator": estimator, "baseline": baseline, "place": place, "num_each": scale.num_updates,
                "batch_size": scale.update_batch, "deltas": list(DELTAS), "seed": 0,
            }  # fmt: skip
            each = scale.update_batch * PROMISED_PER_TRAJECTORY + PROMISED_PER_UPDATE  # all bounds and divisors
            yield Unit("updates", label, settings, 2 + scale.num_updates * each)
    for bound, setting in RUN_SETTINGS.items():
        for delta in DELTAS:
            for divisor, num_runs in ((1.0, scale.num_runs), (RUN_CONTROL, -(-scale.num_runs // CONTROL_SHARE))):
                settings = {"bound": bound, "delta": delta, "divisor": divisor, "num_runs": num_runs, "seed": 0}
                yield Unit("runs", f"{bound} {delta:g}", settings, 2 + num_runs * _seconds_of_run(setting, delta))


def _seconds_of_run(setting: RunSetting, delta: float) -> float:
    least, most = setting.batches[delta]
    num_looks = 1 + math.ceil(math.log2(most / least))
    return setting.num_updates * (most * PROMISED_PER_TRAJECTORY + num_looks * PROMISED_PER_LOOK)
