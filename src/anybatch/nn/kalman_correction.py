"""What are the moments of a micro-batch, given what was observed and what was predicted?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anybatch.errors import InputError
from anybatch.nn.kalman_options import Gate
from anybatch.nn.moments import Moments

_NOTHING_BESIDE_EPS = 1e-5  # a constant keeps a trace of variance behind an activation


def correct_moments(
    observed: Moments,
    prior: Moments,
    prior_weight: float | Tensor,
    *,
    gate: Gate = "channel",
    ratio_limit: float = 100.0,
    eps: float = 1e-5,
    num_values: int | None = None,
) -> Moments:
    """Blend observed moments with predicted ones: the moments of a mixture of both with weights 1 - p and p.

    With m, v observed and pm, pv predicted, mean = p pm + (1 - p) m and
    var = p pv + (1 - p) v + p (1 - p) (m - pm)^2. Where the gate finds the prior too wide, nothing is corrected.
    A variance that was observed on one value is 0, and tells the gate by channel nothing: it keeps every prior then.

    Args:
        observed: (S, C).
        prior: (S, C), or (1, C) for all splits.
        prior_weight: p, from 0 to 1; a number, or a tensor that broadcasts to (S, C).
        gate: "layer" drops the prior of a layer where mean(pv / v) over splits and channels is not below the limit,
            "channel" that of a split and channel where (pv + eps) / (v + eps) is not.
        ratio_limit: of `gate`.
        eps: of `gate`, by channel.
        num_values: that were observed per split and channel, where that is known.

    Returns:
        (S, C), the posterior moments.

    Raises:
        InputError: a prior of another shape.

    Example:
        >>> at = lambda mean, var: Moments(torch.tensor([[mean]]), torch.tensor([[var]]))
        >>> posterior = correct_moments(at(0.0, 1.0), at(1.0, 4.0), 0.9)
        >>> print(f"{posterior.mean.item():.2f} {posterior.var.item():.2f}")
        0.90 3.79

    Source:
        Wang et al. 2018, arXiv:1802.03133, as the official code computes it. Differs: the gate by channel is ours.
    """
    check_prior(prior, *observed.mean.shape)
    is_kept = _accepts(gate, ratio_limit, eps, num_values, observed.var, prior.var)
    distance = torch.where(is_kept, prior.mean - observed.mean, 0)  # what is dropped may be infinite
    kept_var = torch.where(is_kept, prior.var, observed.var)
    weight = prior_weight.to(kept_var) if isinstance(prior_weight, Tensor) else prior_weight
    to_prior = weight * distance
    blend = torch.lerp(observed.var.to(kept_var), kept_var, weight)
    var = torch.addcmul(blend, to_prior, distance - to_prior)  # p d (d - p d) is p (1 - p) d^2
    return Moments(observed.mean + to_prior, var, observed.size)


def check_prior(prior: Moments, num_splits: int, num_channels: int) -> None:
    """Refuse a prior that would be broadcast over channels, or does not fit.

    Args:
        prior: what should be (S, C), or (1, C) for all splits.
        num_splits: S.
        num_channels: C.

    Raises:
        InputError: anything else.
    """
    if not isinstance(prior, Moments):
        raise InputError(f"prior must be Moments; got {type(prior).__name__}. Write Moments(mean, var).")
    if any(tuple(each.shape) not in ((num_splits, num_channels), (1, num_channels)) for each in prior[:2]):
        raise InputError(
            f"prior must have moments of shape {(num_splits, num_channels)}, splits and channels, or "
            f"{(1, num_channels)} for all splits; got {tuple(prior.mean.shape)} and {tuple(prior.var.shape)}. A path "
            "must keep samples in their place and end in the layer's channels."
        )


@torch.no_grad()
def _accepts(
    gate: Gate, ratio_limit: float, eps: float, num_values: int | None, observed: Tensor, prior: Tensor
) -> Tensor:
    if gate == "layer":
        return (prior / observed).mean() < ratio_limit
    if num_values == 1:
        return torch.ones_like(observed, dtype=torch.bool)
    return (prior + eps) < ratio_limit * (observed + eps)


@dataclass(frozen=True)
class Correction:
    """The rule of `normalize_splits` that normalizes by corrected moments.

    Attributes:
        eps: added to the posterior variance.
        gate: see `correct_moments`.
        ratio_limit: see `correct_moments`.
        num_values: see `correct_moments`.
    """

    eps: float
    gate: Gate
    ratio_limit: float
    num_values: int | None = None

    def __call__(
        self,
        mean: Tensor,
        var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        prior_mean: Tensor | None,
        prior_var: Tensor | None,
        prior_weight: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return scale and shift of the centred input, posterior mean and variance; all (S, C)."""
        posterior = self.correct(Moments(mean, var), prior_mean, prior_var, prior_weight)
        scale = (posterior.var + self.eps).rsqrt()
        scale = scale if weight is None else scale * weight.to(scale)
        shift = (mean - posterior.mean) * scale
        return scale, shift if bias is None else shift + bias.to(shift), posterior.mean, posterior.var

    def check_has_variance(self, prior: Moments | None, shape: Sequence[int]) -> None:
        """Refuse splits of one value per channel whose output would be the bias whatever the input is.

        Args:
            prior: with a weight in the blend; None where there is none.
            shape: of the input.

        Raises:
            InputError: one value, and no prior that the gate keeps and that foretells a variance; a compiler does not
                ask for the latter.
        """
        if self.num_values != 1:
            return
        if prior is None:
            where, cure = "there is no prior", "give the layer a prior"
        elif self.gate == "layer":
            where, cure = "gate is 'layer', which drops the prior of such a split", "choose gate 'channel'"
        elif not torch.compiler.is_compiling() and bool((prior.var <= _NOTHING_BESIDE_EPS * self.eps).all()):
            where, cure = "the prior foretells no variance", "give the layer a prior that is not of one value itself"
        else:
            return
        raise InputError(
            f"a split must have more than 1 value per channel in training where {where}; got 1, for an input of shape "
            f"{tuple(shape)}. Make fewer splits, or {cure}."
        )

    def correct(
        self, observed: Moments, prior_mean: Tensor | None, prior_var: Tensor | None, prior_weight: Tensor | None
    ) -> Moments:
        """Return the posterior moments: the observed ones where there is no prior."""
        if prior_mean is None or prior_var is None or prior_weight is None:
            return observed
        prior = Moments(prior_mean, prior_var)
        return correct_moments(
            observed,
            prior,
            prior_weight,
            gate=self.gate,
            ratio_limit=self.ratio_limit,
            eps=self.eps,
            num_values=self.num_values,
        )

    def pull_back(
        self,
        observed: Moments,
        posterior: Moments,
        tensors: Sequence[Tensor | None],
        grads: Sequence[Tensor | None],
    ) -> tuple[Any, ...]:
        """Return the scale, and the gradients of mean, variance and the tensors that follow them, in closed form.

        With shift = (m - m') scale + bias, scale = weight / std' and m', v' the posterior moments, m' has
        -scale times the gradient of the shift, and v' has -scale / (2 std'^2) times that of the scale. What m has
        directly of the shift, the centring of the input takes away: output = scale (x - m) + shift.

        Args:
            observed: (S, C).
            posterior: (S, C), as the rule returned them.
            tensors: weight, bias, prior mean and variance, (S, C), and prior weight, one number. A prior of (1, C) gets
                gradients of (S, C); the layers expand it before.
            grads: of scale and shift, (S, C), and of posterior mean and variance, or None.

        Returns:
            The scale, (S, C), the gradients of mean, through the centring as well, and of variance, and as many as
            there are tensors; None for a tensor that is None.
        """
        weight, bias, *prior = tensors
        of_scale, of_shift, of_posterior_mean, of_posterior_var = grads
        assert of_scale is not None
        assert of_shift is not None
        inverse_std = (posterior.var + self.eps).rsqrt()
        scale = inverse_std if weight is None else inverse_std * weight.to(inverse_std)
        of_bias = None if bias is None else of_shift.sum(0).to(bias.dtype)
        of_scale = torch.addcmul(of_scale, of_shift, observed.mean - posterior.mean)
        by_weight = of_scale * inverse_std
        of_weight = None if weight is None else by_weight.sum(0).to(weight.dtype)
        through_shift = of_shift * -scale
        through_scale = by_weight * (inverse_std * scale) / -2
        of_posterior = Moments(_add(through_shift, of_posterior_mean), _add(through_scale, of_posterior_var))
        of_mean, of_var, *of_prior = self.pull_back_correction(of_posterior, observed, *prior)
        return scale, of_mean, of_var, of_weight, of_bias, *of_prior

    def pull_back_correction(
        self,
        of_posterior: Moments,
        observed: Moments,
        prior_mean: Tensor | None,
        prior_var: Tensor | None,
        prior_weight: Tensor | None,
    ) -> tuple[Any, ...]:
        """Return the gradients of what `correct` takes, of that of the posterior moments."""
        if prior_mean is None or prior_var is None or prior_weight is None:
            return *of_posterior[:2], None, None, None
        is_kept = _accepts(self.gate, self.ratio_limit, self.eps, self.num_values, observed.var, prior_var)
        of_mean, of_var = (torch.where(is_kept, each, 0) for each in of_posterior[:2])
        distance = torch.where(is_kept, prior_mean - observed.mean, 0)
        of_prior_mean = prior_weight * torch.addcmul(of_mean, of_var, distance * (1 - prior_weight), value=2)
        of_prior_var = prior_weight * of_var
        of_weight = None
        if prior_weight.requires_grad:
            wider = torch.where(is_kept, prior_var - observed.var, 0)
            by_weight = wider + (1 - 2 * prior_weight) * distance.square()
            of_weight = (of_mean * distance + of_var * by_weight).sum().view(prior_weight.shape)
        return (
            of_posterior.mean - of_prior_mean,
            of_posterior.var - of_prior_var,
            of_prior_mean,
            of_prior_var,
            of_weight,
        )


def _add(gradient: Tensor, other: Tensor | None) -> Tensor:
    return gradient if other is None else gradient + other
