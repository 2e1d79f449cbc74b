"""What mean and variance has a function of a Gaussian?

Piecewise polynomials have them in closed form; other functions by quadrature.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anybatch.nn.eager_function import EagerFunction
from anybatch.nn.moment_propagation import CannotPropagate, propagation_rule
from anybatch.nn.moments import Moments
from anybatch.nn.second_derivatives import fast_gradients

# a piece ends at the number, where the next begins, and is sum of c_k x^k
Pieces = Sequence[tuple[float, Sequence[float]]]

_TINY = 1e-12  # of variance: below it a channel is a constant
_FAR = 12.0  # standard deviations; the density there is nothing in float32
# expectations over a standard normal variable
_NODES, _WEIGHTS = (each.tolist() for each in np.polynomial.hermite_e.hermegauss(16))


def through_pieces(moments: Moments, pieces: Pieces) -> Moments:
    """Return the moments of a continuous, piecewise polynomial function of a Gaussian, in closed form.

    Args:
        moments: of the Gaussian.
        pieces: (end, coefficients), ends rising to infinity, coefficients of x^0, x^1, ...

    Returns:
        The moments of the function.

    Example:
        >>> pieces = ((0.0, (0.0, -1.0)), (math.inf, (0.0, 1.0)))
        >>> absolute = through_pieces(Moments(torch.zeros(1, 1), torch.ones(1, 1)), pieces)
        >>> print(f"{absolute.mean.item():.6f} {absolute.var.item():.6f}")
        0.797885 0.363380
    """
    mean, std = moments.mean, moments.var.clamp_min(_TINY).sqrt()
    at_mean = _evaluate(pieces, mean).detach()  # about it the squares cancel no digits
    first = torch.zeros_like(mean)
    second = torch.zeros_like(mean)
    start = torch.full_like(mean, -_FAR)
    for end, coefficients in pieces:
        stop = torch.full_like(mean, _FAR) if math.isinf(end) else ((end - mean) / std).clamp(-_FAR, _FAR)
        polynomial = _in_units_of_std(coefficients, mean, std)
        polynomial[0] = polynomial[0] - at_mean
        partial = _partial_moments(start, stop, 2 * len(polynomial) - 1)
        first = first + sum(c * m for c, m in zip(polynomial, partial, strict=False))
        square = _product(polynomial, polynomial)
        second = second + sum(c * m for c, m in zip(square, partial, strict=True))
        start = stop
    return Moments(at_mean + first, (second - first.square()).clamp_min(0), moments.size)


def _evaluate(pieces: Pieces, x: Tensor) -> Tensor:
    start = -math.inf
    value = torch.zeros_like(x)
    for end, coefficients in pieces:
        polynomial = sum(c * x**power for power, c in enumerate(coefficients))
        value = torch.where((x >= start) & (x < end), polynomial, value)
        start = end
    return value


def _in_units_of_std(coefficients: Sequence[float], mean: Tensor, std: Tensor) -> list[Tensor]:
    """Return the coefficients of z^0, z^1, ... of a polynomial of mean + std z."""
    shifted = [torch.zeros_like(mean) for _ in coefficients]
    for power, coefficient in enumerate(coefficients):
        for k in range(power + 1) if coefficient else ():
            shifted[k] = shifted[k] + coefficient * math.comb(power, k) * mean ** (power - k) * std**k
    return shifted


def _product(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[Tensor]:
    product = [torch.zeros_like(left[0]) for _ in range(len(left) + len(right) - 1)]
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            product[i + j] = product[i + j] + a * b
    return product


def _partial_moments(start: Tensor, stop: Tensor, count: int) -> list[Tensor]:
    """Return the integrals of z^k times the standard normal density from start to stop, for k < count."""
    density_at_start, density_at_stop = (
        torch.exp(-each.square() / 2) / math.sqrt(2 * math.pi) for each in (start, stop)
    )
    moments = [_probability(start, stop), density_at_start - density_at_stop]
    for power in range(2, count):
        ends = start ** (power - 1) * density_at_start - stop ** (power - 1) * density_at_stop
        moments.append((power - 1) * moments[power - 2] + ends)
    return moments[:count]


def _probability(start: Tensor, stop: Tensor) -> Tensor:
    return (torch.erf(stop / math.sqrt(2)) - torch.erf(start / math.sqrt(2))) / 2


def through_function(moments: Moments, function: Callable[[Tensor], Tensor]) -> Moments:
    """Return the moments of any function of a Gaussian, by Gauss-Hermite quadrature with 16 nodes.

    Args:
        moments: of the Gaussian.
        function: of every value alone.

    Returns:
        The moments of the function.

    Example:
        >>> squared = through_function(Moments(torch.zeros(1, 1), torch.ones(1, 1)), torch.square)
        >>> print(f"{squared.mean.item():.4f} {squared.var.item():.4f}")
        1.0000 2.0000
    """
    nodes, weights = moments.mean.new_tensor(_NODES), moments.mean.new_tensor(_WEIGHTS) / math.sqrt(2 * math.pi)
    std = moments.var.clamp_min(_TINY).sqrt()
    values = function(moments.mean[..., None] + std[..., None] * nodes)
    mean = (values * weights).sum(-1)
    var = ((values - mean[..., None]).square() * weights).sum(-1)
    return Moments(mean, var, moments.size)


def _register_modules() -> None:
    for module_type in (nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.CELU, nn.SELU, nn.Sigmoid, nn.Tanh, nn.Softplus):
        propagation_rule(module_type, kind="activation")(_through_module)
    functions = (F.gelu, F.silu, F.mish, F.elu, F.celu, F.selu, F.softplus, torch.sigmoid, torch.tanh, F.logsigmoid)
    for function in (*functions, "sigmoid", "tanh", "sigmoid_", "tanh_"):
        propagation_rule(function, kind="activation")(_function_rule(function))


def _through_module(module: nn.Module, moments: Moments) -> Moments:
    return through_function(moments, module.forward)


def _function_rule(function: Any) -> Callable[..., Moments]:
    called = getattr(torch.Tensor, function) if isinstance(function, str) else function
    return partial(_through_called, called)  # which pickles with the models that are wired through it


def _through_called(called: Callable[..., Tensor], input: Moments, *args: Any, **kwargs: Any) -> Moments:
    return through_function(input, lambda values: called(values, *args, **kwargs))


@propagation_rule(nn.ReLU, kind="activation")
def _relu_module(module: nn.ReLU, input: Moments) -> Moments:
    return through_relu(input)


@propagation_rule(torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_", kind="activation")
def through_relu(input: Moments, inplace: bool = False) -> Moments:
    """Return the moments of the positive part of a Gaussian.

    With x+ and x- the positive and the negative part: E x+ = m Phi(m / s) + s phi(m / s), E x- = E x+ - m, and
    Var x+ = v Phi(m / s) - E x+ E x-, in which no digits cancel.

    Args:
        input: moments of the Gaussian.
        inplace: as of the operation; without a meaning here.

    Returns:
        The moments of its positive part.

    Example:
        >>> relu = through_relu(Moments(torch.zeros(1, 1), torch.ones(1, 1)))
        >>> print(f"{relu.mean.item():.6f} {relu.var.item():.6f}")
        0.398942 0.340845
    """
    through = _plain_relu if torch.compiler.is_compiling() else _Relu.apply
    mean, var = through(input.mean, input.var)[:2]
    return Moments(mean, var, input.size)


def _plain_relu(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the positive part, differentiable as often as one likes."""
    return _relu_moments(mean, var)[:2]


