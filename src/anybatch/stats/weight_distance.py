"""How far have the weights walked from where they started?"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anybatch.stats.groups import unwrap
from anybatch.stats.moments import widest_dtype


class Distance(NamedTuple):
    """Euclidean distances from the initial weights.

    Attributes:
        whole: of the vector of all trainable parameters, a scalar.
        tensors: of each parameter by itself.
    """

    whole: Tensor
    tensors: dict[str, Tensor]


class WeightDistance:
    """Measure ||w - w0||, of the whole vector and of every tensor.

    Args:
        model: at w0; a copy of its trainable parameters is kept on their device.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> distance = WeightDistance(model)
        >>> with torch.no_grad():
        ...     _ = model.weight.add_(torch.tensor([2.0, 0.0, 0.0]))
        >>> round(distance.measure().whole.item(), 6)
        2.0

    Source:
        Hoffer et al. 2017, arXiv:1705.08741, figure 2. Their code measures the first parameter tensor alone, once an
        epoch.
    """

    def __init__(self, model: nn.Module) -> None:
        named = dict(unwrap(model).named_parameters())
        self._parameters = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        self.initial = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def measure(self) -> Distance:
        """Return the distances now, in the widest type of the device."""
        norms = {name: _norm(parameter, self.initial[name]) for name, parameter in self._parameters.items()}
        return Distance(torch.linalg.vector_norm(torch.stack(list(norms.values()))), norms)


def _norm(weights: Tensor, initial: Tensor) -> Tensor:
    """Return ||w - w0||, the difference taken in float32 or wider and its squares added in the widest type there is."""
    if weights.dtype.itemsize < torch.float32.itemsize:
        weights = weights.float()
    return torch.linalg.vector_norm(weights - initial, dtype=widest_dtype(weights.device))


def log_spaced(last: int, per_decade: int = 20) -> list[int]:
    """Return update counts from 1 to `last`, equally spaced on a logarithmic axis.

    Args:
        last: the largest.
        per_decade: how many for a factor of ten, where whole numbers are dense enough.

    Returns:
        Ascending, without repeats.

    Example:
        >>> log_spaced(100, per_decade=3)
        [1, 2, 5, 10, 22, 46, 100]
    """
    count = math.ceil(math.log10(last) * per_decade) + 1 if last > 1 else 1
    return sorted({round(last ** (index / max(count - 1, 1))) for index in range(count)} | {last})
