"""Which numbers can a normalization layer be set to?"""

from __future__ import annotations

from numbers import Real
from typing import Any

from anybatch.errors import InputError


def is_number(value: Any) -> bool:
    """Return whether a value is a real number, which texts and truth values are not.

    Args:
        value: anything.

    Returns:
        Whether it is one.

    Example:
        >>> [is_number(each) for each in (1, 0.5, "0.5", True, None)]
        [True, True, False, False, False]
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def is_count(value: Any) -> bool:
    """Return whether a value is a positive integer.

    Args:
        value: anything.

    Returns:
        Whether it is one.

    Example:
        >>> [is_count(each) for each in (2, 0, 2.0, True)]
        [True, False, False, False]
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_eps(value: Any, *, may_be_zero: bool = False) -> None:
    """Refuse what does not keep a variance above 0.

    Args:
        value: added to variances.
        may_be_zero: whether 0 passes, for layers that need it only where a variance is 0.

    Raises:
        InputError: it is no number, or too small.
    """
    if not is_number(value) or not (value > 0 or (may_be_zero and value == 0)):
        rule = "at least 0" if may_be_zero else "above 0"
        raise InputError(f"eps must be {rule}; got {value!r}. PyTorch's is 1e-5.")
