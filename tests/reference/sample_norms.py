"""The slow obvious twin of `anybatch.stats.PerSample`: one sample at a time through the model, in float64."""

from collections.abc import Callable, Sequence

import torch
from reference.gradient_moments import Sample, sample_gradient
from torch import Tensor, nn


def sample_sq_norms(
    model: nn.Module,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor],
    samples: Sequence[Sample],
    factors: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Squared norms of each sample's gradient by parameter name, (N,); factors multiply gradients before."""
    norms: dict[str, list[float]] = {}
    for sample in samples:
        for name, gradient in sample_gradient(model, loss, sample).items():
            if factors is not None:
                gradient = gradient * factors[name].double()
            norms.setdefault(name, []).append((gradient * gradient).sum().item())
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in norms.items()}


def adam_factor(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, betas: tuple[float, float], eps: float
) -> Tensor:
    """The power 1/2 of Adam's preconditioner, written out from algorithm 1 of Kingma and Ba 2015, with our floor."""
    state = optimizer.state[parameter]
    corrected = state["exp_avg_sq"].double() / (1 - betas[1] ** float(state["step"]))
    floor = (1 - betas[1]) * corrected.sum() / corrected.numel()
    corrected = torch.where(corrected < floor, floor, corrected)
    return (1 / (corrected.sqrt() + eps)).sqrt()
