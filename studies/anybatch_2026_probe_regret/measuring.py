"""What is measured of one workload? Probes, trainings at many batch sizes, and the noise scale along whole runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from averages import averages
from finders import advised
from torch import Tensor

import anybatch
from anybatch import Workload
from anybatch.decide import fit_samples_law
from anybatch.probing.kept_runs import KeptRuns
from anybatch.probing.noise import NoiseCurve, measure_noise_along_runs, run_batch_size, run_lr_scale
from anybatch.probing.noise_meter import MicroBatchSizes
from anybatch.probing.result import ProbeResult
from anybatch.probing.stored_probe import setting_of
from anybatch.probing.sweep import MeasuredSize, SizePlan, Sweep
from anybatch.probing.target import LossTarget, crossing_of, decide_target
from anybatch.probing.target_runs import Limits, TargetRun
from anybatch.probing.verification import REACH
from anybatch.stats.moments import Geometry
from anybatch.train.loop import start_training, train
from anybatch.train.plain import plain
from anybatch.train.plan import Plan
from anybatch.train.progress import silent
from anybatch.train.restored import restored
from anybatch.train.run_folder import RunFolder
from anybatch.train.runtime import Runtime

NO_LIMIT = 1e9  # seconds
NUM_EVALUATIONS = 200  # of the run that sets the target
SHARES_LEFT = (0.4, 0.2, 0.1, 0.05)  # of the way down; the last is the target, the others are passed on the way
FRACTIONS = (0.0, 1 / 128, 1 / 64, 3 / 128, *(step / 32 for step in range(1, 33)))
LARGEST_PART = 1024
PACE_TURNS = 5
PACE_SECONDS = 0.2


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        probe_seconds: budget of a probe.
        num_probes: with a seed each.
        noise_seconds: budget of all dense runs together.
        fractions: of a dense run that are measured at.
    """

    probe_seconds: float
    num_probes: int
    noise_seconds: float
    fractions: Sequence[float] = FRACTIONS


@dataclass(frozen=True)
class Part:
    """A workload and what is trained of it.

    Attributes:
        workload: from the data's folder.
        batch_sizes: trained to the target, beside those that probes recommend.
        geometries: that the noise scale is measured in.
        eval_samples: training samples that a loss is taken on, the same ones each time. A run is evaluated some 50 to
            200 times, which must not take longer than training it.
    """

    workload: Callable[[Path], Workload]
    batch_sizes: Sequence[int]
    geometries: Sequence[Geometry] = ("sgd",)
    eval_samples: int = 2048


