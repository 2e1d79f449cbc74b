"""How do the Kalman normalization layers of a model get their priors from each other?

The model's graph is analyzed, and its modules go on running as they are: each layer gets a small program that turns
what the layers before it settled on into its prior, and tensors that no rule leads to are observed by hooks, the cuts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from anybatch.errors import InputError
from anybatch.nn.carried_moments import BehindNorm, Cut, EndOfPass, Place, Program, StartOfPass, Step
from anybatch.nn.kalman_layer import KalmanLayer
from anybatch.nn.kalman_sources import NOTHING_KNOWN, CutHere, FoundSources, Known, Source, SourceFinder, Unknown
from anybatch.nn.kalman_tracing import Traced, trace
from anybatch.nn.late_sources import LateSources
from anybatch.nn.named_sources import Path, find_named_sources
from anybatch.nn.unchanged_modules import unchanged

_HOOKS = (Cut, StartOfPass, EndOfPass, LateSources)


@dataclass(frozen=True)
class Wiring:
    """Where the priors of a model's layers come from.

    Attributes:
        priors: layer -> the layers and cuts that its prior comes from, in words.
        cuts: where a tensor is observed -> why no rule leads on.
        fallbacks: layer without a prior -> why; it normalizes each split by what it observes.
        notes: what else is to be known, a sentence each.
    """

    priors: dict[str, str]
    cuts: dict[str, str]
    fallbacks: dict[str, str]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return a table of the layers."""
        num_layers = len(self.priors) + len(self.fallbacks)
        parts = (
            (f"layers with a prior: {len(self.priors)} of {num_layers}", self.priors),
            (f"cuts: {len(self.cuts)}", self.cuts),
            (f"layers without a prior: {len(self.fallbacks)}", self.fallbacks),
        )
        lines = [line for head, rows in parts for line in (head, *table_of(rows))]
        return "\n".join((*lines, *(f"note: {note}" for note in self.notes)))


def wire_kalman(
    model: nn.Module,
    example_inputs: Any = None,
    sources: Mapping[str, Sequence[Path]] | None = None,
) -> Wiring:
    """Give the Kalman normalization layers of a model their priors.

    Args:
        model: with KalmanNorm or GroupKalmanNorm layers; earlier wiring is replaced. Its modules stay and run as they
            are; hooks are added, and what a prior learns (`prior_logit` of gain "learned"): make the optimizer after.
            `unwire_kalman` removes both.
        example_inputs: a tensor, or a tuple of positional arguments of `model`; nothing is computed with them.
        sources: in place of a trace, for models that torch.fx cannot trace: layer -> paths whose moments are added. A
            path is the name of a layer or a module whose output is known, or else observed, and then names of modules
            and functions that follow it.

    Returns:
        The priors, the cuts, and the layers without a prior.

    Raises:
        InputError: no such layer in the model, layers of different splits, neither example inputs nor sources, a
            model that cannot be traced, or sources that do not exist.

    Example:
        >>> import torch
        >>> from anybatch.nn.kalman_norm import KalmanNorm1d
        >>> model = nn.Sequential(nn.Linear(2, 3), KalmanNorm1d(3), nn.ReLU(), nn.Linear(3, 4), KalmanNorm1d(4))
        >>> print(wire_kalman(model, torch.randn(8, 2)))
        layers with a prior: 1 of 2
          4  1
        cuts: 0
        layers without a prior: 1
          1  first norm: nothing is known of the model's input
    """
    layers = _layers_of(model)
    if sources is None and example_inputs is None:
        raise InputError(
            "example_inputs must be given, to see which layer follows which; got None. Pass a small batch, or sources."
        )
    if sources is None:
        sought = _find_traced(model, layers, example_inputs)
    else:
        sought = find_named_sources(model, layers, sources)
    _remove_hooks(model)
    programs = _programs({name: source.place for name, source in sought.found.items()})
    for name, layer in layers.items():
        layer.wire(programs.get(name))
    used = _hook(model, layers, programs, sought.cuts)
    _watch_order(model, layers, sought.found)
    return Wiring(
        {name: " + ".join(_shortened(list(source.leaves))) for name, source in sought.found.items()},
        {here.name: here.reason for here in (sought.cuts[cut] for cut in used)},
        sought.fallbacks,
        sought.notes,
    )


