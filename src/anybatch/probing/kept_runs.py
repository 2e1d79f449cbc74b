"""Where are runs to a target kept, and what have they cost?"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from anybatch.probing.target_runs import Limits, RunRecord, TargetRun, run_to_target
from anybatch.train.restored import restored
from anybatch.train.run_folder import RunFolder
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload

SECONDS_BETWEEN_TRIES = 1.0  # to get a run that another process holds


class KeptRuns:
    """Runs to a target, each made once and kept as a small record in a folder named after all that decides it.

    What a run has cost counts whether it was made now or before, so a plan that goes by the cost comes out the same.

    Attributes:
        spent: seconds that the runs taken so far have cost, in whatever call they were made.
        num_made: how many of them this call has made.
    """

    def __init__(
        self,
        workload: Workload,
        runtime: Runtime,
        root: str | Path,
        setting: Mapping[str, Any],
        *,
        num_workers: int = 0,
    ) -> None:
        self._workload = workload
        self._runtime = runtime
        self._root = Path(root)
        self._setting = setting
        self._num_workers = num_workers
        self._counted: set[str] = set()
        self.spent = 0.0
        self.num_made = 0

    def take(self, run: TargetRun, limits: Limits) -> RunRecord:
        """Read a run's record, or make the run where there is none that answers.

        Args:
            run: what it is.
            limits: where it gives up.

        Returns:
            The record, equal on every rank.

        Raises:
            RunError: the folder cannot be written.
        """
        config = {**self._setting, "run": dataclasses.asdict(run)}
        folder = RunFolder(self._root / run_name(config))
        record = self._found(folder, limits)
        with ExitStack() as held:
            while record is None and not self._is_ours(folder, held):
                time.sleep(SECONDS_BETWEEN_TRIES)
                record = self._found(folder, limits)
            record = record or self._found(folder, limits) or self._made(run, limits, folder, config)
        if folder.path.name not in self._counted:
            self._counted.add(folder.path.name)
            self.spent += record.cost
        return record

    def _found(self, folder: RunFolder, limits: Limits) -> RunRecord | None:
        kept = self._on_first_rank(folder.result)
        record: RunRecord | None = restored(RunRecord, kept)
        return record if record is not None and record.answers(limits) else None

    def _is_ours(self, folder: RunFolder, held: ExitStack) -> bool:
        return self._on_first_rank(lambda: held.enter_context(folder.lock()))

    def _made(self, run: TargetRun, limits: Limits, folder: RunFolder, config: Mapping[str, Any]) -> RunRecord:
        self._on_first_rank(lambda: folder.claim(config))
        record = run_to_target(self._workload, self._runtime, run, limits, num_workers=self._num_workers)
        self._on_first_rank(lambda: folder.finish(dataclasses.asdict(record)))
        self.num_made += 1
        return record

    def _on_first_rank(self, action: Callable[[], Any]) -> Any:
        return self._runtime.broadcast(action() if self._runtime.rank == 0 else None)


def run_name(config: Mapping[str, Any]) -> str:
    """Return the name of a run's folder.

    Args:
        config: all that decides it, in plain values.

    Returns:
        Batch size, seed and a digest.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
    return f"target-batch{config['run']['batch_size']}-seed{config['run']['seed']}-{digest}"
