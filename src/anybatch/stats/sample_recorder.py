"""Which operations and modules use which parameters, in a forward pass over a batch of samples?

A `TorchFunctionMode` sees every operation that takes a parameter. What is not known by its operation is left to the
module around it, which can be run again. Nothing is patched; mode and hooks end with the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from anybatch.stats.module_samples import ModuleCall, has_rows
from anybatch.stats.parameter_uses import ADDITIONS, read_uses
from anybatch.stats.sample_gradients import RowsUse
from anybatch.stats.sample_norms import RecordedUse, SampleNorms


@dataclass(eq=False)
class _Frame:
    """A module that is being called, and what of its parameters is left to be told by running it again."""

    module: nn.Module
    mark: tuple[int, int]
    pending: list[nn.Parameter] = field(default_factory=list)


@dataclass(eq=False)
class _Table:
    """What an embedding gave, which may yet turn out to be for all samples."""

    out: Tensor
    use: RowsUse
    recorded: list[RecordedUse]


class SampleRecorder(TorchFunctionMode):
    """Tells `SampleNorms` what a forward pass does with parameters.

    Args:
        model: innermost module.
        parameters: of the model, that matter.
        num_samples: N, along the first axis of what the model is given and gives.
        norms: what is told.
    """

    def __init__(
        self, model: nn.Module, parameters: dict[nn.Parameter, str], num_samples: int, norms: SampleNorms
    ) -> None:
        super().__init__()
        self._model = model
        self._names = parameters
        self._num_samples = num_samples
        self._norms = norms
        self._frames: list[_Frame] = []
        self._tables: dict[int, _Table] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """See the forward pass inside.

        Yields:
            Nothing.
        """
        handles = [hook for module in self._model.modules() for hook in self._watch(module)]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()
            self._tables.clear()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and note what it does with parameters."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not isinstance(out, (Tensor, tuple)) or _is_backward():
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
        if uses is None:
            self._leave_open(parameters)
        recorded = [self._norms.add_use(use, out) for use in uses or [] if use.parameter in self._names]
        if func is F.embedding:
            padding_idx = kwargs.get("padding_idx", args[2] if len(args) > 2 else None)
            self._tables[id(out)] = _Table(out, RowsUse(parameters[0], args[0], padding_idx), recorded)

    def _note_tables(self, operands: list[Tensor], out: Tensor) -> None:
        """Note the sum of samples and what an embedding gave for all of them, such as learned positions."""
        for operand in operands:
            table = self._tables.get(id(operand))
            if table is None or table.out is not operand or not has_rows(out, self._num_samples):
                continue
            is_shared = operand.ndim < out.ndim or (len(operand) == 1 < self._num_samples)
            if is_shared and out.shape[1:] == operand.shape[-(out.ndim - 1) :]:
                self._forget(table)
                rows = table.use.inputs.expand(self._num_samples, *out.shape[1:-1])
                use = RowsUse(table.use.parameter, rows, table.use.padding_idx)
                self._norms.add_use(use, out, is_certain=False)  # the table may have other uses, which are not seen

    def _forget(self, table: _Table) -> None:
        """Forget that the table was noted as an operation of its own; the first time it is added up."""
        for frame in reversed(self._frames):
            places = [index for index, pending in enumerate(frame.pending) if pending is table.use.parameter]
            if places:
                del frame.pending[places[0]]
                break
        while table.recorded:
            self._norms.drop_use(table.recorded.pop())

    def _leave_open(self, parameters: Sequence[nn.Parameter]) -> None:
        if self._frames:
            self._frames[-1].pending += parameters
        else:
            self._norms.add_unknown(parameters)

    def _watch(self, module: nn.Module) -> tuple[Any, Any]:
        return (
            module.register_forward_pre_hook(self._enter),
            module.register_forward_hook(self._leave, with_kwargs=True),
        )

    def _enter(self, module: nn.Module, args: Any) -> None:
        if not _is_backward():
            self._frames.append(_Frame(module, self._norms.mark()))

    def _leave(self, module: nn.Module, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        if _is_backward():
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
        device = next(iter(outputs.values())).device.type
        call = ModuleCall(
            module,
            names,
            self._num_samples,
            [value.detach() if isinstance(value, Tensor) else value for value in inputs],
            structure,
            autocast=(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)),
        )
        self._norms.add_call(call, outputs, frame.mark)


def _is_backward() -> bool:
    return torch._C._current_graph_task_id() != -1  # where a checkpoint runs its forward pass again


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _carries_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad and not isinstance(value, nn.Parameter)
