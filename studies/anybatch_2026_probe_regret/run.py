"""How much time does the probe's advice lose, and how far off is its prediction? anybatch 2026, on its own workloads.

    python studies/anybatch_2026_probe_regret/run.py --smoke   # a minute: every part, a slice of the data
    python studies/anybatch_2026_probe_regret/run.py --quick   # ten minutes: digits alone
    python studies/anybatch_2026_probe_regret/run.py --full    # some hours of two cores: what results.json holds

Runs are kept under --runs and go on after a kill; --only in a second terminal shares the work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1]))

from averages import NAMES
from command import keep_finished, read_arguments
from measuring import Effort, Part, measure
from reporting import rewrite_results
from showing import draw, sections
from torch.utils.data import Subset
from verdicts import Claim

from anybatch import AnybatchError, Workload
from anybatch.train.plain import plain, write_text
from anybatch.train.run_folder import RunFolder
from anybatch.workloads import load_workload

HERE = Path(__file__).parent
REGRET = 1.25  # the bar: time at the recommended size over the best
FACTOR = 2.0  # the bar: predicted over measured B_crit
RULES = ("Lightning", "Accelerate", "largest")


def digits(_: Path) -> Workload:
    """Digits: a CNN under SGD."""
    return load_workload("digits")


def fashion_mnist(root: Path) -> Workload:
    """Fashion-MNIST: a perceptron under SGD, a third of its epochs."""
    return replace(load_workload("fashion-mnist", root), epochs=3)


def char_lm(_: Path) -> Workload:
    """The character transformer under AdamW."""
    return load_workload("char-lm")


FULL = {
    "digits": Part(digits, [2, 4, 8, 16, 32, 64, 128, 256, 1437]),
    "fashion-mnist": Part(fashion_mnist, [4, 16, 32, 64, 128, 256, 512, 1024, 8192]),
    "char-lm": Part(char_lm, [2, 4, 8, 16, 32, 64, 128], ("sgd", "adam"), eval_samples=256),
}
EFFORT = Effort(probe_seconds=60, num_probes=3, noise_seconds=400)
QUICK = Effort(probe_seconds=30, num_probes=3, noise_seconds=100)
SMOKE = Effort(probe_seconds=2, num_probes=1, noise_seconds=2, fractions=(0.3, 1.0))
SMOKE_SAMPLES = {"digits": 512, "fashion-mnist": 512, "char-lm": 24}


def smoke(part: Part, num_samples: int) -> Part:
    """Return a part that takes seconds: two sizes and a slice of the data."""

    def workload(root: Path) -> Workload:
        whole = part.workload(root)
        return replace(whole, train_set=Subset(whole.train_set, range(num_samples)), epochs=3)

    return replace(part, workload=workload, batch_sizes=[8, 16])


# what was found


def time_at(found: Mapping[str, Any], batch_size: int) -> tuple[float, bool]:
    """Return seconds to the target at a size, and whether they were measured.

    Beyond the measured sizes they follow the law, at the pace of the nearest one.
    """
    rows = {row["batch_size"]: row for row in found["sizes"]}
    if batch_size in rows:
        return rows[batch_size]["seconds"], True
    law = found["by_loss"][-1]["law"]
    near = min(rows, key=lambda size: abs(math.log(size / batch_size)))
    growth = 1 + batch_size / law["critical_batch_size"] if law["critical_batch_size"] else 1.0
    return law["examples"] * growth * rows[near]["seconds_per_sample"], False


def regrets(found: Mapping[str, Any]) -> list[tuple[float, bool]]:
    """Return time at each probe's recommended size over the best of the sweep, and whether it was measured."""
    best = min(row["seconds"] for row in found["sizes"])
    times = [time_at(found, probe["recommended"]) for probe in found["probes"]]
    return [(seconds / best, is_measured) for seconds, is_measured in times]


def ratios(found: Mapping[str, Any]) -> list[float | None]:
    """Return each probe's predicted B_crit over the measured one; None where one of them has no limit."""
    measured = found["by_loss"][-1]["law"]["critical_batch_size"]
    predicted = [probe["critical_batch_size"] for probe in found["probes"]]
    return [value / measured if value and measured else None for value in predicted]


