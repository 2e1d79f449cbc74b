"""How do several processes do each job once, and go on where one fails?"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from anybatch.errors import AnybatchError, RunError, StoppedError
from anybatch.train.jobs import Job
from anybatch.train.progress import Progress
from anybatch.train.run import run_training
from anybatch.train.runtime import Runtime
from anybatch.train.stop import StopRequest
from anybatch.workload import Workload

SECONDS_BETWEEN_TRIES = 2.0  # to get a run that another process holds


class SharedWork:
    """The jobs of a comparison, each done once, whoever does it.

    Args:
        workload: what is trained.
        runtime: where.
        jobs: from `plan_jobs`.
        checkpoint_seconds: between two checkpoints.
        num_workers: of the data loader.
        progress: told how far the jobs are.
    """

    def __init__(
        self,
        workload: Workload,
        runtime: Runtime,
        jobs: Sequence[Job],
        checkpoint_seconds: float,
        num_workers: int,
        progress: Progress,
    ) -> None:
        self.workload = workload
        self.runtime = runtime
        self.jobs = jobs
        self.checkpoint_seconds = checkpoint_seconds
        self.num_workers = num_workers
        self.progress = progress
        self.results: dict[Path, dict[str, Any]] = {}
        self.failures: dict[Path, RunError] = {}

    def finished(self) -> list[Job]:
        """Return the jobs whose results are known."""
        return [job for job in self.jobs if job.folder.path in self.results]

    def read(self) -> None:
        """Take what results there are."""
        found = {job.folder.path: job.folder.result() for job in self.jobs} if self.runtime.rank == 0 else {}
        self.results = {path: result for path, result in self.runtime.broadcast(found).items() if result is not None}

    def do(self) -> None:
        """Go round the jobs until each has ended; what another process holds is asked for again later.

        Raises:
            RunError: a job failed; the others have been done.
        """
        with StopRequest() as stop:
            while pending := [job for job in self.jobs if job.folder.path not in {**self.results, **self.failures}]:
                if not sum(self._try(job, stop) for job in pending):
                    self._tell("waiting for the runs of another process")
                    time.sleep(SECONDS_BETWEEN_TRIES)
                    self._leave(stop)
        if self.failures:
            first = next(iter(self.failures.values()))
            others = len(self.failures) - 1
            raise RunError(f"{first}" + (f" So did {others} other run(s)." if others else "")) from first.__cause__

    def _try(self, job: Job, stop: StopRequest) -> bool:
        with ExitStack() as held:
            is_ours, result = self.runtime.broadcast(self._reserve(job, held) if self.runtime.rank == 0 else None)
            if not is_ours:
                return False
            if result is None:
                self._leave(stop)
                self._tell(str(job))
                result = self._train(job, stop)
            if result is not None:
                self.results[job.folder.path] = result
            return True

    def _reserve(self, job: Job, held: ExitStack) -> tuple[bool, dict[str, Any] | None]:
        """Return whether the job is ours, and its result if it is there."""
        if (result := job.folder.result()) is not None:
            return True, result
        return held.enter_context(job.folder.lock()), job.folder.result()

    def _train(self, job: Job, stop: StopRequest) -> dict[str, Any] | None:
        """Return the result; None of a run that failed while others can go on, which several ranks cannot."""
        if self.runtime.rank == 0:
            job.folder.claim(job.config)
        try:
            return run_training(
                self.workload,
                self.runtime,
                job.cell.settings,
                job.folder,
                stop=stop,
                checkpoint_seconds=self.checkpoint_seconds,
                num_workers=self.num_workers,
                tell=lambda fraction, text: self._tell(f"{job}: {text}", fraction * job.num_samples),
            )
        except AnybatchError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {str(error).partition(chr(10))[0].rstrip('.')}"
            hint = " Try --micro-batch-size." if isinstance(error, torch.OutOfMemoryError) else ""
            failure = RunError(f"{job} failed: {what}.{hint}")
            failure.__cause__ = error
            if self.runtime.world_size > 1:
                raise failure from error
            self.failures[job.folder.path] = failure
            return None

    def _leave(self, stop: StopRequest) -> None:
        number = int(self.runtime.max([float(stop.signal or 0)])[0])
        if number:
            name = signal.Signals(number).name
            raise StoppedError(f"stopped by {name} between two runs; call again to go on.", number)

    def _tell(self, text: str, num_samples: float = 0.0) -> None:
        done = self.finished()
        fraction = (sum(job.num_samples for job in done) + num_samples) / sum(job.num_samples for job in self.jobs)
        self.progress("comparison", fraction, f"{len(done)} of {len(self.jobs)} runs done; {text}")
