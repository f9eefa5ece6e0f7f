"""Signals become a flag: the loop finishes its step, saves, and leaves with the exit code that means "requeue"."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType

REQUEUE = 75
"""Exit code of a run that was stopped by a signal after a complete checkpoint."""

SECOND_THOUGHT_S = 1.0
"""A terminal and a launcher may both deliver the same Ctrl-C; only one this much later is a second one."""


class StopRequest:
    """A context in which SIGTERM and SIGINT set `requested`; a second SIGINT raises KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.requested = False
        self._first_at = 0.0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.requested and now - self._first_at > SECOND_THOUGHT_S:
            raise KeyboardInterrupt
        if not self.requested:
            self._first_at = now
        self.requested = True
