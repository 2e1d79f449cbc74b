"""How does an existing model get other normalization layers, without a new optimizer or a lost checkpoint?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from anybatch.errors import InputError
from anybatch.nn.ghost_batch_norm import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    RunningUpdate,
)

Kind = Literal["ghost", "batch"]

_GHOST_OF: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: GhostBatchNorm1d,
    nn.BatchNorm2d: GhostBatchNorm2d,
    nn.BatchNorm3d: GhostBatchNorm3d,
}
_BATCH_OF = {ghost: batch for batch, ghost in _GHOST_OF.items()}
_OPTIONS = ("ghost_batch_size", "running_update")


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes:
        model: the model, the same object unless it is a normalization layer itself.
        kind: what its layers were turned into.
        replaced: names of the replaced layers, in the order of `model.named_modules()`; a shared layer has its
            first name, the model itself the name "".
    """

    model: nn.Module
    kind: Kind
    replaced: tuple[str, ...]

    def __str__(self) -> str:
        """Return a table of the replaced layers."""
        layers = [(name or "(model)", str(self.model.get_submodule(name))) for name in self.replaced]
        width = max((len(name) for name, _ in layers), default=0)
        rows = [f"  {name:<{width}}  {layer}" for name, layer in layers]
        return "\n".join([f"layers replaced: {len(layers)}, kind: {self.kind}", *rows])


def convert(
    model: nn.Module,
    kind: Kind,
    *,
    ghost_batch_size: int | None = None,
    running_update: RunningUpdate | None = None,
) -> Conversion:
    """Replace the batch normalization layers of a model, in place.

    A new layer adopts everything the old one has: the same Parameter and buffer objects (an optimizer goes on
    holding them), hooks with their handles, mode, eps and momentum. Nothing is changed where something is refused.

    Args:
        model: any module; a layer used in several places stays shared.
        kind: "ghost" turns BatchNorm1d/2d/3d into GhostBatchNorm1d/2d/3d, and ghost layers into ones of the new
            options; "batch" turns ghost layers back.
        ghost_batch_size: of "ghost", in samples; default 32.
        running_update: of "ghost"; default "sequential".

    Returns:
        The model and the names of the replaced layers, which may be none.

    Raises:
        InputError: an unknown kind, an option that the kind does not have, or, for "ghost", a batch normalization
            that is not exactly BatchNorm1d/2d/3d: a lazy one, whose shape is unknown, SyncBatchNorm, whose
            statistics are those of all ranks, and subclasses, whose own behaviour would be lost; a layer whose
            forward is compiled or patched, or that has a load_state_dict pre-hook, which hold the old object.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> conversion = convert(model, "ghost", ghost_batch_size=16)
        >>> conversion.replaced, type(model[1]).__name__, model[1].ghost_batch_size
        (('1',), 'GhostBatchNorm2d', 16)
    """
    if kind not in get_args(Kind):
        raise InputError(f"kind must be one of {', '.join(get_args(Kind))}; got {kind!r}.")
    options = {"ghost_batch_size": ghost_batch_size, "running_update": running_update}
    given = {name: value for name, value in options.items() if value is not None}
    if kind == "batch" and given:
        raise InputError(f"options of kind 'batch' must be none; got {', '.join(given)}. Leave them out.")
    old = _find_layers(model, kind)
    new: dict[nn.Module, nn.Module] = {layer: _adopt(layer, kind, given) for layer in old.values()}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in new:
                parent.add_module(name, new[child])
    return Conversion(new.get(model, model), kind, tuple(old))


def _find_layers(model: nn.Module, kind: Kind) -> dict[str, _BatchNorm]:
    named = dict(model.named_modules())
    if kind == "batch":
        named = {name: module for name, module in named.items() if isinstance(module, tuple(_BATCH_OF))}
    layers = {name: module for name, module in named.items() if isinstance(module, _BatchNorm)}
    for name, layer in layers.items():
        _check_replaceable(name, layer)
    return layers


def _check_replaceable(name: str, layer: _BatchNorm) -> None:
    where = f"layer {name!r}" if name else "the model"
    if type(layer) not in _GHOST_OF and type(layer) not in _BATCH_OF:
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


def _holds_module(hook: Any) -> bool:
    return getattr(hook, "with_module", False)


def _adopt(old: _BatchNorm, kind: Kind, options: dict[str, Any]) -> nn.Module:
    batch_type = _BATCH_OF.get(type(old), type(old))
    new_type: Any = batch_type if kind == "batch" else _GHOST_OF[batch_type]
    new = new_type(old.num_features, device="meta", **options)
    vars(new).update({name: value for name, value in vars(old).items() if name not in _OPTIONS})
    return new
