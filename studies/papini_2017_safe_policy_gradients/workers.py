"""How do several processes do each unit once, and go on after a kill?"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from plan import Unit

from anybatch import AnybatchError
from anybatch.train.run_folder import RunFolder

SECONDS_BETWEEN_TRIES = 1.0  # to get a unit that another process holds


def do_units(units: Sequence[Unit], runs: Path) -> None:
    """Do what is missing; a unit that another process holds is left to it, and asked for again in case it dies.

    Args:
        units: in the order in which they are tried.
        runs: folder of their folders.

    Raises:
        AnybatchError: a folder cannot be written or holds something else.
    """
    torch.set_num_threads(1)
    pending = list(units)
    while pending:
        held = [unit for unit in pending if not _do(unit, RunFolder(runs / unit.name))]
        if len(held) == len(pending):
            time.sleep(SECONDS_BETWEEN_TRIES)
        pending = held


def _do(unit: Unit, folder: RunFolder) -> bool:
    """Return whether the unit is done."""
    if folder.result() is not None:
        return True
    with folder.lock() as is_ours:
        if is_ours and folder.result() is None:
            folder.claim({"kind": unit.kind, **unit.settings})
            begun = time.perf_counter()
            found = unit.do()
            seconds = time.perf_counter() - begun
            folder.finish({"seconds": seconds, **found})
            print(f"{unit.name}: {seconds:.1f} s", flush=True)
        return is_ours


def share_units(num_workers: int, arguments: Sequence[str]) -> None:
    """Let processes of this study's own command do what is missing, each with one thread.

    Args:
        num_workers: how many.
        arguments: of the command, which makes each of them a worker.

    Raises:
        AnybatchError: one of them failed; what the others finished is kept.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("run.py")), *arguments]
    workers = [subprocess.Popen(command, env=environment) for _ in range(num_workers)]
    try:
        codes = [worker.wait() for worker in workers]
    finally:
        for worker in workers:
            worker.terminate()
    if any(codes):
        raise AnybatchError(f"a worker ended with exit code {max(codes, key=abs)}; call again to go on.")


def read_results(units: Sequence[Unit], runs: Path) -> dict[str, list[tuple[Unit, dict[str, Any]]]]:
    """Return finished units with their results, by kind."""
    found: dict[str, list[tuple[Unit, dict[str, Any]]]] = {}
    for unit in units:
        result = RunFolder(runs / unit.name).result()
        if result is not None:
            found.setdefault(unit.kind, []).append((unit, result))
    return found
