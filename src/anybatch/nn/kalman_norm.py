"""How is a layer normalized by one or two samples? By what they show and by what the layers before it foretell.

Kalman normalization blends the observed moments of a micro-batch with a prediction that is carried along the network.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.nn.ghost_batch_norm import track_statistics
from anybatch.nn.kalman_correction import Correction, check_prior
from anybatch.nn.kalman_layer import KalmanLayer
from anybatch.nn.kalman_options import KalmanOptions, check_option_names
from anybatch.nn.layer_settings import check_eps
from anybatch.nn.micro_batch_parts import check_input, check_momentum, check_tensors
from anybatch.nn.moments import Moments, wide_dtype
from anybatch.nn.recomputation import is_computed_again
from anybatch.nn.split_normalization import SplitNormalized, normalize_splits


def kalman_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    prior: Moments | None = None,
    *,
    prior_weight: float = 0.5,
    splits: int = 1,
    gate: Any = "channel",
    ratio_limit: float = 100.0,
    eps: float = 1e-5,
) -> SplitNormalized:
    """Normalize each split of a training batch by its observed moments, corrected by a prior.

    Split s becomes weight * (x - mean_s) / sqrt(var_s + eps) + bias, mean_s and var_s being those of
    `correct_moments`. Gradients flow through observed moments and prior. Changes nothing it is given.

    Args:
        input: (N, C) or (N, C, *), N samples.
        weight: (C,), or None for ones.
        bias: (C,), or None for zeros.
        prior: (S, C), or (1, C) for all splits; None: then each split is normalized as batch norm does.
        prior_weight: p, the weight of the prior; 1 - p is the gain.
        splits: S equal, contiguous splits.
        gate: see `correct_moments`.
        ratio_limit: see `correct_moments`.
        eps: added to the variance.

    Returns:
        The output, the observed and the posterior moments.

    Raises:
        InputError: `splits` does not divide N, numbers out of range, a prior with a negative variance, complex or
            integer input, tensors of the wrong shape, or one value per channel and split without a prior that stands in
            for it.

    Example:
        >>> x = torch.tensor([[1.0], [3.0], [-2.0], [2.0]])
        >>> prior = Moments(torch.zeros(2, 1), torch.ones(2, 1))
        >>> print(kalman_norm(x, prior=prior, prior_weight=0.9, splits=2).output.flatten())
        tensor([ 0.6860,  2.4010, -1.7541,  1.7541])

    Source:
        Wang et al. 2018, arXiv:1802.03133, as the official code computes it.
    """
    check_tensors(input, weight, bias)
    check_eps(eps, may_be_zero=True)
    options = KalmanOptions(splits=splits, prior_weight=prior_weight, gain="fixed", gate=gate, ratio_limit=ratio_limit)
    num_splits = options.count_splits(len(input))
    if prior is not None:
        check_prior(prior, num_splits, input.shape[1])
        _check_variances(prior.var)
    rule = Correction(eps, options.gate, ratio_limit, _values_per_split(input, num_splits))
    rule.check_has_variance(prior if prior_weight else None, input.shape)
    p = None if prior is None else torch.full((1,), prior_weight, device=input.device, dtype=wide_dtype(input))
    tensors = (weight, bias, *((None, None) if prior is None else prior[:2]), p)
    return normalize_splits(input, num_splits, rule, tensors)


def _check_variances(var: Tensor) -> None:
    """Refuse negative variances, where the values can be looked at."""
    is_traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if is_traced or type(var) not in (Tensor, nn.Parameter) or var.is_meta:
        return
    if (var < 0).any():
        raise InputError(f"prior must have variances of at least 0; got {var.min().item()}. Square deviations.")


def _values_per_split(input: Tensor, num_splits: int) -> int:
    return input.numel() // (num_splits * input.shape[1])


class _KalmanNorm(KalmanLayer, nn.modules.batchnorm._BatchNorm):
    """Mixed in before a BatchNorm; corrected moments in training, the BatchNorm itself otherwise."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        check_eps(eps, may_be_zero=True)
        check_momentum(momentum)
        check_option_names(options)
        chosen = KalmanOptions(**options)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self._init_kalman(chosen)
        self.evaluated_size: tuple[int, ...] | None = None

    def _num_channels(self) -> int:
        return self.num_features

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        check_input(input, self.num_features)
        if not self.training:
            self.evaluated_size = tuple(input.shape[2:])
            return super().forward(input)
        num_splits = self.options.count_splits(len(input))
        num_values = _values_per_split(input, num_splits)
        rule = Correction(self.eps, self.options.gate, self.options.ratio_limit, num_values)
        normalized = self._normalize(input, num_splits, rule)
        assert self.latest is not None
        rule.check_has_variance(None if self.options.is_weightless else self.latest.prior, input.shape)
        if not is_computed_again():
            self._track_gain(input, num_values)
            if self.track_running_stats:
                mean, var = self._running_moments(normalized.posterior, num_values)
                track_statistics(self, mean, var, running_update="average")
        return normalized.output

    @torch.no_grad()
    def _running_moments(self, posterior: Moments, num_values: int) -> tuple[Tensor, Tensor]:
        """Return the moments that the running statistics move to, (1, C): unbiased where the batch alone spoke."""
        is_first = self.options.running_splits == "first"
        moments = Moments(posterior.mean[:1], posterior.var[:1]) if is_first else posterior.pooled()
        total = num_values if is_first else num_values * len(posterior.mean)
        is_observed = self.latest is not None and self.latest.prior is None
        return moments.mean, moments.var * (total / (total - 1) if is_observed and total > 1 else 1)

    def clear(self) -> None:
        super().clear()
        self.evaluated_size = None

    def _settled(self, num_splits: int) -> tuple[Moments, Moments] | None:
        if self.training or self.running_mean is None or self.running_var is None:
            return super()._settled(num_splits)
        if self.evaluated_size is None:
            return None
        mean, var = (each.to(wide_dtype(each)) for each in (self.running_mean, self.running_var))
        running = Moments(mean.expand(num_splits, -1), var.expand(num_splits, -1), self.evaluated_size)
        return running, running

    def extra_repr(self) -> str:
        return ", ".join(part for part in (super().extra_repr(), str(self.options)) if part)


