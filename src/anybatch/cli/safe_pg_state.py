"""How does a safe run survive a kill at any moment?"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from anybatch.cli.safe_pg_inputs import read_state
from anybatch.errors import InputError, RunError

STATE_VERSION = 1
SECONDS_BETWEEN_SAVES = 3.0


class StateFile:
    """One file that always holds a whole state: it is written beside its place and moved there.

    Args:
        path: of the file; None to keep nothing.
        loop: a safe policy gradient, new.
        env: its name.
        paper: whose loop it is.

    Raises:
        InputError: the policy has a state that could not be read again.
    """

    def __init__(self, path: Path | None, loop: Any, env: str, paper: str) -> None:
        self.path = path
        self._loop = loop
        self._about = {"version": STATE_VERSION, "env": env, "paper": paper, "first_policy": loop.policy.state_dict()}
        self._last = time.monotonic()
        if path is not None:
            _check_can_be_read(self._about["first_policy"])

    def resume(self) -> int:
        """Take up the state that is there.

        Returns:
            How many updates are behind it; 0 where there is no file.

        Raises:
            InputError: it is that of another run.
        """
        if self.path is None or not self.path.exists():
            return 0
        saved = read_state(self.path)
        other = [name for name, value in self._about.items() if not _is_same(saved.get(name), value)]
        if other:
            raise InputError(
                f"--state {self.path} must be of this run; got another {', '.join(other)}. "
                "Choose another file, or delete that one."
            )
        self._loop.load_state_dict(saved["loop"])
        return len(self._loop.iterations)

    def where_stopped(self, num_dropped: int, holders: Sequence[str]) -> str:
        """Return where the run was stopped and what is kept of it, half a sentence.

        Args:
            num_dropped: trajectories of an update that was not completed.
            holders: options whose files hold the updates so far.

        Returns:
            The words behind "stopped".
        """
        behind = len(self._loop.iterations)
        where = f"after update {behind}" if behind else "in the first update"
        if num_dropped:
            where += f", without the {num_dropped} trajectories of update {behind + 1}"
        if not behind:
            return f"{where}; no update is complete, nothing is kept."
        if self.path is not None:
            return f"{where}; the state is saved, call again to go on."
        if holders:
            return f"{where}; {' and '.join(holders)} keep the updates so far, but without --state none can follow."
        return f"{where}; no --state was named, nothing is kept."

    def save_now_and_then(self) -> None:
        """Save where the last time was seconds ago."""
        if time.monotonic() - self._last > SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        """Save the state.

        Raises:
            RunError: it cannot be written.
        """
        if self.path is None:
            return
        state = {**self._about, "policy": self._loop.policy.state_dict(), "loop": self._loop.state_dict()}
        beside = self.path.with_name(f"{self.path.name}.part")
        try:
            torch.save(state, beside)
            beside.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError of a full disk
            raise RunError(f"--state {self.path} cannot be written: {str(error).partition(chr(10))[0]}.") from error
        self._last = time.monotonic()


def _check_can_be_read(state: dict[str, Any]) -> None:
    """Refuse a policy's state before the run where no later call could take it up."""
    written = io.BytesIO()
    try:
        torch.save(state, written)
        written.seek(0)
        torch.load(written, weights_only=True)
    except Exception as error:  # whatever the pickler or the unpickler trips over
        raise InputError(
            "the policy's state_dict() must hold tensors, plain numbers and text, and nothing else, to be kept by "
            "--state. Leave --state out, or convert what it holds."
        ) from error


def _is_same(saved: Any, own: Any) -> bool:
    if isinstance(own, dict):
        return isinstance(saved, dict) and saved.keys() == own.keys() and all(_is_same(saved[k], own[k]) for k in own)
    if isinstance(own, torch.Tensor):
        return isinstance(saved, torch.Tensor) and torch.equal(saved, own)
    return bool(saved == own)
