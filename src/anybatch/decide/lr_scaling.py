"""What becomes of a tuned learning rate at another batch size?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Family = Literal["sgd", "adam"]
Rule = Literal["linear", "sqrt"]


@dataclass(frozen=True)
class LrScale:
    """A factor on the tuned rate.

    Attributes:
        factor: multiply the base rate, of every parameter group, with it.
        rule: "linear" or "sqrt".
        betas: Adam's, moved with the batch; None for SGD or where none were given.
        eps_factor: factor on Adam's epsilon; 1 for SGD.
        holds: whether the rule is inside its range of validity.
        reason: one sentence.
    """

    factor: float
    rule: Rule
    betas: tuple[float, float] | None
    eps_factor: float
    holds: bool
    reason: str


def scale_learning_rate(
    base_batch_size: float,
    batch_size: float,
    *,
    family: Family,
    critical_batch_size: float | None = None,
    betas: tuple[float, float] | None = None,
    rule: Rule | None = None,
) -> LrScale:
    """Scale a rate tuned at one batch size to another.

    With k = batch_size / base_batch_size: SGD multiplies its rate with k (linear) while both batches are below the
    critical one, where steps are noise-dominated and add up, and with sqrt(k) (which keeps the covariance of an
    update) beyond. Adam multiplies with sqrt(k) and moves 1 - beta to k (1 - beta) and epsilon to epsilon / sqrt(k).

    Args:
        base_batch_size: samples per step at which the rate was tuned.
        batch_size: samples per step it is wanted for.
        family: "sgd" (momentum or not) or "adam" (Adam, AdamW and their kin with betas).
        critical_batch_size: from the noise scale, in samples; None where it was not measured.
        betas: Adam's, at the base batch size.
        rule: overrides the choice for SGD.

    Returns:
        The factor with its rule and reason.

    Raises:
        ValueError: a batch size that is not positive, an unknown family or rule, or linear scaling for Adam.

    Example:
        >>> scale_learning_rate(128, 512, family="sgd", critical_batch_size=2000).factor
        4.0
        >>> scale_learning_rate(128, 512, family="adam", betas=(0.9, 0.999)).betas
        (0.6, 0.996)

    Source:
        Linear: Goyal et al. 2017, arXiv:1706.02677, section 2.1. Square root for SGD: Hoffer et al. 2017,
        arXiv:1705.08741. Adam: Malladi et al. 2022, arXiv:2205.10287, section 5. Where rates stop growing:
        McCandlish et al. 2018, arXiv:1812.06162, equation 2.9; the switch at the critical batch is our choice.
    """
    if not (base_batch_size > 0 and batch_size > 0):
        raise ValueError(f"batch sizes must be positive; got {base_batch_size} and {batch_size}.")
    for name, value, choices in (("family", family, Family), ("rule", rule or "sqrt", Rule)):
        if value not in get_args(choices):
            raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}; got {value!r}.")
    ratio = batch_size / base_batch_size
    if family == "adam":
        return _scale_adam(ratio, betas, rule)
    return _scale_sgd(ratio, max(base_batch_size, batch_size), critical_batch_size, rule)


def _scale_adam(ratio: float, betas: tuple[float, float] | None, rule: Rule | None) -> LrScale:
    if rule == "linear":
        raise ValueError("rule must be sqrt for the adam family; got 'linear'.")
    factor = math.sqrt(ratio)
    reason = f"the square root of {ratio:.4g} for Adam, with epsilon divided by {factor:.3g}"
    if betas is None:
        return LrScale(factor, "sqrt", None, 1 / factor, True, reason)
    moved = tuple(1 - ratio * (1 - beta) for beta in betas)
    holds = min(moved) >= 0
    beta1, beta2 = (round(max(beta, 0.0), 12) for beta in moved)
    reason += f" and betas {beta1:.4g} and {beta2:.4g}"
    if not holds:
        reason += f"; beyond {1 / (1 - min(betas)):.0f} times the base batch a beta would be negative and no rule holds"
    return LrScale(factor, "sqrt", (beta1, beta2), 1 / factor, holds, reason)


def _scale_sgd(ratio: float, largest: float, critical: float | None, rule: Rule | None) -> LrScale:
    below = critical is not None and largest <= critical
    rule = rule or ("linear" if below else "sqrt")
    factor = ratio if rule == "linear" else math.sqrt(ratio)
    words = f"linear, {ratio:.4g} times" if rule == "linear" else f"the square root of {ratio:.4g}"
    other = math.sqrt(ratio) if rule == "linear" else ratio
    if ratio == 1:
        reason = "the batch is the one the rate was tuned at"
    elif critical is None:
        reason = f"{words}, for SGD; how far it holds is unknown without a critical batch size"
    elif below:
        reason = f"{words}, for SGD, both batches being below the critical {critical:.3g}"
    else:
        reason = (
            f"{words}, for SGD; above the critical {critical:.3g} larger batches stop earning larger "
            f"rates and no rule holds (the other one says {other:.3g}), so try its neighbours too"
        )
    return LrScale(factor, rule, None, 1.0, ratio == 1 or below, reason)
