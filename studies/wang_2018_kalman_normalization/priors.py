"""What would other priors do in the place of the prediction? Controls, each in the layers that have a prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from anybatch.nn import Moments


@dataclass(frozen=True)
class Constant:
    """Mean 0 and variance 1, whatever the layer."""

    control: str = "constant"

    def __call__(self, layer: Any, predicted: Moments | None, observed: Moments) -> Moments | None:
        """Return the prior."""
        if predicted is None:
            return None
        return Moments(torch.zeros_like(observed.mean), torch.ones_like(observed.var), observed.size)


@dataclass(frozen=True)
class Shuffled:
    """The prediction of other channels: one permutation for each number of channels, drawn once."""

    control: str = "shuffled"

    def __call__(self, layer: Any, predicted: Moments | None, observed: Moments) -> Moments | None:
        """Return the prior."""
        if predicted is None:
            return None
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(observed.mean.shape[1], generator=generator).to(observed.mean.device)
        return Moments(predicted.mean[:, order], predicted.var[:, order], predicted.size)


@dataclass(frozen=True)
class MovingAverage:
    """The running statistics of the layer itself, which are moving averages of its posterior moments."""

    control: str = "moving average"

    def __call__(self, layer: Any, predicted: Moments | None, observed: Moments) -> Moments | None:
        """Return the prior."""
        if predicted is None:
            return None
        mean, var = (each.detach().clone()[None] for each in (layer.running_mean, layer.running_var))
        return Moments(mean, var, observed.size)


@dataclass(frozen=True)
class Oracle:
    """The moments of the whole batch, which no micro-batch knows."""

    control: str = "oracle"

    def __call__(self, layer: Any, predicted: Moments | None, observed: Moments) -> Moments | None:
        """Return the prior."""
        return None if predicted is None else observed.pooled()
