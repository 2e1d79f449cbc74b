"""How does an existing model get other normalization layers, without a new optimizer or a lost checkpoint?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.optim import Optimizer

from anybatch.errors import InputError
from anybatch.nn.activated_norms import ACTIVATED, activated_type, is_activated
from anybatch.nn.centered_weights import center_weights, check_have_weights, layers_before, uncenter_weights
from anybatch.nn.conversion_targets import (
    BATCH_TYPES,
    DIMENSION,
    OWN_ATTRIBUTES,
    OWN_TYPES,
    TARGETS,
    WITHOUT_STATISTICS,
    Kind,
    Target,
    dimension_of,
    is_frozen_batch_norm,
    knows_dimension,
)
from anybatch.nn.kalman_layer import KalmanLayer
from anybatch.nn.kalman_wiring import Wiring, table_of, unwire_kalman, wire_kalman
from anybatch.nn.optimizer_rebinding import check_holds, rebind

WRAPPERS = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "FSDPModule", "OptimizedModule")
_MODULE_NAMES = vars(nn.Module()).keys()
_BATCH_NAMES = vars(nn.BatchNorm1d(1)).keys() - _MODULE_NAMES
_REGISTERED = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes:
        model: the model, the same object unless it is a normalization layer itself.
        kind: what its layers were turned into.
        replaced: names of the replaced layers, in the order of `model.named_modules()`; a shared layer has its
            first name, the model itself the name "".
        priors: layer -> where its prediction comes from; of Kalman normalization.
        cuts: place -> why a prediction starts anew there.
        fallbacks: layer -> why it has no prediction.
        notes: what else changed or is to be known, a sentence each.
    """

    model: nn.Module
    kind: Kind
    replaced: tuple[str, ...]
    priors: Mapping[str, str] = field(default_factory=dict)
    cuts: Mapping[str, str] = field(default_factory=dict)
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return a table of the replaced layers, and what there is to know."""
        layers = {name: " ".join(str(self.model.get_submodule(name)).split()) for name in self.replaced}
        sections = [
            [f"layers replaced: {len(layers)}, kind: {self.kind}", *table_of(layers)],
            str(Wiring(dict(self.priors), dict(self.cuts), dict(self.fallbacks))).splitlines()
            if self._is_wired
            else [],
            [f"note: {note}" for note in self.notes],
        ]
        return "\n".join(line for section in sections for line in section)

    @property
    def _is_wired(self) -> bool:
        return TARGETS[self.kind].is_wired and bool(self.replaced)


def convert(
    model: nn.Module,
    to: Kind,
    *,
    example_inputs: Any = None,
    optimizer: Optimizer | None = None,
    **options: Any,
) -> Conversion:
    """Replace the batch normalization layers of a model, in place.

    A new layer adopts everything the old one has and it has a place for: the same Parameter and buffer objects (an
    optimizer and an average of the weights go on holding them), hooks with their handles, mode, eps and momentum.
    Nothing is changed where something is refused.

    Args:
        model: any module; a layer used in several places stays shared. BatchNorm1d/2d/3d are replaced, torchvision's
            FrozenBatchNorm2d, whose weights stay frozen, timm's BatchNormAct2d, whose activation stays, and what an
            earlier conversion put in their place.
        to: "ghost", "kalman", "group_kalman", "batch_renorm", "moving_average": layers of this package; "group":
            GroupNorm; "layer": GroupNorm of one group; "sync": SyncBatchNorm; "batch": BatchNorm again, as for
            deployment. A layer that is of the kind already keeps the options that are not given.
        example_inputs: a tensor or a tuple of arguments of the model; needed by "kalman" and "group_kalman", which
            find out which layer follows which.
        optimizer: told of parameters that are added or removed, with their state; what is added has no weight decay,
            and stays out where the optimizer holds nothing of its layer.
        **options: of the kind; None is the default. "ghost": ghost_batch_size, running_update. "kalman" and
            "group_kalman": those of `KalmanOptions`, num_groups, and sources, see `wire_kalman`. "batch_renorm":
            micro_batch_size, r_max, d_max, relaxation, momentum. "moving_average": micro_batch_size, num_averaged,
            warmup_updates, r_max, momentum, and centered_weights, True for the layers before the norms or names of
            them. "group": num_groups. "sync": process_group.

    Returns:
        The model and what was done; `print` shows a table.

    Raises:
        InputError: what is no model or no optimizer, an unknown kind, an option that the kind does not have, a model
            that is wrapped or compiled, or a batch normalization that is not exactly one of torch's: a lazy one, whose
            shape is unknown, a SyncBatchNorm of another hand, and subclasses, whose own behaviour would be lost; a
            layer whose forward is compiled or patched, or that has a load_state_dict pre-hook, which hold the old
            object; a layer that is pruned or under weight normalization.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> conversion = convert(model, "ghost", ghost_batch_size=16)
        >>> conversion.replaced, type(model[1]).__name__, model[1].ghost_batch_size
        (('1',), 'GhostBatchNorm2d', 16)
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module; got {type(model).__name__}. Pass the model itself.")
    if to not in get_args(Kind):
        raise InputError(f"to must be one of {', '.join(TARGETS)}; got {to!r}.")
    target = TARGETS[to]
    given = {name: value for name, value in options.items() if value is not None}
    _check_options(to, target, given)
    _check_bare(model)
    if optimizer is not None:
        check_holds(optimizer, model)
    old = _find_layers(model, to)
    new = {layer: _adopt(layer, target, _options_for(layer, target, options)) for layer in old.values()}
    centred = _weights_to_center(model, tuple(old), given)
    was_centred = any(isinstance(layer, TARGETS["moving_average"].types) for layer in new)
    converted = new.get(model, model)
    put_in_place(model, new)
    try:
        wiring = _wire(converted, target, example_inputs, given) if new else None
    except BaseException:
        put_in_place(model, {layer: old_layer for old_layer, layer in new.items()})
        raise
    notes = [target.note] if target.note and new else []
    notes += _center(model, centred, uncenters=was_centred and to != "moving_average")
    notes += rebind(optimizer, new, {parameter: name for name, parameter in converted.named_parameters()})
    notes += _of_other_tensors(new)
    notes += _of_left_layers(converted, to, is_empty=not new)
    if not new and to != "batch":
        notes.append("there is no batch normalization in it, so nothing to replace")
    if wiring is None:
        return Conversion(converted, to, tuple(old), notes=tuple(notes))
    notes += wiring.notes
    return Conversion(converted, to, tuple(old), wiring.priors, wiring.cuts, wiring.fallbacks, tuple(notes))