def misses(parts: Mapping[str, Mapping[str, Any]], name: str, geometry: str | None = None) -> list[float]:
    """Return an average's factor to the measured B_crit, at each loss of each workload, in the optimizer's geometry."""
    found = []
    for part in parts.values():
        for row in part["by_loss"]:
            chosen = geometry or list(row["averages"])[-1]
            measured = row["law"]["critical_batch_size"]
            if chosen in row["averages"] and measured:
                found.append(row["averages"][chosen][name] / measured)
    return found


def off(factors: Sequence[float]) -> float:
    """Return the geometric mean of how far factors are from 1, in either direction."""
    return math.exp(statistics.fmean(abs(math.log(factor)) for factor in factors))


# claims


def judge(parts: Mapping[str, Mapping[str, Any]]) -> list[Claim]:
    """Put what this package promises beside what was found."""
    claims = []
    for name, found in parts.items():
        slug, claim = name.replace("-", "_"), partial(Claim, seeds=len(found["probes"]), source=f"the probe, {name}")
        claims += [
            _judge_regret(f"regret-{slug}", found, claim),
            _judge_critical(f"critical-{slug}", found, claim),
            _judge_rules(f"rules-{slug}", found, claim),
        ]
    return [*claims, *_judge_averages(parts)]


def _judge_regret(id_: str, found: Mapping[str, Any], claim: Callable[..., Claim]) -> Claim:
    times = regrets(found)
    best = min(found["sizes"], key=lambda row: row["seconds"])
    return claim(
        id=id_,
        statement=f"{found['workload']}: the recommended size takes at most {REGRET}x the time of the best",
        paper=f"at most {REGRET}x",
        ours=f"{', '.join(_times(*time) for time in times)} at "
        f"{', '.join(str(probe['recommended']) for probe in found['probes'])}; the best is {best['batch_size']}",
        spread=f"{min(times)[0]:.2f}x to {max(times)[0]:.2f}x over the probes' seeds",
        verdict=_verdict([time <= REGRET for time, _ in times], all(is_measured for _, is_measured in times)),
    )


def _judge_critical(id_: str, found: Mapping[str, Any], claim: Callable[..., Claim]) -> Claim:
    factors, law = ratios(found), found["by_loss"][-1]["law"]
    predicted = [_interval(probe["critical_batch_size"], *probe["interval"]) for probe in found["probes"]]
    return claim(
        id=id_,
        statement=f"{found['workload']}: the predicted B_crit is within a factor {FACTOR:g} of the measured one",
        paper=f"a factor {FACTOR:g}",
        ours=f"{', '.join('no ratio' if factor is None else f'{factor:.2f}' for factor in factors)} times "
        + _interval(law["critical_batch_size"], law["low"], law["high"]),
        spread=f"predicted {'; '.join(predicted)}",
        verdict=_verdict([factor is not None and 1 / FACTOR <= factor <= FACTOR for factor in factors]),
    )


def _judge_rules(id_: str, found: Mapping[str, Any], claim: Callable[..., Claim]) -> Claim:
    mine = [time_at(found, probe["recommended"]) for probe in found["probes"]]
    median = statistics.median(seconds for seconds, _ in mine)
    others = {rule: time_at(found, found["advised"][rule]) for rule in RULES}
    return claim(
        id=id_,
        statement=f"{found['workload']}: what other tools advise takes longer to the target than the recommended size",
        paper="none",
        ours=", ".join(
            f"{rule} ({found['advised'][rule]}): {_times(seconds / median, is_measured)}"
            for rule, (seconds, is_measured) in others.items()
        ),
        spread="over the median of the probes' seeds",
        verdict=_verdict(
            [own < seconds for seconds, _ in others.values() for own, _ in mine],
            all(is_measured for _, is_measured in [*mine, *others.values()]),
        ),
    )


