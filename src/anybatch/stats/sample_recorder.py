"""How is each sample's own gradient seen in one forward and backward pass over a batch?

A `TorchFunctionMode` sees every operation that takes a parameter, and a hook on its output sees the gradient that comes
back. What is not known by its operation is run again by the module around it. Nothing is patched; mode and hooks end
with the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from anybatch.stats.module_samples import ModuleCall, has_rows
from anybatch.stats.parameter_uses import ADDITIONS, read_uses
from anybatch.stats.sample_gradients import RowsUse, Use, slices, weighted_sq_norms, wide

SAME = 1e-2  # of the gradient's norm: low precision rounds, samples that see each other differ by far more


@dataclass(eq=False)
class _Recorded:
    use: Use
    out_id: int
    edge: GradientEdge | None  # of the output, while samples are checked to be apart
    handle: Any = None


@dataclass(eq=False)
class _Frame:
    """A module that is being called."""

    module: nn.Module
    num_uses: int
    num_calls: int
    pending: list[nn.Parameter] = field(default_factory=list)


class SampleRecorder(TorchFunctionMode):
    """Finds the squared norm of each sample's gradient of every parameter.

    Args:
        model: innermost module.
        parameters: of the model, and their names.
        num_samples: N, along the first axis of what the model is given and gives.
        weigh: parameter -> P of its squared norm g^T P g; None: |g|^2.
        stride: 1 to find every sample's norm, 2 for every other one's, and so on.
        is_checked: whether samples are known not to see each other; if not, a pass back from the last sample tells.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[nn.Parameter, str],
        num_samples: int,
        weigh: Callable[[nn.Parameter], Tensor | None],
        stride: int = 1,
        is_checked: bool = False,
    ) -> None:
        super().__init__()
        self.sq_norms: dict[nn.Parameter, Tensor] = {}
        self._model = model
        self._names = parameters
        self._num_samples = num_samples
        self._weigh = weigh
        self._stride = stride
        self._is_checked = is_checked
        self._is_paused = False
        self._frames: list[_Frame] = []
        self._uses: list[_Recorded] = []
        self._calls: list[ModuleCall] = []
        self._tables: dict[int, tuple[Tensor, RowsUse]] = {}
        self._unknown: list[nn.Parameter] = []
        self._handles: list[Any] = []
        self._reached: dict[nn.Parameter, Tensor | None] = {}
        self._num_noted: dict[nn.Parameter, int] | None = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """See the forward and backward pass inside; at the end the norms are there.

        Yields:
            Nothing.

        Raises:
            RuntimeError: samples see each other, or a parameter's use cannot be told apart by samples.
        """
        handles = [hook for module in self._model.modules() for hook in self._watch(module)]
        handles += [p.register_hook(partial(self._reach, p)) for p in self._names if p.requires_grad]
        try:
            with self:
                yield
            self._is_paused = True
            self._join_rest()
            self._check_complete()
        finally:
            for handle in (*handles, *self._handles, *(recorded.handle for recorded in self._uses)):
                handle.remove()
            for recorded in self._uses:
                recorded.edge = None  # an edge holds the node that holds the hook
            self._tables.clear()

    # ------------------------------------------------------------------------------------------- forward

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and note what it does with parameters."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not isinstance(out, (Tensor, tuple)) or self._is_off():
            return out
        if func is F.batch_norm:
            read_uses(self._num_samples, func, out, args, kwargs)  # refuses train mode, with parameters or without
        operands = list(_tensors((*args, *kwargs.values())))
        parameters = [value for value in operands if isinstance(value, nn.Parameter) and value in self._names]
        if self._tables and func in ADDITIONS and isinstance(out, Tensor):
            self._note_tables(operands, out)
        if parameters and any(_carries_gradient(value) for value in _tensors((out,))):
            self._note(func, out, args, kwargs, parameters)
        return out

    def _note(
        self, func: Callable[..., Any], out: Any, args: Any, kwargs: dict[str, Any], parameters: list[nn.Parameter]
    ) -> None:
        uses = read_uses(self._num_samples, func, out, args, kwargs)
        if uses is not None:
            for use in uses:
                if use.parameter in self._names:
                    self._add(use, out)
        else:
            self._leave_open(parameters)
        if func is F.embedding:
            padding_idx = kwargs.get("padding_idx", args[2] if len(args) > 2 else None)
            self._tables[id(out)] = (out, RowsUse(parameters[0], args[0], padding_idx))

    def _note_tables(self, operands: list[Tensor], out: Tensor) -> None:
        """Note the sum of samples and what an embedding gave for all of them, such as learned positions."""
        for operand in operands:
            table, use = self._tables.get(id(operand), (None, None))
            if use is None or table is not operand or not has_rows(out, self._num_samples):
                continue
            is_shared = operand.ndim < out.ndim or (len(operand) == 1 < self._num_samples)
            if is_shared and out.shape[1:] == operand.shape[-(out.ndim - 1) :]:
                self._forget(use.parameter, operand)
                rows = use.inputs.expand(self._num_samples, *out.shape[1:-1])
                self._add(RowsUse(use.parameter, rows, use.padding_idx), out)

    def _forget(self, parameter: nn.Parameter, table: Tensor) -> None:
        for frame in reversed(self._frames):
            places = [index for index, pending in enumerate(frame.pending) if pending is parameter]
            if places:
                del frame.pending[places[0]]
                break
        for recorded in self._uses:
            if recorded.out_id == id(table):
                recorded.handle.remove()
        self._uses = [recorded for recorded in self._uses if recorded.out_id != id(table)]

    def _add(self, use: Use, out: Tensor) -> None:
        recorded = _Recorded(use, id(out), None if self._is_checked else get_gradient_edge(out))
        recorded.handle = out.register_hook(partial(self._arrive, recorded))
        self._uses.append(recorded)

    def _leave_open(self, parameters: Sequence[nn.Parameter]) -> None:
        pending = self._frames[-1].pending if self._frames else self._unknown
        pending += parameters

    def _watch(self, module: nn.Module) -> tuple[Any, Any]:
        return (
            module.register_forward_pre_hook(self._enter),
            module.register_forward_hook(self._leave, with_kwargs=True),
        )

    def _enter(self, module: nn.Module, args: Any) -> None:
        if not self._is_off():
            self._frames.append(_Frame(module, len(self._uses), len(self._calls)))

    def _leave(self, module: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        if self._is_off():
            return
        frame = self._frames.pop()
        if not frame.pending:
            return
        inputs, structure = tree_flatten((args, kwargs))
        outputs = {index: value for index, value in enumerate(tree_flatten(out)[0]) if _carries_gradient(value)}
        are_apart = all(any(has_rows(v, self._num_samples) for v in values) for values in (inputs, outputs.values()))
        if not are_apart:
            self._leave_open(frame.pending)
            return
        names = {p: name for name, p in module.named_parameters() if any(p is pending for pending in frame.pending)}
        self._replace(names, frame)
        device = next(iter(outputs.values())).device.type
        call = ModuleCall(
            module,
            names,
            self._num_samples,
            [value.detach() if isinstance(value, Tensor) else value for value in inputs],
            structure,
            autocast=(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)),
        )
        self._calls.append(call)
        for index, value in outputs.items():
            self._handles.append(value.register_hook(partial(self._return, call, index)))

    def _replace(self, names: dict[nn.Parameter, str], frame: _Frame) -> None:
        """Drop what was noted inside a module of parameters that it is run again for."""
        inside, self._uses = self._uses[frame.num_uses :], self._uses[: frame.num_uses]
        for recorded in inside:
            if recorded.use.parameter in names:
                recorded.handle.remove()
            else:
                self._uses.append(recorded)
        for call in self._calls[frame.num_calls :]:
            call.parameters = {p: name for p, name in call.parameters.items() if p not in names}

    def _is_off(self) -> bool:
        # a checkpoint runs its forward pass again in backward
        return self._is_paused or torch._C._current_graph_task_id() != -1

    # ------------------------------------------------------------------------------------------- backward

    @torch.no_grad()
    def _arrive(self, recorded: _Recorded, grad: Tensor) -> None:
        if self._is_paused:
            return
        use = recorded.use
        use.out_grad = grad.detach()
        if recorded.edge is not None:
            self._check_apart(recorded, grad)
        if self._count()[use.parameter] == 1:
            self.sq_norms[use.parameter] = use.sq_norms(self._weigh(use.parameter), self._stride)
            use.out_grad = None
            self._uses.remove(recorded)

    def _return(self, call: ModuleCall, index: int, grad: Tensor) -> None:
        if self._is_paused:
            return
        if not has_rows(grad, self._num_samples):
            raise self._refusal(next(iter(call.parameters), None), "its module gives what is not one row per sample")
        call.out_grads[index] = grad.detach()

    def _reach(self, parameter: nn.Parameter, grad: Tensor | None) -> None:
        if grad is not None:
            is_single = parameter in self.sq_norms
            self._reached[parameter] = None if is_single else grad.detach()

    def _count(self) -> dict[nn.Parameter, int]:
        if self._num_noted is None:
            self._num_noted = dict.fromkeys(self._names, 0)
            for parameter in (recorded.use.parameter for recorded in self._uses):
                self._num_noted[parameter] += 1
            for parameter in (parameter for call in self._calls for parameter in call.parameters):
                self._num_noted[parameter] += 2  # whatever comes of it is added up at the end
        return self._num_noted

    def _check_apart(self, recorded: _Recorded, grad: Tensor) -> None:
        """Send back the gradient of the last sample alone: no other sample may receive any."""
        edge, recorded.edge = recorded.edge, None
        others = [(other, other.edge) for other in self._uses if other.edge is not None and other.edge != edge]
        if not others or edge is None:
            return
        last = torch.zeros_like(grad)
        last[-1] = grad[-1]
        self._is_paused = True
        with torch.enable_grad():
            edges = [other_edge for _, other_edge in others]
            found = torch.autograd.grad([edge], edges, [last], retain_graph=True, allow_unused=True)
        self._is_paused = False
        reached = [(other, grad) for (other, _), grad in zip(others, found, strict=True) if grad is not None]
        for other, _ in reached:
            other.edge = None
        leaks = torch.stack([row[:-1].any() for _, row in reached]).tolist() if reached else []
        for (other, _), leaks_out in zip(reached, leaks, strict=True):
            if leaks_out:
                raise self._refusal(other.use.parameter, "its layer joins samples, or they are not its first axis")

    # ------------------------------------------------------------------------------------------- the end

    def _join_rest(self) -> None:
        """Add up the gradients of parameters that were used more than once, or in a module that is run again."""
        rest = [parameter for parameter in self._reached if parameter not in self.sq_norms]
        noted = [parameter for parameter in rest if self._count()[parameter]]
        norms: dict[nn.Parameter, list[Tensor]] = {parameter: [] for parameter in noted}
        sums = {parameter: torch.zeros_like(wide(parameter.detach())) for parameter in noted}
        stride = self._stride if self._is_checked else 1
        for part in slices(self._num_samples, sum(parameter.numel() for parameter in noted), stride):
            for parameter, grads in self._grads(noted, part).items():
                norms[parameter].append(weighted_sq_norms(grads, self._weigh(parameter)))
                sums[parameter] += grads.sum(0)
        for parameter in noted:
            whole = self._reached[parameter]
            if stride == 1 and whole is not None and not _is_same(sums[parameter], whole):
                raise self._refusal(parameter, "its gradient is not the sum of the samples' own")
            self.sq_norms[parameter] = torch.cat(norms[parameter])[:: self._stride // stride]

    def _grads(self, parameters: list[nn.Parameter], part: slice) -> dict[nn.Parameter, Tensor]:
        total: dict[nn.Parameter, Tensor] = {}

        def add(parameter: nn.Parameter, grads: Tensor) -> None:
            total[parameter] = total[parameter] + grads if parameter in total else grads

        for use in (recorded.use for recorded in self._uses if recorded.use.out_grad is not None):
            if use.parameter in total or any(use.parameter is parameter for parameter in parameters):
                add(use.parameter, use.grads(part))
        for call in self._calls:
            wanted = [p for p in call.parameters if any(p is parameter for parameter in parameters)]
            if wanted and call.out_grads:
                for parameter, grads in self._run_again(call, wanted, part).items():
                    add(parameter, grads)
        return total

    def _run_again(self, call: ModuleCall, parameters: list[nn.Parameter], part: slice) -> dict[nn.Parameter, Tensor]:
        try:
            return call.grads(parameters, part)
        except RuntimeError as error:
            why = (
                f"its module {type(call.module).__name__} cannot be run sample by sample ({str(error).splitlines()[0]})"
            )
            raise self._refusal(parameters[0], why) from error

    def _check_complete(self) -> None:
        for parameter in self._reached:
            if any(parameter is unknown for unknown in self._unknown):
                raise self._refusal(parameter, "it is used in a way that does not tell samples apart")
            if parameter not in self.sq_norms:
                raise self._refusal(
                    parameter, "no operation with it was seen: the forward pass must run inside sub_batch(), uncompiled"
                )

    def _refusal(self, parameter: nn.Parameter | None, why: str) -> RuntimeError:
        name = "a parameter" if parameter is None else repr(self._names[parameter])
        return RuntimeError(
            f"samples' own gradients of {name} cannot be told: {why}. "
            "Measure micro-batches, or put samples along the first axis everywhere."
        )


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _carries_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad and not isinstance(value, nn.Parameter)


def _is_same(sums: Tensor, whole: Tensor) -> bool:
    dense = wide(whole.to_dense() if whole.is_sparse else whole)
    return bool((sums - dense).norm() <= SAME * dense.norm()) or not bool(dense.norm().isfinite())
