"""How does a run end in good order when the system asks it to?"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)
STDERR = 2


class StopRequest:
    """Remember SIGTERM or Ctrl-C instead of dying of it; the second one kills as usual.

    Works in the main thread; elsewhere nothing is caught.

    Args:
        notice: said on stderr behind the signal's name as soon as it comes. Default: nothing.

    Attributes:
        signal: the one that came; None so far.

    Example:
        >>> with StopRequest() as stop:
        ...     print(stop.signal)
        None
    """

    def __init__(self, notice: str = "") -> None:
        self.signal: signal.Signals | None = None
        self._notice = notice
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self.__exit__()
        if self._notice:
            _tell_at_once(f"anybatch: {self.signal.name}, {self._notice}\n")


def _tell_at_once(line: str) -> None:
    """Write past the buffers of stderr, which the signal may have come in the midst of."""
    with suppress(OSError):
        os.write(STDERR, ("\n" * os.isatty(STDERR) + line).encode())  # a bar may stand on the line
