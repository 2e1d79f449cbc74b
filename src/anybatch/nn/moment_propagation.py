"""What becomes of the mean and the variance of a feature map on its way through an operation? A registry of rules.

A rule is called as the operation is, with `Moments` in the place of tensors; a module's rule gets the module first.
Channels, and positions, are taken as independent.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from torch import nn

from anybatch.errors import InputError
from anybatch.nn.moments import Moments


class CannotPropagate(Exception):
    """A rule's word that it does not hold for what it got; the message says why."""


@dataclass(frozen=True)
class PropagationRule:
    """A rule of the registry.

    Attributes:
        propagate: called as the operation, with `Moments` for tensors.
        kind: "linear map" mixes channels by weights, "activation" is applied to every value, "sum" adds tensors;
            "other" is none of these.
    """

    propagate: Callable[..., Moments]
    kind: str = "other"


_RULES: dict[Hashable, PropagationRule] = {}


def propagation_rule(*operations: Hashable, kind: str = "other") -> Callable[[Callable[..., Moments]], Any]:
    """Register a rule for operations; it takes the place of an older one.

    Args:
        *operations: module classes, functions, names of tensor methods, or "module.qualified_name" of a class or a
            function that need not be imported. A class stands for subclasses that keep its `forward`. A module with a
            rule is taken whole.
        kind: see `PropagationRule`.

    Returns:
        A decorator that leaves the rule as it is.

    Raises:
        InputError: no operation.

    Example:
        >>> class Halve(nn.Module):
        ...     def forward(self, x):
        ...         return x / 2
        >>> @propagation_rule(Halve)
        ... def through_halving(module, moments):
        ...     return Moments(moments.mean / 2, moments.var / 4, moments.size)
        >>> find_propagation_rule(Halve()).propagate is through_halving
        True
    """
    if not operations:
        raise InputError("operations of a propagation rule must be at least one; got none. Name a class or a function.")

    def register(propagate: Callable[..., Moments]) -> Callable[..., Moments]:
        _RULES.update(dict.fromkeys(operations, PropagationRule(propagate, kind)))
        return propagate

    return register


def find_propagation_rule(operation: Any) -> PropagationRule | None:
    """Return the rule of an operation.

    Args:
        operation: a module, a function, or the name of a tensor method.

    Returns:
        The rule, or None.

    Example:
        >>> find_propagation_rule(nn.Linear(2, 3)).kind, find_propagation_rule(nn.MaxPool2d(2))
        ('linear map', None)
    """
    if not isinstance(operation, nn.Module):
        return _RULES.get(operation) or _RULES.get(_full_name(operation))
    for base in type(operation).__mro__:
        rule = _RULES.get(base) or _RULES.get(_full_name(base))
        if rule is not None:
            return rule if type(operation).forward is base.forward else None
    return None


def _full_name(operation: Any) -> str:
    return f"{getattr(operation, '__module__', '')}.{getattr(operation, '__qualname__', '')}"
