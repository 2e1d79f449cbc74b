"""The slow obvious twin of `anybatch.nn.batch_renorm`: float64, one micro-batch at a time, r and d as plain numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ReferencePass:
    """What a training pass gives: the output, gradients of sum(output * grad_output), running statistics after it."""

    output: Tensor
    grad_input: Tensor
    grad_weight: Tensor
    grad_bias: Tensor
    running_mean: Tensor
    running_var: Tensor


def train_once(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    grad_output: Tensor,
    micro_batch_size: int,
    running_mean: Tensor,
    running_var: Tensor,
    r_max: float,
    d_max: float,
    eps: float = 1e-5,
    momentum: float = 0.1,
) -> ReferencePass:
    """Forward and backward of one pass, from given running statistics and limits."""
    x, weight, bias = (tensor.detach().double().requires_grad_() for tensor in (x, weight, bias))
    running_mean, running_var = running_mean.double(), running_var.double()
    outputs, means, variances = [], [], []
    for part in x.split(micro_batch_size):
        channels = []
        part_means, part_variances = [], []
        for channel in range(x.shape[1]):
            values = part[:, channel]
            mean = values.mean()
            biased = (values - mean).square().mean()
            sigma = (running_var[channel] + eps).sqrt().item()
            r = min(max((biased + eps).sqrt().item() / sigma, 1 / r_max), r_max)
            d = min(max((mean.item() - running_mean[channel].item()) / sigma, -d_max), d_max)
            channels.append(((values - mean) / (biased + eps).sqrt() * r + d) * weight[channel] + bias[channel])
            part_means.append(mean.detach())
            part_variances.append(biased.detach() * values.numel() / (values.numel() - 1))
        outputs.append(torch.stack(channels, 1))
        means.append(torch.stack(part_means))
        variances.append(torch.stack(part_variances))
    output = torch.cat(outputs)
    gradients = torch.autograd.grad((output * grad_output.double()).sum(), (x, weight, bias))
    return ReferencePass(
        output.detach(),
        *gradients,
        (1 - momentum) * running_mean + momentum * torch.stack(means).mean(0),
        (1 - momentum) * running_var + momentum * torch.stack(variances).mean(0),
    )
