"""Where was something measured?"""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from typing import Any

import torch

from anybatch.train.runtime import Runtime


def describe_environment(runtime: Runtime) -> dict[str, Any]:
    """Return date, versions, device, threads and ranks, as plain values."""
    on_cuda = runtime.device.type == "cuda"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(runtime.device) if on_cuda else f"CPU, {os.cpu_count()} cores",
        "num_threads": torch.get_num_threads(),
        "world_size": runtime.world_size,
    }
