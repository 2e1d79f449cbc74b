"""What do all commands share: files to write, numbers to read, progress to show?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from anybatch.errors import InputError
from anybatch.train.plain import Exportable
from anybatch.train.progress import Progress as Told
from anybatch.train.progress import silent

SECONDS_BETWEEN_LINES = 30.0
Number = TypeVar("Number", int, float)


class Outputs(NamedTuple):
    """Files that were asked for."""

    json: Path | None
    report: Path | None

    def write(self, result: Exportable, console: Console) -> None:
        """Write them, and say where they are."""
        if self.json is not None:
            result.to_json(self.json)
            console.print(f"JSON: {self.json.resolve()}", soft_wrap=True)
        if self.report is not None:
            result.to_html(self.report)
            console.print(f"Report: {self.report.resolve()}", soft_wrap=True)


def is_first_rank() -> bool:
    """Return whether this process is the one that speaks."""
    return os.environ.get("RANK", "0") == "0"


def check_writable(*paths: Path | None) -> None:
    """Refuse files that cannot be written, before hours are spent on what they are to hold."""
    for path in paths if is_first_rank() else ():
        if path is not None:
            _check_writable(path)


def check_distinct(**paths: Path | None) -> None:
    """Refuse two options that would write the same file.

    Args:
        **paths: name of an option -> its file.

    Raises:
        InputError: two of them are one.
    """
    seen: dict[Path, str] = {}
    for name, path in paths.items():
        if path is not None and (other := seen.setdefault(path.resolve(), name)) != name:
            raise InputError(f"--{other} and --{name} must be different files; got {path} for both. Name another one.")


def _check_writable(path: Path) -> None:
    existed = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except FileExistsError as error:
        raise InputError(f"{path} cannot be written: its folder is a file. Choose another one.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}. Choose another file.") from error
    if not existed:
        path.unlink()


def numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    """Return the numbers of an option that takes several with commas."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        what = "whole numbers with commas, such as 1,8,64" if kind is int else "numbers with commas, such as 0.5,1,2"
        raise InputError(f"{option} must be {what}; got {text!r}.") from error


@contextmanager
def told_by_bars() -> Iterator[Told]:
    """Show one bar per stage on stderr, and a line now and then where that is no terminal."""
    console = Console(stderr=True)
    if not is_first_rank():
        yield silent
    elif console.is_terminal:
        yield from _bars(console)
    else:
        yield _Lines(console)


class _Lines:
    """Progress as a log has it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = time.monotonic()

    def __call__(self, stage: str, fraction: float, text: str = "") -> None:
        if time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self._console.print(f"{stage.replace('_', ' ')} {fraction:.0%}, {text}", soft_wrap=True, highlight=False)


def _bars(console: Console) -> Iterator[Told]:
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(24),
        TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
        TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
        TextColumn("left, {task.fields[text]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
    )
    with Progress(*columns, console=console, speed_estimate_period=120) as progress:
        tasks = {}

        def told(stage: str, fraction: float, text: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage.replace("_", " "), total=1.0, text="")
            progress.update(tasks[stage], completed=fraction, text=text)

        yield told
