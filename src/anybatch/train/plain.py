"""How does a result become JSON, and a page?"""

from __future__ import annotations

import dataclasses
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anybatch.errors import InputError


def plain(value: Any) -> Any:
    """Return dicts, lists, strings and numbers of a nested value; a number that is not finite becomes None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def write_text(path: str | Path, text: str) -> None:
    """Write a file and the folders above it.

    Args:
        path: of the file.
        text: what it will hold.

    Raises:
        InputError: it cannot be written.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}.") from error


class Exportable(ABC):
    """A result of plain values that can be written as JSON and as a page."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return plain values: dicts, lists, strings and numbers."""

    @abstractmethod
    def to_page(self) -> str:
        """Return one self-contained HTML page that needs no network."""

    def to_json(self, path: str | Path | None = None) -> str:
        """Return the result as one JSON object, and write it where a path is given.

        Args:
            path: file to write.

        Returns:
            The JSON text.

        Raises:
            InputError: the file cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        if path is not None:
            write_text(path, text + "\n")
        return text

    def to_html(self, path: str | Path) -> None:
        """Write the result as one self-contained page that needs no network.

        Args:
            path: file to write.

        Raises:
            InputError: the file cannot be written.
        """
        write_text(path, self.to_page())
