"""Every way in which one entry of a record can be null."""

import copy
from collections.abc import Iterator
from typing import Any

Path = tuple[str | int, ...]


def paths(value: Any, start: Path = ()) -> Iterator[Path]:
    """Yield the path to every entry below a value; of a list, only to what is in its first item."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield (*start, key)
            yield from paths(child, (*start, key))
    elif isinstance(value, list) and value:
        yield from paths(value[0], (*start, 0))


def with_null(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a copy of a record in which one entry is null."""
    changed = copy.deepcopy(record)
    parent: Any = changed
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = None
    return changed
