"""Does the prediction hold? Trains briefly at several batch sizes and compares."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anybatch.errors import AnybatchError, InputError, RunError
from anybatch.probing.kept_runs import KeptRuns
from anybatch.probing.law import SampleLaw, StepTimes
from anybatch.probing.noise import DEFAULT_EPOCHS, run_batch_size, run_lr_scale
from anybatch.probing.result import ProbeResult
from anybatch.probing.stored_probe import setting_of
from anybatch.probing.sweep import SizePlan, Sweep, sizes_to_measure
from anybatch.probing.target import LossPoint, LossTarget, decide_target, samples_to_judge_by
from anybatch.probing.target_runs import Limits, TargetRun
from anybatch.probing.verification import join_measured
from anybatch.report.wording import number
from anybatch.train.progress import Progress, silent
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload

DEFAULT_BUDGET = 120.0
SMALL_RUN_SHARE = 0.05  # of the budget, since some thirty runs of about half its length follow
EVALUATIONS_OF_SMALL_RUN = 100
EVAL_SAMPLES = (256, 2048)
EVAL_SHARE = 0.1  # of the small-batch run's samples


def verify(
    workload: Workload,
    result: ProbeResult,
    *,
    runs: str | Path = "runs",
    budget: float = DEFAULT_BUDGET,
    target_loss: float | None = None,
    device: str | None = None,
    progress: Progress = silent,
) -> ProbeResult:
    """Train at several batch sizes, each at its own best rate, and lay the measured time beside a probe's prediction.

    A run at the probe's small batch sets the loss to reach. Then the recommended size, sizes around it and the
    largest that fits are trained to that loss: one seed finds the best of at least four constant rates a factor 2
    apart, up to three further seeds measure. Every run is kept under `runs`; what it cost counts against the budget
    whenever it was made, so that the same call again reads all of them and ends with the same figures.

    Args:
        workload: the one that was probed; its schedule is left out.
        result: of `probe`, finished.
        runs: folder of all runs.
        budget: seconds that all runs together may cost, about; a size that it does not hold is skipped and said.
        target_loss: take this one, on training samples in eval mode, instead of choosing.
        device: as for `probe`.
        progress: told before each run.

    Returns:
        The result with `.verification`.

    Raises:
        InputError: an unfinished probe, a training set without a length, a budget that is too small for two sizes, or
            a loss that is not below the start. The result without verification is the exception's `partial`.
        AnybatchError: a RunError where the small-batch run does not lower the loss, or a size does not reach the
            target.

    Example:
        >>> import anybatch, tempfile
        >>> from anybatch.workloads import load_workload
        >>> digits, runs = load_workload("digits"), tempfile.mkdtemp()
        >>> result = anybatch.verify(digits, anybatch.probe(digits, budget=4), budget=40, runs=runs)
        >>> len(result.verification.points) >= 2
        True
    """
    try:
        return _verify(workload, result, runs, budget, target_loss, device, progress)
    except AnybatchError as error:
        error.partial = result
        raise


def _verify(
    workload: Workload,
    result: ProbeResult,
    runs: str | Path,
    budget: float,
    target_loss: float | None,
    device: str | None,
    progress: Progress,
) -> ProbeResult:
    _check(workload, result, budget, target_loss)
    assert result.recommendation is not None
    assert result.noise is not None
    assert result.law is not None
    assert result.memory is not None
    assert workload.num_samples is not None
    started = time.monotonic()
    autocast, num_workers = result.settings["autocast"], result.settings["num_workers"]
    runtime = Runtime.detect(device, autocast)
    kept = KeptRuns(workload, runtime, runs, setting_of(workload, runtime), num_workers=num_workers)
    recommended = result.recommendation.batch_size
    largest = min(runtime.world_size * result.memory.max_micro_batch_size, workload.num_samples)
    small = small_run(workload, runtime, result, budget, target_loss)
    progress("verify", 0.0, f"a run at batch {small.run.batch_size} sets the target")
    record = kept.take(small.run, small.limits)
    target = decide_target(record.curve, small.run.batch_size, target_loss)
    law = SampleLaw.from_noise_scale(result.noise.average_to(target.loss))
    sizes = sizes_to_measure(recommended, largest, result.curve[0].batch_size, workload.num_samples)
    plans = plan_sizes(result, law, runtime.world_size, sizes)
    sweep = Sweep(
        kept,
        target,
        plans,
        least_samples=target.samples / law.samples(small.run.batch_size)[0],
        slowdown=record.curve[-1].seconds / (record.curve[-1].samples * small.seconds_per_sample),
        seconds_per_evaluation=(record.cost - record.curve[-1].seconds) / len(record.curve),
        eval_samples=small.run.eval_samples,
        budget=budget,
        first_rate=lambda batch_size: round(math.log2(run_lr_scale(workload, batch_size))),
        tell=lambda fraction, text: progress("verify", min(fraction, 1.0), text),
    )
    sweep.run(sizes)
    require_two_sizes(sweep, recommended, target, budget)
    verification = join_measured(
        target,
        {size: one for size, one in sweep.sizes.items() if one.runs},
        sweep.skipped,
        plans,
        law,
        whole_critical_batch_size=result.law.critical_batch_size,
        recommended=recommended,
        largest=largest,
        budget=budget,
        spent=kept.spent,
        objection=_objection(workload, result, target, record.curve, budget, is_chosen=target_loss is None),
    )
    progress("verify", 1.0, verification.verdict)
    seconds = {**result.seconds, "verify": time.monotonic() - started}
    seconds["total"] = sum(spent for name, spent in seconds.items() if name != "total")
    return replace(result, verification=verification, seconds=seconds)


def _objection(
    workload: Workload,
    result: ProbeResult,
    target: LossTarget,
    curve: Sequence[LossPoint],
    budget: float,
    *,
    is_chosen: bool,
) -> str | None:
    """Say why a target is too near the start to judge by, and what to give; None where it is not."""
    assert result.noise is not None
    runs = (result.noise.points, *result.noise.more_points)
    probed = [[LossPoint(point.num_samples, 0.0, point.loss) for point in points] for points in runs]
    seen, whole = curve[-1].samples, _whole_length(workload)
    needed = samples_to_judge_by(target, seen, [*probed, curve], whole)
    if needed is None:
        return None
    advice = f"--verify-budget of about {number(budget * needed / seen)} s" if is_chosen else "lower --verify-target"
    return (
        f"the target, {target.loss:.4g}, is too near the start, {target.start_loss:.4g}, to judge the law by: the run "
        f"that sets it saw {seen:,} of {whole:,} samples. Give a {advice}"
    )


@dataclass(frozen=True)
class SmallRun:
    """The run that sets the target, its limits, and the seconds that a sample should take."""

    run: TargetRun
    limits: Limits
    seconds_per_sample: float


def small_run(
    workload: Workload, runtime: Runtime, result: ProbeResult, budget: float, target_loss: float | None
) -> SmallRun:
    """Plan the run that sets the target: the probe's own small batch and rate, as long as the workload's epochs.

    Args:
        workload: with a length.
        runtime: for the ranks.
        result: of the probe.
        budget: seconds, of which it may take a small share.
        target_loss: where it may end.

    Returns:
        The run and its limits.
    """
    assert result.throughput is not None
    assert result.memory is not None
    assert workload.num_samples is not None
    smallest = result.throughput.points[0].micro_batch_size
    batch_size = run_batch_size(workload, runtime, smallest)
    plan = StepTimes(result.throughput, result.memory.max_micro_batch_size).plan(-(-batch_size // runtime.world_size))
    affordable = SMALL_RUN_SHARE * budget / plan.seconds * batch_size
    whole = _whole_length(workload)
    length = int(min(whole, affordable))
    fewest, most = EVAL_SAMPLES
    run = TargetRun(
        batch_size=batch_size,
        micro_batch_size=plan.micro_batch_size,
        lr_scale=run_lr_scale(workload, batch_size),
        seed=0,
        target_loss=target_loss,
        spacing=max(batch_size, length // EVALUATIONS_OF_SMALL_RUN),
        eval_samples=min(max(int(EVAL_SHARE * length), fewest), most, workload.num_samples),
    )
    return SmallRun(run, Limits(whole, SMALL_RUN_SHARE * budget), plan.seconds / batch_size)


def _whole_length(workload: Workload) -> int:
    assert workload.num_samples is not None
    return math.ceil((workload.epochs or DEFAULT_EPOCHS) * workload.num_samples)


def plan_sizes(result: ProbeResult, law: SampleLaw, world_size: int, sizes: Sequence[int]) -> dict[int, SizePlan]:
    """Return how each batch size of the probe's curve, and each of `sizes`, is made, how fast, and at what samples."""
    assert result.throughput is not None
    assert result.memory is not None
    times = StepTimes(result.throughput, result.memory.max_micro_batch_size)
    plans = {}
    for size in sorted({*sizes, *(point.batch_size for point in result.curve)}):
        plan = times.plan(-(-size // world_size))
        plans[size] = SizePlan(size, plan.micro_batch_size, plan.seconds / size, law.samples(size)[0])
    return plans


def _check(workload: Workload, result: ProbeResult, budget: float, target_loss: float | None) -> None:
    if result.recommendation is None:
        raise InputError("result must be of a finished probe; got one without a recommendation. Probe again.")
    if result.workload != workload.name:
        raise InputError(
            f"workload must be the one probed, {result.workload!r}; got {workload.name!r}. Probe that one."
        )
    if workload.num_samples is None:
        raise InputError("train_set must have a length to verify a prediction; got a stream. Verify on a part of it.")
    if not 0 < budget < math.inf:
        raise InputError(
            f"verify budget must be a positive number of seconds; got {budget}. The default is {DEFAULT_BUDGET:g}."
        )
    if target_loss is not None and not math.isfinite(target_loss):
        raise InputError(f"target loss must be a finite number; got {target_loss}. Give none to have it chosen.")


def require_two_sizes(sweep: Sweep, recommended: int, target: LossTarget, budget: float) -> None:
    """Refuse to judge by fewer than two sizes, the recommended one among them.

    Args:
        sweep: that has run.
        recommended: batch size.
        target: of its runs.
        budget: seconds that it had.

    Raises:
        RunError: a size did not reach the target at any rate.
        InputError: the budget is too small.
    """
    measured = {size for size, one in sweep.sizes.items() if one.runs}
    lost = [size for size, one in sweep.sizes.items() if one.is_lost]
    if recommended in lost or (lost and len(measured) < 2):
        size = recommended if recommended in lost else lost[0]
        tried = sorted(sweep.sizes[size].rates)
        raise RunError(
            f"the target loss, {target.loss:.4g}, was not reached at batch {size} with any of {len(tried)} rates, "
            f"{2.0 ** tried[0]:g} to {2.0 ** tried[-1]:g} times the workload's. Give a higher --verify-target."
        )
    if recommended not in measured or len(measured) < 2:
        raise InputError(
            f"--verify-budget must pay for two batch sizes; got {budget:g} s, and measuring {recommended} and another "
            f"one takes about {number(sweep.cost_of_two(recommended))}."
        )
