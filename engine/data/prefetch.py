"""Prepares batches in a background thread, a few ahead of the consumer."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Generator
from contextlib import nullcontext
from queue import SimpleQueue

import torch

from omnitrunk.engine.data.batch import Batch


class Prefetcher:
    """Iterates over `batches`, moved to `device`, with up to `depth` of them prepared ahead.

    An exception of the generator is raised from `__next__`. The thread ends with the generator, with `close`, soon
    after the Prefetcher is garbage-collected, or at exit, whichever is first.
    """

    def __init__(self, batches: Generator[Batch, None, None], depth: int, device: torch.device | str) -> None:
        self.wait_seconds = 0.0
        """Time the consumer has spent waiting for batches."""
        self._worker = _Worker(batches, depth, torch.device(device))
        self._lent: Batch | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._worker.run, name="prefetch", daemon=True)
        self._thread.start()
        self._finalizer = weakref.finalize(self, _stop, self._worker, self._thread)

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> Batch:
        if self._ended:
            raise StopIteration
        self._worker.give_back(self._lent)
        start = time.perf_counter()
        item = self._worker.ready.get()
        self.wait_seconds += time.perf_counter() - start
        self._worker.free.put(None)
        self._lent = item if isinstance(item, Batch) else None
        if self._lent is None:
            self._ended = True
            raise StopIteration if item is None else item
        return item

    def close(self) -> None:
        """Ends the thread; waits for the batch it is working on."""
        self._ended = True
        self._lent = None
        self._finalizer()
        self._thread.join()


class _Worker:
    """What the thread needs; apart from the Prefetcher, which can so be collected while the thread runs."""

    def __init__(self, batches: Generator[Batch, None, None], depth: int, device: torch.device) -> None:
        self.batches = batches
        self.ready: SimpleQueue[Batch | Exception | None] = SimpleQueue()
        self.free: SimpleQueue[None] = SimpleQueue()
        """A token for each batch that may be prepared. Unlike a semaphore it can be filled while it is being used."""
        for _ in range(depth):
            self.free.put(None)
        self.stopped = False
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._returned: SimpleQueue[tuple[Batch, torch.cuda.Event]] = SimpleQueue()

    def run(self) -> None:
        last: Exception | None = None
        try:
            with torch.cuda.stream(self.stream) if self.stream else nullcontext():
                self._produce()
        except Exception as error:  # raised again where the consumer waits
            last = error
        finally:
            self.batches.close()
            self.ready.put(last)

    def _produce(self) -> None:
        while True:
            self.free.get()
            if self.stopped:
                return
            self._release_lent()
            batch = next(self.batches, None)
            if batch is None:
                return
            batch = batch.to(self.device)
            if self.stream:
                self.stream.synchronize()  # so that any stream may read the batch at once
            self.ready.put(batch)

    def give_back(self, batch: Batch | None) -> None:
        """Called by the consumer when it asks for the next batch: all work on `batch` is queued on its stream by then.

        Memory taken on the copy stream may be used again as soon as it is free, though another stream still reads it.
        So the batch is held until the copy stream has been told to wait for that work.
        """
        if self.stream and batch is not None:
            self._returned.put((batch, torch.cuda.current_stream(self.device).record_event()))

    def _release_lent(self) -> None:
        while self.stream and not self._returned.empty():
            _, event = self._returned.get()
            self.stream.wait_event(event)


def _stop(worker: _Worker, thread: threading.Thread) -> None:
    """Ends the thread, and waits for it only at exit: before, the garbage collector may call this from any thread.

    It can be a thread that reads the very batch which `thread` is waiting for.
    """
    worker.stopped = True
    worker.free.put(None)
    if not threading.main_thread().is_alive():
        thread.join()
