"""Which methods together make a large batch train well? Named combinations, as data."""

from __future__ import annotations

import runpy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch.optim import Optimizer

from anybatch.decide.lr_scaling import Family, Rule
from anybatch.decide.regime import Regime, large_batch_regime
from anybatch.errors import InputError
from anybatch.train.plan import Plan
from anybatch.workload import Milestones, Workload

FAMILIES: Mapping[str, Family] = {
    "SGD": "sgd",
    "Adam": "adam",
    "AdamW": "adam",
    "NAdam": "adam",
    "RAdam": "adam",
    "RMSprop": "rmsprop",
}


@dataclass(frozen=True)
class Recipe:
    """A combination of methods, relative to a workload's base batch size.

    Attributes:
        name: as it is called on the command line and in the report.
        description: one line.
        lr_rule: what becomes of the rate: "none", "linear" or "sqrt"; for Adam-like optimizers with their betas.
        warmup_share: share of the training that warms up linearly, at batches above the base.
        warmup_epochs: warm-up at the base batch size, multiplied with the batch (LEGW).
        ghost_batch_size: samples that share batch norm's statistics; "base" for the batch size that rate and regime
            are scaled from. A batch that is not above it keeps plain batch norm.
        adapts_regime: whether every epoch is stretched to keep the number of updates.
        adds_noise: whether gradients get multiplicative noise, instead of a scaled rate.
        clip_norm: largest norm of the whole gradient, after averaging.
        reference_batch_size: the batch size from which rate and regime are scaled; None: the workload's base.
        resets_momentum: see `Plan`.

    Raises:
        InputError: methods that contradict each other, or an unknown rule.

    Example:
        >>> Recipe("mine", lr_rule="sqrt", ghost_batch_size=64).name
        'mine'
    """

    name: str
    description: str = ""
    lr_rule: Rule = "none"
    warmup_share: float = 0.0
    warmup_epochs: float = 0.0
    ghost_batch_size: int | Literal["base"] | None = None
    adapts_regime: bool = False
    adds_noise: bool = False
    clip_norm: float | None = None
    reference_batch_size: int | None = None
    resets_momentum: bool = False

    def __post_init__(self) -> None:
        if self.lr_rule not in ("none", "linear", "sqrt"):
            raise InputError(f"lr_rule of a Recipe must be none, linear or sqrt; got {self.lr_rule!r}.")
        if self.adds_noise and self.lr_rule != "none":
            raise InputError(
                f"recipe {self.name!r} must scale the rate or add noise; it does both. They are alternatives."
            )
        if self.warmup_share and self.warmup_epochs:
            raise InputError(f"recipe {self.name!r} must give warmup_share or warmup_epochs; it gives both.")
        if not 0 <= self.warmup_share < 1 or self.warmup_epochs < 0:
            raise InputError(f"warm-up of recipe {self.name!r} must be a share below 1, or epochs that are positive.")
        for name in ("clip_norm", "ghost_batch_size", "reference_batch_size"):
            value = getattr(self, name)
            is_base = name == "ghost_batch_size" and value == "base"
            if value is not None and not is_base and (isinstance(value, str) or not value > 0):
                raise InputError(f"{name} of recipe {self.name!r} must be positive; got {value!r}.")


CLIP_NORM = 5.0  # Hoffer et al. 2017, in all their runs
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
    return Plan(
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
    family, betas = _family(recipe, optimizer)
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


def base_rate(optimizer: Optimizer) -> float:
    """Return the rate of the first parameter group, before any warm-up of a scheduler."""
    group = optimizer.param_groups[0]
    return float(group.get("initial_lr", group["lr"]))


def _milestones(workload: Workload) -> tuple[float, ...]:
    """Return when the rate drops, without drops that the workload's epochs do not reach."""
    assert workload.epochs is not None
    if not isinstance(workload.schedule, Milestones):
        return ()
    return tuple(epoch for epoch in workload.schedule.epochs if epoch < workload.epochs)


def _family(recipe: Recipe, optimizer: Optimizer) -> tuple[Family, tuple[float, ...] | None]:
    name, group = type(optimizer).__name__, optimizer.param_groups[0]
    if recipe.lr_rule == "none":
        return "sgd", None
    if name not in FAMILIES:
        raise InputError(
            f"recipe {recipe.name!r} must know how the rate of {name} scales; it knows {', '.join(FAMILIES)}. "
            "Give a recipe with lr_rule='none', and the rate by lr_factors."
        )
    betas = (group["alpha"],) if name == "RMSprop" else group.get("betas")
    return FAMILIES[name], betas


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
