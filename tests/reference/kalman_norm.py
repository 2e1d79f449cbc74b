"""The slow obvious twin of `anybatch.nn.kalman_norm`: float64, one split and one channel at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ReferencePass:
    """What a training pass gives: output, posterior moments and the running statistics from 0 and 1."""

    output: Tensor
    mean: Tensor
    var: Tensor
    running_mean: Tensor
    running_var: Tensor


def keeps_prior(
    observed_var, prior_var, gate: str, ratio_limit: float, eps: float, num_values: int
) -> list[list[bool]]:
    """Per split and channel, whether the gate lets the prior through."""
    num_splits, num_channels = len(observed_var), len(observed_var[0])
    if gate == "channel" and num_values == 1:
        return [[True] * num_channels] * num_splits
    if gate == "channel":
        return [
            [float(prior_var[s][c] + eps) / float(observed_var[s][c] + eps) < ratio_limit for c in range(num_channels)]
            for s in range(num_splits)
        ]
    total = 0.0
    for s in range(num_splits):
        for c in range(num_channels):
            v = float(observed_var[s][c])
            total += float(prior_var[s][c]) / v if v else float("inf")
    return [[total / (num_splits * num_channels) < ratio_limit] * num_channels] * num_splits


def train_once(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    prior: tuple[Tensor, Tensor] | None,
    p: float | Tensor,
    num_splits: int,
    gate: str = "channel",
    ratio_limit: float = 100.0,
    eps: float = 1e-5,
    momentum: float = 0.1,
    running_splits: str = "all",
) -> ReferencePass:
    """Forward; give leaf tensors in float64 to differentiate it."""
    size = len(x) // num_splits
    observed = [[x[s * size : (s + 1) * size, c].reshape(-1) for c in range(x.shape[1])] for s in range(num_splits)]
    means = [[values.sum() / len(values) for values in row] for row in observed]
    variances = [
        [((values - m) ** 2).sum() / len(values) for values, m in zip(row, of_row, strict=True)]
        for row, of_row in zip(observed, means, strict=True)
    ]
    if prior is not None:
        constants = [[v.detach() for v in row] for row in variances]
        kept = keeps_prior(constants, prior[1].detach(), gate, ratio_limit, eps, len(observed[0][0]))
        for s in range(num_splits):
            for c in range(x.shape[1]):
                m, v, pm, pv = means[s][c], variances[s][c], prior[0][s, c], prior[1][s, c]
                if kept[s][c]:
                    means[s][c] = p * pm + (1 - p) * m
                    variances[s][c] = p * pv + (1 - p) * v + p * (1 - p) * (m - pm) ** 2
    columns = []
    for c in range(x.shape[1]):
        parts = [
            weight[c] * (x[s * size : (s + 1) * size, c] - means[s][c]) / (variances[s][c] + eps) ** 0.5 + bias[c]
            for s in range(num_splits)
        ]
        columns.append(torch.cat(parts))
    mean, var = (torch.stack([torch.stack([*row]).reshape(-1) for row in each]) for each in (means, variances))
    running_mean, running_var = _running(mean.detach(), var.detach(), running_splits)
    if prior is None:
        count = len(observed[0][0]) * (num_splits if running_splits == "all" else 1)
        running_var = running_var * count / (count - 1)
    return ReferencePass(
        torch.stack(columns, 1), mean, var, momentum * running_mean, (1 - momentum) + momentum * running_var
    )


def _running(mean: Tensor, var: Tensor, running_splits: str) -> tuple[Tensor, Tensor]:
    if running_splits == "first":
        return mean[0], var[0]
    centre = mean.sum(0) / len(mean)
    return centre, var.sum(0) / len(var) + ((mean - centre) ** 2).sum(0) / len(mean)


@dataclass(frozen=True)
class ReferenceGroups:
    """What a pass of group norm with a prior gives: output and the posterior moments, for each channel."""

    output: Tensor
    mean: Tensor
    var: Tensor


def train_groups_once(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    prior: Sequence[Tensor] | None,
    p: float | None,
    num_groups: int,
    gate: str = "channel",
    ratio_limit: float = 100.0,
    eps: float = 1e-5,
) -> ReferenceGroups:
    """Forward of one sample and one group at a time; the prior is of channels."""
    size = x.shape[1] // num_groups
    groups = [slice(g * size, (g + 1) * size) for g in range(num_groups)]
    values = [[sample[group].reshape(-1) for group in groups] for sample in x]
    means = [[each.sum() / len(each) for each in row] for row in values]
    variances = [
        [((each - m) ** 2).sum() / len(each) for each, m in zip(row, of_row, strict=True)]
        for row, of_row in zip(values, means, strict=True)
    ]
    if prior is not None:
        folded = [[_fold(prior[0][n, group], prior[1][n, group]) for group in groups] for n in range(len(x))]
        constants = [[v.detach() for v in row] for row in variances]
        prior_var = torch.tensor([[var.item() for _, var in row] for row in folded], dtype=torch.float64)
        kept = keeps_prior(constants, prior_var, gate, ratio_limit, eps, len(values[0][0]))
        for n in range(len(x)):
            for g in range(num_groups):
                m, v, (pm, pv) = means[n][g], variances[n][g], folded[n][g]
                if kept[n][g]:
                    means[n][g] = p * pm + (1 - p) * m
                    variances[n][g] = p * pv + (1 - p) * v + p * (1 - p) * (m - pm) ** 2
    mean, var = (
        torch.stack([torch.stack([row[c // size] for c in range(x.shape[1])]) for row in each])
        for each in (means, variances)
    )
    samples = [
        torch.stack(
            [weight[c] * (x[n, c] - mean[n, c]) / (var[n, c] + eps) ** 0.5 + bias[c] for c in range(x.shape[1])]
        )
        for n in range(len(x))
    ]
    return ReferenceGroups(torch.stack(samples), mean, var)


def _fold(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of channels that are equally large parts of one group."""
    mean = means.sum() / len(means)
    return mean, (variances + means**2).sum() / len(means) - mean**2
