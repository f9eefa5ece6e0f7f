"""A progress bar for terminals; where the output is a file there is none."""

from __future__ import annotations

import shutil
import sys
import time

WIDTH = 40
REDRAW_S = 0.1


class ProgressBar:
    """Draws "[=====>     ] step/steps" on the last line of a terminal, at most ten times a second."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._shown = sys.stdout.isatty() and shutil.get_terminal_size().columns > WIDTH + 30
        self._drawn_at = 0.0

    def draw(self, step: int) -> None:
        """Show `step` as done."""
        now = time.monotonic()
        if not self._shown or now - self._drawn_at < REDRAW_S:
            return
        self._drawn_at = now
        done = WIDTH * step // max(1, self._steps)
        bar = ("=" * done + ">")[:WIDTH].ljust(WIDTH)
        print(f"\r[{bar}] {step}/{self._steps}", end="", flush=True)

    def print(self, line: str) -> None:
        """Print a line above the bar."""
        wipe = "\r\033[K" if self._shown else ""
        print(f"{wipe}{line}", flush=True)
