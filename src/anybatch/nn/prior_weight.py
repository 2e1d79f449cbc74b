"""How much is a prediction worth beside a noisy observation?"""

from __future__ import annotations

import torch
from torch import Tensor

from anybatch.nn.moments import Moments

_NARROWEST = 0.01  # of the observed variance: a narrower prior gives its channel no more weight


def moments_of_gain(observed: Moments, prior: Moments, num_values: int, sample_means: Tensor | None = None) -> Tensor:
    """Return the noise of the observed means and the squared distance of the prior to them, in units of variance.

    The noise is the variance of the means between splits, or, with one split, between its samples, over their number:
    positions of a map are not independent, and it knows. With one sample it is v / n, as if they were.

    The unit is the prior's variance, in which the noise of this batch has no part: each of the two is unbiased.

    Args:
        observed: (S, C).
        prior: (S, C).
        num_values: n, values per split and channel; used where there is one sample.
        sample_means: (N, C) of the samples; used where there is one split.

    Returns:
        (2,), each a mean over splits and channels.

    Example:
        >>> observed = Moments(torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [4.0]]))
        >>> prior = Moments(torch.tensor([[1.0], [1.0]]), torch.tensor([[4.0], [4.0]]))
        >>> moments_of_gain(observed, prior, 2).tolist()
        [0.5, 0.25]
        >>> moments_of_gain(observed.pooled(), prior.pooled(), 4, observed.mean).tolist()
        [0.25, 0.0]
    """
    distance = (observed.mean - prior.mean).square().mean(0)
    var = observed.var.mean(0)
    tiny = torch.finfo(var.dtype).tiny
    unit = torch.maximum(prior.var.mean(0), _NARROWEST * var).clamp_min(tiny)
    is_live = (var > tiny).to(unit)
    noise = _noise_of_means(observed, num_values, sample_means)
    return torch.stack([(is_live * each / unit).mean() for each in (noise, distance)])


def _noise_of_means(observed: Moments, num_values: int, sample_means: Tensor | None) -> Tensor:
    num_splits = len(observed.mean)
    means = sample_means if num_splits == 1 else observed.mean
    if means is None or len(means) == 1:
        return observed.var[0] / num_values
    return means.var(0) * (num_splits / len(means))


def adaptive_prior_weight(gain_moments: Tensor, start: float) -> Tensor:
    """Return the weight of the prediction, 1 - 1 / (1 + noise / t^2), t^2 the squared error of the prediction.

    The distance of observation and prediction has both in it: t^2 = distance - noise.

    Args:
        gain_moments: (2,), averages of `moments_of_gain`; they may have started at zero.
        start: the weight where nothing has been seen.

    Returns:
        (1,), from 0 to 1.

    Example:
        >>> print(adaptive_prior_weight(torch.tensor([0.01, 0.04]), start=0.9))
        tensor([0.2500])

    Source:
        Ours, after the gain of a filter whose state is the true mean; Wang et al. 2018 have a constant.
    """
    noise, distance = gain_moments[:1], gain_moments[1:]
    weight = noise / distance.clamp_min(torch.finfo(distance.dtype).tiny)
    return torch.where(noise + distance > 0, weight.clamp(0, 1), torch.full_like(weight, start))
