"""How is a sub-batch's own gradient seen while gradients accumulate?

A tensor hook on a leaf receives what one `backward()` adds to `p.grad`, before it is added. It is reduced to a
squared norm inside the hook, so that no gradient outlives the backward pass. Sharded parameters have no such hooks; see
`Shards`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from anybatch.stats.geometry import Preconditioner
from anybatch.stats.groups import ModulePrefixes, group_parameters
from anybatch.stats.moments import widest_dtype
from anybatch.stats.shards import find_shards, local, refuse_shards

Measurement = TypeVar("Measurement")
Row = list[Tensor | None]  # a squared norm per parameter; None where there is no gradient

CHANGED = (
    "gradients and parameters must stay as backward() left them from the first sub_batch() to finish(); they were "
    "changed. Unscale, clip, step and zero_grad after finish(), and run every backward() of the step in a sub_batch()."
)


@dataclass(frozen=True)
class _Part:
    size: float
    weight: float | None
    sq_norms: Row


class SubBatchSource(ABC, Generic[Measurement]):
    """Records the sub-batches of one optimizer step after another; what `finish` joins is up to the child."""

    def __init__(
        self,
        model: nn.Module,
        module_prefixes: ModulePrefixes | None = None,
        preconditioner: Preconditioner | None = None,
        *,
        accepts_shards: bool = False,
    ) -> None:
        self._preconditioner = preconditioner
        groups = group_parameters(model, module_prefixes)
        self.modules = tuple(groups)
        self._parameters = [parameter for group in groups.values() for parameter in group]
        self._shards = (find_shards if accepts_shards else refuse_shards)(model, self._parameters)
        self._smallest = min(self._parameters, key=torch.Tensor.numel)
        self._smallest_sq_norm: Tensor | None = None
        self._device = self._parameters[0].device
        self._nothing = torch.zeros((), device=self._device)
        self._is_mixed = len({(p.device, p.dtype == torch.float64) for p in self._parameters}) > 1
        self._module_of = torch.tensor([i for i, group in enumerate(groups.values()) for _ in group])
        self._parts: list[_Part] = []
        self._seen: list[tuple[int, ...]] | None = None

    @contextmanager
    def sub_batch(self, size: float, weight: float | None = None) -> Iterator[None]:
        """Record the gradient that the one `backward()` inside adds.

        Args:
            size: what this part's loss averages over: samples, or tokens or boxes; any positive number.
            weight: the factor that this part's mean loss was multiplied with before `backward()`; 1 for a loss
                that was not scaled, `1 / K` for equal shares of K parts. Default: `size` over the sum of the
                sizes (on ranks: of this rank's sizes). AMP's loss scale is not part of it: see `finish`.

        Yields:
            Nothing; run `backward()` inside, once.

        Raises:
            ValueError: size or weight is not positive, or only some parts have a weight.
            RuntimeError: gradients were there before the first part or changed between parts, `backward()` ran
                not at all or twice or left no gradients behind, or parameters were updated before `finish()`.
        """
        self._check_arguments(size, weight)
        self._check_untouched()
        sq_norms: Row = [None] * len(self._parameters)
        record = partial(self._record, sq_norms)
        versions = [parameter._version for parameter in self._parameters]
        watch = _watch_leaves if self._shards is None else self._shards.watch
        try:
            with watch(self._parameters, record):
                yield
            if all(sq_norm is None for sq_norm in sq_norms):
                raise RuntimeError("sub_batch() must hold one backward(); no gradient arrived. Move it inside.")
            self._check_accumulated(sq_norms, versions)
        except BaseException:
            self._reset()
            raise
        self._parts.append(_Part(float(size), weight, sq_norms))
        self._seen = self._fingerprint()
        self._smallest_sq_norm = _grad_sq_norm(self._smallest)

    @abstractmethod
    def finish(self, loss_scale: float | Tensor = 1.0) -> Measurement:
        """Join the parts recorded since the last call."""

    def _take_parts(
        self, loss_scale: float | Tensor, rows: Sequence[Row] | None = None
    ) -> tuple[list[float], list[float], Tensor, Tensor]:
        """Return sizes (K), factors (K), squared norms (R, M) and |p.grad|^2 (M,), and forget the parts.

        The squared norms are those of the given rows per parameter, or else the parts' own, |f_i g_i|^2.
        """  # noqa: DOC501
        if not self._parts:
            raise RuntimeError("finish() must follow at least one sub_batch(); got none.")
        num_parts, num_rows = len(self._parts), len(self._parts if rows is None else rows) + 1
        try:
            self._check_untouched()
            self._check_scaled()
        except RuntimeError:
            if self._shards is not None:
                self._shards.report_failure(num_parts, num_rows * len(self.modules))
            raise
        sizes = [part.size for part in self._parts]
        factors = [part.size / sum(sizes) if part.weight is None else float(part.weight) for part in self._parts]
        own = [part.sq_norms for part in self._parts] if rows is None else rows
        whole = [None if p.grad is None else self._sq_norm(p, p.grad) for p in self._parameters]
        self._reset()
        norms = self._per_module([*own, whole])
        norms = norms / torch.as_tensor(loss_scale).to(norms).square()
        if self._shards is not None:
            sizes, factors, norms = self._shards.join(sizes, factors, norms)
        return sizes, factors, norms[:-1], norms[-1]

    def _sq_norm(self, parameter: nn.Parameter, grad: Tensor) -> Tensor:
        factor = None if self._preconditioner is None else self._preconditioner(parameter)
        return sq_norm(grad if factor is None else grad.detach() * factor)

    def _record(self, sq_norms: Row, index: int, grad: Tensor | None) -> None:
        if grad is None:  # a custom autograd function returned none for this parameter
            return
        if sq_norms[index] is not None:
            raise RuntimeError(
                "sub_batch() must hold one backward() that reaches each parameter once; one was reached twice. "
                "Give each backward() a sub_batch of its own; with activation checkpointing set use_reentrant=False."
            )
        sq_norms[index] = self._take(index, grad)

    def _take(self, index: int, grad: Tensor) -> Tensor:
        """Return what a part keeps of a gradient: its squared norm, or `_nothing` where a child has no use for it."""
        return self._sq_norm(self._parameters[index], grad)

    def _per_module(self, rows: Sequence[Row]) -> Tensor:
        wide = widest_dtype(self._device)
        found = [value for row in rows for value in row if value is not None]
        if self._is_mixed:
            found = [value.to(self._device, wide) for value in found]
        zero = torch.zeros_like(found[0])
        present = iter(found)
        flat = [zero if value is None else next(present) for row in rows for value in row]
        norms_RP = torch.stack(flat).to(wide).view(len(rows), -1)
        out = norms_RP.new_zeros(len(rows), len(self.modules))
        return out.index_add_(1, self._module_of.to(self._device), norms_RP)

    def _check_arguments(self, size: float, weight: float | None) -> None:
        for name, value in (("size", size), ("weight", weight)):
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be positive and finite; got {value}.")
        if self._parts and (weight is None) != (self._parts[0].weight is None):
            raise ValueError("weight must be given for every part of a step or for none; got a mixture.")

    def _check_untouched(self) -> None:
        if self._seen is None:
            if any(p.grad is not None and bool(local(p.grad).any()) for p in self._parameters):
                raise RuntimeError(
                    "gradients must be empty before the first sub_batch(); some are not. "
                    "Call optimizer.zero_grad() before it."
                )
        elif self._seen != self._fingerprint():
            self._reset()
            raise RuntimeError(CHANGED)

    def _check_scaled(self) -> None:
        """Find a change that version counters miss, GradScaler.unscale_, by one small gradient."""
        now, before = _grad_sq_norm(self._smallest), self._smallest_sq_norm
        if now is not None and before is not None and not (now.equal(before) or (now.isnan() and before.isnan())):
            self._reset()
            raise RuntimeError(CHANGED)

    def _check_accumulated(self, sq_norms: Row, versions: list[int]) -> None:
        for parameter, norm, version in zip(self._parameters, sq_norms, versions, strict=True):
            if parameter._version != version or (norm is not None and parameter.grad is None):
                raise RuntimeError(
                    "backward() inside sub_batch() must leave its gradients in p.grad and the parameters as they "
                    "are; it did not. Use loss.backward(), and an optimizer that steps after finish()."
                )

    def _fingerprint(self) -> list[tuple[int, ...]]:
        return [
            (p._version, 0, 0) if p.grad is None else (p._version, _address(p.grad), p.grad._version)
            for p in self._parameters
        ]

    def _reset(self) -> None:
        self._parts = []
        self._seen = None


@contextmanager
def _watch_leaves(parameters: Sequence[nn.Parameter], record: Callable[[int, Tensor | None], None]) -> Iterator[None]:
    handles = [
        parameter.register_hook(partial(record, index))
        for index, parameter in enumerate(parameters)
        if parameter.requires_grad
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def sq_norm(grad: Tensor) -> Tensor:
    """Return |grad|^2 in float32 or wider, without a copy where memory is contiguous.

    Args:
        grad: any shape, dense or sparse; of a sharded one this rank's part.

    Returns:
        Scalar.
    """
    grad = local(grad)
    if grad.is_sparse:
        grad = grad.coalesce().values()
    if grad.dtype in (torch.float32, torch.float64) and grad.is_contiguous():
        flat = grad.flatten()
        return torch.dot(flat, flat)
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    return torch.linalg.vector_norm(grad, dtype=wide).square()


def _grad_sq_norm(parameter: nn.Parameter) -> Tensor | None:
    return None if parameter.grad is None else sq_norm(parameter.grad)


def _address(grad: Tensor) -> int:
    return grad._values().data_ptr() if grad.is_sparse else local(grad).data_ptr()
