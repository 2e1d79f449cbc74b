"""What went wrong, in a sentence a user can act on."""

from __future__ import annotations


class AnybatchError(Exception):
    """A sentence for the user, told without a traceback.

    Attributes:
        partial: what was finished before, where there is such a thing; a ProbeResult of a probe.
    """

    partial: object = None


class InputError(AnybatchError, ValueError):
    """What was handed over cannot be used; exit code 2."""


class RunError(AnybatchError, RuntimeError):
    """The input was fine and the run failed; exit code 1."""