def measure(part: Part, effort: Effort, root: Path, runs: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Measure what is missing of a part, or read what is there.

    Args:
        part: the workload.
        effort: how much.
        root: of the data.
        runs: folder of all runs.
        tell: told what is under way.

    Returns:
        Plain values, for `results.json`.
    """
    workload, runtime = part.workload(root), Runtime.detect()
    setting = setting_of(workload, runtime)
    probes = []
    for seed in range(effort.num_probes):
        tell(f"probe, seed {seed}")
        probes.append(anybatch.probe(workload, budget=effort.probe_seconds, seed=seed, runs=runs))
    kept = KeptRuns(workload, runtime, runs, setting)
    small, target = set_target(workload, runtime, kept, part.eval_samples)
    recommended = [_recommended(probe) for probe in probes]
    tell(f"target {target.loss:.3g}: {target.reason}; recommended {recommended}")
    sizes = sweep_sizes(workload, kept, small, target, sorted({*part.batch_sizes, *recommended}), tell)
    tell("seconds per sample")
    paces = read_or_make(
        runs, "paces", {**setting, "sizes": sorted(sizes)}, partial(paces_of, workload, runtime, sizes)
    )
    losses = [target_at(target, share) for share in SHARES_LEFT]
    noise = {}
    for geometry in part.geometries:
        tell(f"noise scale along runs, geometry {geometry}")
        config = {**setting, "fractions": effort.fractions, "geometry": geometry, "budget": effort.noise_seconds}
        found = read_or_make(runs, "noise", config, partial(noise_along, workload, runtime, config))
        noise[geometry] = restored(NoiseCurve, found)
    return {
        "workload": workload.name,
        "environment": probes[0].environment,
        "target": plain(target),
        "small_batch_size": small.batch_size,
        "sizes": [size_row(sizes[size], paces[str(size)]) for size in sorted(sizes)],
        "probes": [probe_row(probe, target.loss) for probe in probes],
        "advised": advised(_largest(probes), workload.num_samples or 1),
        "num_noise_runs": min(len(curve.runs) for curve in noise.values()),
        "by_loss": [loss_row(loss, sizes, near(sizes, recommended), target, noise) for loss in losses],
    }


def _recommended(probe: ProbeResult) -> int:
    assert probe.recommendation is not None
    return probe.recommendation.batch_size


def _largest(probes: Sequence[ProbeResult]) -> int:
    return min(probe.memory.max_micro_batch_size for probe in probes if probe.memory is not None)


def near(sizes: Collection[int], recommended: Sequence[int]) -> set[int]:
    """Leave out what lies far beyond the recommended sizes, as `verify` does where it fits the law."""
    return {size for size in sizes if size <= REACH * statistics.median(recommended)}


def set_target(workload: Workload, runtime: Runtime, kept: KeptRuns, eval_samples: int) -> tuple[TargetRun, LossTarget]:
    """Train at the probe's small batch through the workload's epochs; return that run and the loss to reach."""
    assert workload.num_samples is not None
    assert workload.epochs is not None
    batch_size = run_batch_size(workload, runtime)
    length = math.ceil(workload.epochs * workload.num_samples)
    run = TargetRun(
        batch_size=batch_size,
        micro_batch_size=batch_size,
        lr_scale=run_lr_scale(workload, batch_size),
        seed=0,
        target_loss=None,
        spacing=max(batch_size, length // NUM_EVALUATIONS),
        eval_samples=min(eval_samples, workload.num_samples),
    )
    record = kept.take(run, Limits(length, NO_LIMIT))
    return run, decide_target(record.curve, batch_size)


def target_at(target: LossTarget, share: float) -> float:
    """Return the loss at which another share of the way down is left; the target's own is the least of them."""
    least = SHARES_LEFT[-1]
    end = (target.loss - least * target.start_loss) / (1 - least)
    return end + share * (target.start_loss - end)


def sweep_sizes(
    workload: Workload,
    kept: KeptRuns,
    small: TargetRun,
    target: LossTarget,
    batch_sizes: Sequence[int],
    tell: Callable[[str], None],
) -> dict[int, MeasuredSize]:
    """Train every size to the target, at its own best rate, with three further seeds."""
    guess = 4.0 * small.batch_size  # of B_crit: for limits alone, and only until sizes are known
    plans = {size: SizePlan(size, size, 1e-4, 1 + size / guess) for size in batch_sizes}
    sweep = Sweep(
        kept,
        target,
        plans,
        least_samples=target.samples / (1 + small.batch_size / guess),
        slowdown=1.0,
        seconds_per_evaluation=0.0,
        eval_samples=small.eval_samples,
        budget=NO_LIMIT,
        first_rate=lambda size: round(math.log2(run_lr_scale(workload, size))),
        tell=lambda _, text: tell(text),
    )
    sweep.run(sorted(batch_sizes, key=lambda size: abs(math.log(size / small.batch_size))))
    return {size: one for size, one in sweep.sizes.items() if one.runs}


def size_row(size: MeasuredSize, pace: float) -> dict[str, Any]:
    """Return what a size took. Its time is the samples at the pace that was measured apart."""
    assert size.best is not None
    samples = [record.samples for record in size.runs.values()]
    return {
        "batch_size": size.plan.batch_size,
        "lr_scale": 2.0**size.best,
        "is_bracketed": size.is_bracketed,
        "samples": samples,
        "seconds_per_sample": pace,
        "seconds": statistics.geometric_mean(samples) * pace,
        "wall_seconds": [record.seconds for record in size.runs.values()],
        "cost": sum(record.cost for record in [*size.rates.values(), *size.runs.values()]),
    }


def paces_of(workload: Workload, runtime: Runtime, batch_sizes: Iterable[int]) -> dict[str, float]:
    """Return processor seconds per sample of training steps, which other work on the machine hardly moves.

    Args:
        workload: trained at each size in turns.
        runtime: of the CPU.
        batch_sizes: samples per step.

    Returns:
        Batch size -> the least over the turns.
    """
    paces = {str(size): math.inf for size in batch_sizes}
    for _ in range(PACE_TURNS):
        for size in batch_sizes:
            training = start_training(workload, runtime, seed=0, plan=Plan(lr_scale=0.0))
            steps = train(workload, runtime, training, batch_size=size, seed=0)
            next(steps)
            paces[str(size)] = min(paces[str(size)], _pace(steps, size))
    return paces


def _pace(steps: Iterator[Tensor], batch_size: int) -> float:
    started, num_steps, seconds = time.process_time(), 0, 0.0
    while seconds < PACE_SECONDS:
        next(steps)
        num_steps, seconds = num_steps + 1, time.process_time() - started
    return seconds / num_steps / batch_size


def probe_row(probe: ProbeResult, loss: float) -> dict[str, Any]:
    """Return what a probe says: the size, and B_crit on the way to the target and over its whole runs."""
    assert probe.noise is not None
    assert probe.recommendation is not None
    assert probe.law is not None
    to_target = probe.noise.average_to(loss)
    return {
        "seed": probe.settings["seed"],
        "recommended": probe.recommendation.batch_size,
        "recommended_low": probe.recommendation.batch_size_low,
        "recommended_high": probe.recommendation.batch_size_high,
        "critical_batch_size": to_target.value,
        "interval": [to_target.low, to_target.high],
        "whole_run": probe.law.critical_batch_size,
        "num_runs": len(probe.noise.runs),
        "share_of_training": probe.noise.share_of_training,
        "date": probe.environment.get("date"),
    }


def noise_along(workload: Workload, runtime: Runtime, config: Mapping[str, Any]) -> dict[str, Any]:
    """Measure the noise scale at many points of small-batch runs."""
    assert workload.num_samples is not None
    curve = measure_noise_along_runs(
        workload,
        runtime,
        micro_batch_sizes=MicroBatchSizes(1, min(LARGEST_PART, workload.num_samples)),
        samples_per_second=1e9,  # runs are whole and several, however slow the machine is
        budget=config["budget"],
        geometry=config["geometry"],
        fractions=config["fractions"],
        seed=1,
        progress=silent,
    )
    return dataclasses.asdict(curve)


def read_or_make(
    runs: Path, kind: str, config: Mapping[str, Any], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """Read what was made before under the same configuration, or make and keep it."""
    text = json.dumps(plain(config), sort_keys=True)
    folder = RunFolder(runs / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}")
    if folder.result() is None:
        made = make()
        folder.claim(plain(config))
        folder.finish(made)
    found = folder.result()
    assert found is not None
    return found


def loss_row(
    loss: float,
    sizes: Mapping[int, MeasuredSize],
    fitted: Collection[int],
    target: LossTarget,
    noise: Mapping[Geometry, NoiseCurve],
) -> dict[str, Any]:
    """Return B_crit as measured to one loss beside every average of the noise scale on the way there."""
    is_target = loss <= target.loss * (1 + 1e-9)
    samples = {size: _samples_to(sizes[size], None if is_target else loss) for size in sorted(sizes)}
    known = {size: values for size, values in samples.items() if values}
    law, law_of_all = (
        fit_samples_law(list(some), list(some.values()))
        for some in ({size: values for size, values in known.items() if size in fitted}, known)
    )
    rows = {}
    for geometry, curve in noise.items():
        assert curve.batch_size is not None
        rows[geometry] = averages((curve.points, *curve.more_points), curve.batch_size, loss)
    return {
        "loss": loss,
        "is_target": is_target,
        "law": plain(law),
        "law_of_all_sizes": plain(law_of_all),
        "averages": rows,
        "samples": plain(samples),
    }


def _samples_to(size: MeasuredSize, loss: float | None) -> list[float]:
    """Return the samples of the further seeds to the target, or those of the best rate of the search to a loss."""
    if loss is None:
        return [record.samples for record in size.runs.values()]
    reached = [crossing_of(record.curve, loss) for record in size.rates.values()]
    return [min(found[0] for found in reached if found)] if any(reached) else []
