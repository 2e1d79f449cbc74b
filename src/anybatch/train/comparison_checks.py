"""Can these recipes be compared on this workload? Asked before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from anybatch.apply.sample_stream import StreamShares
from anybatch.errors import InputError
from anybatch.train.module_rates import find_modules
from anybatch.train.recipe_kinds import LayerwiseRecipe, Recipe
from anybatch.train.runtime import Runtime
from anybatch.train.timm_optimizers import import_timm
from anybatch.workload import Workload

COUNTS = {"seeds": True, "epochs": False, "micro_batch_size": True, "num_evaluations": True, "max_eval_samples": True}


def check_comparison(
    workload: Workload, runtime: Runtime, settings: Mapping[str, Any], recipes: Sequence[Recipe]
) -> None:
    """Refuse a comparison that cannot be made.

    Args:
        workload: what is trained.
        runtime: where.
        settings: by the names of `compare`'s arguments.
        recipes: how.

    Raises:
        InputError: what is wrong, in a sentence.
    """
    if workload.eval_set is None:
        raise InputError(f"workload {workload.name!r} must have an eval_set to compare recipes on; got none.")
    if workload.num_samples is None or workload.epochs is None or workload.base_batch_size is None:
        raise InputError(
            f"workload {workload.name!r} must have a train_set with a length, epochs and base_batch_size, which "
            "recipes start from."
        )
    for name, whole in (("batch_sizes", True), ("lr_factors", False)):
        values = settings[name]
        if not values or len(set(values)) < len(values) or not all(_is_positive(value, whole) for value in values):
            raise InputError(f"{name} must be positive and different numbers, at least one; got {list(values)}.")
    for batch_size in settings["batch_sizes"]:
        StreamShares(workload.num_samples, batch_size, runtime.rank, runtime.world_size)
    for name, whole in COUNTS.items():
        value = settings[name]
        if value is not None and not _is_positive(value, whole):
            raise InputError(f"{name} must be positive; got {value}.")

    for recipe in recipes:
        ghost, largest = recipe.ghost_batch_size, max(settings["batch_sizes"])
        if isinstance(ghost, int) and ghost > largest:
            raise InputError(
                f"ghost_batch_size must be at most the batch; got {ghost} for a batch of {largest} in recipe "
                f"{recipe.name!r}. Choose a smaller one, or compare a larger batch."
            )
        if isinstance(recipe, LayerwiseRecipe) and recipe.optimizer is not None:
            import_timm(recipe.optimizer)


def check_modules(
    workload: Workload, runtime: Runtime, model: nn.Module, settings: Mapping[str, Any], recipes: Sequence[Recipe]
) -> None:
    """Refuse AGVM on a model whose modules are not known, or on batches that cannot be cut in two.

    Args:
        workload: what is trained.
        runtime: where.
        model: the workload's.
        settings: by the names of `compare`'s arguments.
        recipes: how.

    Raises:
        InputError: what is wrong, in a sentence.
    """
    for recipe in recipes:
        if isinstance(recipe, LayerwiseRecipe) and recipe.agvm is not None:
            find_modules(workload, model, recipe.agvm.anchor)
            if runtime.world_size == 1 and min(settings["batch_sizes"]) < 2:
                raise InputError(
                    f"batch_sizes must be at least 2 for recipe {recipe.name!r}, which compares the halves of a batch; "
                    "got 1."
                )


def as_int(value: Any) -> Any:
    """Return a plain int of whatever stands for one; anything else as it is, to be refused."""
    is_number = not isinstance(value, bool | str | None)
    return int(value) if is_number and math.isfinite(value) and value == int(value) else value


def _is_positive(value: Any, whole: bool) -> bool:
    if isinstance(value, bool | str):
        return False
    return math.isfinite(value) and value > 0 and (not whole or value == int(value))
