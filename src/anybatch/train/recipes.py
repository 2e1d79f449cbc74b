"""Which methods together make a large batch train well? Named combinations, as data."""

from __future__ import annotations

import runpy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from anybatch.decide.lr_scaling import Family
from anybatch.decide.regime import Regime, large_batch_regime
from anybatch.errors import InputError
from anybatch.train.detector_schedule import plan_detector
from anybatch.train.plan import AS_IT_IS, LayerwisePlan, ModuleRates, NormPlan, Plan
from anybatch.train.recipe_kinds import DetectorRecipe, LayerwiseRecipe, NormRecipe, Recipe
from anybatch.train.timm_optimizers import published_rate
from anybatch.workload import Milestones, Workload

FAMILIES: Mapping[str, Family] = {
    "SGD": "sgd",
    "Adam": "adam",
    "AdamW": "adam",
    "NAdam": "adam",
    "RAdam": "adam",
    "RMSprop": "rmsprop",
}


CLIP_NORM = 5.0  # Hoffer et al. 2017, in all their runs
PUBLISHED_SHARES = (5 / 160, 25 / 160, 40 / 160)  # Ioffe 2017: updates in thousands, of the 160 that are drawn
RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("plain", "the workload as it is: same rate, same epochs"),
        Recipe(
            "linear",
            "linear rate with warm-up over the first eighteenth of training (Goyal et al. 2017: 5 of 90 epochs)",
            lr_rule="linear",
            warmup_share=1 / 18,
        ),
        Recipe("sqrt", "square-root rate and clipping (Hoffer et al. 2017, +LR)", lr_rule="sqrt", clip_norm=CLIP_NORM),
        Recipe(
            "ghost",
            "sqrt, and batch norm in ghost batches of the base size (+GBN)",
            lr_rule="sqrt",
            clip_norm=CLIP_NORM,
            ghost_batch_size="base",
        ),
        Recipe(
            "regime",
            "ghost, and as many updates as the base batch takes (+RA)",
            lr_rule="sqrt",
            clip_norm=CLIP_NORM,
            ghost_batch_size="base",
            adapts_regime=True,
        ),
        Recipe(
            "noise",
            "base rate, and multiplicative noise on the gradient that makes up for the larger batch",
            adds_noise=True,
            clip_norm=CLIP_NORM,
        ),
        NormRecipe("kalman", "Kalman normalization in place of batch norm (Wang et al. 2018)", norm="kalman"),
        NormRecipe("group", "group norm in place of batch norm (Wu and He 2018)", norm="group"),
        NormRecipe(
            "batch-renorm",
            "batch renormalization in place of batch norm, its limits relaxed over the first quarter (Ioffe 2017)",
            norm="batch_renorm",
            relaxation_shares=PUBLISHED_SHARES,
        ),
        NormRecipe(
            "moving-average",
            "moving-average batch norm with centred weights in place of batch norm (Yan et al. 2020)",
            norm="moving_average",
            norm_options={"momentum": 0.02, "centered_weights": True},
        ),
        LayerwiseRecipe(
            "agvm",
            "sqrt, and every module at a rate of its own that aligns their gradients' noise (Xue et al. 2022)",
            lr_rule="sqrt",
            clip_norm=CLIP_NORM,
            agvm=ModuleRates(),
        ),
        LayerwiseRecipe(
            "lars",
            "LARS of timm at its published rate, in place of the workload's optimizer (You et al. 2017)",
            lr_rule="sqrt",
            optimizer="lars",
        ),
        LayerwiseRecipe(
            "lamb",
            "LAMB of timm at its published rate, in place of the workload's optimizer (You et al. 2019)",
            lr_rule="sqrt",
            optimizer="lamb",
        ),
        DetectorRecipe(
            "agvm-faster-rcnn",
            "AGVM with the rate, warm-up and clipping published with it for Faster R-CNN (Xue et al. 2022)",
            rates={512: 0.38},
        ),
        DetectorRecipe("agvm-mask-rcnn", "agvm-faster-rcnn, but for its rate at 512, as published for Mask R-CNN"),
    )
}


