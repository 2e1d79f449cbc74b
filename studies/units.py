"""How does a study do each of its units once, in several processes, and go on after a kill?"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anybatch import AnybatchError
from anybatch.train.run_folder import RunFolder

SECONDS_BETWEEN_TRIES = 1.0  # to get a unit that another process holds
Kinds = Mapping[str, Callable[..., dict[str, Any]]]


@dataclass(frozen=True)
class Unit:
    """One piece of work, decided by its settings alone.

    Attributes:
        kind: names the function that does it.
        label: what it is of, for those who read its result.
        settings: plain arguments of that function.
        seconds: about, on a quiet core.
    """

    kind: str
    label: str
    settings: Mapping[str, Any]
    seconds: float

    @property
    def name(self) -> str:
        """Of its folder."""
        digest = hashlib.sha256(json.dumps(dict(self.settings), sort_keys=True).encode()).hexdigest()[:10]
        return f"{self.kind}-{self.label}-{digest}".replace(" ", "_")


Results = Mapping[str, Sequence[tuple[Unit, dict[str, Any]]]]  # finished units with what came of them, by kind


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """Let a study's command share its units among processes."""
    parser.add_argument("--workers", type=int, default=2, help="processes that share the work, one thread each")
    parser.add_argument("--work", action="store_true", help="be one of the workers")


def run_units(script: str | Path, units: Sequence[Unit], arguments: argparse.Namespace) -> None:
    """Say what is left to do and for how long, and let workers do it.

    Args:
        script: run.py of the study.
        units: all of them.
        arguments: of the command, with `add_worker_options`.

    Raises:
        AnybatchError: a worker failed.
    """
    done = {unit.name for found in read_results(units, arguments.runs).values() for unit, _ in found}
    left = [unit for unit in units if unit.name not in done]
    minutes = sum(unit.seconds for unit in left) / arguments.workers / 60
    print(f"{len(left)} of {len(units)} units to do, about {minutes:.1f} minutes on {arguments.workers} quiet cores")
    if left:
        sys.stdout.flush()
        command = [sys.executable, str(script), f"--{arguments.size}", "--runs", str(arguments.runs), "--work"]
        share_units(arguments.workers, command)


def share_units(num_workers: int, command: Sequence[str]) -> None:
    """Let processes do what is missing, each with one thread.

    Args:
        num_workers: how many.
        command: that makes a process one of the workers.

    Raises:
        AnybatchError: one of them failed; what the others finished is kept.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    workers = [subprocess.Popen(command, env=environment) for _ in range(num_workers)]
    try:
        codes = [worker.wait() for worker in workers]
    finally:
        for worker in workers:
            worker.terminate()
    if any(codes):
        raise AnybatchError(f"a worker ended with exit code {max(codes, key=abs)}; call again to go on.")


def do_units(units: Iterable[Unit], kinds: Kinds, runs: Path) -> None:
    """Do what is missing; a unit that another process holds is left to it, and asked for again in case it dies.

    Args:
        units: in the order in which they are tried.
        kinds: the function that does a unit, by kind.
        runs: folder of their folders.

    Raises:
        AnybatchError: a folder cannot be written or holds something else.
    """
    torch.set_num_threads(1)
    pending = list(units)
    while pending:
        held = [unit for unit in pending if not _do(unit, kinds[unit.kind], RunFolder(runs / unit.name))]
        if len(held) == len(pending):
            time.sleep(SECONDS_BETWEEN_TRIES)
        pending = held


def _do(unit: Unit, function: Callable[..., dict[str, Any]], folder: RunFolder) -> bool:
    """Return whether the unit is done."""
    if folder.result() is not None:
        return True
    with folder.lock() as is_ours:
        if is_ours and folder.result() is None:
            folder.claim({"kind": unit.kind, **unit.settings})
            begun = time.perf_counter()
            found = function(**unit.settings)
            seconds = time.perf_counter() - begun
            folder.finish({"seconds": seconds, **found})
            print(f"{unit.name}: {seconds:.1f} s", flush=True)
        return is_ours


def read_results(units: Iterable[Unit], runs: Path) -> dict[str, list[tuple[Unit, dict[str, Any]]]]:
    """Return finished units with their results, by kind."""
    found: dict[str, list[tuple[Unit, dict[str, Any]]]] = {}
    for unit in units:
        result = RunFolder(runs / unit.name).result()
        if result is not None:
            found.setdefault(unit.kind, []).append((unit, result))
    return found


def by_label(results: Results, kind: str) -> dict[str, list[dict[str, Any]]]:
    """Return the results of a kind by label, a list over seeds each."""
    found: dict[str, list[dict[str, Any]]] = {}
    for unit, result in results.get(kind, []):
        found.setdefault(unit.label, []).append(result | {"seed": unit.settings.get("seed", 0)})
    return {label: sorted(runs, key=lambda run: run["seed"]) for label, runs in found.items()}
