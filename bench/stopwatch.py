"""Seconds of a case's contenders, forward and backward apart, in turns, on inputs that rotate.

Inputs rotate so that none is still in the cache from the call before: in a model it would not be either. On a GPU,
calls shorter than 200 microseconds are replayed from CUDA graphs, which leaves the host out of the measurement; the
backward pass is then the difference between a replay of both passes and one of the first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from omnitrunk.bench.case import Case, Run

SHORT = 200e-6
REPLAYS = 20
LONG = 0.1
"""Seconds of a CPU's call from which on it does not matter that the cores wake up in its first milliseconds."""


def tensors(output: Tensor | Sequence[Tensor] | None) -> list[Tensor]:
    """The differentiable results of a run."""
    results = [] if output is None else [output] if isinstance(output, Tensor) else list(output)
    return [result for result in results if isinstance(result, Tensor) and result.requires_grad]


def leaves(arguments: Sequence[object]) -> list[Tensor]:
    """The arguments that gradients are asked for."""
    return [value for value in arguments if isinstance(value, Tensor) and value.requires_grad]


def backward(output: Tensor | Sequence[Tensor] | None, arguments: Sequence[object], grads: Sequence[Tensor]) -> object:
    """Gradients of all leaves."""
    return torch.autograd.grad(tensors(output), leaves(arguments), grads, allow_unused=True)


def contender(case: Case, run: Run, rotation: Sequence[tuple], device: str) -> Callable[[], Mapping[str, float]]:
    """One timed call per turn, as harness.interleave takes it: seconds by part, "forward" and "backward"."""
    grads = _directions(case, run, rotation[0])
    timer = _Cuda(run, rotation, grads) if device == "cuda" else _Cpu(run, rotation, grads)
    return timer.turn


def _directions(case: Case, run: Run, arguments: tuple) -> list[Tensor]:
    if case.backward is None:
        return []
    return [torch.randn_like(result) for result in tensors(run(*arguments))]


class _Cpu:
    """Wall time; one call before each timed one wakes cores up that waited for their turn, unless calls are long."""

    def __init__(self, run: Run, rotation: Sequence[tuple], grads: Sequence[Tensor]) -> None:
        self.run, self.rotation, self.grads, self.turns = run, rotation, grads, 0
        self.settles = False  # the first turn is thrown away, and shows whether the next must settle

    def turn(self) -> dict[str, float]:
        if self.settles:
            self._once()
        parts = self._once()
        self.settles = sum(parts.values()) < LONG
        return parts

    def _once(self) -> dict[str, float]:
        arguments = self.rotation[self.turns % len(self.rotation)]
        self.turns += 1
        start = time.perf_counter()
        with torch.set_grad_enabled(bool(self.grads)):
            output = self.run(*arguments)
        middle = time.perf_counter()
        if not self.grads:
            return {"forward": middle - start}
        backward(output, arguments, self.grads)
        return {"forward": middle - start, "backward": time.perf_counter() - middle}


class _Cuda:
    """Time between events; from CUDA graphs where a call is short and can be captured."""

    def __init__(self, run: Run, rotation: Sequence[tuple], grads: Sequence[Tensor]) -> None:
        self.grads = grads
        self.forward = _Repeated(lambda arguments: run(*arguments), rotation, grad=bool(grads))
        self.both = _Repeated(lambda arguments: backward(run(*arguments), arguments, grads), rotation, grad=True)

    def turn(self) -> dict[str, float]:
        forward = self.forward.seconds()
        return {"forward": forward, "backward": self.both.seconds() - forward} if self.grads else {"forward": forward}


class _Repeated:
    """A call on each input set in turn, REPLAYS times in one measurement."""

    def __init__(self, call: Callable[[tuple], object], rotation: Sequence[tuple], *, grad: bool) -> None:
        self.call, self.rotation, self.grad, self.graph = call, rotation, grad, None
        for _ in range(3):
            self._all()
        if self.seconds() < SHORT:
            self._capture()

    def seconds(self) -> float:
        """Mean seconds of a call."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        self._all() if self.graph is None else self.graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / REPLAYS

    def _all(self) -> None:
        with torch.set_grad_enabled(self.grad):
            for number in range(REPLAYS):
                self.call(self.rotation[number % len(self.rotation)])

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._all()
        except RuntimeError:
            # A peer that waits for the device cannot be captured; it is timed with its host work, as its users see it.
            torch.cuda.synchronize()
            return
        self.graph = graph


def peak_bytes(run: Run, arguments: tuple, grads: Sequence[Tensor], device: str) -> int:
    """Most memory in use at once during a call, forward and backward, beyond what its inputs take."""
    return peak(lambda: _both(run, arguments, grads), device)


def peak(work: Callable[[], object], device: str) -> int:
    """Most bytes in use at once during `work()`, beyond what was in use before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or every profile announces itself on stderr
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    used = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        used += event.nbytes()
        most = max(most, used)
    return most


def _both(run: Run, arguments: tuple, grads: Sequence[Tensor]) -> None:
    with torch.set_grad_enabled(bool(grads)):
        output = run(*arguments)
    if grads:
        backward(output, arguments, grads)
