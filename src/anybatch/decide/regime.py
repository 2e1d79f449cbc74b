"""How is a training that was tuned at one batch size run at another, so that it generalizes as well?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from anybatch.decide.lr_scaling import Family, LrScale, Rule, scale_learning_rate
from anybatch.errors import InputError


@dataclass(frozen=True)
class Regime:
    """How to train at another batch size.

    Attributes:
        lr: the scaled rate, before any drop.
        milestones: when the rate drops, in epochs.
        epochs: how long to train.
        ghost_batch_size: samples that share normalization statistics; the whole batch where it is not above the base.
        clip_norm: global norm to clip the gradient of the whole batch to, never that of a part; None for no clipping.
        noise_variance: of the factors N(1, variance) on each sample's loss that stand INSTEAD of a scaled rate: use
            them with `base_lr` and the base betas, never with `lr`. 0 where the batch is not above the base.
        lr_scale: how `lr` came about, with betas and epsilon.
        stretch: factor that epochs and milestones were multiplied with.
        warmup_epochs: the warm-up, with its updates kept.
        reason: one sentence.
    """

    lr: float
    milestones: tuple[float, ...]
    epochs: float
    ghost_batch_size: int
    clip_norm: float | None
    noise_variance: float
    lr_scale: LrScale
    stretch: float
    warmup_epochs: float
    reason: str


def large_batch_regime(
    base_batch_size: int,
    batch_size: int,
    base_lr: float,
    milestones: Sequence[float] = (),
    epochs: float = 1.0,
    *,
    rule: Rule = "sqrt",
    family: Family = "sgd",
    betas: tuple[float, ...] | None = None,
    adapt: bool = True,
    ghost_batch_size: int | None = None,
    clip_norm: float | None = 5.0,
    warmup_epochs: float = 0.0,
) -> Regime:
    """Carry a training regime over to another batch size, keeping the statistics and the number of its updates.

    With k = batch_size / base_batch_size: the rate times sqrt(k) keeps the covariance of an update,
    Cov(dw) = rate^2 / batch_size Cov(g); epochs and milestones times k keep the number of updates and the update of
    every drop. Instead of the rate the per-sample gradients may be multiplied by z ~ N(1, k - 1), independent of each
    other: (1 + k - 1) / batch_size = 1 / base_batch_size, so the second moment is kept, and the mean update too.

    A batch below the base is treated alike where that makes sense: rate and epochs shrink, the ghost is the whole
    batch (plain batch norm), and no noise is added, as none can be taken away.

    Args:
        base_batch_size: samples per step at which the regime was tuned.
        batch_size: samples per step it is wanted for.
        base_lr: the tuned rate.
        milestones: epochs of the tuned regime at which its rate drops.
        epochs: of the tuned regime.
        rule: "sqrt" (the paper's), "linear" or "none".
        family: the optimizer's.
        betas: of Adam, or (alpha,) of RMSprop.
        adapt: whether to keep the number of updates (k times the computation); False keeps the epochs.
        ghost_batch_size: default: the smaller of the two batch sizes.
        clip_norm: None for no clipping.
        warmup_epochs: of the tuned regime; times k with or without `adapt`.

    Returns:
        The regime.

    Raises:
        InputError: a batch size, rate, number of epochs, ghost batch size or clipping norm that is not positive;
            milestones that do not ascend or lie beyond the epochs; a ghost batch above the batch; a warm-up that
            takes longer than the training; and what `scale_learning_rate` refuses.

    Example:
        >>> regime = large_batch_regime(128, 4096, base_lr=0.1, milestones=[81, 122, 164], epochs=200)
        >>> round(regime.lr, 6), regime.milestones, regime.epochs, regime.noise_variance
        (0.565685, (2592.0, 3904.0, 5248.0), 6400.0, 31.0)

    Source:
        Hoffer et al. 2017, arXiv:1705.08741. Differs: k is exact, where the authors' code rounds the factor on the
        epochs up; the variance k - 1 of the noise, which the paper gives up to a factor, is derived here. Warm-up:
        You et al. 2019, arXiv:1901.08256.
    """
    lr_scale = scale_learning_rate(
        base_batch_size, batch_size, family=family, betas=betas, rule=rule, warmup_epochs=warmup_epochs
    )
    ghost = min(base_batch_size, batch_size) if ghost_batch_size is None else ghost_batch_size
    _check_positive(base_lr=base_lr, epochs=epochs, ghost_batch_size=ghost, clip_norm=clip_norm)
    if ghost > batch_size:
        raise InputError(f"ghost_batch_size must be at most the batch; got {ghost} for a batch of {batch_size}.")
    _check_milestones(milestones, epochs)
    ratio = batch_size / base_batch_size
    stretch = ratio if adapt else 1.0
    _check_warmup(lr_scale.warmup_epochs, epochs * stretch)
    return Regime(
        lr=base_lr * lr_scale.factor,
        milestones=tuple(milestone * stretch for milestone in milestones),
        epochs=epochs * stretch,
        ghost_batch_size=ghost,
        clip_norm=clip_norm,
        noise_variance=max(ratio - 1.0, 0.0),
        lr_scale=lr_scale,
        stretch=stretch,
        warmup_epochs=lr_scale.warmup_epochs,
        reason=_reason(base_lr, lr_scale, epochs, stretch, ratio),
    )


def _check_positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{name} must be positive; got {value}.")


def _check_warmup(warmup_epochs: float, epochs: float) -> None:
    if warmup_epochs > epochs:
        raise InputError(
            f"the warm-up must end within the training; got {warmup_epochs:g} epochs of {epochs:g}. "
            "Shorten it, or keep the number of updates (adapt=True)."
        )


def _check_milestones(milestones: Sequence[float], epochs: float) -> None:
    if not all(before < after for before, after in zip((0, *milestones), milestones, strict=False)):
        raise InputError(f"milestones must be positive and ascend; got {tuple(milestones)}.")
    if milestones and milestones[-1] > epochs:
        raise InputError(
            f"milestones must lie within the {epochs:g} epochs; got {milestones[-1]:g}. Leave it out, or train longer."
        )


def _reason(base_lr: float, lr_scale: LrScale, epochs: float, stretch: float, ratio: float) -> str:
    updates = "the same" if stretch == ratio else f"{1 / ratio:.3g} times the"
    text = (
        f"rate {base_lr * lr_scale.factor:.4g} ({lr_scale.reason}) over {epochs * stretch:g} epochs, which make "
        f"{updates} number of updates"
    )
    return text + (f"; or rate {base_lr:g} with noise of variance {ratio - 1:.4g}" if ratio > 1 else "")
