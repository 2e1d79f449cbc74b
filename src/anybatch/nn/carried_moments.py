"""How do moments get from one layer to the next within a forward pass, while the modules run as they are?

Places of a network hold the moments that were last found there: behind a normalization layer, at a cut where a tensor
is observed, after a step of the prediction. A pass clears them at its start. At its end they lose the graph that made
them and stay, for activation checkpointing, which computes parts of the pass again; so do those of earlier calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from anybatch.nn.moments import Moments
from anybatch.nn.recomputation import Calls, is_computed_again
from anybatch.nn.split_normalization import observe_splits


class Place(Protocol):
    """Where moments can be read."""

    def read(self, num_splits: int) -> Moments | None:
        """Return the moments of this pass; None where the pass did not come by."""
        ...

    @property
    def is_cut_off(self) -> bool:
        """Whether no gradient flows back from the moments that are read now, though one may be wanted."""
        ...

    @property
    def num_calls(self) -> int:
        """How often the pass came by."""
        ...

    def go_back_to(self, num_calls: int) -> None:
        """Hold what was there after so many calls, for a part of the pass that is computed again."""
        ...


def are_cut_off(moments: Moments | None, was_recorded: bool) -> bool:
    """Return whether moments of a pass have lost their way back.

    Args:
        moments: with their history, or without it at the end of the pass; None where there are none.
        was_recorded: whether autograd was on when they were made.

    Returns:
        Whether a gradient that is wanted does not reach what they were made of.
    """
    if moments is None:
        return False
    return not was_recorded or any(each.requires_grad and each.is_leaf for each in moments[:2])


class Carried:
    """A place that keeps the moments of the running pass; copies of it are empty."""

    latest: Moments | None = None
    was_recorded: bool = True

    def __init__(self) -> None:
        self.calls: Calls[Moments] = Calls()

    def keep(self, moments: Moments | None) -> None:
        """Take the moments of this pass."""
        self.latest = moments
        self.was_recorded = torch.is_grad_enabled()
        if moments is not None:
            self.calls.add(moments.mean, moments)

    @property
    def num_calls(self) -> int:
        """How often the pass came by with moments."""
        return len(self.calls.held)

    def go_back_to(self, num_calls: int) -> None:
        """Hold what was there after so many calls, unless that call has been computed again itself."""
        if needs_return(self.calls, num_calls, None if self.latest is None else self.latest.mean):
            self.latest = self.calls.held[num_calls - 1][1] if num_calls else None

    @property
    def is_cut_off(self) -> bool:
        """Whether no gradient flows back from the moments that are kept."""
        return are_cut_off(self.latest, self.was_recorded)

    def read(self, num_splits: int) -> Moments | None:
        """Return the moments of this pass; None where the pass did not come by."""
        return self.latest

    def clear(self) -> None:
        """Forget."""
        self.latest = None

    def seal(self) -> None:
        """Let go of the graph, and keep the values."""
        self.latest = None if self.latest is None else self.latest.detached()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "latest"}


def needs_return(calls: Calls[Any], num_calls: int, seen: Tensor | None) -> bool:
    """Return whether a place holds what another call left than the last of so many.

    Args:
        calls: of the place.
        num_calls: at the time to return to.
        seen: by the call that left what it holds now; None for nothing.

    Returns:
        Never where there was one call, and that had been before.
    """
    if not calls.held or num_calls == len(calls.held) == 1:
        return False
    return seen is None or not num_calls or calls.index_of(seen) != num_calls - 1


class NormOutput(Protocol):
    """What a place behind a normalization layer needs of the layer."""

    def output_moments(self, num_splits: int) -> Moments | None:
        """Return the moments of the layer's output, in its state space."""
        ...

    @property
    def is_cut_off(self) -> bool:
        """Whether no gradient flows back from these moments."""
        ...

    @property
    def num_calls(self) -> int:
        """How often the layer was called in this pass."""
        ...

    def go_back_to(self, num_calls: int) -> None:
        """Hold what the layer settled on in the last of so many calls."""
        ...


@dataclass(frozen=True, eq=False)
class BehindNorm:
    """The place behind a normalization layer."""

    layer: NormOutput

    def read(self, num_splits: int) -> Moments | None:
        """Return the moments of the layer's output."""
        return self.layer.output_moments(num_splits)

    @property
    def is_cut_off(self) -> bool:
        """Whether no gradient flows back from the moments of the layer's output."""
        return self.layer.is_cut_off

    @property
    def num_calls(self) -> int:
        """How often the layer was called in this pass."""
        return self.layer.num_calls

    def go_back_to(self, num_calls: int) -> None:
        """Let the layer hold what it settled on in the last of so many calls."""
        self.layer.go_back_to(num_calls)


class Reader(Protocol):
    """What a cut needs of the layers that read it."""

    @property
    def needs_prior(self) -> bool:
        """Whether the layer corrects its moments in its present mode."""
        ...


