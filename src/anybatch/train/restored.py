"""How do plain values become the dataclass that they were?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


def restored(kind: Any, value: Any) -> Any:
    """Return what `dataclasses.asdict` took apart, after a way through JSON.

    Args:
        kind: a dataclass, or the annotation of a field: tuples and mappings of such, and None beside one kind.
        value: plain values.

    Returns:
        An instance of `kind`.

    Example:
        >>> @dataclasses.dataclass
        ... class Point:
        ...     place: tuple[float, ...]
        >>> restored(Point, {"place": [1.0, 2.0]})
        Point(place=(1.0, 2.0))
    """
    arguments = get_args(kind)
    if value is None:
        return None
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        return kind(
            **{field.name: restored(hints[field.name], value[field.name]) for field in dataclasses.fields(kind)}
        )
    if get_origin(kind) in (Union, UnionType):
        return restored(next(one for one in arguments if one is not type(None)), value)
    if get_origin(kind) is tuple:
        return tuple(restored(arguments[0], item) for item in value)
    if get_origin(kind) is Mapping:
        return {key: restored(arguments[1], item) for key, item in value.items()}
    return value
