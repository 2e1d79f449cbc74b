"""An autograd function has the signature of its own `forward` at hand, and nobody else's changes."""

from __future__ import annotations

import inspect

import torch

from anybatch.nn.eager_function import EagerFunction


class Scaled(EagerFunction):
    @staticmethod
    def forward(input, factor=2.0):
        return input * factor

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


class Same(Scaled):
    pass


class Tripled(Scaled):
    @staticmethod
    def forward(input, factor=3.0):
        return input * factor


def test_the_signature_is_read_once():
    for function in (Scaled, Tripled):
        assert vars(function)["forward"].__func__.__signature__ is inspect.signature(function.forward)
    assert not hasattr(torch.autograd.Function.forward, "__signature__")


def test_defaults_are_those_of_each_class():
    for function, factor in ((Scaled, 2.0), (Same, 2.0), (Tripled, 3.0)):
        x = torch.ones((), requires_grad=True)
        function.apply(x).backward()
        assert x.grad.item() == factor