class Cut(Carried):
    """A place where the tensor itself is observed: a forward hook, or a forward pre-hook, of a module.

    Args:
        count_splits: batch size -> S.

    Attributes:
        readers: layers whose priors come from here; the tensor is observed while one of them needs it.
    """

    def __init__(self, count_splits: Callable[[int], int]) -> None:
        super().__init__()
        self._count_splits = count_splits
        self.readers: tuple[Reader, ...] = ()

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor | None = None) -> None:
        """Observe the module's output where there is one, its first input otherwise."""
        if any(reader.needs_prior for reader in self.readers):
            tensor = inputs[0] if output is None else output
            with torch.autocast(tensor.device.type, enabled=False):
                self.keep(observe_splits(_kept_for_backward(tensor), self._count_splits(len(tensor))))


def _kept_for_backward(tensor: Tensor) -> Tensor:
    """Return a tensor that the model cannot change in place before a gradient needs its values."""
    return tensor.clone() if tensor.requires_grad and torch.is_grad_enabled() else tensor


class Step(Carried):
    """A place that moments come to by a rule.

    Args:
        rule: see `moment_propagation`.
        arguments: of the rule; a place or an `Attribute` among them is read first, also within lists.
        keywords: more of them.
    """

    def __init__(self, rule: Callable[..., Moments], arguments: Sequence[Any], keywords: dict[str, Any]) -> None:
        super().__init__()
        self.rule = rule
        self.arguments = tuple(arguments)
        self.keywords = keywords

    def places(self) -> list[Place]:
        """Return where the step's moments come from."""
        return list(_places_in((self.arguments, tuple(self.keywords.values()))))

    def compute(self, num_splits: int) -> Moments | None:
        """Return what the rule makes of the moments at the places before; None where one of them has none."""
        moments = {id(place): place.read(num_splits) for place in self.places()}
        if any(each is None for each in moments.values()):
            return None
        return self.rule(*with_moments(self.arguments, moments), **with_moments(self.keywords, moments))

    def run(self, num_splits: int) -> None:
        """Compute and keep."""
        self.keep(self.compute(num_splits))

    def read(self, num_splits: int) -> Moments | None:
        """Return what was kept; computed where the layer that does so is not in training."""
        return self.compute(num_splits) if self.latest is None else self.latest


@dataclass(frozen=True)
class Attribute:
    """A value that a module holds, or what else has attributes; read when it is needed."""

    owner: Any
    name: str

    def get(self) -> Any:
        """Return the value."""
        return getattr(self.owner, self.name)


def _places_in(value: Any) -> list[Place]:
    if isinstance(value, (Carried, BehindNorm)):
        return [value]
    return [place for each in value for place in _places_in(each)] if isinstance(value, (tuple, list)) else []


def with_moments(value: Any, moments: Mapping[int, Moments | None]) -> Any:
    """Return arguments of a rule with moments for places, and tensors for attributes.

    Args:
        value: an argument, or a tuple, list or dictionary of them.
        moments: id of a place -> its moments.

    Returns:
        The arguments to call the rule with.
    """
    if isinstance(value, (Carried, BehindNorm)):
        return moments[id(value)]
    if isinstance(value, Attribute):
        return value.get()
    if isinstance(value, dict):
        return {name: with_moments(each, moments) for name, each in value.items()}
    return tuple(with_moments(each, moments) for each in value) if isinstance(value, (tuple, list)) else value


@dataclass(frozen=True, eq=False)
class Program:
    """How a layer's prior is computed.

    Attributes:
        steps: that the layer takes, in order; later layers read what they leave.
        output: where the prior is read.
    """

    steps: tuple[Step, ...]
    output: Place

    def predict(self, num_splits: int) -> Moments | None:
        """Take the steps and return the prior; None where nothing is known in this pass."""
        for step in self.steps:
            step.run(num_splits)
        return self.output.read(num_splits)

    @property
    def is_cut_off(self) -> bool:
        """Whether no gradient flows back from one of the places that the steps begin at."""
        return any(place.is_cut_off for place in self.sources())

    def sources(self) -> list[Place]:
        """Return the places that the steps begin at."""
        read = [self.output, *(place for step in self.steps for place in step.places())]
        return [place for place in read if place not in self.steps]

    def num_calls(self) -> tuple[int, ...]:
        """Return how often the pass came by each of the sources; nothing of it under a compiler."""
        return () if torch.compiler.is_compiling() else tuple(place.num_calls for place in self.sources())

    def go_back_to(self, num_calls: Sequence[int]) -> None:
        """Let the sources hold what they held after so many calls."""
        for place, number in zip(self.sources(), num_calls, strict=True):
            place.go_back_to(number)


@dataclass(frozen=True, eq=False)
class StartOfPass:
    """A forward pre-hook of the model that clears what is carried."""

    carried: tuple[Any, ...]

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        """Clear all places; what a pass that is computed again left there in its calls stays."""
        for each in self.carried:
            each.clear()
            if not is_computed_again():
                each.calls.open()


@dataclass(frozen=True, eq=False)
class EndOfPass:
    """A forward hook of the model that lets go of the graph."""

    carried: tuple[Any, ...]

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Seal all places."""
        for each in self.carried:
            each.seal()
            each.calls.close()