def find_recipes(names: Sequence[str | Recipe]) -> tuple[Recipe, ...]:
    """Look recipes up.

    Args:
        names: of built-in recipes; `path/to/file.py:NAME` of a user's, a Recipe or a sequence of them; or recipes.

    Returns:
        The recipes, in order.

    Raises:
        InputError: an unknown name, a file without it, or two recipes of one name.

    Example:
        >>> [recipe.name for recipe in find_recipes(["plain", "regime"])]
        ['plain', 'regime']
    """
    if not names:
        raise InputError(f"recipes must name at least one, of {', '.join(RECIPES)} or your own; got none.")
    found = tuple(recipe for name in names for recipe in _found(name))
    repeated = {recipe.name for recipe in found if sum(other.name == recipe.name for other in found) > 1}
    if repeated:
        raise InputError(f"recipes must have names of their own; got {', '.join(sorted(repeated))} more than once.")
    return found


def plan_training(
    recipe: Recipe, workload: Workload, batch_size: int, optimizer: Optimizer, lr_factor: float = 1.0
) -> Plan:
    """Resolve a recipe to numbers.

    Args:
        recipe: what to combine.
        workload: with `base_batch_size` and `epochs`.
        batch_size: samples per step.
        optimizer: the workload's own, which says whether the rate scales as SGD's or as Adam's.
        lr_factor: a further factor on the rate, for tuning.

    Returns:
        The plan.

    Raises:
        InputError: a workload without base batch size or epochs, or an optimizer that no rule is known for.

    Example:
        >>> import torch
        >>> from anybatch.workloads import load_workload
        >>> sgd = torch.optim.SGD([torch.zeros(1)])
        >>> plan_training(RECIPES["regime"], load_workload("digits"), 512, sgd).stretch
        16.0
    """
    regime = large_regime(recipe, workload, batch_size, optimizer)
    base = recipe.reference_batch_size or workload.base_batch_size
    ghost = base if recipe.ghost_batch_size == "base" else recipe.ghost_batch_size
    warmup_epochs = regime.warmup_epochs
    if base is not None and batch_size > base:
        warmup_epochs += recipe.warmup_share * regime.epochs
    plan = Plan(
        lr_scale=regime.lr_scale.factor * lr_factor,
        betas=regime.lr_scale.betas if recipe.lr_rule != "none" else None,
        eps_factor=regime.lr_scale.eps_factor,
        stretch=regime.stretch,
        warmup_epochs=warmup_epochs,
        ghost_batch_size=ghost if ghost is not None and batch_size > ghost else None,
        clip_norm=recipe.clip_norm,
        noise_variance=regime.noise_variance if recipe.adds_noise else 0.0,
        resets_momentum=recipe.resets_momentum,
    )
    if isinstance(recipe, DetectorRecipe):
        return plan_detector(recipe, plan, workload, batch_size, optimizer)
    if isinstance(recipe, LayerwiseRecipe):
        return _layerwise(recipe, plan, workload, batch_size)
    if not isinstance(recipe, NormRecipe):
        return plan
    options = dict(recipe.norm_options) | _relaxation(recipe, workload, batch_size, plan.stretch)
    return NormPlan(**vars(plan), norm=recipe.norm, norm_options=tuple(sorted(options.items())))


def _layerwise(recipe: LayerwiseRecipe, plan: Plan, workload: Workload, batch_size: int) -> LayerwisePlan:
    assert workload.epochs is not None
    base = recipe.reference_batch_size or workload.base_batch_size
    assert base is not None
    epochs = workload.epochs * plan.stretch
    agvm, share, name = recipe.agvm, recipe.clip_share, recipe.optimizer
    if agvm is not None:
        num_updates = epochs * (workload.num_samples or 0) / batch_size
        agvm = replace(agvm, start_step=round(recipe.agvm_share * num_updates))
    return LayerwisePlan(
        **vars(plan),
        optimizer=name,
        optimizer_lr=None if name is None else published_rate(name, base),
        agvm=agvm,
        warmup_start=recipe.warmup_start,
        clip_epochs=None if share is None else (share[0] * epochs, share[1] * epochs),
    )


def _relaxation(recipe: NormRecipe, workload: Workload, batch_size: int, stretch: float) -> dict[str, Any]:
    """Return when the limits of batch renormalization grow, in updates of this training."""
    if recipe.relaxation_shares is None or workload.num_samples is None or workload.epochs is None:
        return {}
    num_updates = workload.epochs * stretch * workload.num_samples / batch_size
    return {"relaxation": tuple(round(share * num_updates) for share in recipe.relaxation_shares)}


