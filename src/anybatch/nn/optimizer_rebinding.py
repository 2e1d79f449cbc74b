"""How does an optimizer learn that layers of its model have other parameters?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from anybatch.errors import InputError

_OF_THEIR_OWN = "a new group of the optimizer holds them, without weight decay: make a scheduler after the conversion"
_DECAYED = (
    "a scheduler holds the optimizer's groups, so that weight decay concerns them: convert before the scheduler is made"
)


def check_holds(optimizer: Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer of another model.

    Args:
        optimizer: with its groups.
        model: any module.

    Raises:
        InputError: it is none, or holds no parameter of the model.
    """
    if not hasattr(optimizer, "param_groups"):
        raise InputError(
            f"optimizer must be a torch.optim.Optimizer or None; got {type(optimizer).__name__}. Pass the one that "
            "trains the model."
        )
    own = {id(parameter) for parameter in model.parameters()}
    if own and not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise InputError(
            f"optimizer must hold parameters of the model; got {type(optimizer).__name__} without any. Build it from "
            "model.parameters(), after the model is moved or sharded."
        )


def rebind(
    optimizer: Optimizer | None,
    new_of: Mapping[nn.Module, nn.Module],
    names: Mapping[nn.Parameter, str] | None = None,
) -> list[str]:
    """Let an optimizer forget parameters that are gone and hold those that are new.

    A new parameter joins the group of its layer's weight or bias, or the first group. Where weight decay concerns that
    one, it joins a group without whose other settings are the same, or a new group; a learning rate scheduler counts
    the groups, so that where one holds them there is no new one.

    Args:
        optimizer: changed in place; None where there is none.
        new_of: old layer -> the one in its place.
        names: new parameter -> name in the model, for optimizers that keep names.

    Returns:
        Sentences on what changed, or, without an optimizer, on what one would have to be told.
    """
    before = {parameter: None for layer in new_of for parameter in layer.parameters()}
    after = {parameter: layer for layer in new_of.values() for parameter in layer.parameters()}
    removed = [parameter for parameter in before if parameter not in after]
    added = [parameter for parameter in after if parameter not in before and parameter.requires_grad]
    if not removed and not added:
        return []
    what = f"{len(added)} parameters added, {len(removed)} removed"
    if optimizer is None:
        undecayed = ", which spares those added weight decay" if added else ""
        return [f"{what}: make the optimizer after the conversion, or pass it as optimizer={undecayed}"]
    notes = [_hold(optimizer, parameter, after[parameter], (names or {}).get(parameter, "")) for parameter in added]
    for parameter in removed:
        _forget(optimizer, parameter)
    return [f"{what}, in the optimizer too", *dict.fromkeys(note for note in notes if note)]


def _hold(optimizer: Optimizer, parameter: nn.Parameter, layer: nn.Module, name: str) -> str:
    """Put a parameter into a group, and return what is to be known of that, or nothing."""
    own = _group_of(optimizer, layer)
    groups = [each for each in (own, *optimizer.param_groups) if not each.get("weight_decay")]
    found = next((each for each in groups if _other_settings(each) == _other_settings(own)), None)
    is_scheduled = any("initial_lr" in group for group in optimizer.param_groups)
    if found is None and not is_scheduled:
        held = (name, parameter) if "param_names" in own else parameter
        optimizer.add_param_group({**_other_settings(own), "params": [held], "weight_decay": 0.0})
        return _OF_THEIR_OWN
    _join(own if found is None else found, parameter, name)
    return _DECAYED if found is None else ""


def _group_of(optimizer: Optimizer, layer: nn.Module) -> dict[str, Any]:
    own = {id(parameter) for parameter in layer.parameters()}
    for group in optimizer.param_groups:
        if any(id(parameter) in own for parameter in group["params"]):
            return group
    return optimizer.param_groups[0]


def _other_settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key not in ("params", "param_names", "weight_decay")}


def _join(group: dict[str, Any], parameter: nn.Parameter, name: str) -> None:
    group["params"].append(parameter)
    if "param_names" in group:
        group["param_names"].append(name)


def _forget(optimizer: Optimizer, parameter: nn.Parameter) -> None:
    for group in optimizer.param_groups:
        kept = [index for index, each in enumerate(group["params"]) if each is not parameter]
        for key in group.keys() & {"params", "param_names"}:
            group[key] = [group[key][index] for index in kept]
    optimizer.state.pop(parameter, None)
    if not any("initial_lr" in group for group in optimizer.param_groups):  # which a scheduler counts
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
