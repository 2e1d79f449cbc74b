"""How is group norm corrected by a prediction? Each sample is a split, and channels are folded into groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from anybatch.errors import InputError
from anybatch.nn.kalman_correction import Correction
from anybatch.nn.kalman_layer import KalmanLayer
from anybatch.nn.kalman_options import OF_SPLITS, OPTION_NAMES, KalmanOptions, check_option_names
from anybatch.nn.layer_settings import check_eps, is_count
from anybatch.nn.micro_batch_parts import check_input
from anybatch.nn.moments import Moments
from anybatch.nn.recomputation import is_computed_again


def fold_channels(moments: Moments, num_groups: int) -> Moments:
    """Return the moments of groups of channels taken together.

    mean_g = mean of mean_c, var_g = mean of (var_c + mean_c^2) - mean_g^2.

    Args:
        moments: (S, C).
        num_groups: G, which divides C.

    Returns:
        (S, G).

    Example:
        >>> import torch
        >>> folded = fold_channels(Moments(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 3.0]])), 1)
        >>> folded.mean.item(), folded.var.item()
        (1.0, 3.0)
    """
    means, variances = (each.unflatten(1, (num_groups, -1)) for each in moments[:2])
    return Moments(means.mean(2), variances.mean(2) + means.var(2, correction=0), moments.size)


@dataclass(frozen=True)
class GroupCorrection(Correction):
    """The correction of groups of channels.

    Attributes:
        num_groups: G.
    """

    num_groups: int = field(kw_only=True)

    def correct(
        self, observed: Moments, prior_mean: Tensor | None, prior_var: Tensor | None, prior_weight: Tensor | None
    ) -> Moments:
        """Return the posterior moments of the groups, for each of their channels."""
        if prior_mean is not None and prior_var is not None:
            prior_mean, prior_var, _ = self._fold(Moments(prior_mean, prior_var))
        mean, var, _ = super().correct(self._fold(observed), prior_mean, prior_var, prior_weight)
        channels = observed.mean.shape[1] // self.num_groups
        return Moments(mean.repeat_interleave(channels, 1), var.repeat_interleave(channels, 1), observed.size)

    def pull_back_correction(
        self,
        of_posterior: Moments,
        observed: Moments,
        prior_mean: Tensor | None,
        prior_var: Tensor | None,
        prior_weight: Tensor | None,
    ) -> tuple[Any, ...]:
        """Return the gradients of what `correct` takes, of that of the posterior moments."""
        of_mean, of_var = (each.unflatten(1, (self.num_groups, -1)).sum(2) for each in of_posterior[:2])
        of_groups = Moments(of_mean, of_var)
        if prior_mean is None or prior_var is None:
            return *self._unfold(of_groups, observed), None, None, None
        prior = Moments(prior_mean, prior_var)
        folded = self._fold(prior)
        of_mean, of_var, *of_prior, of_weight = super().pull_back_correction(
            of_groups, self._fold(observed), *folded[:2], prior_weight
        )
        return *self._unfold(Moments(of_mean, of_var), observed), *self._unfold(Moments(*of_prior), prior), of_weight

    def _fold(self, moments: Moments) -> Moments:
        return fold_channels(moments, self.num_groups)

    def _unfold(self, of_groups: Moments, moments: Moments) -> tuple[Tensor, Tensor]:
        """Return the gradients of moments per channel, of those of their groups."""
        means = moments.mean.unflatten(1, (self.num_groups, -1))
        channels = means.shape[2]
        of_mean, of_var = (each[:, :, None] / channels for each in of_groups[:2])
        of_means = of_mean + 2 * of_var * (means - means.mean(2, keepdim=True))
        return of_means.flatten(1), of_var.expand_as(means).flatten(1)


class GroupKalmanNorm(KalmanLayer, nn.GroupNorm):
    """GroupNorm whose moments are corrected by a prediction; inputs are (N, C, *).

    Each sample is a split. A prior per channel is folded into the groups, and blended with p as `correct_moments` does.
    There are no running statistics, so that the prediction is evaluated outside training too.

    Args:
        num_groups: G.
        num_channels: C.
        eps: added to the variance.
        affine: whether there are `weight` and `bias`.
        device: of parameters.
        dtype: of parameters.
        **options: of `KalmanOptions`, without splits and running statistics.

    Raises:
        InputError: an option that the layer does not have, numbers out of range, groups that do not divide the
            channels, complex or integer input, other channels, or a prior of the wrong shape.

    Example:
        >>> import torch
        >>> GroupKalmanNorm(2, 8)(torch.randn(3, 8, 5, 5)).shape
        torch.Size([3, 8, 5, 5])

    Source:
        Wang et al. 2018, arXiv:1802.03133, name GKN in one sentence; the fold of channels into groups is ours.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        check_eps(eps, may_be_zero=True)
        _check_num_groups(num_groups, num_channels)
        wrong = [name for name in OF_SPLITS if name in options]
        if wrong:
            raise InputError(
                f"options of GroupKalmanNorm must leave out {', '.join(wrong)}; got {options}. Every sample is a split."
            )
        check_option_names(options, [name for name in OPTION_NAMES if name not in OF_SPLITS])
        chosen = KalmanOptions(micro_batch_size=1, **options)
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)
        self._init_kalman(chosen)

    @property
    def needs_prior(self) -> bool:
        """Whether moments are corrected: in any mode."""
        return True

    def _num_channels(self) -> int:
        return self.num_channels

    def forward(self, input: Tensor) -> Tensor:
        """Normalize each sample; (N, C, *) both ways."""
        check_input(input, self.num_channels)
        if not len(input):
            return super().forward(input)
        num_values = input[0].numel() // self.num_groups
        options = self.options
        rule = GroupCorrection(self.eps, options.gate, options.ratio_limit, num_values, num_groups=self.num_groups)
        normalized = self._normalize(input, len(input), rule)
        if self.training and not is_computed_again():
            self._track_gain(input, num_values)
        return normalized.output

    def _as_blended(self, moments: Moments) -> Moments:
        return fold_channels(moments, self.num_groups)

    def extra_repr(self) -> str:
        """Return what differs from the defaults."""
        return ", ".join(part for part in (super().extra_repr(), str(self.options)) if part)


def _check_num_groups(num_groups: int, num_channels: int) -> None:
    if not is_count(num_groups) or num_channels % num_groups:
        raise InputError(
            f"num_groups must be a divisor of the {num_channels} channels; got {num_groups!r}. 1 always does."
        )
