"""Which operations lead from layer to layer, and what shapes pass between them? torch.fx looks; nothing is replaced."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.nn.parameter import is_lazy

from anybatch.errors import InputError
from anybatch.nn.kalman_layer import KalmanLayer
from anybatch.nn.moment_propagation import find_propagation_rule
from anybatch.nn.unchanged_modules import unchanged

_HOW_TO_NAME_SOURCES = (
    "Convert a part that can be traced, such as model.backbone (--part backbone on the command line), or name the "
    "sources of the layers: sources={'bn2': [['bn1', torch.relu, 'conv2']]}, each path a layer or module whose output "
    "is known and what follows it, several paths being added."
)


@dataclass(frozen=True, eq=False)
class Traced:
    """A model as a graph.

    Attributes:
        graph: its nodes are in the order of execution; module names are those of the model.
        shapes: node -> shape of its tensor; nodes of other values are left out.
        constants: tensors that the model made while it was traced, by the name that the graph has for them.
        opaque: module that was taken whole -> why it could not be traced.
        other_in_training: module whose forward calls other operations in training mode, None where there is none; ""
            is the model.
    """

    graph: fx.Graph
    shapes: dict[fx.Node, tuple[int, ...]]
    constants: SimpleNamespace = field(default_factory=SimpleNamespace)
    opaque: dict[str, str] = field(default_factory=dict)
    other_in_training: str | None = None

    def why_missing(self, module: str) -> str:
        """Say why no call of a module is in the graph.

        Args:
            module: its name.

        Returns:
            The reason, in words.
        """
        for name, reason in self.opaque.items():
            if module.startswith(f"{name}."):
                return f"inside {name}, which torch.fx cannot trace: {reason}"
        return "its calls are not in the graph"


def trace(model: nn.Module, example_inputs: Any) -> Traced:
    """Trace a model, and find the shape of every tensor, without computing it where that is possible.

    Modules that cannot be traced are taken whole; those with a propagation rule always are.

    Args:
        model: any module; it is left as it is, in its mode.
        example_inputs: a tensor, or a tuple of positional arguments.

    Returns:
        The graph and its shapes.

    Raises:
        InputError: a lazy parameter, the model's own `forward` cannot be traced, or the example inputs do not run
            through it.
    """
    _check_not_lazy(model)
    tracer = _Tracer()
    own = set(vars(model))
    try:
        with unchanged(model):
            graph = tracer.trace(model)
            read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
            constants = {name: value for name, value in vars(model).items() if name in read - own}
    except Exception as error:
        raise InputError(
            f"{type(model).__name__}.forward must be traceable by torch.fx; got {_said(error)}. {_HOW_TO_NAME_SOURCES}"
        ) from error
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    try:
        shapes = _find_shapes(model, graph, constants, inputs)
    except Exception as error:
        raise InputError(
            f"example_inputs must run through {type(model).__name__}; got {_said(error)}. Pass a tensor, or a tuple of "
            "the arguments, that the model takes."
        ) from error
    return Traced(graph, shapes, SimpleNamespace(**constants), tracer.opaque, _other_in_training(model, graph))


def _check_not_lazy(model: nn.Module) -> None:
    """Refuse what a trial run would give a shape for good."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise InputError(
                f"{name!r} must have its shape before the model is traced; got a lazy one. Run a batch through the "
                "model first."
            )


def _other_in_training(model: nn.Module, graph: fx.Graph) -> str | None:
    """Return the first module that makes other calls where all are in training mode; None where none does."""
    if all(module.training for module in model.modules()):
        return None
    with unchanged(model):
        for module in model.modules():
            vars(module)["training"] = True
        try:
            trained = _Tracer().trace(model)
        except Exception:  # what it needs in training is not known
            return ""
    now, then = (_calls_by_module(each) for each in (graph, trained))
    return next((name for name in {**now, **then} if now.get(name) != then.get(name)), None)


def _calls_by_module(graph: fx.Graph) -> dict[str, list[tuple[str, Any]]]:
    calls: dict[str, list[tuple[str, Any]]] = {}
    for node in graph.nodes:
        calls.setdefault(caller_of(node), []).append((node.op, node.target))
    return calls


def caller_of(node: fx.Node) -> str:
    """Return the name of the module whose `forward` makes a call; "" is the model."""
    callers = [name for name, _ in node.meta.get("nn_module_stack", {}).values() if name != node.target]
    return callers[-1] if callers else ""


def _find_shapes(
    model: nn.Module, graph: fx.Graph, constants: dict[str, Any], inputs: tuple[Any, ...]
) -> dict[fx.Node, tuple[int, ...]]:
    try:
        with unchanged(model), FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
            shapes = _Shapes(_as_module(model, graph, constants))
            shapes.run(*(mode.from_tensor(each) if isinstance(each, Tensor) else each for each in inputs))
    except (DataDependentOutputException, DynamicOutputShapeException):  # a module taken whole looks at values
        with unchanged(model, copies_parameters=True), torch.random.fork_rng(), torch.no_grad():
            shapes = _Shapes(_as_module(model, graph, constants))
            shapes.run(*inputs)
    return shapes.found


def _as_module(model: nn.Module, graph: fx.Graph, constants: dict[str, Any]) -> fx.GraphModule:
    vars(model).update(constants)
    return fx.GraphModule(model, graph)


def _said(error: Exception) -> str:
    """Return an error's kind and its first line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0].rstrip('.')}"


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.opaque: dict[str, str] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_known = isinstance(m, KalmanLayer) or find_propagation_rule(m) is not None
        return is_known or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nodes_before, stack_before = set(self.graph.nodes), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception as error:  # whatever a forward does that fx has no node for
            self.opaque[self.path_of_module(m)] = _said(error)
            self.module_stack = stack_before
            for node in reversed(self.graph.nodes):
                if node not in nodes_before and node.op != "get_attr":  # fx keeps parameters for later calls
                    self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


class _Shapes(fx.Interpreter):
    """Runs a graph past its normalization layers, which keep the shape, and notes what comes out."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = tuple(result.shape)
        return result

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        keeps_shape = isinstance(module, (KalmanLayer, nn.modules.batchnorm._BatchNorm))
        return (
            next(iter((*args, *kwargs.values()))).clone() if keeps_shape else super().call_module(target, args, kwargs)
        )