def large_regime(recipe: Recipe, workload: Workload, batch_size: int, optimizer: Optimizer) -> Regime:
    """Return the regime of a recipe.

    Args:
        recipe: what to combine.
        workload: with `base_batch_size` and `epochs`.
        batch_size: samples per step.
        optimizer: the workload's own.

    Returns:
        The regime, with the rule's `holds` and `reason` in `lr_scale`.

    Raises:
        InputError: as for `plan_training`.
    """
    base = recipe.reference_batch_size or workload.base_batch_size
    if base is None or workload.epochs is None:
        raise InputError(f"workload {workload.name!r} must state base_batch_size and epochs for recipes to start from.")
    family, betas = find_family(recipe, optimizer)
    ghost = base if recipe.ghost_batch_size == "base" else recipe.ghost_batch_size
    return large_batch_regime(
        base,
        batch_size,
        base_rate(optimizer),
        _milestones(workload),
        workload.epochs,
        rule=recipe.lr_rule,
        family=family,
        betas=betas,
        adapt=recipe.adapts_regime,
        ghost_batch_size=None if ghost is None else min(ghost, batch_size),
        clip_norm=recipe.clip_norm,
        warmup_epochs=recipe.warmup_epochs,
    )


def find_family(recipe: Recipe, optimizer: Optimizer) -> tuple[Family, tuple[float, ...] | None]:
    """Return by which optimizer's rule a recipe's rate scales, and its betas.

    Args:
        recipe: "sgd" where it leaves the rate alone, or has an optimizer of its own.
        optimizer: the workload's own.

    Returns:
        The family, and betas of those that have any.

    Raises:
        InputError: an optimizer whose rule is not known.
    """
    name, group = type(optimizer).__name__, optimizer.param_groups[0]
    if recipe.lr_rule == "none" or (isinstance(recipe, LayerwiseRecipe) and recipe.optimizer is not None):
        return "sgd", None
    if name not in FAMILIES:
        raise InputError(
            f"recipe {recipe.name!r} must know how the rate of {name} scales; it knows {', '.join(FAMILIES)}. "
            "Give a recipe with lr_rule='none', and the rate by lr_factors."
        )
    betas = (group["alpha"],) if name == "RMSprop" else group.get("betas")
    return FAMILIES[name], betas


def base_rate(optimizer: Optimizer, plan: Plan = AS_IT_IS) -> float:
    """Return the rate of the first parameter group, or of the plan's optimizer, before any warm-up of a scheduler."""
    if isinstance(plan, LayerwisePlan) and plan.optimizer_lr is not None:
        return plan.optimizer_lr
    group = optimizer.param_groups[0]
    return float(group.get("initial_lr", group["lr"]))


def _milestones(workload: Workload) -> tuple[float, ...]:
    """Return when the rate drops, without drops that the workload's epochs do not reach."""
    assert workload.epochs is not None
    if not isinstance(workload.schedule, Milestones):
        return ()
    return tuple(epoch for epoch in workload.schedule.epochs if epoch < workload.epochs)


def _found(name: str | Recipe) -> tuple[Recipe, ...]:
    if isinstance(name, Recipe):
        return (name,)
    name = name.strip()
    if name in RECIPES:
        return (RECIPES[name],)
    path, colon, variable = name.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise InputError(f"recipe must be one of {', '.join(RECIPES)}, or path/to/file.py:NAME; got {name!r}.")
    value = _variables(path).get(variable)
    recipes = (value,) if isinstance(value, Recipe) else tuple(value) if isinstance(value, list | tuple) else ()
    if not recipes or not all(isinstance(recipe, Recipe) for recipe in recipes):
        raise InputError(f"{name} must be an anybatch.Recipe or a list of them; got {type(value).__name__}.")
    return recipes


def _variables(path: str) -> dict[str, object]:
    if not Path(path).is_file():
        raise InputError(f"recipe file must exist; {path} does not.")
    try:
        return runpy.run_path(path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} could not be loaded: {type(error).__name__}: {error}") from error
