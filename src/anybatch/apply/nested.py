"""How is every tensor of a nested batch or output changed, and the rest left as it is?"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, MutableMapping
from typing import Any

from torch import Tensor


def is_tensor(value: Any) -> bool:
    """Return whether a value is a tensor."""
    return isinstance(value, Tensor)


def map_nested(change: Callable[[Any], Any], value: Any, is_leaf: Callable[[Any], bool] = is_tensor) -> Any:
    """Change the leaves of a nested value.

    Args:
        change: of one leaf.
        value: leaves, mutable mappings, lists, tuples, named tuples or dataclasses of them, or anything else.
        is_leaf: what is changed; asked before what is inside.

    Returns:
        The same structure; containers are new, what is neither a leaf nor a container is the same object.

    Example:
        >>> import torch
        >>> map_nested(lambda leaf: leaf + 1, {"found": (torch.zeros(1), 3)})
        {'found': (tensor([1.]), 3)}
    """
    if is_leaf(value):
        return change(value)
    if isinstance(value, MutableMapping):
        changed = copy.copy(value)
        for key, item in value.items():
            changed[key] = map_nested(change, item, is_leaf)
        return changed
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_nested(change, item, is_leaf) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(map_nested(change, item, is_leaf) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        fields = {name: map_nested(change, getattr(value, name), is_leaf) for name in names}
        return dataclasses.replace(value, **fields)
    return value
