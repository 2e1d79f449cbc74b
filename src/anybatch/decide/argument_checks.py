"""Which numbers can a bound or a step be made of?"""

from __future__ import annotations

import math
from typing import Any, get_args

from anybatch.errors import InputError

_MOST = 2**53


def _is_number(value: object) -> bool:
    return hasattr(value, "__float__")


def require_positive(**values: float) -> None:
    """Refuse what is not a positive finite number.

    Args:
        **values: name -> number.

    Raises:
        InputError: naming the first that is not.
    """
    for name, value in values.items():
        if not _is_number(value) or not 0 < value < math.inf:
            raise InputError(f"{name} must be positive and finite; got {value!r}.")


def require_not_negative(**values: float) -> None:
    """Refuse what is negative or not finite.

    Args:
        **values: name -> number.

    Raises:
        InputError: naming the first that is.
    """
    for name, value in values.items():
        if not _is_number(value) or not 0 <= value < math.inf:
            raise InputError(f"{name} must be at least 0 and finite; got {value!r}.")


def require_probability(delta: float) -> None:
    """Refuse a failure probability outside (0, 1).

    Args:
        delta: the probability.

    Raises:
        InputError: it is outside.
    """
    if not _is_number(delta) or not 0 < delta < 1:
        raise InputError(
            f"delta must be between 0 and 1; got {delta!r}. It is how often an update may fail: small is cautious."
        )


def require_discount(discount: float, *, below_one: bool = False) -> None:
    """Refuse a discount outside [0, 1].

    Args:
        discount: the factor per step.
        below_one: whether 1 is refused too.

    Raises:
        InputError: it is outside.
    """
    if not _is_number(discount):
        raise InputError(f"discount must be between 0 and 1; got {discount!r}.")
    if below_one and not 0 <= discount < 1:
        raise InputError(f"discount must be at least 0 and below 1; got {discount}. The result is infinite at 1.")
    if not 0 <= discount <= 1:
        raise InputError(f"discount must be between 0 and 1; got {discount}.")


def require_count(**values: int) -> None:
    """Refuse what is not a whole number of at least 1.

    Args:
        **values: name -> number.

    Raises:
        InputError: naming the first that is not.
    """
    for name, value in values.items():
        if not _is_number(value) or not (math.isfinite(value) and value == int(value) and value >= 1):
            raise InputError(f"{name} must be a whole number of at least 1; got {value!r}.")
        if value > _MOST:
            raise InputError(f"{name} must be at most 2^53, up to where numbers are exact; got {value}.")


def require_choice(allowed: Any, **values: object) -> None:
    """Refuse what is not one of the values of a Literal.

    Args:
        allowed: the Literal.
        **values: name -> value.

    Raises:
        InputError: naming the first that is not.
    """
    for name, value in values.items():
        if value not in get_args(allowed):
            raise InputError(f"{name} must be one of {', '.join(get_args(allowed))}; got {value!r}.")


def require_batch_limits(min_batch_size: int, max_batch_size: int) -> None:
    """Refuse limits of the batch size that contradict each other.

    Args:
        min_batch_size: least samples.
        max_batch_size: most samples.

    Raises:
        InputError: one of them is no whole number of at least 1, or the least is above the most.
    """
    require_count(min_batch_size=min_batch_size, max_batch_size=max_batch_size)
    if min_batch_size > max_batch_size:
        raise InputError(
            f"min_batch_size must be at most max_batch_size; got {min_batch_size} and {max_batch_size}. "
            "Lower the one or raise the other."
        )
