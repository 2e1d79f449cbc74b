"""What went wrong, in a sentence a user can act on."""

from __future__ import annotations


class AnybatchError(Exception):
    """A sentence for the user, told without a traceback.

    Attributes:
        partial: what was finished before, where there is such a thing: a ProbeResult of a probe, a Comparison.
        exit_code: of the command line.
    """

    partial: object = None
    exit_code: int = 1


class InputError(AnybatchError, ValueError):
    """What was handed over cannot be used; exit code 2."""

    exit_code = 2


class RunError(AnybatchError, RuntimeError):
    """The input was fine and the run failed; exit code 1."""


class StoppedError(RunError):
    """A signal ended the run, and its state was saved; exit code 128 and the signal's number, as shells have it.

    Args:
        message: the sentence.
        signal_number: which one.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
