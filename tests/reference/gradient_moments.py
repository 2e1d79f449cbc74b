"""The slow obvious twin of `anybatch.stats` and of the exact noise scale: float64, one sample at a time.

Nothing here is shared with the package. Parameters are told apart by name, modules by the first piece of the
name unless a dictionary of prefixes says otherwise, and every sum is a Python loop.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Sample = tuple[Tensor, Tensor]
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ReferenceMoments:
    """What the parts of one step say, symbols as in the design.

    a = sum w_i / n_i, b = sum w_i^2 / n_i; per module A = sum w_i |g_i|^2 and B = |sum w_i g_i|^2.
    """

    a: float
    b: float
    A: dict[str, float]
    B: dict[str, float]

    def trace(self, module: str) -> float:
        return (self.A[module] - self.B[module]) / (self.a - self.b)

    def sq_norm(self, module: str) -> float:
        return (self.a * self.B[module] - self.b * self.A[module]) / (self.a - self.b)


def module_of(name: str, prefixes: dict[str, list[str]] | None = None) -> str:
    """The module that a parameter is counted in: by default the first piece of its name."""
    if prefixes is None:
        return name.split(".")[0]
    for module, module_prefixes in prefixes.items():
        for prefix in module_prefixes:
            if name == prefix or name.startswith(prefix + "."):
                return module
    raise KeyError(name)


def sample_gradient(model: nn.Module, loss: Loss, sample: Sample) -> dict[str, Tensor]:
    """The gradient of one sample's loss, by parameter name, in float64; a parameter without one has zeros."""
    twin = copy.deepcopy(model).double()
    names = [name for name, parameter in twin.named_parameters() if parameter.requires_grad]
    parameters = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    inputs, target = sample
    if inputs.is_floating_point():
        inputs = inputs.double()
    if target.is_floating_point():
        target = target.double()
    value = loss(twin, inputs.unsqueeze(0), target.unsqueeze(0))
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    found = {}
    for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
        found[name] = torch.zeros_like(parameter) if gradient is None else gradient.to_dense()
    return found


def mean_gradient(model: nn.Module, loss: Loss, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """The mean of the samples' gradients, by parameter name."""
    total: dict[str, Tensor] = {}
    for sample in samples:
        for name, gradient in sample_gradient(model, loss, sample).items():
            total[name] = total[name] + gradient if name in total else gradient
    return {name: gradient / len(samples) for name, gradient in total.items()}


def moments_of_gradients(
    part_gradients: Sequence[dict[str, Tensor]],
    sizes: Sequence[float],
    weights: Sequence[float],
    prefixes: dict[str, list[str]] | None = None,
) -> ReferenceMoments:
    """a, b, A and B from the parts' mean gradients, after the weights are made to sum to 1."""
    weight_sum = sum(weights)
    shares = [weight / weight_sum for weight in weights]
    a = sum(share / size for share, size in zip(shares, sizes, strict=True))
    b = sum(share**2 / size for share, size in zip(shares, sizes, strict=True))
    mean_sq_norm: dict[str, float] = {}
    sq_norm_of_mean: dict[str, float] = {}
    for name in part_gradients[0]:
        module = module_of(name, prefixes)
        mean_sq_norm.setdefault(module, 0.0)
        sq_norm_of_mean.setdefault(module, 0.0)
        mean = torch.zeros_like(part_gradients[0][name], dtype=torch.float64)
        for share, gradients in zip(shares, part_gradients, strict=True):
            gradient = gradients[name].double()
            mean_sq_norm[module] += share * (gradient * gradient).sum().item()
            mean = mean + share * gradient
        sq_norm_of_mean[module] += (mean * mean).sum().item()
    return ReferenceMoments(a=a, b=b, A=mean_sq_norm, B=sq_norm_of_mean)


def reference_moments(
    model: nn.Module,
    loss: Loss,
    parts: Sequence[Sequence[Sample]],
    weights: Sequence[float] | None = None,
    prefixes: dict[str, list[str]] | None = None,
) -> ReferenceMoments:
    """Moments of parts of samples; weights default to size / total, so that the mean is over all samples."""
    sizes = [len(part) for part in parts]
    if weights is None:
        weights = [size / sum(sizes) for size in sizes]
    gradients = [mean_gradient(model, loss, part) for part in parts]
    return moments_of_gradients(gradients, sizes, weights, prefixes)


@dataclass(frozen=True)
class ReferenceNoiseScale:
    """The exact noise scale of a set of samples: of the set itself, and as an estimate of its population."""

    training_set: float
    population: float


def exact_noise_scale(gradients: Sequence[Tensor]) -> ReferenceNoiseScale:
    """Noise scale of a training set, from the gradient of every one of its N samples.

    training_set = tr(S_N) / |G|^2 with the 1/N covariance S_N around the set's mean G.
    population   = S / (|G|^2 - S/N) with the trace S of the 1/(N-1) covariance: both parts of the ratio are
    unbiased for the population that the set was drawn from.
    """
    num_samples = len(gradients)
    mean = torch.zeros_like(gradients[0], dtype=torch.float64)
    for gradient in gradients:
        mean = mean + gradient.double() / num_samples
    squared_deviations = 0.0
    for gradient in gradients:
        deviation = gradient.double() - mean
        squared_deviations += (deviation * deviation).sum().item()
    sq_norm = (mean * mean).sum().item()
    population_trace = squared_deviations / (num_samples - 1)
    return ReferenceNoiseScale(
        training_set=squared_deviations / num_samples / sq_norm,
        population=population_trace / (sq_norm - population_trace / num_samples),
    )


def exact_noise_scale_of_set(model: nn.Module, loss: Loss, samples: Sequence[Sample]) -> ReferenceNoiseScale:
    """The same for a model's whole gradient."""
    flat = []
    for sample in samples:
        gradients = sample_gradient(model, loss, sample)
        flat.append(torch.cat([gradient.reshape(-1) for gradient in gradients.values()]))
    return exact_noise_scale(flat)
