"""How does a run on disk survive a kill at any moment?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from anybatch.errors import InputError, RunError

try:
    import fcntl
except ImportError:  # Windows: two processes must not share a folder there
    fcntl = None

CHECKPOINT_VERSION = 2
Line = Mapping[str, Any]


class RunFolder:
    """The files of one run: its configuration, metrics, checkpoint, result and final weights.

    Whatever must be whole is written beside its place, flushed to disk, and moved there in one step.

    Args:
        path: the folder; made when something is written.
        board: whether metrics are written for TensorBoard too, in `path/tensorboard`.

    Raises:
        InputError: TensorBoard is asked for and not installed.
    """

    def __init__(self, path: str | Path, *, board: bool = False) -> None:
        self.path = Path(path)
        self._open_board = _board_writer() if board else None
        self._board: Any = None

    @property
    def metrics_path(self) -> Path:
        """One JSON object per line, in order of updates."""
        return self.path / "metrics.jsonl"

    def claim(self, config: Mapping[str, Any]) -> None:
        """Write the configuration, or make sure that it is the one that is there.

        Args:
            config: plain values that decide the run.

        Raises:
            InputError: the folder holds another run.
            RunError: it cannot be written.
        """
        found = self._read("config.json")
        if found is None:
            self._write("config.json", lambda file: file.write(_json(config)))
        elif found != json.loads(_json(config)):
            keys = sorted(key for key in {*found, *config} if found.get(key) != json.loads(_json(config)).get(key))
            raise InputError(
                f"{self.path} must hold this run; it holds one with another {', '.join(keys)}. "
                "Choose another folder, or delete that one."
            )

    def result(self) -> dict[str, Any] | None:
        """Return the result of a finished run."""
        return self._read("result.json")

    def checkpoint(self) -> dict[str, Any] | None:
        """Return the state to go on from.

        Returns:
            As it was saved, tensors on the CPU; None if there is none.

        Raises:
            InputError: the file is not one of ours.
        """
        path = self.path / "checkpoint.pt"
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            is_ours = state["version"] == CHECKPOINT_VERSION and {"training", "record"} <= state.keys()
        except Exception as error:
            raise InputError(f"{path} cannot be read. Delete it to start this run again.") from error
        if not is_ours:
            raise InputError(f"{path} cannot be read. Delete it to start this run again.")
        return state

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Save the state of an unfinished run."""
        self._write("checkpoint.pt", lambda file: torch.save({**state, "version": CHECKPOINT_VERSION}, file))

    def set_metrics(self, lines: Sequence[Line]) -> None:
        """Replace the metrics, as a run that goes on must: a killed one may have written more than it saved."""
        text = b"".join(_json(line) + b"\n" for line in lines)
        self._write(self.metrics_path.name, lambda file: file.write(text))

    def add_metrics(self, line: Line) -> None:
        """Append one line."""
        with self._told(self.metrics_path.name), self.metrics_path.open("ab") as file:
            file.write(_json(line) + b"\n")
        if self._open_board is not None:
            self._board = self._board or self._open_board(str(self.path / "tensorboard"))
            for name, value in line.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, line["updates"])

    def finish(self, result: Mapping[str, Any], weights: Mapping[str, Any] | None = None) -> None:
        """Write the final weights, where they are kept, and the result, and drop the checkpoint."""
        if weights is not None:
            self._write("weights.pt", lambda file: torch.save(dict(weights), file))
        self._write("result.json", lambda file: file.write(_json(result)))
        for rest in (self.path / "checkpoint.pt", *self.path.glob("*.part")):
            rest.unlink(missing_ok=True)
        if self._board is not None:
            self._board.close()

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the run for this process while the block lasts.

        Yields:
            Whether it is ours; False where another process holds it.

        Raises:
            RunError: the folder cannot be written.
        """
        if fcntl is None:
            yield True
            return
        with self._told("lock"):
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / "lock").open("w")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path / name} cannot be read. Delete it to start this run again.") from error

    def _write(self, name: str, write: Callable[[IO[bytes]], object]) -> None:
        beside = self.path / f"{name}.part"
        with self._told(name):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                with beside.open("wb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                beside.replace(self.path / name)
            except BaseException:
                beside.unlink(missing_ok=True)
                raise

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError of a full disk
            why = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
            raise RunError(
                f"{self.path / name} cannot be written: {why}. Finished runs are kept; make room, or choose another "
                "folder, and call again."
            ) from error


def _board_writer() -> Callable[[str], Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("TensorBoard is not installed. Run: pip install 'anybatch[tensorboard]'") from error
    return SummaryWriter


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