def _judge_averages(parts: Mapping[str, Mapping[str, Any]]) -> list[Claim]:
    seeds = min(row["num_noise_runs"] for row in parts.values())
    claim = partial(Claim, seeds=seeds, source="dense runs against the sweeps", paper="none")
    by = {name: misses(parts, name) for name in NAMES}
    if not by["harmonic"]:
        return []
    mean = {name: off(factors) for name, factors in by.items()}
    best = min(mean, key=lambda name: mean[name])
    inside = [1 / FACTOR <= factor <= FACTOR for factor in by["harmonic"]]
    claims = [
        claim(
            id="average-cut",
            statement="the harmonic mean over samples, cut at the loss, predicts B_crit within a factor 2",
            ours=f"{sum(inside)} of {len(inside)} losses",
            spread=f"{min(by['harmonic']):.2f} to {max(by['harmonic']):.2f} times the measured one",
            verdict=_verdict(inside),
        ),
        claim(
            id="average-best",
            statement="no other average of the noise scale predicts B_crit better than that one",
            ours=f"off by a factor {mean['harmonic']:.2f} in the mean; the best is {best}, {mean[best]:.2f}",
            spread="; ".join(f"{name} {mean[name]:.2f}" for name in NAMES),
            verdict="reproduced" if best == "harmonic" else "not",
        ),
    ]
    adam = {name: part for name, part in parts.items() if "adam" in part["by_loss"][0]["averages"]}
    sgd, own = (misses(adam, "harmonic", geometry) for geometry in ("sgd", "adam"))
    if own:
        claims.append(
            claim(
                id="geometry",
                statement="under Adam the noise scale in Adam's geometry predicts B_crit better than in SGD's",
                ours=f"off by a factor {off(own):.2f} against {off(sgd):.2f}",
                spread=f"{min(own):.2f} to {max(own):.2f} against {min(sgd):.2f} to {max(sgd):.2f} times it",
                verdict="reproduced" if off(own) < off(sgd) else "not",
            )
        )
    return claims


def _interval(value: float | None, low: float, high: float | None) -> str:
    return f"{'none' if value is None else f'{value:.3g}'} ({low:.3g} to {'no end' if high is None else f'{high:.3g}'})"


def _times(factor: float, is_measured: bool) -> str:
    return f"{factor:.2f}x" + ("" if is_measured else " by the law")


def _verdict(held: Sequence[bool], is_measured: bool = True) -> str:
    if all(held) and is_measured:
        return "reproduced"
    return "partly" if 2 * sum(held) > len(held) else "not"


# the command


def take(name: str, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Measure a part, or read it where only finished ones are wanted."""
    part, effort = FULL[name], {"smoke": SMOKE, "quick": QUICK, "full": EFFORT}[arguments.size]
    config = {"part": name, "size": arguments.size, "eval_samples": part.eval_samples, "effort": asdict(effort)}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:10]
    kept = RunFolder(arguments.runs / f"{name}-{arguments.size}-{digest}")
    if arguments.finished_only:
        return kept.result()
    part = smoke(part, SMOKE_SAMPLES[name]) if arguments.size == "smoke" else part
    found = measure(
        part, effort, arguments.data_root, arguments.runs, lambda text: print(f"{name}: {text}", flush=True)
    )
    kept.claim(plain(config))
    kept.finish(found)
    return kept.result()


def main() -> int:
    """Measure what is asked for and say what it shows; return the exit code."""
    try:
        arguments = read_arguments(__doc__, HERE, parts=FULL)
    except AnybatchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    torch.set_num_threads(1)
    names = arguments.only or (["digits"] if arguments.size == "quick" else list(FULL))
    try:
        taken = {name: take(name, arguments) for name in names}
    except AnybatchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    parts = {name: found for name, found in taken.items() if found is not None}
    claims = judge(parts) if parts else []
    for claim in claims:
        print(f"{claim.verdict}: {claim.statement}. {claim.ours} ({claim.spread})")
    if arguments.json:
        write(arguments, parts, claims)
    return 0


def write(arguments: argparse.Namespace, parts: Mapping[str, Any], claims: Sequence[Claim]) -> None:
    """Write the JSON, the figure beside it and, of the study's own results, the README."""
    environment = next((part["environment"] for part in parts.values()), None)
    missing = [name for name in arguments.only or FULL if name not in parts]
    rows = {name: {**found, "regrets": regrets(found), "ratios": ratios(found)} for name, found in parts.items()}
    times = {name: {rule: time_at(found, found["advised"][rule]) for rule in RULES} for name, found in parts.items()}
    found = {"environment": environment, "size": arguments.size, "incomplete": missing, "workloads": rows,
             "times_of_rules": times, "claims": [asdict(claim) for claim in claims]}  # fmt: skip
    write_text(arguments.json, json.dumps(found, indent=1) + "\n")
    draw(found, arguments.json.parent)
    keep_finished(arguments, HERE)
    if arguments.json.resolve().parent == HERE.resolve():
        rewrite_results(HERE / "README.md", sections(found, claims))


if __name__ == "__main__":
    sys.exit(main())
