"""Does samples(B) = E (1 + B / B_crit) hold for trainings of industry's size? MLPerf's reference convergence points.

    python studies/mlperf_rcp_law/run.py --smoke   # a second or two: every part, few bootstrap draws
    python studies/mlperf_rcp_law/run.py --quick   # some seconds
    python studies/mlperf_rcp_law/run.py --full --json studies/mlperf_rcp_law/results.json

Nothing is trained: the points are finished runs that MLCommons published. So --runs and --finished-only change nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from numpy.typing import NDArray
from scipy.optimize import least_squares

sys.path.append(str(Path(__file__).parents[1]))

from command import is_own_record, read_arguments
from reporting import claims_section, rewrite_results
from verdicts import Claim

from anybatch import AnybatchError
from anybatch.decide import SamplesLaw, fit_samples_law
from anybatch.errors import InputError
from anybatch.train.plain import write_text

Array = NDArray[np.float64]
HERE = Path(__file__).parent
CLOSE = 0.10  # the bar: measured over predicted, less 1
MISRECORDED = 3.0  # a run that counts so many times the median of its size is left out as a slip of the pen
ALIKE = 0.001  # errors that differ by no more are alike: a rival may have become the law
STARTS = 3  # of a grid of parameters, from which a fit goes on
FEW = 3  # sizes through which a law of two parameters can hardly miss
DRAWS = {"smoke": 20, "quick": 100, "full": 500}


@dataclass(frozen=True)
class Benchmark:
    """The points of one benchmark and optimizer, smallest batch first.

    Attributes:
        name: of the benchmark, with the optimizer where its points have several.
        round: of MLPerf.
        sizes: samples (or sequences) per step.
        runs: per size what each run needed, in the benchmark's own unit.
        rates: per size the base rate.
        num_left_out: runs that count more than `MISRECORDED` times the median.
    """

    name: str
    round: str
    sizes: tuple[float, ...]
    runs: tuple[Array, ...]
    rates: tuple[float, ...]
    num_left_out: int

    @property
    def means(self) -> Array:
        """Mean of the runs per size."""
        return np.array([values.mean() for values in self.runs])

    @property
    def resolution(self) -> float:
        """The coarsest step in which a size's runs are counted, over their mean; 0 where no size has two values."""
        steps = [np.diff(np.unique(values)).min() / values.mean() for values in self.runs if len(set(values)) > 1]
        return float(max(steps, default=0.0))

    def without_largest(self, count: int) -> Benchmark:
        """Return the same without its largest sizes."""
        kept = len(self.sizes) - count
        return Benchmark(self.name, self.round, self.sizes[:kept], self.runs[:kept], self.rates[:kept], 0)

    def fit(self) -> SamplesLaw:
        """Return the law of this package."""
        return fit_samples_law(self.sizes, [values.tolist() for values in self.runs])

    def resampled(self, rng: np.random.Generator) -> Benchmark:
        """Return as many runs per size, drawn with replacement."""
        runs = tuple(rng.choice(values, len(values)) for values in self.runs)
        return Benchmark(self.name, self.round, self.sizes, runs, self.rates, 0)


def read_benchmarks(root: Path) -> list[Benchmark]:
    """Read the points, one benchmark for each optimizer named."""
    path = root / "mlperf_rcp" / "rcp.json"
    if not path.is_file():
        raise InputError(f"the reference points must lie in {path}; they do not. Pass --data-root.")
    found = []
    for name, entry in json.loads(path.read_text())["benchmarks"].items():
        optimizers = sorted({point["optimizer"] or "" for point in entry["points"]})
        for optimizer in optimizers:
            points = [point for point in entry["points"] if (point["optimizer"] or "") == optimizer]
            label = f"{name}, {optimizer}" if len(optimizers) > 1 else name
            found.append(_benchmark(label, entry["round"], sorted(points, key=lambda point: point["batch_size"])))
    return found


def _benchmark(name: str, round_: str, points: Sequence[dict[str, Any]]) -> Benchmark:
    every = [np.array(point["to_converge"], dtype=float) for point in points]
    kept = tuple(values[values <= MISRECORDED * np.median(values)] for values in every)
    return Benchmark(
        name,
        round_,
        tuple(float(point["batch_size"]) for point in points),
        kept,
        tuple(point["base_learning_rate"] for point in points),
        sum(map(len, every)) - sum(map(len, kept)),
    )


# rival laws: ln samples of (parameters, ln B), B in units of the geometric mean of the sizes


