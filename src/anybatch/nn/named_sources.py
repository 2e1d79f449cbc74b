"""From which places do layers learn their priors, where the user names them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from anybatch.errors import InputError
from anybatch.nn.carried_moments import BehindNorm, Cut, Place, Step
from anybatch.nn.kalman_layer import KalmanLayer
from anybatch.nn.kalman_sources import CutHere, FoundSources, Source
from anybatch.nn.layout_moments import through_sum
from anybatch.nn.moment_propagation import find_propagation_rule

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
        InputError: a name that does not exist, or an operation without a rule.
    """
    unknown = [name for name in sources if name not in layers]
    if unknown:
        raise InputError(f"sources must be of Kalman normalization layers; got {unknown}. Choose from {list(layers)}.")
    cuts: dict[str, Cut] = {}
    count_splits = next(iter(layers.values())).options.count_splits
    found = {}
    for name, paths in sources.items():
        _check_paths(name, paths)
        ends = []
        for path in paths:
            module = _module(model, path[0])
            is_layer = isinstance(module, KalmanLayer)
            start = BehindNorm(module) if is_layer else cuts.setdefault(path[0], Cut(count_splits))
            ends.append(_follow(model, start, path[1:]))
        starts = {f"behind {path[0]}" if path[0] in cuts else path[0]: None for path in paths}
        found[name] = Source(_added(ends), dict.fromkeys(starts))
    fallbacks = {name: "not in sources" for name in layers if name not in sources}
    return FoundSources(found, {cut: CutHere(name, False, _NAMED) for name, cut in cuts.items()}, fallbacks)


def _check_paths(name: str, paths: Any) -> None:
    if isinstance(paths, str) or not paths or any(isinstance(path, str) or not path for path in paths):
        raise InputError(
            f"sources of {name!r} must be a list of paths; got {paths!r}. "
            "Write [['bn1', torch.relu, 'conv2']] for a single path."
        )


def _module(model: nn.Module, name: Any) -> nn.Module:
    try:
        return model.get_submodule(name)
    except (AttributeError, TypeError) as error:
        raise InputError(f"sources must name modules of the model; got {name!r}.") from error


def _follow(model: nn.Module, place: Place, path: Path) -> Place:
    for each in path:
        operation = _module(model, each) if isinstance(each, str) else each
        rule = find_propagation_rule(operation)
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
