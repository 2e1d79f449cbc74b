"""How does a large batch get the noise of a small one, without a larger rate?"""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from torch import Tensor, nn

from anybatch.apply.nested import map_nested
from anybatch.errors import InputError


class GradientNoise:
    """Weigh each sample's gradient with its own draw of N(1, variance): multiplicative gradient noise.

    With ghat = (1/M) sum_n z_n g_n the covariance of a step at batch M and variance M/m - 1 is that of a step at batch
    m, and its mean stays. The weights are multiplied on the gradient of the model's outputs, row by row, which for a
    loss that averages over rows is the same as weighing each sample's loss; the loss shown stays the plain mean.
    Only a model in train mode draws. Draws come from torch's generator of the device, as dropout's do.

    Args:
        model: its outputs hold one row per sample: tensors, or dicts, lists and tuples of them.
        variance: of the weights; `Regime.noise_variance`.

    Raises:
        InputError: a negative variance; in training, outputs without a row per sample.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(3, 1)
        >>> with GradientNoise(model, variance=7.0):
        ...     model(torch.ones(8, 3)).mean().backward()

    Source:
        Hoffer et al. 2017, arXiv:1705.08741, section 4 (the alternative to the square-root rate). The variance that
        keeps the covariance exactly, M/m - 1 instead of "proportional to M", is derived here.
    """

    def __init__(self, model: nn.Module, variance: float) -> None:
        if not variance >= 0:
            raise InputError(f"variance must be zero or positive; got {variance}.")
        self._std = math.sqrt(variance)
        self._handle = model.register_forward_hook(self._weigh)

    def remove(self) -> None:
        """Take the hook off the model."""
        self._handle.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.remove()

    def _weigh(self, module: nn.Module, inputs: Any, outputs: Any) -> Any:
        if not (module.training and torch.is_grad_enabled()):
            return outputs
        rows: list[Tensor] = []
        map_nested(rows.append, outputs, _has_gradient)
        counts = {len(tensor) if tensor.ndim else 0 for tensor in rows}
        if len(counts) != 1 or counts == {0}:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in rows) or "no tensor with a gradient"
            raise InputError(
                f"outputs of the model must hold one row per sample for gradient noise; got {shapes}. "
                "Return predictions from the model and average over samples in the loss."
            )
        weights = 1 + self._std * torch.randn(counts.pop(), device=rows[0].device)
        return map_nested(lambda row: _weighted(row, weights), outputs, _has_gradient)


def _has_gradient(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _weighted(output: Tensor, weights: Tensor) -> Tensor:
    """Return the output as another tensor whose gradient is weighted, so that what depends on the output is not."""
    alias = output.view_as(output)
    alias.register_hook(lambda grad: grad * weights.to(grad.dtype).view(-1, *[1] * (grad.ndim - 1)))
    return alias
