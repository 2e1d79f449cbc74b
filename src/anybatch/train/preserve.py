"""How does a measurement leave no trace in a run?"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


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
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    random_states = random.getstate(), np.random.get_state()
    devices = {parameter.device for parameter, _ in grads if parameter.device.type == "cuda"}
    for parameter, _ in grads:
        parameter.grad = None
    try:
        with torch.random.fork_rng(devices=sorted(devices, key=str)):
            yield
    finally:
        for parameter, grad in grads:
            parameter.grad = grad
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for module, mode in modes:
            module.training = mode
        random.setstate(random_states[0])
        np.random.set_state(random_states[1])
