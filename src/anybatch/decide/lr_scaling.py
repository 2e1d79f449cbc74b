"""What becomes of a tuned learning rate at another batch size?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from anybatch.errors import InputError

Family = Literal["sgd", "adam", "rmsprop"]
Rule = Literal["none", "linear", "sqrt"]
POWERS: dict[Rule, float] = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}


@dataclass(frozen=True)
class LrScale:
    """A factor on the tuned rate.

    Attributes:
        factor: multiply the base rate, of every parameter group and after every drop, with it.
        rule: "none", "linear" or "sqrt".
        betas: the averages' weights, as many as were given, moved by the square root rule and else as they were; None
            for SGD or where none were given.
        eps_factor: factor on epsilon; 1 unless the square root rule moves it.
        warmup_epochs: the warm-up that has as many updates as the base batch's.
        holds: whether the rule is inside its range of validity.
        reason: one sentence.
    """

    factor: float
    rule: Rule
    betas: tuple[float, ...] | None
    eps_factor: float
    warmup_epochs: float
    holds: bool
    reason: str


def scale_learning_rate(
    base_batch_size: float,
    batch_size: float,
    *,
    family: Family,
    critical_batch_size: float | None = None,
    betas: tuple[float, ...] | None = None,
    rule: Rule | None = None,
    warmup_epochs: float = 0.0,
) -> LrScale:
    """Scale a rate tuned at one batch size to another.

    With k = batch_size / base_batch_size: "linear" multiplies the rate with k, "sqrt" with sqrt(k), "none" leaves it.
    SGD takes linear while both batches are below the critical one, where steps are noise-dominated and add up, and
    sqrt (which keeps the covariance of an update) beyond. Adam and RMSprop take sqrt, which also moves 1 - beta to
    k (1 - beta) and epsilon to epsilon / sqrt(k); a beta of 0 is no average and stays. Every rule multiplies the
    warm-up's epochs with k, so that it keeps its number of updates.

    Args:
        base_batch_size: samples per step at which the rate was tuned.
        batch_size: samples per step it is wanted for.
        family: "sgd" (momentum or not), "adam" (Adam, AdamW and their kin with betas) or "rmsprop".
        critical_batch_size: from the noise scale, in samples; None where it was not measured. Of SGD alone: that of
            Adam is another, mostly larger.
        betas: at the base batch size, each in [0, 1); those of Adam, or (alpha,) of RMSprop.
        rule: overrides the choice.
        warmup_epochs: of the base batch size.

    Returns:
        The factor with its rule and reason; `holds` is False where the rule is known to fail or nothing says it holds.

    Raises:
        InputError: a batch size that is not positive, an unknown family or rule, a beta outside [0, 1), or a negative
            warm-up.

    Example:
        >>> scale_learning_rate(128, 512, family="sgd", critical_batch_size=2000).factor
        4.0
        >>> scale_learning_rate(128, 512, family="adam", betas=(0.9, 0.999)).betas
        (0.6, 0.996)
        >>> scale_learning_rate(128, 512, family="sgd", rule="sqrt", warmup_epochs=2).warmup_epochs
        8.0

    Source:
        Linear: Goyal et al. 2017, arXiv:1706.02677, section 2.1. Square root for SGD: Hoffer et al. 2017,
        arXiv:1705.08741. For Adam and RMSprop: Malladi et al. 2022, arXiv:2205.10287, section 5. Warm-up (LEGW): You
        et al. 2019, arXiv:1901.08256; they join it to sqrt, here it goes with any rule. Where SGD's rates stop
        growing: McCandlish et al. 2018, arXiv:1812.06162, equation 2.9; the switch at the critical batch is our
        choice. Critical batch of Adam: Zhang et al. 2019, arXiv:1907.04164.
    """
    _check(base_batch_size, batch_size, betas or (), warmup_epochs)
    for name, value, choices in (("family", family, Family), ("rule", rule or "sqrt", Rule)):
        if value not in get_args(choices):
            raise InputError(f"{name} must be one of {', '.join(get_args(choices))}; got {value!r}.")
    ratio = batch_size / base_batch_size
    below = critical_batch_size is not None and max(base_batch_size, batch_size) <= critical_batch_size
    rule = rule or ("linear" if family == "sgd" and below else "sqrt")
    moves = family != "sgd" and rule == "sqrt"
    if ratio == 1:
        holds, reason = True, "the batch is the one the rate was tuned at"
    elif rule == "none":
        holds, reason = False, f"left alone at {ratio:.4g} times the batch, which no derivation asks for"
    elif family == "sgd":
        holds, reason = _judge_sgd(ratio, rule, critical_batch_size, below)
    else:
        holds, reason = _judge_adaptive(ratio, rule, family, betas)
    if warmup_epochs:
        reason += f"; warmed up over {warmup_epochs * ratio:.4g} epochs"
    return LrScale(
        factor=ratio ** POWERS[rule],
        rule=rule,
        betas=None if betas is None or family == "sgd" else _move(betas, ratio if moves else 1.0),
        eps_factor=1 / math.sqrt(ratio) if moves else 1.0,
        warmup_epochs=warmup_epochs * ratio,
        holds=holds,
        reason=reason,
    )


def _check(base_batch_size: float, batch_size: float, betas: tuple[float, ...], warmup_epochs: float) -> None:
    if not (0 < base_batch_size < math.inf and 0 < batch_size < math.inf):
        raise InputError(f"batch sizes must be positive and finite; got {base_batch_size} and {batch_size}.")
    if not all(0 <= beta < 1 for beta in betas):
        raise InputError(f"betas must be at least 0 and below 1; got {tuple(betas)}.")
    if not 0 <= warmup_epochs < math.inf:
        raise InputError(f"warmup_epochs must be at least 0; got {warmup_epochs}. Pass 0 for no warm-up.")


def _move(betas: tuple[float, ...], ratio: float) -> tuple[float, ...]:
    return tuple(round(max(1 - ratio * (1 - beta), 0.0), 12) if beta else beta for beta in betas)


def _judge_sgd(ratio: float, rule: Rule, critical: float | None, below: bool) -> tuple[bool, str]:
    root = math.sqrt(ratio)
    words = "linear, {:.4g} times, for SGD" if rule == "linear" else "the square root of {:.4g}, for SGD"
    words, other = words.format(ratio), root if rule == "linear" else ratio
    if critical is None:
        return False, f"{words}; how far it holds is unknown without a critical batch size"
    if below and rule == "linear":
        return True, f"{words}, both batches being below the critical {critical:.3g}"
    if below:
        return False, f"{words}; below the critical {critical:.3g} steps add up, and the linear {ratio:.4g} holds"
    return False, (
        f"{words}; above the critical {critical:.3g} larger batches stop earning larger rates and no rule holds "
        f"(the other one says {other:.3g}), so try its neighbours too"
    )


def _judge_adaptive(ratio: float, rule: Rule, family: Family, betas: tuple[float, ...] | None) -> tuple[bool, str]:
    name = {"adam": "Adam", "rmsprop": "RMSprop"}[family]
    if rule == "linear":
        return False, (
            f"linear, {ratio:.4g} times; {name} divides by the gradient's size, noise included, so that the square "
            f"root {math.sqrt(ratio):.3g} is what noise-dominated steps ask for"
        )
    reason = f"the square root of {ratio:.4g} for {name}, with epsilon divided by {math.sqrt(ratio):.3g}"
    if betas is None:
        return True, reason
    reason += f" and betas {' and '.join(f'{beta:.4g}' for beta in _move(betas, ratio))}"
    limit = min((round(1 / (1 - beta), 9) for beta in betas if beta), default=math.inf)
    if ratio <= limit:
        return True, reason
    return False, f"{reason}; beyond {limit:.0f} times the base batch a beta would be negative and no rule holds"
