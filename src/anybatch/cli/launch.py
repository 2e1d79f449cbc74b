"""How does a command start and end, alone or on every rank under torchrun?"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
import typer

from anybatch.errors import AnybatchError, InputError

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
HINT = " Run again with --debug to see where."
LOST_RANK = (
    "another rank died, so this one ends too; its own message, or torchrun's report, says why. What was saved is kept: "
    "call again to go on."
)
SIGNS_OF_A_LOST_RANK = (
    "gloo/transport",
    "onnection closed by peer",
    "onnection reset by peer",
    "remote process exited",
)
DONE, FAILED = 0, 1


def run(app: typer.Typer) -> int:
    """Run a command line and turn whatever ends it into an exit code and a sentence on stderr.

    Args:
        app: the commands.

    Returns:
        The exit code. Where a rank of several failed, the process ends here without waiting for the others, which
        torchrun then ends too.
    """
    debug = "--debug" in sys.argv
    try:
        with process_group():
            app()
        return DONE
    except SystemExit as stop:  # typer has said what it had to say, and exits with a number
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or DONE
        message, code, cause = str(stop.code), FAILED, stop
    except InputError as error:
        message, code, cause = str(error), error.exit_code, error
    except AnybatchError as error:
        hint = "" if debug or error.__cause__ is None else HINT
        message, code, cause = f"{str(error).rstrip('.')}.{hint}", error.exit_code, error
    except Exception as error:
        hint = "" if debug else HINT
        message, code, cause = f"{type(error).__name__}: {str(error).rstrip('.')}.{hint}", FAILED, error
    hold_out()
    if debug:
        traceback.print_exception(cause)
    _tell(LOST_RANK if _ranks() > 1 and is_of_a_lost_rank(cause) else message)
    if _ranks() > 1:
        os._exit(code)
    return code


def hold_out() -> None:
    """Ignore SIGTERM from here on where there are other ranks, to write and say what is left before the end.

    torchrun sends it to all as soon as one rank is gone.
    """
    if _ranks() > 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group that torchrun announces, if it does, and leave it in the end.

    Yields:
        Nothing.
    """
    if _ranks() == 1:
        yield
        return
    dist.init_process_group(timeout=COLLECTIVE_TIMEOUT)
    yield
    dist.barrier()  # a rank that leaves while another one still talks can abort
    dist.destroy_process_group()


def is_of_a_lost_rank(error: BaseException | None) -> bool:
    """Return whether an error, or what it came from, is that of a collective whose other side is gone."""
    while error is not None:
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS_OF_A_LOST_RANK):
            return True
        error = error.__cause__
    return False


def _ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _tell(message: str) -> None:
    """Print an error; of several ranks only the first that fails, since the others fail of its absence."""
    if _ranks() == 1:
        print(f"anybatch: {message}", file=sys.stderr)
    elif _is_first_to_fail():
        print(f"anybatch: {message} (rank {os.environ['RANK']})", file=sys.stderr, flush=True)


def _is_first_to_fail() -> bool:
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))  # pyright: ignore[reportPrivateImportUsage]
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return store.add(f"anybatch/errors/{attempt}", 1) == 1
    except (KeyError, RuntimeError):
        return True