def _of_left_layers(model: nn.Module, to: Kind, *, is_empty: bool) -> list[str]:
    """Say why normalization layers stay that may have been meant."""
    foreign = sum(isinstance(each, nn.SyncBatchNorm) and not knows_dimension(each) for each in model.modules())
    groups = sum(isinstance(each, nn.GroupNorm) for each in model.modules())
    notes = []
    if foreign:
        notes.append(f"SyncBatchNorm does not say how many dimensions it had: {foreign} stay as they are")
    if is_empty and groups and TARGETS[to].arguments is None:
        notes.append(
            f"GroupNorm keeps no running statistics, so its {groups} layers cannot become {to!r}: convert a model "
            "that has batch norm still"
        )
    return notes


def _of_other_tensors(new: Mapping[nn.Module, nn.Module]) -> list[str]:
    """Say what copies of the model, in memory and on disk, do not know of."""
    added = {name for old, layer in new.items() for name in _tensors(layer) - _tensors(old)}
    removed = {name for old, layer in new.items() for name in _tensors(old) - _tensors(layer)}
    notes = []
    if added or removed:
        notes.append(
            "the layers have other tensors: convert an average of the weights too, of an AveragedModel its module, "
            "`averaged.module`"
        )
    if added and all(isinstance(layer, OWN_TYPES) for layer in new.values()):
        held = ", ".join(sorted(added))
        notes.append(f"checkpoints hold {held} too: for batch norm, save them after convert(model, 'batch')")
    return notes


def _tensors(layer: nn.Module) -> set[str]:
    return {name for name, _ in (*layer.named_parameters(), *layer.named_buffers())}


