"""What should a reader of a comparison beware of?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from anybatch.errors import InputError
from anybatch.train.comparison import Run
from anybatch.train.evaluate import evaluate
from anybatch.train.loop import Training
from anybatch.train.recipe_kinds import NormRecipe, Recipe
from anybatch.train.recipes import find_family, large_regime
from anybatch.train.runtime import Runtime
from anybatch.workload import Milestones, Workload


def try_evaluation(workload: Workload, runtime: Runtime, model: nn.Module) -> tuple[bool, tuple[str, ...]]:
    """Try the metric, and the loss in eval mode, which that of a detector may not have.

    Args:
        workload: whose they are.
        runtime: where.
        model: the workload's; left as it was.

    Returns:
        Whether the loss works in eval mode, and a warning where it does not.

    Raises:
        InputError: the metric fails, or the loss where there is no metric.
    """
    alone = Runtime(runtime.device, autocast=runtime.autocast)
    try:
        evaluate(workload, alone, model, batch_size=2, max_samples=2)
    except Exception as error:
        raise InputError(f"metric of the workload failed on its eval_set: {type(error).__name__}: {error}") from error
    try:
        evaluate(replace(workload, metric=None), alone, model, batch_size=2, max_samples=2, with_loss=True)
    except Exception as error:
        if workload.metric is None:
            raise InputError(f"loss of the workload failed on its eval_set: {type(error).__name__}: {error}") from error
        return False, (f"The loss fails in eval mode ({type(error).__name__}), so only the metric is compared.",)
    return True, ()


def warn_before(
    workload: Workload, runtime: Runtime, training: Training, recipes: Sequence[Recipe], settings: Mapping[str, Any]
) -> list[str]:
    """Say what is known before anything is trained.

    Args:
        workload: what is trained.
        runtime: where.
        training: of the workload, at rest.
        recipes: how.
        settings: by the names of `compare`'s arguments.

    Returns:
        Sentences.
    """
    return [
        *_base_warnings(workload, settings),
        *_milestone_warnings(workload),
        *_norm_warnings(training.model, runtime, recipes, settings["micro_batch_size"]),
        *_rule_warnings(workload, training, recipes, settings),
    ]


def warn_after(runs: Sequence[Run]) -> list[str]:
    """Name the runs that ended no better than their first evaluation, which a rate that is too high does.

    Args:
        runs: finished ones.

    Returns:
        Sentences.
    """
    lost = {
        f"{run.recipe} at {run.batch_size} with rate {run.settings['lr']:.3g}": None
        for run in runs
        if run.status == "done" and len(run.curve) > 1 and run.curve[-1]["loss"] >= run.curve[0]["loss"]
    }
    if not lost:
        return []
    return [f"The loss did not fall in {', '.join(lost)}. Their rate may be too high: try --lr-factors 0.5,1 too."]


def _base_warnings(workload: Workload, settings: Mapping[str, Any]) -> list[str]:
    if workload.base_batch_size in settings["batch_sizes"]:
        return []
    return [f"The workload's own batch size, {workload.base_batch_size}, is not among the sizes compared."]


def _milestone_warnings(workload: Workload) -> list[str]:
    """Name drops of the rate that the workload's own epochs never reach."""
    assert workload.epochs is not None
    schedule = workload.schedule
    late = [epoch for epoch in schedule.epochs if epoch >= workload.epochs] if isinstance(schedule, Milestones) else []
    if not late:
        return []
    return [
        f"The workload's milestones must lie within its {workload.epochs:g} epochs; got "
        f"{' and '.join(f'{epoch:g}' for epoch in late)}, where the rate never drops. Leave them out, or train longer."
    ]


def _rule_warnings(
    workload: Workload, training: Training, recipes: Sequence[Recipe], settings: Mapping[str, Any]
) -> list[str]:
    """Say where the rule of an Adam-like optimizer is beyond its range, and where SGD's rate has none that is known."""
    optimizer = training.optimizer
    warnings, unknown = [], []
    for recipe in recipes:
        is_sgd = find_family(recipe, optimizer)[0] == "sgd"
        if is_sgd and recipe.lr_rule == "none":
            continue
        for batch_size in settings["batch_sizes"]:
            scale = large_regime(recipe, workload, batch_size, optimizer).lr_scale
            if scale.holds:
                continue
            if is_sgd:
                unknown.append(f"{recipe.name} at {batch_size} (x{scale.factor:.3g})")
            else:
                warnings.append(f"{recipe.name} at {batch_size}: {scale.reason}.")
    if unknown:
        warnings.append(
            f"How far a rule for the rate holds is unknown without a critical batch size: {', '.join(unknown)}. "
            "anybatch probe measures it; --lr-factors 0.5,1 tries lower rates."
        )
    return warnings


def _norm_warnings(
    model: nn.Module, runtime: Runtime, recipes: Sequence[Recipe], micro_batch_size: int | None
) -> list[str]:
    """Say where batch norm sees other samples than the batch's, or none are normalized at all."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    names = [recipe.name for recipe in recipes if recipe.ghost_batch_size is not None]
    others = [recipe.name for recipe in recipes if isinstance(recipe, NormRecipe)]
    if not norms:
        missing = (("ghost batches change", names), ("other norms change", others))
        return [f"The model has no batch norm, so {what} nothing in {', '.join(who)}." for what, who in missing if who]
    warnings = []
    if runtime.world_size > 1 and not all(isinstance(norm, nn.SyncBatchNorm) for norm in norms):
        warnings.append(
            "Batch norm sees each rank's share of a batch, so results differ from one process at the same batch size; "
            "convert the model with torch.nn.SyncBatchNorm, or use ghost batches that divide a rank's share."
        )
    if micro_batch_size is not None:
        warnings.append(f"Batch norm, ghost batches too, sees at most the {micro_batch_size} samples of a micro-batch.")
    return warnings