def _relu_moments(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean and variance of the positive part, its probability, and s phi(m / s)."""
    var = var.clamp_min(_TINY)
    std = var.sqrt()
    ratio = (mean / std).clamp(-_FAR, _FAR)
    density = torch.exp(ratio.square() / -2) * (std / math.sqrt(2 * math.pi))
    probability = torch.erf(ratio / math.sqrt(2)) / 2 + 0.5
    positive = torch.addcmul(density, mean, probability)
    spread = torch.addcmul(var * probability, positive, positive - mean, value=-1).clamp_min(0)
    return positive, spread, probability, density


class _Relu(EagerFunction):
    """`_plain_relu` with its gradients in closed form.

    With d = s phi(m / s) and P = Phi(m / s): dE/dm = P, dE/dv = d / 2v, dVar/dm = 2 E (1 - P) and
    dVar/dv = P - E d / v.
    """

    @staticmethod
    def forward(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return _relu_moments(mean, var)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, output[0], *output[2:])
        ctx.mark_non_differentiable(*output[2:])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        mean, var, *rest = ctx.saved_tensors  # a checkpoint hands them out once
        fast = partial(_relu_gradients, var, *rest, *grad_outputs[:2])
        return tuple(fast_gradients(fast, _plain_relu, (mean, var), grad_outputs[:2], ctx.needs_input_grad))


def _relu_gradients(
    var: Tensor, positive: Tensor, probability: Tensor, density: Tensor, of_positive: Tensor, of_spread: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of mean and variance."""
    through_positive = torch.addcmul(of_positive, positive, of_spread, value=-2)
    of_mean = torch.addcmul(of_positive - through_positive, probability, through_positive)
    of_var = torch.addcmul(probability * of_spread, density / var, through_positive, value=0.5)
    return of_mean, torch.where(var > _TINY, of_var, 0)


@propagation_rule(nn.LeakyReLU, kind="activation")
def _leaky_relu_module(module: nn.LeakyReLU, input: Moments) -> Moments:
    return _leaky_relu(input, module.negative_slope)


@propagation_rule(F.leaky_relu, kind="activation")
def _leaky_relu(input: Moments, negative_slope: float = 0.01, inplace: bool = False) -> Moments:
    return through_pieces(input, ((0.0, (0.0, negative_slope)), (math.inf, (0.0, 1.0))))


@propagation_rule(nn.Hardtanh, nn.ReLU6, kind="activation")
def _hardtanh_module(module: nn.Hardtanh, input: Moments) -> Moments:
    return _hardtanh(input, module.min_val, module.max_val)


@propagation_rule(F.relu6, kind="activation")
def _relu6(input: Moments, inplace: bool = False) -> Moments:
    return _hardtanh(input, 0.0, 6.0)


@propagation_rule(F.hardtanh, kind="activation")
def _hardtanh(input: Moments, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Moments:
    return through_pieces(input, ((min_val, (min_val,)), (max_val, (0.0, 1.0)), (math.inf, (max_val,))))


@propagation_rule(nn.Hardsigmoid, kind="activation")
def _hardsigmoid_module(module: nn.Hardsigmoid, input: Moments) -> Moments:
    return _hardsigmoid(input)


@propagation_rule(F.hardsigmoid, kind="activation")
def _hardsigmoid(input: Moments, inplace: bool = False) -> Moments:
    return through_pieces(input, ((-3.0, (0.0,)), (3.0, (0.5, 1 / 6)), (math.inf, (1.0,))))


@propagation_rule(nn.Hardswish, kind="activation")
def _hardswish_module(module: nn.Hardswish, input: Moments) -> Moments:
    return _hardswish(input)


@propagation_rule(F.hardswish, kind="activation")
def _hardswish(input: Moments, inplace: bool = False) -> Moments:
    return through_pieces(input, ((-3.0, (0.0,)), (3.0, (0.0, 0.5, 1 / 6)), (math.inf, (0.0, 1.0))))


@propagation_rule(torch.abs, operator.abs, "abs", kind="activation")
def _abs(input: Moments) -> Moments:
    return through_pieces(input, ((0.0, (0.0, -1.0)), (math.inf, (0.0, 1.0))))


@propagation_rule(nn.PReLU, kind="activation")
def _prelu_module(module: nn.PReLU, input: Moments) -> Moments:
    if module.num_parameters != 1:
        raise CannotPropagate("a slope per channel")
    slope = module.weight.to(input.mean)
    return through_function(input, lambda values: torch.where(values >= 0, values, slope * values))


_register_modules()
