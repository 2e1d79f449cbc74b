"""How much larger may the learning rate of a quiet module be than that of a noisy one?

A module's noise fraction is 1 - cos(g1, g2), g1 and g2 being the gradients of two halves of the batch: about
1 / (1 + |g|^2 / tr(S_half)), from 0, all signal, to 1, all noise. AGVM (adaptive gradient variance modulator) aligns
the fractions of a model's modules by giving each the rate of an anchor times sqrt(anchor's fraction / its fraction).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from anybatch.errors import InputError
from anybatch.stats.half_batches import HalfBatches
from anybatch.stats.moments import GradientMoments

DELTA = 1e-6  # added to both fractions of a ratio; of the official code


def measure_noise_fractions(
    measurement: HalfBatches | GradientMoments, *, as_published: bool = False
) -> dict[str, float]:
    """Return every module's noise fraction: of its gradient over half of the batch, how much is noise.

    From two halves 1 - cos(g1, g2), as published. From sub-batches tr(S_half) / (|g|^2 + tr(S_half)), the same quantity
    with less scatter, from unbiased estimates of both: tr(S_half) = 2 tr(S_1) sum w_i^2 / n_i, |g|^2 at least 0.

    Args:
        measurement: of one step; waits for its device.
        as_published: a module without a gradient in one half counts as noise alone, 1, as in the official code; its
            cosine is taken to be 0.

    Returns:
        Module -> noise fraction, from 0 to 1, and more where the cosine is below 0, as normalization over both halves
        makes it; NaN for a module without a gradient, or with one that is not finite.

    Example:
        >>> halves = HalfBatches.from_gradients({"all": torch.tensor([3.0, 4.0])}, {"all": torch.tensor([4.0, 3.0])})
        >>> {name: round(fraction, 6) for name, fraction in measure_noise_fractions(halves).items()}
        {'all': 0.04}

    Source:
        Xue et al. 2022, arXiv:2210.11078, and its code for the cosines; the form with moments is derived here.
    """
    if isinstance(measurement, HalfBatches):
        fractions = _of_halves(measurement, as_published)
    else:
        fractions = _of_moments(measurement)
    return dict(zip(measurement.modules, fractions.tolist(), strict=True))


def agvm_scales(
    noise_fractions: Mapping[str, float],
    anchor: str,
    previous: Mapping[str, float] | None = None,
    momentum: float = 0.97,
    clamp: tuple[float, float] = (0.5, 10.0),
    *,
    as_published: bool = False,
) -> dict[str, float]:
    r"""Return the factor on every module's learning rate.

    With s the noise fractions, in this order: ratio to the anchor, clamp, square root, moving average,

        mu_i <- momentum mu_i + (1 - momentum) sqrt(clamp((s_anchor + 1e-6) / (s_i + 1e-6), low, high)).

    Args:
        noise_fractions: module -> s; those of `measure_noise_fractions`.
        anchor: the module whose rate stays.
        previous: module -> mu before; a module that is not in it starts at 1.
        momentum: of the moving average; 0 takes the new factor alone.
        clamp: smallest and largest ratio; the factor lies between their square roots.
        as_published: a fraction that is zero, or below by rounding, counts as in the official code: its module's ratio
            is clamped to the largest, and of the anchor's all others to the smallest.

    Returns:
        Module -> mu, for every module of either argument. One whose fraction is missing, zero or not finite keeps its
        mu; without the anchor's, all do.

    Raises:
        InputError: an anchor that is no module, a momentum outside [0, 1), or a clamp that is not positive and ascends.

    Example:
        >>> scales = agvm_scales({"backbone": 1.2, "fpn": 0.6, "rpn": 0.05}, anchor="backbone", momentum=0.0)
        >>> {name: round(scale, 4) for name, scale in scales.items()}
        {'backbone': 1.0, 'fpn': 1.4142, 'rpn': 3.1623}

    Source:
        Xue et al. 2022, arXiv:2210.11078: the square root of the ratio and the moving average. The clamp, 1e-6 and the
        order are those of the official code, which lets NaN pass.
    """
    low, high = clamp
    if not 0 < low <= high < math.inf:
        raise InputError(f"clamp must be two positive numbers that ascend; got {clamp}.")
    if not 0 <= momentum < 1:
        raise InputError(f"momentum must be at least 0 and below 1; got {momentum}.")
    scales = dict.fromkeys(noise_fractions, 1.0) | dict(previous or {})
    if anchor not in scales:
        raise InputError(f"anchor must be a module; got {anchor!r}. The modules are {', '.join(scales)}.")
    known = {name: fraction for name, fraction in noise_fractions.items() if math.isfinite(fraction)}
    if as_published:
        measured = {name: max(fraction, 0.0) for name, fraction in known.items()}
    else:
        measured = {name: fraction for name, fraction in known.items() if fraction > 0}
    if anchor in measured:
        for name, fraction in measured.items():
            ratio = (measured[anchor] + DELTA) / (fraction + DELTA)
            scales[name] = momentum * scales[name] + (1 - momentum) * math.sqrt(min(max(ratio, low), high))
    return scales


def precondition_like_adam(exp_avg_sq: Tensor, beta2: float, eps: float) -> Tensor:
    """Return what Adam multiplies a gradient with, from the second moments before the step.

    1 / (sqrt(beta2 v) + eps): one factor for both halves of the batch. The bias correction is left out, since it is the
    same for a whole module and cancels in the cosine. Where v is 0 the factor is 0: there was no gradient yet, and at
    1 / eps one such number would stand for its whole module.

    Args:
        exp_avg_sq: v, of any shape.
        beta2: decay of v.
        eps: as the optimizer's.

    Returns:
        As v.

    Source:
        Xue et al. 2022, official code, in effect; `precondition_as_published` has its letter. Differs: where v is 0.
    """
    return (exp_avg_sq * beta2).sqrt_().add_(eps).reciprocal_().masked_fill_(exp_avg_sq == 0, 0.0)


def precondition_as_published(
    grad: Tensor, exp_avg_sq: Tensor, beta2: float, eps: float, world_size: int = 1
) -> Tensor:
    """Return the vector of one half whose cosine the official code takes under Adam.

    G / (sqrt(beta2 v + (1 - beta2) (G / W)^2) + eps), each half with a denominator of its own.

    Args:
        grad: G, the mean gradient of one half.
        exp_avg_sq: v, of the same shape, before the step.
        beta2: decay of v.
        eps: as the optimizer's.
        world_size: W; the code takes squares while G is still divided by the number of ranks. 1: the formula meant.

    Returns:
        As G.

    Source:
        Xue et al. 2022, official code.
    """
    second = beta2 * exp_avg_sq + (1 - beta2) * (grad / world_size).square()
    return grad / (second.sqrt() + eps)


def _of_halves(halves: HalfBatches, as_published: bool) -> Tensor:
    cosines = halves.cosines()
    if as_published:
        cosines = torch.where((halves.sq_norms == 0).any(0), 0.0, cosines)
    return (1 - cosines).clamp(min=0)


def _of_moments(moments: GradientMoments) -> Tensor:
    noise = 2 * moments.grad_var_trace().clamp(min=0) * (moments.weights.square() / moments.sizes).sum()
    total = moments.grad_sq_norm().clamp(min=0) + noise
    return torch.where(total > 0, noise / total, torch.nan)
