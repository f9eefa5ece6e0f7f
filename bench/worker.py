"""A contender in a process of its own, driven over a pipe.

Allocators, thread pools and library settings leak between contenders that share a process. Workers do not share one:
the parent wakes one at a time, the others sleep in a read.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from types import TracebackType

from omnitrunk.bench.harness import Contender


class Worker:
    """Calls `factory(*arguments)` in a fresh process and then behaves like the contender it returned.

    `factory` must be importable (a module's function). `threads` is set before any library loads in the process.
    A failure inside is raised here as RuntimeError with the worker's traceback.
    """

    def __init__(self, factory: Callable[..., Contender], *arguments: object, threads: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, far = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(far, factory, arguments), daemon=True)
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(threads)
        try:
            self._process.start()
        finally:
            _restore("OMP_NUM_THREADS", before)
        far.close()
        self._receive()

    def __call__(self) -> Mapping[str, float]:
        """Runs one unit of work in the process and returns its seconds by part."""
        self._pipe.send("run")
        return self._receive()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join()

    def _receive(self) -> Mapping[str, float]:
        try:
            ok, answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"the worker ended with exit code {self._process.exitcode}; is memory short?") from None
        if not ok:
            self.close()
            raise RuntimeError(f"the worker failed:\n{answer}")
        return answer


def _restore(name: str, value: str | None) -> None:
    """Puts an environment variable back to what it was."""
    if value is None:
        del os.environ[name]
    else:
        os.environ[name] = value


def _serve(pipe: Connection, factory: Callable[..., Contender], arguments: tuple[object, ...]) -> None:
    """The worker's side: build, say so, then run once per message until the parent hangs up."""
    try:
        contender = factory(*arguments)
        pipe.send((True, {}))
        while pipe.recv() == "run":
            pipe.send((True, contender()))
    except EOFError:
        return
    except Exception:
        pipe.send((False, traceback.format_exc()))
