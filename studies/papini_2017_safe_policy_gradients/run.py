"""Do safe policy gradients learn as fast as published, and keep their promise? Papini, Pirotta and Restelli 2017.

    python studies/papini_2017_safe_policy_gradients/run.py --smoke   # seconds: every part, a few updates
    python studies/papini_2017_safe_policy_gradients/run.py --quick   # minutes: 1e6 trajectories, one seed
    python studies/papini_2017_safe_policy_gradients/run.py --full    # the runs behind results.json

Units are kept under --runs and go on after a kill; --workers processes share them, and so does the same command in
another terminal.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1]))

import findings
import pages
from authors import CART_POLE, CHECKPOINTS, CURVES, FIXED_BATCH
from command import is_own_record, read_arguments
from plan import KINDS, SCALES, plan_units
from promise_units import RUN_SETTINGS
from units import Results, Unit, add_worker_options, by_label, do_units, read_results, run_units
from verdicts import Claim

from anybatch import AnybatchError
from anybatch.rl import LQG
from anybatch.rl.coordinate_rule import CoordinateRule, GaussianShape
from anybatch.train.environment import describe_environment
from anybatch.train.plain import plain, write_text
from anybatch.train.runtime import Runtime

HERE = Path(__file__).parent
WHOLE, WHOLE_RATES, WHOLE_POLE = 30_000_000, 1_000_000, 1_150_000  # trajectories of the published runs
FIRST_COMPARED = 1_000_000  # where curves are compared from
CURVE_TOLERANCE, AVERAGE_TOLERANCE, RATE_TOLERANCE, POLE_TOLERANCE = 0.3, 0.02, 5.0, 1.0
FEW = 20  # updates, too few to say how a batch grows
GUARANTEED = ("chebyshev", "bernstein")
BEST_STEP = 0.1576707808  # over the penalty


def verdict(is_so: bool, is_partly: bool = False) -> str:
    """Return the word for it."""
    return "reproduced" if is_so else "partly" if is_partly else "not"


def judge(results: Results) -> list[Claim]:
    """Put every claim beside the units that measure it; one that needs longer runs is left out."""
    rows = {row["curve"]: row for row in findings.curve_rows(results)}
    most = findings.budget(results)
    claims = [*_judge_averages(rows), *_judge_fixed_batches(results)] if most >= WHOLE else []
    claims += [*_judge_curves(rows), *_judge_orders(results, rows), *_judge_growth(results), _judge_monotony(rows)]
    if findings.budget(results, "fixed-steps") >= WHOLE_RATES:
        claims.append(_judge_rates(findings.rate_rows(results)))
    if findings.budget(results, "cart-pole") >= WHOLE_POLE:
        claims += _judge_poles(findings.pole_rows(results))
    return [*claims, *_judge_promises(findings.count_failures(results)), *_judge_runs(findings.run_rows(results))]


def _judge_averages(rows: dict[str, dict[str, Any]]) -> Iterator[Claim]:
    for label, row in rows.items():
        curve, mean = CURVES[label], row["average_return"]
        is_inside = curve.low is not None and curve.high is not None and curve.low <= mean <= curve.high
        away = mean - curve.average
        interval = "one stored run" if curve.low is None else f"[{curve.low:.4f}, {curve.high:.4f}]"
        width = row["half_width"]
        yield Claim(
            f"table-main-{label}",
            f"{curve.label}: average return over 3e7 trajectories",
            "main table",
            f"{curve.average:.4f} {interval}",
            f"{mean:.4f}, {away:+.4f} of theirs",
            "one seed" if width is None else f"90% interval [{mean - width:.4f}, {mean + width:.4f}]",
            row["seeds"],
            verdict(is_inside or abs(away) <= AVERAGE_TOLERANCE, abs(away) <= 5 * AVERAGE_TOLERANCE),
        )


def _judge_fixed_batches(results: Results) -> Iterator[Claim]:
    for label, runs in by_label(results, "fixed-batch").items():
        averages = [findings.average_return(run) for run in runs]
        mean, theirs = statistics.mean(averages), FIXED_BATCH[int(label)]
        yield Claim(
            f"fixed-batch-{label}",
            f"Adaptive step with a fixed batch of {label}: worse than the adaptive batch",
            "raw logs",
            f"{theirs:.4f}",
            f"{mean:.4f}, {mean - theirs:+.4f} of theirs",
            _spread(averages),
            len(runs),
            verdict(abs(mean - theirs) <= AVERAGE_TOLERANCE, abs(mean - theirs) <= 5 * AVERAGE_TOLERANCE),
        )


def _judge_curves(rows: dict[str, dict[str, Any]]) -> Iterator[Claim]:
    for label, row in rows.items():
        curve = CURVES[label]
        theirs = dict(zip(map(str, CHECKPOINTS), curve.performances, strict=True))
        apart = {
            point: statistics.mean(values) - theirs[point]
            for point, values in row["performances"].items()
            if int(point) >= FIRST_COMPARED
        }
        if not apart:
            continue
        worst = max(apart, key=lambda point: abs(apart[point]))
        yield Claim(
            f"curve-{label}",
            f"{curve.label}: the learning curve, from 1e6 trajectories on",
            f"figure {curve.figure}",
            ", ".join(f"{theirs[point]:.2f}" for point in apart) + f" at {', '.join(f'{int(p):.3g}' for p in apart)}",
            f"at most {apart[worst]:+.3f} away, at {int(worst):.3g}",
            f"sd there {_sd(row['performances'][worst])}",
            row["seeds"],
            verdict(abs(apart[worst]) <= CURVE_TOLERANCE, abs(apart[worst]) <= 3 * CURVE_TOLERANCE),
        )


def _judge_orders(results: Results, rows: dict[str, dict[str, Any]]) -> Iterator[Claim]:
    runs = by_label(results, "curve")
    at_equal = [[f"chebyshev_reinforce_{delta}", f"chebyshev_gpomdp_{delta}"] for delta in ("095", "075", "050")]
    deltas = [
        [f"chebyshev_gpomdp_{delta}" for delta in ("005", "025", "050", "075", "095")],
        [f"chebyshev_reinforce_{delta}" for delta in ("050", "075", "095")],
    ]
    bounds = ("hoeffding", "chebyshev", "bernstein", "empirical_hoeffding", "empirical_bernstein")
    ranked = [[f"{bound}_gpomdp_095" for bound in bounds]]
    about = (
        ("gpomdp-beats-reinforce", "G(PO)MDP learns faster than REINFORCE at equal delta", "figure 1", at_equal),
        ("larger-delta-faster", "A larger delta learns faster", "figure 1", deltas),
        ("bounds-rank", "Bounds rank Hoeffding, Chebyshev, Bernstein, empirical Hoeffding, empirical Bernstein",
         "figure 2", ranked),
    )  # fmt: skip
    points = [point for point in CHECKPOINTS if point <= findings.budget(results)] or [findings.budget(results)]
    for id_, statement, source, orders in about:
        pairs = [(low, high) for order in orders for low, high in pairwise(order)]
        kept = [_is_above(runs, low, high, point) for low, high in pairs for point in points]
        ends = [rows[high]["final_performance"] - rows[low]["final_performance"] for low, high in pairs]
        yield Claim(
            id_,
            statement,
            source,
            "at every point of the curves",
            f"{sum(kept)} of {len(kept)} comparisons at {len(points)} points; at the end by {min(ends):.2f} or more",
            "every seed of one above every seed of the other",
            min(row["seeds"] for row in rows.values()),
            verdict(all(kept), kept.count(True) > 0.8 * len(kept)),
        )


def _is_above(runs: dict[str, list[dict[str, Any]]], low: str, high: str, point: int) -> bool:
    values = {name: [findings.performance_at(run, point) for run in runs[name]] for name in (low, high)}
    return min(values[high]) > max(values[low])


def _judge_growth(results: Results) -> Iterator[Claim]:
    best = BEST_STEP / _penalty()
    growths, steps, seeds = [], [], 0
    for label, runs in by_label(results, "curve").items():
        if "chebyshev" not in label or min(len(run["batch_size"]) for run in runs) < FEW:
            continue
        seeds = len(runs)
        for run in runs:
            tenth = len(run["batch_size"]) // 10
            first, last = run["batch_size"][1 : 1 + tenth], run["batch_size"][-tenth:]
            growths.append(statistics.median(last) / statistics.median(first))
            steps.append(statistics.median(run["step_size"]) / best)
    if growths:
        is_near = all(abs(step - 1) < 0.05 for step in steps)
        yield Claim(
            "batch-grows",
            "Under Chebyshev's bound the batch grows as the gradient shrinks, and the step stays near its optimum",
            "runs behind figure 1",
            "batches grow up to sevenfold; median step 1.616e-5 to 1.617e-5",
            f"last tenth over first tenth of the batches {min(growths):.2f} to {max(growths):.2f}; median step "
            f"{min(steps) * best:.4g} to {max(steps) * best:.4g}",
            f"{len(growths)} runs",
            seeds,
            verdict(min(growths) > 1 and is_near, is_near),
        )


def _penalty() -> float:
    from anybatch.rl import TaskConstants
    from anybatch.rl.bound_constants import find_constants

    rule = CoordinateRule(GaussianShape.of(torch.eye(1)))
    return rule.penalty_of(find_constants(LQG(), takes_states=True, given=TaskConstants()))


def _judge_monotony(rows: dict[str, dict[str, Any]]) -> Claim:
    kept = [row for label, row in rows.items() if any(bound in label for bound in GUARANTEED)]
    worse, updates = sum(row["num_worse"] for row in kept), sum(row["updates"] * row["seeds"] for row in kept)
    return Claim(
        "monotonic",
        "No update of a Chebyshev or Bernstein run lowers the closed-form performance",
        "runs behind figures 1 and 2",
        "0 updates",
        f"{worse} of {updates:.0f} updates",
        f"{sum(row['seeds'] for row in kept)} runs",
        min(row["seeds"] for row in kept),
        verdict(worse == 0, worse < 1e-3 * updates),
    )


def _judge_rates(rows: Sequence[dict[str, Any]]) -> Claim:
    apart = [abs(statistics.mean(row["closed_form"]) - row["paper"]) for row in rows]
    near = sum(difference <= RATE_TOLERANCE for difference in apart)
    worst = rows[apart.index(max(apart))]
    return Claim(
        "improvement-rates",
        "With fixed step and batch, small steps and large batches improve in nearly all updates, others in about half",
        "table of improvement rates",
        "24 cells from 24.24% to 100%",
        f"{near} of {len(rows)} cells within {RATE_TOLERANCE:g} points; farthest: std {worst['std']:g}, batch "
        f"{worst['batch_size']}, step {worst['step_size']:g} with {statistics.mean(worst['closed_form']):.2f}% for "
        f"{worst['paper']:.2f}%",
        f"sd there {_sd(worst['closed_form'])}",
        len(worst["closed_form"]),
        verdict(near == len(rows), near > len(rows) / 2),
    )


def _judge_poles(rows: Sequence[dict[str, Any]]) -> Iterator[Claim]:
    for row in rows:
        kind, theirs = row["method"], CART_POLE[row["method"]]
        first, last, average = (statistics.mean(row[name]) for name in ("first", "last", "average"))
        away = average - theirs[2]
        yield Claim(
            f"cart-pole-{kind}",
            f"A pole twice as long, {kind} method: return before, at the end and on average",
            "raw logs",
            f"{theirs[0]:.1f}, {theirs[1]:.1f} and {theirs[2]:.2f}",
            f"{first:.1f}, {last:.1f} and {average:.2f}; median batch {row['batch_size']:.0f}",
            f"sd of the average {_sd(row['average'])}",
            row["seeds"],
            verdict(abs(away) <= POLE_TOLERANCE and last > first, last > first),
        )


def _judge_promises(rows: Sequence[dict[str, Any]]) -> Iterator[Claim]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["estimator"], row["bound"]), []).append(row)
    for (estimator, bound), own in found.items():
        plain_rows = [row for row in own if row["divisor"] == 1]
        numbers = "; ".join(map(_moved, plain_rows))
        is_control = bound in ("noise alone", "fixed step of 0.1")
        broken = _breaking_divisors(own)
        of = "" if estimator == "gpomdp" else f"{estimator} "
        name = f"{of}{bound}".replace(" ", "_").replace(".", "")
        kept = all(row["is_kept"] for row in plain_rows)
        is_broken = all(row["is_surely_broken"] for row in plain_rows)
        yield Claim(
            f"promise-{name}",
            f"{estimator}, {bound}: " + ("a control, whose share of worse policies must rise above delta" if is_control
            else "independent safe updates make the policy worse with probability delta at most"),
            "abstract, sentence 4",
            "failures over delta above 1" if is_control else "failures over delta at most 1",
            f"failures over delta {numbers}",
            "" if is_control else f"broken where the error is divided by {broken}; at delta "
            f"{plain_rows[0]['delta']:g} moved it {_moved_by_start(plain_rows[0])}",
            plain_rows[0]["num_updates"],
            verdict(is_broken) if is_control else verdict(kept and "none" not in broken, kept),
        )  # fmt: skip


def _breaking_divisors(rows: Sequence[dict[str, Any]]) -> str:
    """Return the least divisor of the error that surely breaks the promise, for each delta."""
    words = []
    for delta in sorted({row["delta"] for row in rows}):
        broken = [row["divisor"] for row in rows if row["delta"] == delta and row["is_surely_broken"]]
        words.append(f"{min(broken):g} (delta {delta:g})" if broken else f"none (delta {delta:g})")
    return ", ".join(words)


def _moved(row: dict[str, Any]) -> str:
    """Say what share failed, and of how many that moved the policy at all."""
    return (
        f"{row['share_over_delta']:.3f} at delta {row['delta']:g}, where {row['num_steps']} of {row['num_updates']} "
        f"moved it and {row['num_worse']} of these made it worse"
    )


def _moved_by_start(row: dict[str, Any]) -> str:
    parts = findings.moved_by_start(row["starts"]).items()
    return ", ".join(f"{moved} of {updates} {name} ({worse} worse)" for name, (updates, moved, worse) in parts)


def _judge_runs(rows: Sequence[dict[str, Any]]) -> Iterator[Claim]:
    for bound, setting in RUN_SETTINGS.items():
        own = [row for row in rows if row["bound"] == bound]
        plain_rows, controls = ([row for row in own if (row["divisor"] == 1) == is_plain] for is_plain in (True, False))
        kept, broken = all(row["is_kept"] for row in plain_rows), all(row["is_surely_broken"] for row in controls)
        yield Claim(
            "promise-runs" if setting.baseline else f"promise-runs_{bound}_without_baseline",
            f"Whole runs of the 2022 schedule, {bound} {'with' if setting.baseline else 'without'} baselines, contain "
            "an update that made the policy worse with probability delta at most",
            "Papini et al. 2022, abstract, sentence 7",
            "failures over delta at most 1",
            "; ".join(
                f"{row['share_over_delta']:.3f} at delta {row['delta']:g}, where {row['num_steps']} of "
                f"{row['num_updates']} updates moved it, in {row['num_moved']} runs"
                for row in plain_rows
            ),
            f"with the error divided by 1000, in {controls[0]['num_runs']} runs: "
            + ", ".join(f"{row['share_over_delta']:.2f}" for row in controls),
            plain_rows[0]["num_runs"],
            verdict(kept and broken, kept),
        )


def _sd(values: Sequence[float]) -> str:
    return f"{statistics.stdev(values):.3g}" if len(values) > 1 else "of one seed unknown"


def _spread(values: Sequence[float]) -> str:
    return f"sd over seeds {_sd(values)}"


def summarize(results: Results, units: Sequence[Unit], size: str) -> dict[str, Any]:
    """Return all that results.json holds."""
    done = {unit.name for found in results.values() for unit, _ in found}
    missing = [unit.name for unit in units if unit.name not in done]
    return {
        "environment": describe_environment(Runtime(torch.device("cpu"))),
        "size": size,
        "num_trajectories": SCALES[size].num_trajectories,
        "seconds": sum(result["seconds"] for found in results.values() for _, result in found),
        "incomplete": missing,
        "curves": findings.curve_rows(results),
        "fixed_batches": {
            batch: [findings.average_return(run) for run in runs]
            for batch, runs in by_label(results, "fixed-batch").items()
        },
        "improvement_rates": findings.rate_rows(results),
        "cart_pole": findings.pole_rows(results),
        "failures": findings.count_failures(results),
        "failures_of_runs": findings.run_rows(results),
        "price": findings.price_rows(results),
        "price_at_start": findings.price_at_start(results),
        "claims": [] if missing else [plain(claim) for claim in judge(results)],
    }


def num_finished(units: Sequence[Unit], runs: Path) -> int:
    """Return how many units are finished."""
    return sum(map(len, read_results(units, runs).values()))


def earlier_whole_run(path: Path | None) -> dict[str, Any] | None:
    """Return how long the last run took that did all units in one call, as results.json kept it."""
    if path is None or not path.exists():
        return None
    return json.loads(path.read_text(encoding="utf-8")).get("whole_run")


def main() -> int:
    """Do the units that are asked for and say what they show; return the exit code."""
    try:
        arguments = read_arguments(__doc__, HERE, sizes=SCALES, more=add_worker_options)
        units = plan_units(SCALES[arguments.size])
        if arguments.work:
            do_units(units, KINDS, arguments.runs)
            return 0
        before, begun = num_finished(units, arguments.runs), time.perf_counter()
        if not arguments.finished_only:
            run_units(__file__, units, arguments)
        elapsed = time.perf_counter() - begun
        results = read_results(units, arguments.runs)
        found = summarize(results, units, arguments.size)
        num_done = num_finished(units, arguments.runs) - before
        whole = {"elapsed_seconds": elapsed, "num_units": num_done, "num_workers": arguments.workers}
        found["whole_run"] = whole if before == 0 and num_done == len(units) else earlier_whole_run(arguments.json)
    except AnybatchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for claim in found["claims"]:
        print(f"{claim['verdict']}: {claim['statement']}. {claim['ours']} ({claim['spread']}); paper: {claim['paper']}")
    if found["whole_run"]:
        print(
            "a run of all {num_units} units took {elapsed_seconds:.0f} s on {num_workers} workers".format(
                **found["whole_run"]
            )
        )
    if arguments.json:
        write_text(arguments.json, json.dumps(plain(found), indent=1) + "\n")
        pages.draw(results, found, arguments.json.parent)
        if is_own_record(arguments, HERE):
            pages.write_readme(HERE / "README.md", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
