"""What does the published code predict? It draws a Gaussian map and sends it through the layer's own convolution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anybatch.nn.moment_propagation import PropagationRule
from anybatch.nn.moments import Moments

_TINY = 1e-12
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class SampledTransition:
    """The rule of an activation and the convolution behind it, by one sampled map per split.

    Random numbers are those of the global generator, as dropout's, so that activation checkpointing restores them.

    Attributes:
        convolution: the module.
        rule: of the convolution, for maps of an unknown size.
        activation: called before it; None for none.
        activation_rule: of the activation.

    Source:
        The official code of Wang et al. 2018. Its moments are noisy: by some 20% in the variance of an 8x8 map.
    """

    convolution: Any
    rule: PropagationRule
    activation: Callable[[Tensor], Tensor] | None
    activation_rule: Callable[[Moments], Moments] | None

    def __call__(self, moments: Moments) -> Moments:
        """Return the moments over positions of the convolved sample, (S, O)."""
        if not moments.size:
            before = moments if self.activation_rule is None else self.activation_rule(moments)
            return self.rule.propagate(self.convolution, before)
        ones = (1,) * len(moments.size)
        noise = torch.randn(*moments.mean.shape, *moments.size, device=moments.mean.device, dtype=moments.mean.dtype)
        mean, std = (each.unflatten(1, (-1, *ones)) for each in (moments.mean, (moments.var + _TINY).sqrt()))
        sample = mean + std * noise
        output = self._convolve(sample if self.activation is None else self.activation(sample))
        var, mean = torch.var_mean(output.flatten(2), dim=2, correction=0)
        return Moments(mean, var, tuple(output.shape[2:]))

    def _convolve(self, sample: Tensor) -> Tensor:
        """Convolve in the sample's dtype, past the module's hooks."""
        bias = None if self.convolution.bias is None else self.convolution.bias.to(sample)
        return self.convolution._conv_forward(sample, self.convolution.weight.to(sample), bias)
