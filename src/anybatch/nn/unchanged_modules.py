"""How does a model come out of an analysis as it went in? What its modules hold is noted, and put back."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_CONTAINERS = (dict, OrderedDict, defaultdict, list, deque, set)


@contextmanager
def unchanged(model: nn.Module, *, copies_parameters: bool = False) -> Iterator[None]:
    """Put back, at the end, what a trace or a trial run leaves in the modules of a model; also where it raises.

    Parameters, buffers, submodules and attributes are the objects they were, containers among them have the entries
    they had, and buffers the values. Other tensors that are changed in place stay so, unless they are copied too.

    Args:
        model: any module.
        copies_parameters: whether the values of parameters are put back as those of buffers are.

    Yields:
        Nothing.

    Example:
        >>> model = nn.BatchNorm1d(2)
        >>> with unchanged(model):
        ...     _ = model(torch.randn(4, 2))
        >>> model.num_batches_tracked.item(), model.running_mean.tolist()
        (0, [0.0, 0.0])
    """
    attributes = [vars(module) for module in model.modules()]
    containers = [each for own in attributes for each in own.values() if type(each) in _CONTAINERS]
    entries = [(each, copy.copy(each)) for each in (*attributes, *containers)]
    tensors = (*model.buffers(), *(model.parameters() if copies_parameters else ()))
    values = [(tensor, tensor.detach().clone()) for tensor in tensors if _can_be_copied(tensor)]
    try:
        yield
    finally:
        for container, before in entries:
            _refill(container, before)
        with torch.no_grad():
            for tensor, before in values:
                if not torch.equal(tensor, before):
                    tensor.copy_(before)


def _can_be_copied(tensor: Tensor) -> bool:
    return not (is_lazy(tensor) or tensor.is_meta) and tensor.layout == torch.strided


def _refill(container: Any, entries: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, (list, deque)) else container.update)(entries)
