"""How much memory has the machine, and how much of it may this container take?"""

from __future__ import annotations

import os
from pathlib import Path

_LIMIT = Path("/sys/fs/cgroup/memory.max")


def physical_bytes() -> int | None:
    """Return the memory of the machine, or None where the system does not say."""
    if not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= getattr(os, "sysconf_names", {}).keys():
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def container_bytes() -> int | None:
    """Return the most that the container may hold, or None where there is no such limit."""
    text = _LIMIT.read_text().strip() if _LIMIT.exists() else ""
    return int(text) if text.isdigit() else None
