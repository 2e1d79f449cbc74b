"""How does a measurement leave no trace in a run?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from anybatch.train.randomness import kept_generators


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put back gradients, buffers, train or eval mode and the global random states when the block ends.

    Gradients are set aside, not copied: inside, `p.grad` is None. Parameters are not guarded.

    Args:
        model: on one device.

    Yields:
        Nothing.
    """
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    modes = [(module, module.training) for module in model.modules()]
    for parameter, _ in grads:
        parameter.grad = None
    try:
        with kept_generators(next(model.parameters()).device):
            yield
    finally:
        for parameter, grad in grads:
            parameter.grad = grad
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer.copy_(value)  # a module may have put another tensor there
        for module, mode in modes:
            module.training = mode
