"""How does long work say how far it is?"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told about each stage of a probe, or each run of a comparison."""

    def __call__(self, stage: str, fraction: float, text: str = "") -> None:
        """Show that `stage` is done to `fraction` (0 to 1); `text` is a few words on the latest result."""


def silent(stage: str, fraction: float, text: str = "") -> None:
    """Show nothing."""
