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
        with _random_states(next(model.parameters()).device):
            yield
    finally:
        for parameter, grad in grads:
            parameter.grad = grad
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer.copy_(value)  # a module may have put another tensor there
        for module, mode in modes:
            module.training = mode


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global random generators, which dropout draws from, and put them back when the block ends.

    Args:
        device: whose generator is seeded too.
        seed: of torch, random and numpy.

    Yields:
        Nothing.
    """
    with _random_states(device):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield


@contextmanager
def _random_states(device: torch.device) -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