@dataclass(frozen=True)
class Law:
    """A law of ln samples, fitted as the law of this package: least squares in the logarithm, sizes counting alike."""

    name: str
    formula: str
    source: str
    shape: Callable[[Array, Array], Array]  # (parameters without the factor, ln B) -> ln samples
    starts: Sequence[tuple[float, ...]]

    @property
    def num_parameters(self) -> int:
        """Shape and factor."""
        return len(self.starts[0]) + 1


def _hinge(parameters: Array, log_b: Array) -> Array:
    return np.maximum(0.0, log_b - parameters[0])


def _steps_power(parameters: Array, log_b: Array) -> Array:
    log_critical, log_exponent = parameters
    return log_b + np.logaddexp(0.0, np.exp(log_exponent) * (log_critical - log_b))


def _quadratic(parameters: Array, log_b: Array) -> Array:
    first, second = parameters
    return np.log1p(np.exp(log_b - first) + np.exp(2 * (log_b - second)))


def _three_term(parameters: Array, log_b: Array) -> Array:
    log_smallest, log_exponent = parameters
    exponent = np.exp(log_exponent)
    share = np.minimum(np.exp(exponent * (log_smallest - log_b)), 1 - 1e-9)
    return log_b - np.log1p(-share) / exponent


def _law(parameters: Array, log_b: Array) -> Array:
    return np.log1p(np.exp(log_b - parameters[0]))


def _power(parameters: Array, log_b: Array) -> Array:
    return parameters[0] * log_b


PLACES, POWERS = np.linspace(-5, 5, 41), np.linspace(-2.5, 1, 15)
LAW = Law("law", "E (1 + B/B_crit)", "McCandlish et al. 2018, arXiv:1812.06162", _law, [(place,) for place in PLACES])
LAWS = (
    LAW,
    Law("power", "a B^p", "the straight line of a log-log plot", _power, [(0.3,)]),
    Law("hinge", "E max(1, B/B_crit)", "outer regimes of Shallue et al. 2019, arXiv:1811.03600, joined; formula ours",
        _hinge, [(place,) for place in np.linspace(-5, 5, 401)]),
    Law("steps power", "B (a + b/B^p)", "Zhang et al. 2024, arXiv:2410.21676",
        _steps_power, list(product(PLACES, POWERS))),
    Law("quadratic", "E (1 + B/B_1 + (B/B_2)^2)", "the law with its next term, ours",
        _quadratic, list(product(PLACES, PLACES))),
    Law("three terms", "S with (S_min/S)^p + (B_min/B)^p = 1, times B",
        "loss as a sum of terms in model, steps and batch: Schaipp 2026, arXiv:2607.01487; one exponent for both here",
        _three_term, list(product(PLACES - 5, POWERS))),
)  # fmt: skip


def predict_by(law: Law, sizes: Sequence[float], means: Array, wanted: Sequence[float]) -> Array:
    """Return a law fitted to some sizes at others; not a number where it has more parameters than there are sizes."""
    if law.num_parameters > len(sizes):
        return np.full(len(wanted), np.nan)
    centre = float(np.log(sizes).mean())
    log_b, log_wanted, logs = np.log(sizes) - centre, np.log(wanted) - centre, np.log(means)

    def residuals(parameters: Array) -> Array:
        shape = law.shape(parameters, log_b)
        return (logs - shape) - (logs - shape).mean()

    nearest = sorted(law.starts, key=lambda start: float((residuals(np.array(start)) ** 2).sum()))[:STARTS]
    ends = [least_squares(residuals, start, bounds=(-12, 12)) for start in nearest]
    best = min(ends, key=lambda end: end.cost).x
    return np.exp(law.shape(best, log_wanted) + (logs - law.shape(best, log_b)).mean())


# what the points say


