"""How does an optimizer learn that layers of its model have other parameters?"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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

    A new parameter joins the group of its layer's weight or bias. Where weight decay concerns that one, it joins a
    group without whose other settings are the same, or a new group; a learning rate scheduler counts the groups, so
    that where one holds them there is no new one. It stays out where the optimizer holds nothing of its layer: that one
    is frozen, or another optimizer's. A layer with nothing of its own is taken for one with a bias: what is new joins
    the first group with a vector or a number, as a group of matrices may be of a method for these alone.

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
    added = {parameter: None for parameter in after if parameter not in before and parameter.requires_grad}
    if not removed and not added:
        return []
    if optimizer is None:
        undecayed = ", which spares those added weight decay" if added else ""
        what = _counted(len(added), len(removed))
        return [f"{what}: make the optimizer after the conversion, or pass it as optimizer={undecayed}"]
    homes = {parameter: _group_of(optimizer, after[parameter], added) for parameter in added}
    named = {parameter: (names or {}).get(parameter, "") for parameter in added}
    joining = {parameter: group for parameter, group in homes.items() if group is not None}
    notes = [_hold(optimizer, group, parameter, named[parameter]) for parameter, group in joining.items()]
    for parameter in removed:
        _forget(optimizer, parameter)
    if joining or removed:
        notes.insert(0, f"{_counted(len(joining), len(removed))}, in the optimizer too")
    notes.append(_of_those_outside([named[parameter] for parameter in added if parameter not in joining]))
    return list(dict.fromkeys(note for note in notes if note))


def _counted(num_added: int, num_removed: int) -> str:
    return f"{num_added} parameters added, {num_removed} removed"


def _of_those_outside(names: list[str]) -> str:
    """Say which parameters the optimizer does not train, or nothing."""
    known = [name for name in names if name]
    listed = ", ".join(known if len(known) <= 3 else [known[0], "...", known[-1]])
    what = f"{len(names)} parameters added{' (' + listed + ')' if listed else ''}"
    why = "which holds no parameter of their layers: give them to the one that is to train them"
    return f"{what} stay out of the optimizer, {why}" if names else ""


def _hold(optimizer: Optimizer, own: dict[str, Any], parameter: nn.Parameter, name: str) -> str:
    """Put a parameter into its layer's group or one like it, and return what is to be known of that, or nothing."""
    groups = [each for each in (own, *optimizer.param_groups) if not each.get("weight_decay")]
    found = next((each for each in groups if _other_settings(each) == _other_settings(own)), None)
    is_scheduled = any("initial_lr" in group for group in optimizer.param_groups)
    if found is None and not is_scheduled:
        held = (name, parameter) if "param_names" in own else parameter
        optimizer.add_param_group({**_other_settings(own), "params": [held], "weight_decay": 0.0})
        return _OF_THEIR_OWN
    _join(own if found is None else found, parameter, name)
    return _DECAYED if found is None else ""


def _group_of(optimizer: Optimizer, layer: nn.Module, added: Collection[nn.Parameter]) -> dict[str, Any] | None:
    """Return the group whose settings the layer's new parameters take, or None where they stay out."""
    own = {id(parameter) for parameter in layer.parameters() if parameter not in added}

    def is_like(parameter: nn.Parameter) -> bool:
        return id(parameter) in own if own else parameter.dim() < 2

    return next((group for group in optimizer.param_groups if any(map(is_like, group["params"]))), None)


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
