"""What do the finished units say, before anything is compared with the paper?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from authors import CHECKPOINTS, CURVES, IMPROVEMENT_RATES, STEP_SIZES
from lqg_units import ESTIMATORS
from promise_units import FAR_STARTS
from scipy.stats import norm, t
from units import Results, by_label

from anybatch.decide import error_bounds
from anybatch.decide.safe_step import BEST_ERROR, optimal_batch_size
from anybatch.rl.promise import FailureCount

CONFIDENCE = 0.95  # of the sign, for the oracle that has to know no more
LARGEST = 10**12
COUNTED = ("num_updates", "num_steps", "num_worse")


def budget(results: Results, kind: str = "curve") -> int:
    """Return the trajectories of each run of a kind."""
    return results[kind][0][0].settings["num_trajectories"]


def average_return(run: Mapping[str, Any]) -> float:
    """Return the measured return over all trajectories of a run."""
    return float(np.average(run["measured_performance"], weights=run["batch_size"]))


def performance_at(run: Mapping[str, Any], num_trajectories: int) -> float:
    """Return the closed form of the last policy whose batch was complete by then; the first one before that."""
    complete = int(np.searchsorted(np.cumsum(run["batch_size"]), num_trajectories, side="right"))
    return run["performance"][max(complete - 1, 0)]


def num_worse(run: Mapping[str, Any]) -> int:
    """Return how many updates lowered the closed form."""
    return int((np.diff([*run["performance"], run["final_performance"]]) < 0).sum())


def half_width(values: Sequence[float], quantile: float = 0.95) -> float | None:
    """Return t(quantile) standard errors, of which the authors' intervals are made; None of one value."""
    if len(values) < 2:
        return None
    return float(t.ppf(quantile, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def curve_rows(results: Results) -> list[dict[str, Any]]:
    """Return a row per curve, in the order of the figures."""
    runs = by_label(results, "curve")
    return [_curve_row(label, runs[label], budget(results)) for label in CURVES if label in runs] if runs else []


def _curve_row(label: str, runs: Sequence[dict[str, Any]], most: int) -> dict[str, Any]:
    averages = [average_return(run) for run in runs]
    points = [point for point in CHECKPOINTS if point <= most]
    sizes = np.concatenate([run["batch_size"][1:] or run["batch_size"] for run in runs])
    return {
        "curve": label,
        "seeds": len(runs),
        "average_return": statistics.mean(averages),
        "average_returns": averages,
        "half_width": half_width(averages),
        "updates": statistics.mean(len(run["batch_size"]) for run in runs),
        "batch_size": {"median": float(np.median(sizes)), "min": int(sizes.min()), "max": int(sizes.max())},
        "step_size": statistics.median(step for run in runs for step in run["step_size"]),
        "final_performance": statistics.mean(run["final_performance"] for run in runs),
        "final_theta": statistics.mean(run["theta"][-1] for run in runs),
        "num_worse": sum(map(num_worse, runs)),
        "performances": {str(point): [performance_at(run, point) for run in runs] for point in points},
        "seconds": statistics.mean(run["seconds"] for run in runs),
    }


def rate_rows(results: Results) -> list[dict[str, Any]]:
    """Return a row per cell of the table of improvement rates."""
    runs = by_label(results, "fixed-steps")
    return [
        {
            "std": std,
            "batch_size": size,
            "step_size": step_size,
            "paper": IMPROVEMENT_RATES[std, size][place],
            **{name: [run[name][place] for run in runs[f"{std:g} {size}"]] for name in ("closed_form", "exact")},
        }
        for std, size in IMPROVEMENT_RATES
        if f"{std:g} {size}" in runs
        for place, step_size in enumerate(STEP_SIZES)
    ]


def pole_rows(results: Results) -> list[dict[str, Any]]:
    """Return a row per method on the cart-pole with the longer pole."""
    return [
        {
            "method": kind,
            "seeds": len(runs),
            "first": [run["measured_performance"][0] for run in runs],
            "last": [run["measured_performance"][-1] for run in runs],
            "average": [average_return(run) for run in runs],
            "batch_size": statistics.median(size for run in runs for size in run["batch_size"]),
            "step_sizes": [min(step for run in runs for step in run["step_size"]),
                           max(step for run in runs for step in run["step_size"])],
            "seconds": statistics.mean(run["seconds"] for run in runs),
        }
        for kind, runs in by_label(results, "cart-pole").items()
    ]  # fmt: skip


def count_failures(results: Results) -> list[dict[str, Any]]:
    """Return failures over all starts, by estimator, bound, divisor of the error and delta."""
    found: dict[tuple[str, str, float, float], list[dict[str, Any]]] = {}
    for unit, result in results.get("updates", []):
        for count in result["counts"]:
            key = (unit.label, count["bound"], count["divisor"], count["delta"])
            found.setdefault(key, []).append({"start": result["start"], **{name: count[name] for name in COUNTED}})
    return [_failure_row(*key, starts) for key, starts in found.items()]


def _failure_row(
    estimator: str, bound: str, divisor: float, delta: float, starts: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return the sum over starts, and where the error is as it is what is behind it, start by start."""
    total = FailureCount(delta, *(sum(start[name] for start in starts) for name in COUNTED))
    row = {
        "estimator": estimator, "bound": bound, "divisor": divisor, "delta": delta,
        **{name: getattr(total, name) for name in COUNTED},
        "share_over_delta": total.share / delta, "share_of_steps": total.share_of_steps,
        "is_kept": total.is_kept, "is_surely_broken": total.is_surely_broken,
    }  # fmt: skip
    return row | {"starts": sorted(starts, key=lambda start: -start["start"])} if divisor == 1 else row


def moved_by_start(starts: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int, int]]:
    """Return updates, those that moved the policy and those of them that made it worse, the coins in one sum."""
    found: dict[str, tuple[int, int, int]] = {}
    for start in starts:
        name = f"from {start['start']:g}" if start["start"] in FAR_STARTS else "near the optimum"
        found[name] = tuple(map(sum, zip(found.get(name, (0, 0, 0)), (start[each] for each in COUNTED), strict=True)))  # pyright: ignore[reportArgumentType]
    return found


def run_rows(results: Results) -> list[dict[str, Any]]:
    """Return failures of whole runs of 2022, as they are and with the error divided."""
    rows = []
    for unit, result in results.get("runs", []):
        bound, delta, divisor = (unit.settings[name] for name in ("bound", "delta", "divisor"))
        found = FailureCount(delta, result["num_runs"], result["num_moved"], result["num_failed"])
        rows.append(
            {"bound": bound, "delta": delta, "divisor": divisor, **result}
            | {"share_over_delta": found.share / delta, "share_of_moved": found.share_of_steps}
            | {"is_kept": found.is_kept, "is_surely_broken": found.is_surely_broken}
        )
    return sorted(rows, key=lambda row: (row["bound"], row["delta"], row["divisor"]))


def moments(results: Results) -> dict[str, list[tuple[float, float, float, float]]]:
    """Return (theta, gradient, std, range) by estimator, along falling theta."""
    found: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in ESTIMATORS}
    for unit, result in results.get("moments", []):
        found[unit.label].append((unit.settings["theta"], result["gradient"], result["std"], result["range"]))
    return {estimator: sorted(rows, reverse=True) for estimator, rows in found.items() if rows}


def price_rows(results: Results) -> list[dict[str, Any]]:
    """Return what each curve spent over what the same updates would take, were the true variance known.

    `true_variance`: the same rule with Chebyshev's error of the true variance. `sign`: an oracle that only has to
    know the sign of the gradient, with probability 0.95; `sign_at_delta`: with probability 1 - delta, where half is
    had without a trajectory, so that 2 are counted.
    """
    known, runs, rows = moments(results), by_label(results, "curve"), []
    for label, curve in CURVES.items():
        if label not in runs or curve.estimator not in known:
            continue
        run = runs[label][0]
        spread = _relative_std(known[curve.estimator], run["theta"][:-1])
        wanted = {
            "true_variance": spread**2 / curve.delta / BEST_ERROR**2,
            "sign": (norm.ppf(CONFIDENCE) * spread) ** 2,
            "sign_at_delta": (max(norm.ppf(1 - curve.delta), 0.0) * spread) ** 2,
        }
        totals = {name: float(np.maximum(np.ceil(sizes), 2).sum()) for name, sizes in wanted.items()}
        used = sum(run["batch_size"])
        rows.append(
            {"curve": label, "used": used, **totals} | {f"over_{name}": used / total for name, total in totals.items()}
        )
    return rows


def _relative_std(known: Sequence[tuple[float, ...]], thetas: Sequence[float]) -> np.ndarray:
    """Return the std of one trajectory's gradient over the gradient, between the policies where it was measured."""
    theta, gradient, std, _ = np.array(known[::-1]).T
    return np.interp(thetas, theta, std) / np.interp(thetas, theta, gradient)


def price_at_start(results: Results) -> list[dict[str, Any]]:
    """Return the batch that each bound asks for at the first policy, beside those of the two oracles."""
    rows = []
    task: dict[str, Any] = {"reward_bound": 4.0, "feature_bound": 2.0, "discount": 0.9, "std": 1.0}
    for estimator, known in moments(results).items():
        _, gradient, std, range_ = known[0]
        for delta in (0.05, 0.25, 0.95):
            bounds = {
                "chebyshev": error_bounds.chebyshev(estimator=estimator, **task, horizon=20, delta=delta),  # pyright: ignore[reportArgumentType]
                "hoeffding": error_bounds.hoeffding(1280.0, delta),
                "bernstein": error_bounds.empirical_bernstein(std**2, 1280.0, delta),
                "empirical hoeffding": error_bounds.hoeffding(range_, delta),
                "empirical bernstein": error_bounds.empirical_bernstein(std**2, range_, delta),
                "student_t": error_bounds.student_t(std**2, 1_000_000, delta),
            }
            asked: dict[str, float] = {
                name: optimal_batch_size(gradient, bound, 2, LARGEST) for name, bound in bounds.items()
            }
            asked["true variance"] = max(2, math.ceil((std / gradient / BEST_ERROR) ** 2 / delta))
            asked["sign"] = max(2, math.ceil((max(norm.ppf(1 - delta), 0.0) * std / gradient) ** 2))
            rows.append({"estimator": estimator, "delta": delta, **asked})
    return rows