def _wire(model: nn.Module, target: Target, example_inputs: Any, options: Mapping[str, Any]) -> Wiring | None:
    if target.is_wired:
        return wire_kalman(model, example_inputs, options.get("sources"))
    unwire_kalman(model)
    return None


def _check_options(kind: Kind, target: Target, given: Mapping[str, Any]) -> None:
    known = (*target.options, *target.model_options)
    if unknown := [name for name in given if name not in known]:
        raise InputError(
            f"options of kind {kind!r} must be {'among ' + ', '.join(known) if known else 'none'}; "
            f"got {', '.join(unknown)}. Leave them out."
        )
    for name in given.keys() & target.checks.keys():
        target.checks[name](given[name])


def _check_bare(model: nn.Module) -> None:
    """Refuse what holds on to the modules as they are: wrappers of several devices and compiled code."""
    for name, module in model.named_modules():
        where = f"module {name!r}" if name else "the model"
        wrappers = [base.__name__ for base in type(module).__mro__ if base.__name__ in WRAPPERS]
        if wrappers or isinstance(module, torch.jit.ScriptModule):
            found = wrappers[0] if wrappers else "a scripted module"
            raise InputError(f"{where} must be converted before it is wrapped or compiled; got {found}. Convert first.")
        is_norm = isinstance(module, _BatchNorm) or is_frozen_batch_norm(module)
        if not is_norm and getattr(module, "_compiled_call_impl", None) is not None:
            raise InputError(f"{where} must be converted before it is compiled; got a compiled one. Convert first.")


def _find_layers(model: nn.Module, kind: Kind) -> dict[str, nn.Module]:
    """Return the layers to replace by name; each can be replaced."""
    sources = OWN_TYPES if kind == "batch" else _BatchNorm
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, sources) or is_frozen_batch_norm(module) or knows_dimension(module):
            _check_replaceable(name, module, kind)
            found[name] = module
        elif isinstance(module, WITHOUT_STATISTICS):
            _check_needs_none(name, module, kind)
            found[name] = module
    return found


def _check_needs_none(name: str, layer: nn.Module, kind: Kind) -> None:
    _check_holds_weights(name, layer)
    if TARGETS[kind].arguments is None:
        raise InputError(
            f"layer {name!r} must have running statistics to become {kind!r}; got {type(layer).__name__}. Convert a "
            "model that has batch norm still."
        )


def _check_replaceable(name: str, layer: nn.Module, kind: Kind) -> None:
    where = _where(name)
    is_known = type(layer) in (*BATCH_TYPES, *OWN_TYPES) or knows_dimension(layer) or is_activated(layer)
    if not is_known and not is_frozen_batch_norm(layer):
        is_lazy = isinstance(layer, LazyModuleMixin)
        raise InputError(
            f"{where} must be exactly a BatchNorm1d, BatchNorm2d or BatchNorm3d; got {type(layer).__name__}. "
            + ("Run a batch through the model first." if is_lazy else "Put a plain BatchNorm in its place first.")
        )
    is_compiled = getattr(layer, "_compiled_call_impl", None) is not None
    if is_compiled or "forward" in vars(layer) or any(map(_holds_module, layer._load_state_dict_pre_hooks.values())):
        raise InputError(
            f"{where} must hold nothing that is bound to the old object; got a compiled or patched forward or a "
            "load_state_dict pre-hook. Convert first, then compile, patch and register."
        )
    _check_holds_weights(name, layer)
    if TARGETS[kind].needs_statistics and layer._buffers.get("running_mean") is None:
        raise InputError(
            f"{where} must have running statistics to become {kind!r}; got track_running_stats=False. "
            "Make it with track_running_stats=True."
        )


def _check_holds_weights(name: str, layer: nn.Module) -> None:
    held = layer._parameters.keys() | layer._buffers.keys()
    missing = [name for name in ("weight", "bias") if name not in held]
    if missing:
        made_of = sorted(each for each in held if each.startswith(tuple(f"{name}_" for name in missing)))
        raise InputError(
            f"{_where(name)} must hold its weight and bias itself; got {', '.join(made_of)} of pruning, weight or "
            "spectral normalization. Make them permanent first: torch.nn.utils.prune.remove, remove_weight_norm or "
            "remove_spectral_norm."
        )


