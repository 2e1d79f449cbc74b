"""From which places do layers learn their priors, where the user names them?"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import nn

from anybatch.errors import InputError
from anybatch.nn.carried_moments import Cut, Place, Step
from anybatch.nn.kalman_layer import KalmanLayer
from anybatch.nn.kalman_sources import CutHere, FoundSources, Source, behind_norm
from anybatch.nn.layout_moments import through_sum
from anybatch.nn.moment_propagation import CannotPropagate, find_propagation_rule

Path = Sequence[Any]  # name of a source, then names of modules, or functions
_NAMED = "named as a source"


def find_named_sources(
    model: nn.Module, layers: Mapping[str, KalmanLayer], sources: Mapping[str, Sequence[Path]]
) -> FoundSources:
    """Return the places that a map names.

    Args:
        model: whose modules they are.
        layers: its Kalman normalization layers.
        sources: layer -> paths whose moments are added.

    Returns:
        The places.

    Raises:
        InputError: what is no map to lists of paths, a name that does not exist, an operation without a rule, a
            transition other than "analytic", or a sum of raw moments of a normalized tensor and others.
    """
    if not isinstance(sources, Mapping):
        raise InputError(
            f"sources must map names of layers to lists of paths; got a {type(sources).__name__}. "
            "Write {'bn2': [['bn1', torch.relu, 'conv2']]}."
        )
    unknown = [name for name in sources if name not in layers]
    if unknown:
        raise InputError(f"sources must be of Kalman normalization layers; got {unknown}. Choose from {list(layers)}.")
    options = next(iter(layers.values())).options
    if options.transition != "analytic":
        raise InputError(
            f"transition must be 'analytic' where sources are named; got {options.transition!r}. Take a part of the "
            "model that torch.fx can trace for the others."
        )
    cuts: dict[str, Cut] = {}
    found = {}
    for name, paths in sources.items():
        _check_paths(name, paths)
        ends, starts = [], {}
        for path in paths:
            module = _module(model, path[0])
            start = (
                _behind_norm(path[0], module)
                if isinstance(module, KalmanLayer)
                else cuts.setdefault(path[0], Cut(options.count_splits))
            )
            starts[path[0]] = start
            ends.append(_follow(model, start, path[1:]))
        _check_scales(model, name, paths)
        leaves = dict.fromkeys(f"behind {start}" if start in cuts else start for start in starts)
        found[name] = Source(_added(ends), leaves, starts=starts)
    fallbacks = {name: "not in sources" for name in layers if name not in sources}
    return FoundSources(found, {cut: CutHere(name, False, _NAMED) for name, cut in cuts.items()}, fallbacks)


def _check_paths(name: str, paths: Any) -> None:
    if not _is_list(paths) or not all(map(_is_list, paths)):
        raise InputError(
            f"sources of {name!r} must be a list of paths; got {paths!r}. "
            "Write [['bn1', torch.relu, 'conv2']] for a single path."
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0


def _check_scales(model: nn.Module, name: str, paths: Sequence[Path]) -> None:
    """Refuse to add raw moments of a tensor that was normalized since to others."""
    wrong = [path for path in paths if _is_off_scale(model, path)] if len(paths) > 1 else []
    if wrong:
        raise InputError(
            f"paths of {name!r} that are added must each pass a convolution or a linear layer in state space 'raw', "
            f"where a normalized tensor has moments of another scale; got {wrong[0]!r}. Choose "
            "state_space='normalized', or begin at the module behind the sum."
        )


def _is_off_scale(model: nn.Module, path: Path) -> bool:
    source = _module(model, path[0])
    rules = [find_propagation_rule(_operation(model, each)) for each in path[1:]]
    is_mapped = any(rule is not None and rule.kind == "linear map" for rule in rules)
    return isinstance(source, KalmanLayer) and source.options.state_space == "raw" and not is_mapped


def _module(model: nn.Module, name: Any) -> nn.Module:
    try:
        return model.get_submodule(name)
    except (AttributeError, TypeError) as error:
        raise InputError(
            f"sources must name modules of the model; got {name!r}. See the names of `named_modules()`."
        ) from error


def _operation(model: nn.Module, step: Any) -> Any:
    return _module(model, step) if isinstance(step, str) else step


def _behind_norm(name: str, layer: KalmanLayer) -> Place:
    try:
        return behind_norm(layer)
    except CannotPropagate as error:
        raise InputError(
            f"a path must begin at a layer whose activation has a propagation rule; got {error}, at {name!r}. Add one "
            "by anybatch.nn.propagation_rule."
        ) from error


def _follow(model: nn.Module, place: Place, path: Path) -> Place:
    for each in path:
        operation = _operation(model, each)
        rule = find_propagation_rule(operation) if isinstance(operation, Hashable) else None
        if rule is None:
            raise InputError(
                f"a path must consist of operations with a propagation rule; got {each!r}. Add one by "
                "anybatch.nn.propagation_rule, or begin the path behind it."
            )
        place = Step(rule.propagate, (operation, place) if isinstance(operation, nn.Module) else (place,), {})
    return place


def _added(ends: Sequence[Place]) -> Place:
    total = ends[0]
    for end in ends[1:]:
        total = Step(through_sum, (total, end), {})
    return total
