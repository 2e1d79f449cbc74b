"""What does a workload hand to its model?"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from anybatch.train.data import SampleDraws, to_device
from anybatch.train.preserve import preserved
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload


class _SeenError(Exception):
    """The inputs are known, and nothing needs to be computed."""


def find_example_inputs(workload: Workload, model: nn.Module, part: nn.Module | None = None) -> tuple[Any, ...] | None:
    """Return what a workload's loss hands to its model for two samples, or the model to a part of it.

    The model runs up to where the inputs are known.

    Args:
        workload: whose loss is called.
        model: the workload's; left as it was.
        part: a module of the model. Default: the model itself.

    Returns:
        Positional arguments; None where some are named, or the loss does not call the model or the part itself.

    Example:
        >>> from anybatch.workloads import load_workload
        >>> workload = load_workload("digits")
        >>> [tuple(each.shape) for each in find_example_inputs(workload, workload.model())]
        [(2, 1, 8, 8)]
    """
    found: list[tuple[Any, ...]] = []
    alone = Runtime(torch.device("cpu"))
    ((batch, _),) = SampleDraws(workload, alone, 0, "example inputs").parts([2], distinct=False)

    def take(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.extend([] if named else [inputs])
        raise _SeenError

    handle = (model if part is None else part).register_forward_pre_hook(take, with_kwargs=True)
    try:
        with preserved(model), torch.no_grad():
            workload.loss(model, to_device(batch, next(model.parameters()).device))
    except _SeenError:
        pass
    finally:
        handle.remove()
    return found[0] if found else None
