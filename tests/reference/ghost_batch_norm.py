"""The slow obvious twin of `anybatch.nn.ghost_batch_norm`: float64, one ghost batch at a time, one update at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ReferenceLayer:
    """What a training pass gives: the output, gradients of sum(output * grad_output), running statistics."""

    output: Tensor
    grad_input: Tensor
    grad_weight: Tensor
    grad_bias: Tensor
    running_mean: Tensor
    running_var: Tensor


def ghost_sizes(batch_size: int, ghost_batch_size: int) -> list[int]:
    """Deal samples to the ghost batches in turn, as cards, and count them."""
    sizes = [0] * max(1, batch_size // ghost_batch_size)
    for sample in range(batch_size):
        sizes[sample % len(sizes)] += 1
    return sizes


def update_running(running: Tensor, parts: Sequence[Tensor], momentum: float | None, mode: str, seen: int) -> Tensor:
    """`seen` ghost batches were averaged before; it matters where there is no momentum."""
    if momentum is None:
        for part in parts:
            running = (seen * running + part) / (seen + 1)
            seen += 1
        return running
    if mode == "average":
        return (1 - momentum) * running + momentum * sum(parts) / len(parts)
    for part in parts:
        running = (1 - momentum) * running + momentum * part
    return running


def train_once(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    grad_output: Tensor,
    ghost_batch_size: int,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    mode: str = "sequential",
    seen: int = 0,
) -> ReferenceLayer:
    """Forward and backward of a fresh layer, statistics starting from 0 and 1."""
    x, weight, bias = (tensor.detach().double().requires_grad_() for tensor in (x, weight, bias))
    shape = [1, x.shape[1]] + [1] * (x.dim() - 2)
    dims = [0, *range(2, x.dim())]
    outputs, means, variances = [], [], []
    for chunk in x.split(ghost_sizes(len(x), ghost_batch_size)):
        mean = chunk.mean(dims)
        centred = chunk - mean.view(shape)
        biased = centred.square().mean(dims)
        outputs.append(weight.view(shape) * centred / (biased.view(shape) + eps).sqrt() + bias.view(shape))
        count = chunk.numel() // chunk.shape[1]
        means.append(mean.detach())
        variances.append(biased.detach() * count / (count - 1))
    output = torch.cat(outputs)
    gradients = torch.autograd.grad((output * grad_output.double()).sum(), (x, weight, bias))
    zeros = torch.zeros_like(means[0])
    return ReferenceLayer(
        output.detach(),
        *gradients,
        update_running(zeros, means, momentum, mode, seen),
        update_running(zeros + 1, variances, momentum, mode, seen),
    )
