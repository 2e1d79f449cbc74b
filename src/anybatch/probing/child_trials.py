"""How is a micro-batch size tried in a process of its own, whose memory is nobody else's?"""

from __future__ import annotations

import multiprocessing
import pickle
import re
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from anybatch.errors import AnybatchError, InputError, RunError
from anybatch.probing.memory_trials import is_out_of_memory, try_size, worst_case_samples
from anybatch.train.loop import start_training
from anybatch.train.runtime import Runtime
from anybatch.workload import Workload
from anybatch.workloads.load import load_again, loaded_files

TRIAL_TIMEOUT = 300
CANNOT_DIFFERENTIATE = "after a fork autograd refuses to run"  # said by a child in place of its first peak


class ChildTrials:
    """Trains and evaluates in a process of its own, whose peak memory is that of the largest size so far.

    On Linux the process is forked, so that the workload need not pickle. Autograd refuses to run after a fork once it
    has started threads, as deeply nested calls of `backward()` and a CUDA device make it do; there, and on other
    systems, the process is spawned.

    Args:
        workload: what is trained; it must pickle where the process is spawned.
        runtime: of this rank.
        seed: of weights and samples.

    Raises:
        InputError: the process must be spawned and the workload does not pickle; or the workload is refused.
        RunError: the model cannot be built there, or a trial failed for another reason than memory.
    """

    def __init__(self, workload: Workload, runtime: Runtime, seed: int) -> None:
        alone = Runtime(runtime.device, autocast=runtime.autocast)
        if not (sys.platform == "linux" and self._forks(workload, alone, seed)):
            self._spawn(workload, alone, seed)

    def peak_of(self, size: int) -> int | None:
        """Return the peak in bytes, None where memory ran out or the process died."""
        try:
            self._connection.send(size)
        except OSError:
            return None
        answer = self._receive(f"a trial of {size} samples")
        return answer if isinstance(answer, int) else None

    def _forks(self, workload: Workload, alone: Runtime, seed: int) -> bool:
        """Start a forked process; return whether it can train."""
        with warnings.catch_warnings():  # the child uses one thread, so it needs none of the parent's
            warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
            self._start("fork", _answer, workload, alone, seed)
        if self._receive("building the model") != CANNOT_DIFFERENTIATE:
            return True
        self._end()
        return False

    def _spawn(self, workload: Workload, alone: Runtime, seed: int) -> None:
        try:
            pickled = pickle.dumps(workload)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(
                f"a workload must pickle to be tried in a process of its own here; {error}. "
                "Use functions of a module instead of lambdas, or probe in a fresh process."
            ) from error
        self._start("spawn", _answer_pickled, loaded_files(), alone, seed)
        with suppress(OSError):  # as an argument of a process that dies at once it would be written forever
            self._connection.send_bytes(pickled)
        self._receive("building the model")
        if (code := self._process.exitcode) is not None and code > 0:  # below 0 it was killed, as for its memory
            raise RunError(
                f"the process that tries memory ended with exit code {code} before a trial. "
                "A script that probes does so below `if __name__ == '__main__':`, since that process imports it."
            )

    def _start(self, method: str, target: object, *arguments: object) -> None:
        context = multiprocessing.get_context(method)
        self._connection, other = context.Pipe()
        self._process = context.Process(target=target, args=(other, *arguments), daemon=True)  # pyright: ignore[reportAttributeAccessIssue]
        self._process.start()
        other.close()

    def _receive(self, what: str) -> int | str | None:
        try:
            if not self._connection.poll(TRIAL_TIMEOUT):
                raise RunError(f"{what} took over {TRIAL_TIMEOUT} s in a process of its own. Probe a smaller model.")
            answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(1)
            return None
        if isinstance(answer, AnybatchError):
            raise answer
        return answer

    def _end(self) -> None:
        self._connection.close()
        self._process.terminate()
        self._process.join()

    def __enter__(self) -> ChildTrials:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()


def _answer_pickled(connection: Connection, files: Mapping[str, Path], runtime: Runtime, seed: int) -> None:
    pickled = connection.recv_bytes()
    try:
        for name, path in files.items():
            load_again(name, path)
        workload = pickle.loads(pickled)
    except Exception as error:
        what = error if isinstance(error, AnybatchError) else f"{type(error).__name__}: {error}"
        connection.send(
            RunError(f"the workload cannot be read in a process of its own; {what}. Define it in a file or a module.")
        )
        return
    _answer(connection, workload, runtime, seed)


def _answer(connection: Connection, workload: Workload, runtime: Runtime, seed: int) -> None:
    torch.set_num_threads(1)
    try:
        if not _can_differentiate():
            connection.send(CANNOT_DIFFERENTIATE)
            return
        samples = worst_case_samples(workload, seed)
        training = start_training(workload, runtime, seed=seed)
        connection.send(_peak_bytes())
        while True:
            size = connection.recv()
            try:
                try_size(workload, runtime, training, samples, size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                connection.send(None)
                continue
            connection.send(_peak_bytes())
    except (EOFError, KeyboardInterrupt):
        return
    except AnybatchError as error:
        connection.send(error)
    except Exception as error:
        connection.send(RunError(f"training failed with {type(error).__name__}: {error}"))


def _can_differentiate() -> bool:
    try:
        torch.ones((), requires_grad=True).backward()
    except RuntimeError as error:
        if "fork" not in str(error):
            raise
        return False
    return True


def _peak_bytes() -> int:
    import resource  # not on Windows

    # of a spawned process getrusage counts what its parent held when it was started
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return 1024 * int(found[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
