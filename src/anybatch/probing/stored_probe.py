"""Was this workload probed before, in the same way and place?"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from anybatch.probing.result import ProbeResult
from anybatch.train.environment import describe_environment
from anybatch.train.fingerprint import fingerprint
from anybatch.train.plain import plain
from anybatch.train.restored import restored
from anybatch.train.run_folder import RunFolder
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload


def setting_of(workload: Workload, runtime: Runtime) -> dict[str, Any]:
    """Return what decides a measurement beside its own settings: the workload, the versions and the machine."""
    described = describe_environment(runtime)
    where = {name: described[name] for name in ("torch", "device", "num_threads", "world_size")}
    print_ = runtime.broadcast(fingerprint(workload, runtime))
    return {"version": version("anybatch"), "workload": print_, "autocast": str(runtime.autocast), **where}


def probe_once(
    workload: Workload,
    runtime: Runtime,
    runs: str | Path,
    settings: Mapping[str, Any],
    measure: Callable[[], ProbeResult],
) -> ProbeResult:
    """Return the result of an earlier probe of the same workload, settings and machine, or measure and keep it.

    Args:
        workload: what is probed.
        runtime: device and ranks; rank 0 reads and writes.
        runs: folder of all runs.
        settings: of the probe.
        measure: called where there is no earlier result; what it raises leaves nothing behind.

    Returns:
        The result; its environment has the date it was measured at.

    Raises:
        RunError: the folder cannot be written.
    """
    config = plain({**setting_of(workload, runtime), "probe": settings})
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
    folder = RunFolder(Path(runs) / f"probe-{digest}")
    is_writer = runtime.rank == 0
    kept = runtime.broadcast(folder.result() if is_writer else None)
    if kept is not None:
        return restored(ProbeResult, kept)
    result = measure()
    if is_writer:
        folder.claim(config)
        folder.finish(dataclasses.asdict(result))
    return result
