"""The slow obvious twin of moving-average batch norm: float64, one micro-batch after another, gradients by formula.

After the authors' code, as they simulate small batches: statistics of a micro-batch are means over it and those before
it, the last `num_averaged` in all.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class ReferenceLayer:
    """A layer over several passes."""

    weight: Tensor
    bias: Tensor
    center: Tensor
    running_var: Tensor
    num_averaged: int
    warmup_updates: int
    r_max: float
    eps: float
    momentum: float
    num_updates: int = 0
    second_moments: list[Tensor] = field(default_factory=list)
    projections: list[Tensor] = field(default_factory=list)

    def train_once(
        self, x: Tensor, grad_output: Tensor, micro_batch_size: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the output and the gradients of input, weight and bias."""
        x, grad_output = x.double(), grad_output.double()
        shape = [-1] + [1] * (x.dim() - 2)
        dims = [0, *range(2, x.dim())]
        is_warm = self.num_updates >= self.warmup_updates
        weight, bias, center = (t.double().view(shape) for t in (self.weight, self.bias, self.center))
        old_running = self.running_var.double()
        outputs, grads, used = [], [], []
        grad_weight, grad_bias = torch.zeros(x.shape[1]).double(), torch.zeros(x.shape[1]).double()
        for part, grad in zip(x.split(micro_batch_size), grad_output.split(micro_batch_size), strict=True):
            centred = part - center
            self.second_moments.append(centred.square().mean(dims))
            var = self._last(self.second_moments, is_warm)
            used.append(var)
            root = (var + self.eps).sqrt()
            r = root / (old_running + self.eps).sqrt()
            r = r.clamp(1 / self.r_max, self.r_max) if is_warm else torch.ones_like(r)
            z = centred / root.view(shape)
            y = r.view(shape) * z
            outputs.append(weight * y + bias)
            grad_weight += (grad * y).sum(dims)
            grad_bias += grad.sum(dims)
            g = grad * weight * r.view(shape)
            self.projections.append((g * z).mean(dims))
            projection = self._last(self.projections, is_warm)
            grads.append((g - z * projection.view(shape)) / root.view(shape))
        new = torch.stack(used).mean(0)
        first = self.num_updates == 0
        self.running_var = new if first else (1 - self.momentum) * old_running + self.momentum * new
        self.num_updates += 1
        return torch.cat(outputs), torch.cat(grads), grad_weight, grad_bias

    def _last(self, rows: list[Tensor], is_warm: bool) -> Tensor:
        return torch.stack(rows[-self.num_averaged :] if is_warm else rows[-1:]).mean(0)