def examine(benchmark: Benchmark, num_draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """Return the row of a benchmark: the fit, the largest sizes predicted from the others, and the rivals' errors."""
    law, means = benchmark.fit(), benchmark.means
    fits = [benchmark.resampled(rng).fit() for _ in range(num_draws)]
    criticals = np.array([fit.critical_batch_size or math.inf for fit in fits])
    low, high = np.quantile(criticals, [0.025, 0.975], method="nearest")
    by = {rival.name: predict_by(rival, benchmark.sizes, means, benchmark.sizes) for rival in LAWS}
    return {
        "benchmark": benchmark.name,
        "round": benchmark.round,
        "batch_sizes": list(benchmark.sizes),
        "num_runs": [len(values) for values in benchmark.runs],
        "num_left_out": benchmark.num_left_out,
        "means": means.tolist(),
        "rates": list(benchmark.rates),
        "resolution": benchmark.resolution,
        "examples": law.examples,
        "critical_batch_size": law.critical_batch_size,
        "interval": [law.low, law.high],
        "interval_of_runs": [float(low), float(high) if math.isfinite(high) else None],
        "residuals": list(law.residuals),
        "worst": max(map(abs, law.residuals)),
        "rivals_worst": {name: _worst(means, fitted) for name, fitted in by.items()},
        "largest_out": {**_leave_out(benchmark, 1, num_draws, rng), "rivals": _rivals_largest_out(benchmark)},
        "two_largest_out": _leave_out(benchmark, 2, num_draws, rng) if len(benchmark.sizes) > FEW else None,
    }


def _worst(means: Array, fitted: Array) -> float | None:
    worst = float(np.abs(means / fitted - 1).max())
    return worst if math.isfinite(worst) else None


def _leave_out(benchmark: Benchmark, count: int, num_draws: int, rng: np.random.Generator) -> dict[str, Any]:
    """Predict the largest size from all but the `count` largest."""
    known = benchmark.without_largest(count)
    wanted, measured = benchmark.sizes[-1], float(benchmark.means[-1])
    predicted = known.fit().samples(wanted)
    draws = [known.resampled(rng).fit().samples(wanted) for _ in range(num_draws)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return {
        "batch_size": wanted,
        "times_the_largest_known": wanted / known.sizes[-1],
        "num_known": len(known.sizes),
        "predicted": predicted,
        "interval_of_runs": [float(low), float(high)],
        "measured": measured,
        "error": measured / predicted - 1,
    }


def _rivals_largest_out(benchmark: Benchmark) -> dict[str, float | None]:
    """Return each law's error at the largest size, fitted to the others."""
    known, wanted, measured = benchmark.without_largest(1), benchmark.sizes[-1], float(benchmark.means[-1])
    errors = {law.name: measured / predict_by(law, known.sizes, known.means, [wanted])[0] - 1 for law in LAWS}
    return {name: float(error) if math.isfinite(error) else None for name, error in errors.items()}


def judge(rows: Sequence[dict[str, Any]]) -> list[Claim]:
    """Put the statements beside the rows."""
    runs = min(min(row["num_runs"]) for row in rows)
    claim = partial(Claim, seeds=runs)
    return [
        _judge_fit(rows, claim),
        *_judge_largest(rows, claim),
        *_judge_rivals(rows, claim),
        _judge_break(rows, claim),
    ]


def _judge_fit(rows: Sequence[dict[str, Any]], claim: Callable[..., Claim]) -> Claim:
    close = [row for row in rows if row["worst"] <= CLOSE]
    many, close_of_many = ([row for row in some if len(row["batch_sizes"]) > FEW] for some in (rows, close))
    exceptions = [f"{row['benchmark']} {row['worst']:.0%}" for row in rows if row not in close]
    most, most_of_many = 2 * len(close) > len(rows), 2 * len(close_of_many) > len(many)
    return claim(
        id="within-10",
        statement="the law fits most benchmarks within 10% at every batch size",
        source="equation 2.11, against MLPerf's reference points",
        paper="no figure: the bar is ours",
        ours=f"{len(close)} of {len(rows)} benchmarks, {len(close_of_many)} of the {len(many)} with 4 or more sizes; "
        f"exceptions: {', '.join(exceptions)}",
        spread=f"median of the worst errors {statistics.median(row['worst'] for row in rows):.1%}",
        verdict="reproduced" if most and most_of_many else "partly" if most else "not",
    )


def _judge_largest(rows: Sequence[dict[str, Any]], claim: Callable[..., Claim]) -> list[Claim]:
    outs = [row["largest_out"] for row in rows]
    errors = sorted(abs(out["error"]) for out in outs)
    close = sum(error <= CLOSE for error in errors)
    inside = sum(out["interval_of_runs"][0] <= out["measured"] <= out["interval_of_runs"][1] for out in outs)
    return [
        claim(
            id="largest-out",
            statement="fitted without the largest size, the law predicts it within 10% on most benchmarks",
            source="equation 2.11, against MLPerf's reference points",
            paper="no figure: the bar is ours",
            ours=f"{close} of {len(errors)}; errors from {errors[0]:.1%} to {errors[-1]:.0%}",
            spread=f"median {statistics.median(errors):.1%}, quartiles "
            f"{np.quantile(errors, 0.25):.1%} and {np.quantile(errors, 0.75):.1%}",
            verdict="reproduced" if 2 * close > len(errors) else "partly" if 3 * close > len(errors) else "not",
        ),
        claim(
            id="run-noise",
            statement="what the law misses at the largest size is the runs' own scatter",
            source="bootstrap of the runs of each size",
            paper="would hold 95%",
            ours=f"{inside} of {len(outs)} of the 95% intervals hold the measured mean",
            spread="intervals of the prediction alone, from runs drawn anew within sizes",
            verdict="reproduced" if inside >= 0.9 * len(outs) else "partly" if 2 * inside > len(outs) else "not",
        ),
    ]


def _judge_rivals(rows: Sequence[dict[str, Any]], claim: Callable[..., Claim]) -> list[Claim]:
    """Compare the laws on the benchmarks that all of them can be fitted to, those of two and of three parameters."""
    shared = [row["largest_out"]["rivals"] for row in rows if None not in row["largest_out"]["rivals"].values()]
    medians = {law.name: statistics.median(abs(errors[law.name]) for errors in shared) for law in LAWS}
    gains = {name: [abs(errors[name]) - abs(errors[LAW.name]) for errors in shared] for name in medians}
    nearer, farther = ({name: sum(sign * gain > ALIKE for gain in some) for name, some in gains.items()}
                       for sign in (1, -1))  # fmt: skip
    claims = []
    for count, word in ((2, "two"), (3, "three")):
        rivals = [law.name for law in LAWS if law is not LAW and law.num_parameters == count]
        least = min(medians[name] for name in rivals)
        mostly_nearer = all(nearer[name] > farther[name] for name in rivals)
        better = medians[LAW.name] <= least
        claims.append(
            claim(
                id=f"rivals-{word}",
                statement=f"no rival law of {word} parameters predicts the left-out largest size better",
                source="fitted alike, on the benchmarks with 4 or more sizes",
                paper="none",
                ours=f"median error {medians[LAW.name]:.1%} of the law; "
                + ", ".join(f"{name} {medians[name]:.1%}" for name in rivals),
                spread=f"of {len(shared)} benchmarks the law is nearer and farther in "
                + ", ".join(f"{nearer[name]} and {farther[name]} ({name})" for name in rivals)
                + f"; worst {_largest_miss(shared, LAW.name)}, "
                + ", ".join(_largest_miss(shared, name) for name in rivals),
                verdict="reproduced" if better and mostly_nearer else "partly" if better or mostly_nearer else "not",
            )
        )
    return claims


def _largest_miss(shared: Sequence[dict[str, float]], name: str) -> str:
    return f"{max(abs(errors[name]) for errors in shared):.0%}"


def _judge_break(rows: Sequence[dict[str, Any]], claim: Callable[..., Claim]) -> Claim:
    row = next(row for row in rows if row["benchmark"] == "retinanet")
    out = row["largest_out"]
    low, high = out["interval_of_runs"]
    breaks = out["error"] > CLOSE and out["measured"] > high
    return claim(
        id="retinanet",
        statement="the law breaks for RetinaNet at 4096, where more epochs are needed than predicted",
        source="reference points, fitted without 4096",
        paper="about 12 epochs predicted, 15 needed",
        ours=f"{out['predicted']:.1f} epochs predicted, {out['measured']:.1f} needed ({out['error']:+.0%}); "
        f"the base rate there is {row['rates'][-1]:g}, at 2560 {row['rates'][-2]:g}, at 256 {row['rates'][0]:g}",
        spread=f"95% interval of the runs {low:.1f} to {high:.1f}",
        verdict="reproduced" if breaks else "not",
    )


# figures and tables


def draw(benchmarks: Sequence[Benchmark], rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Draw points, the law, and the law without the largest size."""
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "anybatch"
    num_rows = -(-len(rows) // 4)
    figure, axes = plt.subplots(num_rows, 4, figsize=(15, 3 * num_rows), layout="constrained")
    for axis, benchmark, row in zip(axes.flat, benchmarks, rows, strict=False):
        sizes = np.geomspace(benchmark.sizes[0] / 1.3, benchmark.sizes[-1] * 1.3, 100)
        for law, style, label in (
            (benchmark.fit(), "C0-", "law"),
            (benchmark.without_largest(1).fit(), "C1--", "without the largest"),
        ):
            axis.plot(sizes, [law.samples(size) for size in sizes], style, label=label, lw=1.3)
        spread = [values.std(ddof=1) for values in benchmark.runs]
        axis.errorbar(benchmark.sizes, benchmark.means, spread, fmt="ko", ms=4, capsize=3, label="runs, mean and sd")
        axis.set(xscale="log", yscale="log")
        _label(axis.xaxis, (benchmark.sizes[0], benchmark.sizes[-1]), "{:,.0f}".format)
        _label(axis.yaxis, (benchmark.means.min(), benchmark.means.max()), _figure)
        axis.set_title(f"{row['benchmark']}: {row['worst']:.0%}", color="C3" if row["worst"] > CLOSE else "black")
        axis.grid(alpha=0.25, which="both")
    for axis in axes.flat[len(rows) :]:
        axis.set_axis_off()
    axes.flat[0].legend(frameon=False, fontsize=8)
    figure.supxlabel("batch size")
    figure.supylabel("epochs, samples or tokens to the target")
    figure.savefig(folder / "figures.svg", metadata={"Date": None})
    plt.close(figure)


def _label(axis: Axis, values: Sequence[float], write: Callable[[float], str]) -> None:
    """Label two values and nothing between them."""
    axis.set_major_locator(FixedLocator(list(values)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    axis.set_minor_formatter(NullFormatter())


def write_readme(path: Path, rows: Sequence[dict[str, Any]], claims: Sequence[Claim]) -> None:
    """Rewrite the generated part of the study's README."""
    parts = [
        claims_section(claims),
        ("Benchmarks", ["benchmark", "round", "sizes", "runs per size", "counted in steps of", "B_crit", "95%, fit",
                        "95%, runs alone", "worst error", "largest out: predicted", "needed", "error",
                        "error, two largest out"], [_benchmark_cells(row) for row in rows]),
        ("Largest size left out, by law", ["benchmark", *(law.name for law in LAWS)], [
            (row["benchmark"], *(_percent(row["largest_out"]["rivals"][law.name]) for law in LAWS)) for row in rows]),
        ("Worst error of the fit, by law", ["benchmark", *(law.name for law in LAWS)], [
            (row["benchmark"], *(_percent(row["rivals_worst"][law.name]) for law in LAWS)) for row in rows]),
        ("Laws", ["law", "samples(B)", "parameters", "source"], [
            (law.name, f"`{law.formula}`", law.num_parameters, law.source) for law in LAWS]),
    ]  # fmt: skip
    rewrite_results(path, parts)


def _benchmark_cells(row: dict[str, Any]) -> tuple[str, ...]:
    out, two = row["largest_out"], row["two_largest_out"]
    sizes, runs = row["batch_sizes"], row["num_runs"]
    return (
        row["benchmark"],
        row["round"],
        f"{len(sizes)}: {sizes[0]:g} to {sizes[-1]:g}",
        f"{min(runs)} to {max(runs)}" + (f" ({row['num_left_out']} left out)" if row["num_left_out"] else ""),
        f"{row['resolution']:.1%}",
        _figure(row["critical_batch_size"]),
        " to ".join(map(_figure, row["interval"])),
        " to ".join(map(_figure, row["interval_of_runs"])),
        f"{row['worst']:.1%}",
        f"{out['predicted']:.4g}",
        f"{out['measured']:.4g}",
        _percent(out["error"]),
        _percent(two["error"] if two else None),
    )


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{float(f'{value:.3g}'):,.6g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f}%"


def main() -> int:
    """Do what the command line asks for; return the exit code."""
    try:
        arguments = read_arguments(__doc__, HERE, sizes=DRAWS)
        return run(arguments)
    except AnybatchError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def run(arguments: argparse.Namespace) -> int:
    """Fit, say what it shows, and write what is asked for; return 0."""
    benchmarks = read_benchmarks(arguments.data_root)
    rng = np.random.default_rng(0)
    rows = [examine(benchmark, DRAWS[arguments.size], rng) for benchmark in benchmarks]
    claims = judge(rows)
    for claim in claims:
        print(f"{claim.verdict}: {claim.statement}. {claim.ours} ({claim.spread})")
    if arguments.json:
        environment = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "numpy": np.__version__,
                       "num_draws": DRAWS[arguments.size]}  # fmt: skip
        found = {"environment": environment, "incomplete": [], "rows": rows, "claims": [asdict(c) for c in claims]}
        write_text(arguments.json, json.dumps(found, indent=1) + "\n")
        draw(benchmarks, rows, arguments.json.parent)
        if is_own_record(arguments, HERE):
            write_readme(HERE / "README.md", rows, claims)
    return 0


if __name__ == "__main__":
    sys.exit(main())