class KalmanNorm1d(_KalmanNorm, nn.BatchNorm1d):
    """BatchNorm1d whose training moments are corrected by a prediction; inputs are (N, C) or (N, C, L).

    Each split of the batch, a micro-batch, is normalized by p times its prior and 1 - p times what it shows (see
    `correct_moments`). The prior comes from the layers before: `anybatch.nn.wire_kalman` finds the way. A layer
    without a prior normalizes each split as BatchNorm does, and any layer in evaluation is BatchNorm, exactly. A split
    of one value per channel is normalized by the prior: its own variance of 0 says nothing to the gate.

    Checkpoints of BatchNorm load; so do those of this layer into BatchNorm where it learns no gain (`convert` the model
    back first otherwise). Running statistics are those of all splits together, with the posterior's biased variance;
    without a prior they are BatchNorm's of the whole batch.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of a new statistic; None for the cumulative average.
        affine: whether there are `weight` and `bias`.
        track_running_stats: without them evaluation uses the statistics of the whole batch, as BatchNorm does.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        **options: of `KalmanOptions`: splits or micro_batch_size, prior_weight, gain, transition, state_space, ...

    Raises:
        InputError: an option that does not exist, numbers out of range, complex or integer input, other channels; in
            training, an empty batch or one that does not divide into the splits, a prior of the wrong shape, or one
            value per channel and split where there is no prior, one that foretells no variance, or the gate "layer",
            which drops it.

    Example:
        >>> layer = KalmanNorm1d(1, micro_batch_size=2)
        >>> layer(torch.tensor([[1.0], [3.0], [-2.0], [2.0]])).flatten().round(decimals=3).tolist()
        [-1.0, 1.0, -1.0, 1.0]

    Source:
        Wang et al. 2018, arXiv:1802.03133, and the official code. Differs: see `KalmanOptions`.
    """


class KalmanNorm2d(_KalmanNorm, nn.BatchNorm2d):
    """BatchNorm2d whose training moments are corrected by a prediction; inputs are (N, C, H, W).

    See `KalmanNorm1d`.

    Example:
        >>> KalmanNorm2d(8, micro_batch_size=2)(torch.randn(8, 8, 5, 5)).shape
        torch.Size([8, 8, 5, 5])
    """


class KalmanNorm3d(_KalmanNorm, nn.BatchNorm3d):
    """BatchNorm3d whose training moments are corrected by a prediction; inputs are (N, C, D, H, W).

    See `KalmanNorm1d`.

    Example:
        >>> KalmanNorm3d(8, splits=2)(torch.randn(4, 8, 2, 5, 5)).shape
        torch.Size([4, 8, 2, 5, 5])
    """
