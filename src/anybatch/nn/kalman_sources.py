"""From which places does each layer of a graph learn its prior?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from anybatch.nn.activated_norms import Activated
from anybatch.nn.carried_moments import Attribute, BehindNorm, Cut, Place, Step, with_moments
from anybatch.nn.kalman_layer import KalmanLayer
from anybatch.nn.kalman_options import KalmanOptions
from anybatch.nn.kalman_tracing import Traced, caller_of
from anybatch.nn.moment_propagation import CannotPropagate, PropagationRule, find_propagation_rule
from anybatch.nn.moments import Moments, wide_dtype
from anybatch.nn.sampled_transition import CONVOLUTIONS, SampledTransition

NOTHING_KNOWN = "first norm: nothing is known of the model's input"
_MIXED = "a sum with a normalized tensor, whose raw moments are of another scale"


@dataclass(frozen=True, eq=False)
class Source:
    """Where a layer's prior is read.

    Attributes:
        place: where.
        leaves: the layers and the cuts that it comes from, by name; with the call of the layer in a graph.
        starts: where these are read, of sources that are named and may be so in a wrong order.
    """

    place: Place
    leaves: dict[str, fx.Node | None]
    starts: dict[str, Place] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True, eq=False)
class Known(Source):
    """A tensor of the graph whose moments are carried.

    Attributes:
        example: moments of the right shape, one split.
        is_off_scale: whether they are raw moments of a tensor that was normalized since.
    """

    example: Moments
    is_off_scale: bool = False


@dataclass(frozen=True)
class Unknown:
    """A tensor of the graph of which nothing is carried.

    Attributes:
        reason: why.
    """

    reason: str


@dataclass(frozen=True)
class CutHere:
    """Where a cut hooks, and why there is one.

    Attributes:
        module: name of the hooked module.
        is_before: whether its input is observed, rather than its output.
        reason: why no rule leads on.
    """

    module: str
    is_before: bool
    reason: str

    @property
    def name(self) -> str:
        """Where, in words."""
        return f"{'before' if self.is_before else 'behind'} {self.module}"


@dataclass(frozen=True)
class FoundSources:
    """The places of a model's priors.

    Attributes:
        found: layer -> its source.
        cuts: the cuts on the way, some of them for no one.
        fallbacks: layer -> why it has no prior.
        notes: what else is to be known, a sentence each.
    """

    found: dict[str, Source]
    cuts: dict[Cut, CutHere]
    fallbacks: dict[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Called:
    """A function of one input, with the arguments that follow it.

    Attributes:
        function: called with the input first.
        rest: arguments after it.
        keywords: more of them.
    """

    function: Callable[..., Any]
    rest: tuple[Any, ...]
    keywords: dict[str, Any]

    def __call__(self, input: Any) -> Any:
        """Call the function."""
        return self.function(input, *self.rest, **self.keywords)


@dataclass
class SourceFinder:
    """Walks back from layers to the places before them.

    Attributes:
        model: whose modules run.
        traced: its graph.
        options: of its layers.
        cuts: the cuts made on the way.
    """

    model: nn.Module
    traced: Traced
    options: KalmanOptions
    cuts: dict[Cut, CutHere] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._found: dict[fx.Node, Known | Unknown] = {}
        self._order = {node: position for position, node in enumerate(self.traced.graph.nodes)}
        self._num_calls = Counter(node.target for node in self.traced.graph.nodes if node.op == "call_module")

    def find(self, node: fx.Node, reader: fx.Node) -> Known | Unknown:
        """Return what is known of a tensor of the graph.

        Args:
            node: that makes the tensor.
            reader: the layer that asks; what runs after it can tell nothing.

        Returns:
            The place of its moments, or why there is none.
        """
        if node not in self._found:
            self._found[node] = self._look(node, reader)
        return self._found[node]

    def is_latest_call(self, source: fx.Node, reader: fx.Node) -> bool:
        """Return whether a layer was not called again between one of its calls and a reader."""
        calls = (node for node in self.traced.graph.nodes if node.op == "call_module" and node.target == source.target)
        return not any(self._order[source] < self._order[call] < self._order[reader] for call in calls)

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """Return the module that a node calls, if it does."""
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _look(self, node: fx.Node, reader: fx.Node) -> Known | Unknown:
        module = self.module_of(node)
        if isinstance(module, KalmanLayer):
            example = _example(self.traced.shapes[node], module)
            is_raw = module.options.state_space == "raw"
            try:
                return Known(behind_norm(module), {str(node.target): node}, example, is_raw)
            except CannotPropagate as error:
                return self._cut(node, str(error), reader)
        inputs = {each: self.find(each, reader) for each in node.all_input_nodes if each.op != "get_attr"}
        reasons = [each.reason for each in inputs.values() if isinstance(each, Unknown)]
        if all(reason == NOTHING_KNOWN for reason in reasons) and len(reasons) == len(inputs):
            return Unknown(NOTHING_KNOWN)
        if reasons:
            blocked = next((reason for reason in reasons if reason != NOTHING_KNOWN), "a tensor of the model's input")
            return self._cut(node, blocked, reader)
        known = {each: found for each, found in inputs.items() if isinstance(found, Known)}
        try:
            return self._step(node, known)
        except CannotPropagate as error:
            return self._cut(node, str(error), reader)

    def _cut(self, node: fx.Node, reason: str, reader: fx.Node) -> Known | Unknown:
        """Observe the tensor, where a module that runs once has it as its output or its first input."""
        shape = self.traced.shapes.get(node, ())
        here = self._hook_for(node, reason, reader)
        if here is None or len(shape) < 2:
            return Unknown(reason)
        cut = Cut(self.options.count_splits)
        self.cuts[cut] = here
        return Known(cut, {here.name: None}, _example(shape, self.model))

    def _hook_for(self, node: fx.Node, reason: str, reader: fx.Node) -> CutHere | None:
        if node.op == "call_module" and self._num_calls[node.target] == 1:
            return CutHere(str(node.target), False, reason)
        for user in sorted(node.users, key=self._order.__getitem__):
            is_single = user.op == "call_module" and self._num_calls[user.target] == 1
            if is_single and user.args[:1] == (node,) and self._order[user] < self._order[reader]:
                return CutHere(str(user.target), True, reason)
        return None

    def _step(self, node: fx.Node, known: dict[fx.Node, Known]) -> Known:
        """Return the place behind the node's operation; raises CannotPropagate where there is none."""
        rule = find_propagation_rule(self.module_of(node) or node.target)
        if rule is None:
            raise CannotPropagate(f"no rule for {self._operation_name(node)}")
        if rule.kind == "sum" and len(known) > 1 and any(each.is_off_scale for each in known.values()):
            raise CannotPropagate(_MIXED)
        propagate, arguments, keywords, known = self._transition(node, rule, known)
        moments = {id(each.place): each.example for each in known.values()}
        with torch.no_grad():
            example = propagate(*with_moments(arguments, moments), **with_moments(keywords, moments))
        self._check_example(node, example, known)
        leaves = {name: leaf for each in known.values() for name, leaf in each.leaves.items()}
        is_off_scale = rule.kind != "linear map" and any(each.is_off_scale for each in known.values())
        return Known(Step(propagate, arguments, keywords), leaves, example, is_off_scale)

    def _transition(self, node: fx.Node, rule: PropagationRule, known: dict[fx.Node, Known]) -> tuple[Any, ...]:
        """Return the rule's function as the options have it, its arguments, keywords and what is known of them."""
        arguments, keywords = self._in_its_mode(node, rule, *self._bound(node, known))
        if rule.kind == "linear map" and self.options.transition == "learned":
            places = {id(each.place): each for each in known.values()}
            return _pass_on, tuple(each.place for each in places.values()), {}, known
        if rule.kind == "linear map" and self.options.transition == "sampled":
            module = self.module_of(node)
            if isinstance(module, CONVOLUTIONS):
                return self._sampled(node, module, rule, known)
        return rule.propagate, arguments, keywords, known

    def _bound(self, node: fx.Node, known: dict[fx.Node, Known]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def substitute(each: fx.Node) -> Any:
            return known[each].place if each in known else self._attribute(each)

        module = self.module_of(node)
        leading = () if module is None else (module,)
        arguments: Any = map_arg(node.args, substitute)
        keywords: Any = map_arg(node.kwargs, substitute)
        return (*leading, *arguments), dict(keywords)

    def _in_its_mode(
        self, node: fx.Node, rule: PropagationRule, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Put the mode of the module that calls, read in each pass, for the value of `training` that it had."""
        if "training" not in signature(rule.propagate).parameters:
            return arguments, keywords
        caller = self.model.get_submodule(caller_of(node))
        bound = signature(rule.propagate).bind(*arguments, **keywords)
        if bound.arguments.get("training") is caller.training:
            bound.arguments["training"] = Attribute(caller, "training")
        return bound.args, bound.kwargs

    def _attribute(self, node: fx.Node) -> Attribute:
        owner, _, name = str(node.target).rpartition(".")
        if hasattr(self.traced.constants, str(node.target)):
            return Attribute(self.traced.constants, name)
        return Attribute(self.model.get_submodule(owner), name)

    def _sampled(self, node: fx.Node, module: nn.Module, rule: PropagationRule, known: dict[fx.Node, Known]) -> Any:
        before = node.all_input_nodes[0]
        activation_rule = find_propagation_rule(self.module_of(before) or before.target)
        is_activation = activation_rule is not None and activation_rule.kind == "activation"
        begins_with_input = bool(before.args) or before.op == "call_module"
        source = self._found.get(before.all_input_nodes[0]) if is_activation and begins_with_input else None
        if not isinstance(source, Known):
            return SampledTransition(module, rule, None, None), (known[before].place,), {}, known
        activate, follow = self._activation(before, activation_rule)
        return SampledTransition(module, rule, activate, follow), (source.place,), {}, {before: source}

    def _activation(self, node: fx.Node, rule: Any) -> tuple[Callable[[Tensor], Tensor], Callable[[Moments], Moments]]:
        module = self.module_of(node)
        if module is not None:
            return module.forward, partial(rule.propagate, module)
        function: Any = getattr(Tensor, node.target) if isinstance(node.target, str) else node.target
        return Called(function, node.args[1:], node.kwargs), Called(rule.propagate, node.args[1:], node.kwargs)

    def _operation_name(self, node: fx.Node) -> str:
        module = self.module_of(node)
        return getattr(node.target, "__name__", str(node.target)) if module is None else type(module).__name__

    def _check_example(self, node: fx.Node, example: Moments, known: dict[fx.Node, Known]) -> None:
        shape = self.traced.shapes.get(node, ())
        found = (example.mean.shape[1], *(shape[2:] if example.size is None else example.size))
        batch_sizes = {self.traced.shapes[each][0] for each in known}
        if found != shape[1:] or batch_sizes != {shape[0]}:
            raise CannotPropagate(f"{self._operation_name(node)} changes the shape in another way than its rule")


def behind_norm(layer: KalmanLayer) -> Place:
    """Return the place behind a layer, and behind its activation where it has one.

    Args:
        layer: any.

    Returns:
        The place.

    Raises:
        CannotPropagate: there is no rule for the activation.
    """
    place: Place = BehindNorm(layer)
    for operation in (layer.drop, layer.act) if isinstance(layer, Activated) else ():
        rule = find_propagation_rule(operation)
        if rule is None:
            raise CannotPropagate(f"no rule for {type(operation).__name__}, the activation of the layer")
        place = Step(rule.propagate, (operation, place), {})
    return place


def _pass_on(moments: Moments) -> Moments:
    """Leave to the learned map of the layer what the linear map does."""
    return Moments(moments.mean, moments.var, None)


def _example(shape: tuple[int, ...], module: nn.Module) -> Moments:
    tensor = next((each for each in (*module.parameters(), *module.buffers()) if each.is_floating_point()), None)
    like = torch.empty(0) if tensor is None else tensor
    zeros = torch.zeros(1, shape[1], device=like.device, dtype=wide_dtype(like))
    return Moments(zeros, zeros + 1, shape[2:])