def _where(name: str) -> str:
    return f"layer {name!r}" if name else "the model"


def _holds_module(hook: Any) -> bool:
    return getattr(hook, "with_module", False)


def _options_for(old: nn.Module, target: Target, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a layer in the place of an old one: those given, and those that one of its kind has."""
    given = {name: value for name, value in options.items() if name in target.options}
    is_of_the_kind = type(old) in target.types or type(old) is ACTIVATED.get(target.types[1])
    chosen = {**_own_options(old, target, given), **given} if is_of_the_kind else given
    return {name: value for name, value in chosen.items() if value is not None}


def _own_options(layer: nn.Module, target: Target, given: Mapping[str, Any]) -> dict[str, Any]:
    values = {**vars(layer), **(vars(layer.options) if isinstance(layer, KalmanLayer) else {})}
    is_replaced = any(name in given for name in target.alternatives)
    return {name: values[name] for name in target.options if not (is_replaced and name in target.alternatives)}


def _adopt(old: nn.Module, target: Target, options: Mapping[str, Any]) -> nn.Module:
    """Return a layer of the target's that has all of the old one's it has a place for."""
    new = _new_layer(old, target, options)
    own = (OWN_ATTRIBUTES - _BATCH_NAMES) | options.keys()
    for key, value in vars(old).items():
        has_place = key not in _BATCH_NAMES or key in vars(new)
        if key not in own and key not in _REGISTERED and has_place:
            vars(new)[key] = value
    for key in new._buffers.keys() & old._buffers.keys():
        new._buffers[key] = old._buffers[key]
    for key in new._parameters.keys() & (old._parameters.keys() | old._buffers.keys()):
        new._parameters[key] = _parameter(old, key)
    if isinstance(new, KalmanLayer) and isinstance(old, type(new)):
        new.go_on_from(old)
    return new


def _parameter(old: nn.Module, name: str) -> nn.Parameter | None:
    if name in old._parameters:
        return old._parameters[name]
    frozen = old._buffers[name]
    return None if frozen is None else nn.Parameter(frozen, requires_grad=False)


def _new_layer(old: Any, target: Target, options: Mapping[str, Any]) -> nn.Module:
    frozen = is_frozen_batch_norm(old)
    dimension = dimension_of(old)
    tensors = [tensor for tensor in (*old._parameters.values(), *old._buffers.values()) if tensor is not None]
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    place = {"device": floating[0].device, "dtype": floating[0].dtype} if floating else {}
    own = vars(old)
    num_channels: int = len(floating[0]) if frozen else own["num_channels" if "num_channels" in own else "num_features"]
    given = dict(options)
    if target.arguments is None:
        given["num_features"] = num_channels
    else:
        groups = {"num_groups": own["num_groups"]} if "num_groups" in own else {}
        given |= target.arguments(num_channels, {**groups, **options})
    given["affine"] = frozen or old.affine
    if not target.needs_statistics and target.arguments is None:
        given["track_running_stats"] = frozen or old.track_running_stats
    layer_type = target.types[dimension]
    new = (activated_type(layer_type) if is_activated(old) else layer_type)(**given, **place)
    new._modules.update(old._modules)
    if isinstance(new, nn.SyncBatchNorm):
        vars(new)[DIMENSION] = dimension
    return new


def put_in_place(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put modules in the place of others, wherever a model has them.

    Args:
        model: changed in place; a module of it that is shared stays so.
        new: by the module whose place it takes.
    """
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in new:
                parent.add_module(name, new[child])


def _weights_to_center(model: nn.Module, norms: tuple[str, ...], options: Mapping[str, Any]) -> tuple[str, ...]:
    wanted = options.get("centered_weights", False)
    if isinstance(wanted, bool):
        return layers_before(model, norms) if wanted else ()
    names = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    check_have_weights(model, names)
    return names


def _center(model: nn.Module, names: tuple[str, ...], *, uncenters: bool) -> list[str]:
    if uncenters and (plain := uncenter_weights(model)):
        return [f"{len(plain)} layers with centred weights have plain ones of the same values again"]
    if centred := center_weights(model, names):
        return [f"weights are centred in {len(centred)} layers: {', '.join(centred)}"]
    return []
