"""A measurement leaves no trace in a run."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from anybatch.train.preserve import preserved


def model_with_everything():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
    model[0].eval()  # a frozen part in a model under training
    model(torch.randn(5, 4)).sum().backward()
    return model


def states():
    return torch.random.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


def disturb(model):
    model.eval()
    model[1].train()
    model(torch.randn(5, 4)).square().sum().backward()
    random.random()
    np.random.rand()


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_gradients_buffers_modes_and_generators_are_put_back(error):
    model = model_with_everything()
    grads = [parameter.grad for parameter in model.parameters()]
    values = [grad.clone() for grad in grads]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    modes = [module.training for module in model.modules()]
    before = states()
    try:
        with preserved(model):
            assert all(parameter.grad is None for parameter in model.parameters())
            disturb(model)
            if error is not None:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        assert error is not None
    assert all(parameter.grad is grad for parameter, grad in zip(model.parameters(), grads, strict=True))
    assert all(torch.equal(grad, value) for grad, value in zip(grads, values, strict=True))
    assert all(now is buffer for now, (buffer, _) in zip(model.buffers(), buffers, strict=True))
    assert all(torch.equal(buffer, value) for buffer, value in buffers)
    assert [module.training for module in model.modules()] == modes
    assert states() == before


def test_a_parameter_without_a_gradient_has_none_afterwards():
    model = nn.Linear(2, 1)
    with preserved(model):
        model(torch.ones(1, 2)).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_buffer_that_a_module_replaces_is_put_back():
    class Averaging(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.register_buffer("mean", torch.zeros(1))

        def forward(self, x):
            self.mean = 0.9 * self.mean + x.mean()
            return self.weight * x

    model = Averaging()
    before = model.mean
    with preserved(model):
        model(torch.ones(3))
    assert model.mean is before
    assert model.mean.item() == 0
