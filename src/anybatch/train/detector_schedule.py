"""With which rate, warm-up and clipping were detectors published at which batch size?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch.optim import Optimizer

from anybatch.errors import InputError
from anybatch.train.plan import LayerwisePlan, Plan
from anybatch.train.recipe_kinds import DetectorRecipe
from anybatch.workload import Workload

BASE_RATE, BASE_BATCH_SIZE = 0.02, 16
LAST_LINEAR = 128  # samples: from there on the rate grows as the square root
WARMUP_EPOCHS = 2
WARMUP_STEP = 10  # its updates are rounded up to tens
MARGIN = 100  # updates from the end of warm-up to AGVM, and to either end of clipping
INTERVALS = (10, 5)  # of AGVM's measurements, up to and beyond 1000 samples
LAST_OF_FIRST_INTERVAL = 1000


@dataclass(frozen=True)
class DetectorSchedule:
    """How a detector is trained with SGD at one batch size.

    Attributes:
        lr: the rate.
        warmup_updates: of exponential warm-up.
        agvm_start: the first update whose rates AGVM scales.
        agvm_interval: updates between its measurements.
        clip_updates: the first and the last one whose gradient is clipped.
    """

    lr: float
    warmup_updates: int
    agvm_start: int
    agvm_interval: int
    clip_updates: tuple[int, int]


def detector_rate(batch_size: int) -> float:
    """Return the rate of SGD for a detector: 0.02 per 16 images up to 128, and with the square root from there.

    Args:
        batch_size: images per step.

    Returns:
        The rate.

    Example:
        >>> [round(detector_rate(batch_size), 6) for batch_size in (16, 128, 256, 512)]
        [0.02, 0.16, 0.226274, 0.32]

    Source:
        Xue et al. 2022, arXiv:2210.11078: the rule that its configurations follow but for Faster R-CNN at 512.
    """
    linear = BASE_RATE * min(batch_size, LAST_LINEAR) / BASE_BATCH_SIZE
    return linear * math.sqrt(max(batch_size, LAST_LINEAR) / LAST_LINEAR)


def detector_schedule(batch_size: int, num_samples: int, rates: Mapping[int, float] | None = None) -> DetectorSchedule:
    """Return how AGVM's authors train a detector at a batch size.

    Warm-up takes two epochs, rounded up to whole updates each and then to tens; AGVM starts 100 updates after it, and
    gradients are clipped from 100 updates before its end to 100 after.

    Args:
        batch_size: images per step.
        num_samples: images of the training set, 117,266 of COCO.
        rates: batch size -> rate where it is not `detector_rate`.

    Returns:
        The schedule.

    Example:
        >>> detector_schedule(256, 117_266).clip_updates
        (820, 1020)

    Source:
        Xue et al. 2022 and its code, which has configurations for batches of 256 and 512: ours are the rounding and all
        that is said of other sizes, but for the interval of 5 beyond 1000 images, which is the paper's.
    """
    updates = WARMUP_EPOCHS * math.ceil(num_samples / batch_size)
    warmup = math.ceil(updates / WARMUP_STEP) * WARMUP_STEP
    return DetectorSchedule(
        lr=(rates or {}).get(batch_size, detector_rate(batch_size)),
        warmup_updates=warmup,
        agvm_start=warmup + MARGIN,
        agvm_interval=INTERVALS[batch_size > LAST_OF_FIRST_INTERVAL],
        clip_updates=(max(warmup - MARGIN, 0), warmup + MARGIN),
    )


def plan_detector(
    recipe: DetectorRecipe, plan: Plan, workload: Workload, batch_size: int, optimizer: Optimizer
) -> LayerwisePlan:
    """Resolve a recipe of detectors to numbers.

    Args:
        recipe: what to combine.
        plan: of what it shares with other recipes.
        workload: with `base_batch_size` and `epochs`.
        batch_size: images per step.
        optimizer: the workload's own.

    Returns:
        The plan.

    Raises:
        InputError: another optimizer than SGD, a training set without a length, or a training that ends before AGVM
            starts.
    """
    base, num_samples = recipe.reference_batch_size or workload.base_batch_size, workload.num_samples
    assert base is not None
    assert workload.epochs is not None
    if type(optimizer).__name__ != "SGD" or num_samples is None:
        raise InputError(
            f"recipe {recipe.name!r} must have SGD, for which it was published, and a train_set with a length; got "
            f"{type(optimizer).__name__} and {num_samples} samples. Use recipe 'agvm'."
        )
    schedule = detector_schedule(batch_size, num_samples, recipe.rates)
    num_updates = round(workload.epochs * num_samples / batch_size)
    if schedule.agvm_start >= num_updates:
        raise InputError(
            f"recipe {recipe.name!r} must have more updates than the {schedule.agvm_start} before AGVM starts; got "
            f"{num_updates}. Use recipe 'agvm', or a smaller batch."
        )
    agvm, (first, last) = recipe.agvm, schedule.clip_updates
    if agvm is not None:
        agvm = replace(agvm, start_step=schedule.agvm_start, interval=schedule.agvm_interval)
    scaled = replace(
        plan,
        lr_scale=plan.lr_scale * schedule.lr / detector_rate(base),
        warmup_epochs=schedule.warmup_updates * batch_size / num_samples,
    )
    return LayerwisePlan(
        **vars(scaled),
        agvm=agvm,
        warmup_start=recipe.warmup_start,
        clip_epochs=(first * batch_size / num_samples, last * batch_size / num_samples),
    )
