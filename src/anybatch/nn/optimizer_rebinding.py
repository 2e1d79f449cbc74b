"""How does an optimizer learn that layers of its model have other parameters?"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.optim import Optimizer

from anybatch.errors import InputError


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
        raise InputError("the optimizer must hold parameters of this model; it holds none. Pass the model's own.")


def rebind(optimizer: Optimizer | None, new_of: Mapping[nn.Module, nn.Module]) -> list[str]:
    """Let an optimizer forget parameters that are gone and hold those that are new.

    A new parameter joins the group of its layer's weight or bias, or the first group.

    Args:
        optimizer: changed in place; None where there is none.
        new_of: old layer -> the one in its place.

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
        return [f"{what}: make the optimizer after the conversion, or pass it as optimizer="]
    for parameter in added:
        _group_of(optimizer, after[parameter])["params"].append(parameter)
    for parameter in removed:
        _forget(optimizer, parameter)
    return [f"{what}, in the optimizer too"]


def _group_of(optimizer: Optimizer, layer: nn.Module) -> dict[str, list[nn.Parameter]]:
    own = {id(parameter) for parameter in layer.parameters()}
    for group in optimizer.param_groups:
        if any(id(parameter) in own for parameter in group["params"]):
            return group
    return optimizer.param_groups[0]


def _forget(optimizer: Optimizer, parameter: nn.Parameter) -> None:
    for group in optimizer.param_groups:
        group["params"] = [each for each in group["params"] if each is not parameter]
    optimizer.state.pop(parameter, None)