def unwire_kalman(model: nn.Module) -> None:
    """Take from the Kalman normalization layers of a model their priors, and what these learn.

    Args:
        model: any module; one without such layers stays as it is.

    Example:
        >>> from anybatch.nn.kalman_norm import KalmanNorm1d
        >>> model = nn.Sequential(KalmanNorm1d(3), nn.ReLU(), nn.Linear(3, 4), KalmanNorm1d(4))
        >>> _ = wire_kalman(model, __import__("torch").randn(8, 3))
        >>> unwire_kalman(model)
        >>> [name for name, _ in model.named_parameters()]
        ['0.weight', '0.bias', '2.weight', '2.bias', '3.weight', '3.bias']
    """
    _remove_hooks(model)
    for module in model.modules():
        if isinstance(module, KalmanLayer):
            module.wire(None)


def _layers_of(model: nn.Module) -> dict[str, KalmanLayer]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, KalmanLayer)}
    if not layers:
        raise InputError("model must have KalmanNorm or GroupKalmanNorm layers; got none. Convert it first.")
    names = ("splits", "micro_batch_size", "transition", "detach_prior")
    kinds = {tuple(getattr(layer.options, name) for name in names) for layer in layers.values()}
    if len(kinds) > 1:
        raise InputError(
            f"layers must have the same {', '.join(names[:-1])} and {names[-1]}; got {sorted(kinds, key=str)}. Make "
            "them with the same."
        )
    return layers


def _find_traced(model: nn.Module, layers: dict[str, KalmanLayer], example_inputs: Any) -> FoundSources:
    if isinstance(model, KalmanLayer):
        return FoundSources({}, {}, {"": NOTHING_KNOWN})
    finder = SourceFinder(model, trace(model, example_inputs), next(iter(layers.values())).options)
    calls: dict[str, list[fx.Node]] = {}
    for node in finder.traced.graph.nodes:
        if isinstance(finder.module_of(node), KalmanLayer):
            calls.setdefault(str(node.target), []).append(node)
    found: dict[str, Source] = {}
    fallbacks = {name: finder.traced.why_missing(name) for name in layers if name not in calls}
    with unchanged(model):  # a rule that reads a weight runs its parametrization
        sources = {name: _source_of(finder, nodes) for name, nodes in calls.items()}
    for name, source in sources.items():
        if isinstance(source, Known):
            found[name] = source
        else:
            fallbacks[name] = source.reason
    order = {name: position for position, name in enumerate(layers)}
    fallbacks = dict(sorted(fallbacks.items(), key=lambda each: order[each[0]]))
    return FoundSources(found, finder.cuts, fallbacks, _notes_on(finder.traced))


def _notes_on(traced: Traced) -> tuple[str, ...]:
    if traced.other_in_training is None:
        return ()
    where = repr(traced.other_in_training) if traced.other_in_training else "the model"
    return (
        f"the forward of {where} is another one in training than in evaluation, the mode it has now, for which the "
        "priors are: put it in the mode that it trains in first",
    )


def _source_of(finder: SourceFinder, calls: Sequence[fx.Node]) -> Known | Unknown:
    """Return the source that all calls of a layer have in common."""
    sources = [finder.find(call.all_input_nodes[0], call) for call in calls]
    first = sources[0]
    if not isinstance(first, Known):
        return first
    if isinstance(first.place, Cut):
        return Unknown(f"nothing but its own input could be observed: {finder.cuts[first.place].reason}")
    for source, call in zip(sources, calls, strict=True):
        if not isinstance(source, Known) or not _is_same(first.place, source.place, {}):
            return Unknown("called several times, behind different operations")
        if not all(leaf is None or finder.is_latest_call(leaf, call) for leaf in source.leaves.values()):
            return Unknown("a layer before it is called again in between")
    return first


