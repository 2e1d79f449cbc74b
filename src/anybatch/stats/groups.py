"""Which module does each parameter belong to?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

ModulePrefixes = Sequence[str] | Mapping[str, str | Sequence[str]]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the user's model inside DistributedDataParallel and torch.compile wrappers.

    Args:
        model: a module, wrapped or not.

    Returns:
        The innermost module; parameters are the same objects.
    """
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def find_ddp(model: nn.Module) -> DistributedDataParallel | None:
    """Return the DistributedDataParallel in or around the model, None where there is none.

    Args:
        model: a module, wrapped or not.

    Returns:
        The wrapper itself.
    """
    return next((module for module in model.modules() if isinstance(module, DistributedDataParallel)), None)


def find_fully_sharded(model: nn.Module) -> list[Any]:
    """Return the modules that `torch.distributed.fsdp.fully_shard` was called on, outermost first.

    Args:
        model: a module, wrapped or not.

    Returns:
        The modules themselves; known by name, since to import FSDP takes long.
    """
    return [m for m in model.modules() if any(base.__name__ == "FSDPModule" for base in type(m).__mro__)]


def group_parameters(model: nn.Module, module_prefixes: ModulePrefixes | None = None) -> dict[str, list[nn.Parameter]]:
    """Assign every trainable parameter to exactly one module group.

    Args:
        model: the model; DistributedDataParallel and torch.compile wrappers are looked through. Parameters that
            fully_shard has gathered for a forward pass are sharded again, as the optimizer knows them.
        module_prefixes: None groups by the model's top-level children (a parameter held by the model itself
            is a group of its own name). A sequence of name prefixes makes one group each; a mapping names
            groups that join several prefixes. A prefix ends at a dot: `head` does not match `header.weight`.

    Returns:
        Group name -> trainable parameters, in the order of `model.named_parameters()`. A tied parameter counts
        once. Groups whose parameters are all frozen are left out.

    Raises:
        ValueError: nothing is trainable, a prefix matches no parameter, or a parameter is in no group or in two.

    Example:
        >>> from torch import nn
        >>> model = nn.ModuleDict({"body": nn.Linear(2, 3), "head": nn.Linear(3, 1)})
        >>> {name: len(group) for name, group in group_parameters(model).items()}
        {'body': 2, 'head': 2}
    """
    for module in find_fully_sharded(model):
        module.reshard()
    names = _names_of_trainable_parameters(unwrap(model))
    if not names:
        raise ValueError("the model must have a trainable parameter; got none. Set requires_grad on some.")
    if module_prefixes is None:
        owners = {parameter: [all_names[0].split(".")[0]] for parameter, all_names in names.items()}
    else:
        owners = _owners_by_prefix(names, _prefix_table(unwrap(model), module_prefixes))
    groups: dict[str, list[nn.Parameter]] = {}
    for parameter, (owner,) in owners.items():
        groups.setdefault(owner, []).append(parameter)
    return groups


def _names_of_trainable_parameters(model: nn.Module) -> dict[nn.Parameter, list[str]]:
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(parameter, []).append(name)
    return names


def _prefix_table(model: nn.Module, module_prefixes: ModulePrefixes) -> dict[str, tuple[str, ...]]:
    if isinstance(module_prefixes, str):
        raise ValueError(
            f"module_prefixes must be a sequence or a mapping; got the string {module_prefixes!r}. "
            f"Write [{module_prefixes!r}]."
        )
    if not isinstance(module_prefixes, Mapping):
        module_prefixes = {prefix: prefix for prefix in module_prefixes}
    table = {
        group: (prefixes,) if isinstance(prefixes, str) else tuple(prefixes)
        for group, prefixes in module_prefixes.items()
    }
    all_names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for prefix in (prefix for prefixes in table.values() for prefix in prefixes):
        if not any(_matches(name, prefix) for name in all_names):
            tops = dict.fromkeys(name.split(".")[0] for name in all_names)
            raise ValueError(
                f"module prefix {prefix!r} must match a parameter; it matches none. The model has {', '.join(tops)}."
            )
    return table


def _owners_by_prefix(
    names: dict[nn.Parameter, list[str]], table: dict[str, tuple[str, ...]]
) -> dict[nn.Parameter, list[str]]:
    owners = {
        parameter: [
            group
            for group, prefixes in table.items()
            if any(_matches(name, prefix) for name in all_names for prefix in prefixes)
        ]
        for parameter, all_names in names.items()
    }
    leftovers = [names[parameter][0] for parameter, groups in owners.items() if not groups]
    if leftovers:
        raise ValueError(
            f"every parameter must be in a module group; {len(leftovers)} are in none, "
            f"such as {leftovers[0]!r}. Add a prefix for it."
        )
    for parameter, groups in owners.items():
        if len(groups) > 1:
            raise ValueError(
                f"parameter {' = '.join(names[parameter])} must be in one module group; "
                f"it is in {' and '.join(map(repr, groups))}. Join the prefixes in one group or narrow them."
            )
    return owners


def _matches(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")
