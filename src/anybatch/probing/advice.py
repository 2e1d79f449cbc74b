"""How is a recommendation put into words, each number with its reason?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch.optim import Optimizer

from anybatch.decide.lr_scaling import LrScale, scale_learning_rate
from anybatch.probing.frameworks import settings_to_copy
from anybatch.probing.input_check import ProbeWarning
from anybatch.probing.law import SampleLaw, StepPlan, StepTimes
from anybatch.probing.recommend import (
    Band,
    CurvePoint,
    Objective,
    Recommendation,
    Setup,
    choose_batch_size,
    device_table,
    diminishing_devices,
    plan_step,
    predicted_curve,
    sizes_close_to,
)
from anybatch.probing.result import ProbeResult
from anybatch.train.recipes import FAMILIES
from anybatch.workload import Workload


def advise(
    result: ProbeResult,
    workload: Workload,
    optimizer: Optimizer,
    *,
    world_size: int,
    min_micro_batch_size: int,
    batch_size: int | None,
    objective: Objective,
    devices: Sequence[int],
) -> ProbeResult:
    """Join memory, throughput and noise in a recommendation.

    Args:
        result: with all three measured.
        workload: for its base batch size and training set.
        optimizer: as the workload makes it.
        world_size: ranks measured with.
        min_micro_batch_size: the smallest that trains.
        batch_size: the one asked for; None to choose one.
        objective: what is minimised.
        devices: numbers of devices to predict.

    Returns:
        The result with law, curve, devices, recommendation and further warnings.
    """
    assert result.memory is not None
    assert result.throughput is not None
    assert result.noise is not None
    law = SampleLaw.from_noise_scale(result.noise.average)
    setup = Setup(
        law=law,
        times=StepTimes(result.throughput, result.memory.max_micro_batch_size),
        max_micro_batch_size=result.memory.max_micro_batch_size,
        min_micro_batch_size=min_micro_batch_size,
        num_samples=workload.num_samples,
        world_size=world_size,
    )
    chosen, low, high = choose_batch_size(setup, objective)
    size = chosen if batch_size is None else batch_size
    curve = predicted_curve(setup, size)
    plan = plan_step(setup, size)
    lr = _lr_scale(workload, optimizer, size, law)
    reasons = {
        "batch_size": _why_batch_size(batch_size, chosen, objective, law, curve),
        "micro_batch_size": _why_micro_batch_size(plan, result),
        "accumulation_steps": _why_accumulation(plan),
        "lr_scale": _why_lr_scale(workload, optimizer, lr),
    }
    time, samples = _of_largest(curve, setup, size)
    if time is not None:
        largest = setup.world_size * setup.max_micro_batch_size
        reasons["time_of_largest"] = (
            f"predicted time to a given loss at {largest}, the largest batch that fits, over that at {size}"
        )
        reasons["samples_of_largest"] = "the same for the samples that a given loss takes"
    recommendation = Recommendation(
        batch_size=size,
        batch_size_low=low if batch_size is None else size,
        batch_size_high=high if batch_size is None else size,
        micro_batch_size=plan.micro_batch_size,
        accumulation_steps=plan.accumulation_steps,
        lr_scale=None if lr is None else lr.factor,
        lr_rule=None if lr is None else lr.rule,
        betas=None if lr is None else lr.betas,
        time_of_largest=time,
        samples_of_largest=samples,
        reasons=reasons,
        settings=settings_to_copy(plan, size, world_size, _moved_settings(optimizer, lr)),
    )
    return replace(
        result,
        law=law,
        curve=tuple(curve),
        devices=tuple(device_table(setup, devices)),
        diminishing_devices=diminishing_devices(setup),
        recommendation=recommendation,
        warnings=(*result.warnings, *_further_warnings(workload, optimizer, result, size, plan)),
    )


def _lr_scale(workload: Workload, optimizer: Optimizer, size: int, law: SampleLaw) -> LrScale | None:
    family = FAMILIES.get(type(optimizer).__name__)
    if workload.base_batch_size is None or family not in ("sgd", "adam"):
        return None
    return scale_learning_rate(
        workload.base_batch_size,
        size,
        family=family,
        critical_batch_size=law.critical_batch_size,
        betas=optimizer.param_groups[0].get("betas"),
    )


def _moved_settings(optimizer: Optimizer, lr: LrScale | None) -> dict[str, float | tuple[float, ...]]:
    if lr is None:
        return {}
    group = optimizer.param_groups[0]
    base = group.get("initial_lr", group["lr"])  # before a warm-up
    moved: dict[str, float | tuple[float, ...]] = {"lr": float(base) * lr.factor}
    if lr.betas is not None:
        moved |= {"betas": lr.betas, "eps": float(group["eps"]) * lr.eps_factor}
    return moved


def _why_batch_size(
    asked: int | None, chosen: int, objective: Objective, law: SampleLaw, curve: Sequence[CurvePoint]
) -> str:
    smallest, largest = sizes_close_to(curve)
    if asked is not None:
        return f"you asked for {asked}; the measurements would recommend {chosen}"
    what = "time to a given loss" if objective == "time" else "time among the sizes that need few samples"
    near = "no other size compared is" if smallest == largest else f"sizes from {smallest} to {largest} are"
    return (
        f"it has the least predicted {what}: with a critical batch size of {law.critical_batch_size:.3g}, "
        f"{near} within 10% of the fastest"
    )


def _why_micro_batch_size(plan: StepPlan, result: ProbeResult) -> str:
    assert result.throughput is not None
    assert result.memory is not None
    whole = "the whole batch goes through at once" if plan.accumulation_steps == 1 else "the fastest way to the batch"
    return f"{whole}; {result.throughput.reason}, and up to {result.memory.max_micro_batch_size} fit"


def _why_accumulation(plan: StepPlan) -> str:
    if plan.accumulation_steps == 1:
        return "the batch fits, and accumulating smaller parts would not raise the throughput"
    return f"{plan.accumulation_steps} parts of {plan.micro_batch_size} make the batch in {plan.seconds:.3g} s"


def _why_lr_scale(workload: Workload, optimizer: Optimizer, lr: LrScale | None) -> str:
    if lr is not None:
        return lr.reason
    if workload.base_batch_size is None:
        return "the workload does not say at which batch size its rate was tuned (base_batch_size)"
    return f"no scaling rule is known for {type(optimizer).__name__}"


def _of_largest(curve: Sequence[CurvePoint], setup: Setup, size: int) -> tuple[Band, Band] | tuple[None, None]:
    largest = setup.world_size * setup.max_micro_batch_size
    point = next((point for point in curve if point.batch_size == largest != size), None)
    if point is None:
        return None, None
    return (
        Band(point.relative_time, point.relative_time_low, point.relative_time_high),
        Band(point.relative_samples, point.relative_samples_low, point.relative_samples_high),
    )


def _further_warnings(
    workload: Workload, optimizer: Optimizer, result: ProbeResult, size: int, plan: StepPlan
) -> list[ProbeWarning]:
    assert result.noise is not None
    found = []
    if workload.num_samples is not None and (rest := workload.num_samples % size):
        found.append(
            ProbeWarning(
                "short last batch",
                f"{workload.num_samples} samples leave a last batch of {rest} at batch {size}, whose samples would "
                f"weigh {size / rest:.3g} times as much. Drop it (drop_last=True), as the settings do.",
            )
        )
    if FAMILIES.get(type(optimizer).__name__) != "sgd" and result.noise.average.geometry == "sgd":
        found.append(
            ProbeWarning(
                "noise in SGD's geometry",
                "The noise scale is that of the plain gradient; the optimizer rescales it by coordinate, which can "
                "move the critical batch size.",
            )
        )
    share = result.noise.share_of_training
    if share is not None and share < 1:
        found.append(
            ProbeWarning(
                "short run",
                f"The run covers {share:.1%} of the workload's epochs; the noise scale usually grows later, so the "
                "critical batch size is that of early training. A larger --budget covers more.",
            )
        )
    if share is None and workload.num_samples is not None and result.noise.batch_size is not None:
        found.append(
            ProbeWarning(
                "epochs unknown",
                "The workload does not say for how many epochs it trains, so the run's length, on which the critical "
                "batch size depends, was the probe's choice. Set epochs.",
            )
        )
    if result.memory is not None and result.memory.limited_by == "search" and workload.num_samples is not None:
        found.append(
            ProbeWarning(
                "search for memory ended early",
                f"Time ran out at {result.memory.max_micro_batch_size} samples; larger micro-batches may fit and be "
                "faster. A larger --budget goes further.",
            )
        )
    if result.noise.average.num_skipped:
        found.append(
            ProbeWarning(
                "gradients that are not finite",
                f"{result.noise.average.num_skipped} measuring steps had NaN or infinite gradients and were left out.",
            )
        )
    return found