def _is_same(left: Any, right: Any, seen: dict[tuple[int, int], bool]) -> bool:
    """Return whether two calls of a layer have the same way to their prior."""
    key = (id(left), id(right))
    if left is not right and key not in seen:
        seen[key] = _is_same_kind(left, right, seen)
    return left is right or seen[key]


def _is_same_kind(left: Any, right: Any, seen: dict[tuple[int, int], bool]) -> bool:
    if isinstance(left, BehindNorm) and isinstance(right, BehindNorm):
        return left.layer is right.layer
    if isinstance(left, Step) and isinstance(right, Step):
        pairs = ((left.rule, right.rule), (left.arguments, right.arguments), (left.keywords, right.keywords))
        return all(_is_same(*pair, seen) for pair in pairs)
    if isinstance(left, (tuple, list)) and isinstance(right, (tuple, list)):
        return len(left) == len(right) and all(_is_same(*pair, seen) for pair in zip(left, right, strict=True))
    return not isinstance(left, (Cut, nn.Module)) and left == right


def _programs(places: Mapping[str, Place]) -> dict[str, Program]:
    """Return the program of each layer; a step is taken by the first layer that needs it."""
    taken: set[Place] = set()
    return {name: Program(tuple(_steps_to(place, taken)), place) for name, place in places.items()}


def _steps_to(place: Place, taken: set[Place]) -> list[Step]:
    if not isinstance(place, Step) or place in taken:
        return []
    taken.add(place)
    return [*(step for before in place.places() for step in _steps_to(before, taken)), place]


def _hook(
    model: nn.Module, layers: Mapping[str, KalmanLayer], programs: Mapping[str, Program], cuts: Mapping[Cut, CutHere]
) -> list[Cut]:
    """Register the cuts that are read and what begins and ends a pass; return these cuts."""
    for name, program in programs.items():
        for cut in _cuts_before(program.output, set()):
            cut.readers = (*cut.readers, layers[name])
    used = [cut for cut in cuts if cut.readers]
    for cut in used:
        module = model.get_submodule(cuts[cut].module)
        (module.register_forward_pre_hook if cuts[cut].is_before else module.register_forward_hook)(cut)
    steps = [step for program in programs.values() for step in program.steps]
    carried = (*layers.values(), *used, *steps)
    model.register_forward_pre_hook(StartOfPass(carried))
    model.register_forward_hook(EndOfPass(carried), always_call=True)
    return used


def _watch_order(model: nn.Module, layers: Mapping[str, KalmanLayer], found: Mapping[str, Source]) -> None:
    for name, source in found.items():
        if source.starts:
            late = LateSources(name, layers[name], source.starts)
            layers[name].register_forward_pre_hook(late)
            model.register_forward_hook(late)


def _cuts_before(place: Any, seen: set[int]) -> list[Cut]:
    if id(place) in seen:
        return []
    seen.add(id(place))
    if isinstance(place, Cut):
        return [place]
    return [cut for before in place.places() for cut in _cuts_before(before, seen)] if isinstance(place, Step) else []


def _remove_hooks(model: nn.Module) -> None:
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for number in [number for number, hook in hooks.items() if isinstance(hook, _HOOKS)]:
                del hooks[number]
                module._forward_hooks_always_called.pop(number, None)


def _shortened(names: Sequence[str]) -> list[str]:
    return list(names) if len(names) <= 3 else [*names[:1], f"{len(names) - 2} more", names[-1]]


def table_of(rows: Mapping[str, str]) -> list[str]:
    """Lay out names and texts as lines of two columns.

    Args:
        rows: name of a layer or a place -> text; "" is the model itself.

    Returns:
        The lines.
    """
    width = max((len(name or "(model)") for name in rows), default=0)
    return [f"  {name or '(model)':<{width}}  {text}" for name, text in rows.items()]
