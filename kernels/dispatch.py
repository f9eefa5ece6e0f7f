"""Which backend serves an operation, and why.

Every operation has a definition in plain PyTorch (backend "reference") and any number of faster backends. The
caller's `backend=` argument decides; then the innermost `use(...)`; then the environment variable OMNITRUNK_BACKEND;
then "auto", which takes the first backend, in order of preference, that is present and accepts the call, and says why.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

ENVIRONMENT = "OMNITRUNK_BACKEND"
OPERATIONS: dict[str, Operation] = {}
_in_use: list[str] = []
"""Backends of the `use` blocks that are open, in this process: backward passes run in threads of their own."""


def _nothing_missing() -> None:
    return None


def _refuses_nothing(*_args: Any, **_kwargs: Any) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One way to run an operation. `missing()`, `refuses(*call)` and `yields(*call)` return None, or an objection.

    A backend that is missing, or refuses a call, cannot serve it. One that yields could, but "auto" gives the call to a
    later one (not to the definition) if that can serve it.
    """

    name: str
    run: Callable[..., Any]
    devices: tuple[str, ...]
    why: str
    missing: Callable[[], str | None] = _nothing_missing
    refuses: Callable[..., str | None] = _refuses_nothing
    yields: Callable[..., str | None] = _refuses_nothing


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The backend taken for a call, the reason, and what stood against the ones passed over."""

    operation: str
    backend: str
    reason: str
    passed_over: tuple[tuple[str, str], ...] = ()


class Operation:
    """A named operation: its definition, and backends in order of preference, the definition last."""

    def __init__(self, name: str, reference: Callable[..., Any]) -> None:
        """Register `reference`, a function in plain PyTorch that runs on any device and in float64."""
        self.name = name
        self.backends: dict[str, Backend] = {}
        self._reference = Backend(name="reference", run=reference, devices=("cpu", "cuda"), why="the definition")
        OPERATIONS[name] = self

    def backend(
        self,
        name: str,
        *,
        devices: tuple[str, ...],
        why: str,
        missing: Callable[[], str | None] = _nothing_missing,
        refuses: Callable[..., str | None] = _refuses_nothing,
        yields: Callable[..., str | None] = _refuses_nothing,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorate a function with the reference's signature as a further backend; the first one added is preferred."""

        def add(run: Callable[..., Any]) -> Callable[..., Any]:
            self.backends[name] = Backend(
                name=name, run=run, devices=devices, why=why, missing=_constant(missing), refuses=refuses, yields=yields
            )
            return run

        return add

    def candidates(self) -> list[Backend]:
        """All backends, the preferred first, the definition last."""
        return [*self.backends.values(), self._reference]

    def run(self, backend: str, *args: Any, **kwargs: Any) -> Any:
        """Call the operation through `backend` ("auto" lets the rules above choose)."""
        return self._resolve(backend, args, kwargs)[0].run(*args, **kwargs)

    def explain(self, *args: Any, backend: str = "auto", **kwargs: Any) -> Choice:
        """The choice that `run` would make for this very call, without running it."""
        return self._resolve(backend, args, kwargs)[1]

    def choice_on(self, device: str) -> Choice:
        """The choice on a device for calls that no backend refuses."""
        passed_over = []
        for candidate in self.candidates():
            against = _absent(candidate, device)
            if against is None:
                return self._choice(candidate, candidate.why, passed_over)
            passed_over.append((candidate.name, against))
        raise AssertionError(f"{self.name}: the definition runs everywhere")

    def _resolve(self, backend: str, args: tuple, kwargs: dict) -> tuple[Backend, Choice]:
        device = _device_of(args)
        wanted, source = _wanted(backend)
        if wanted != "auto" and (wanted == "reference" or wanted in self.backends or backend == wanted):
            chosen = self._named(wanted, device, args, kwargs)
            return chosen, self._choice(chosen, source)
        passed_over, second_best = [], None
        for candidate in self.backends.values():
            against = _absent(candidate, device) or candidate.refuses(*args, **kwargs)
            if against is None:
                against = candidate.yields(*args, **kwargs)
                if against is None:
                    return candidate, self._choice(candidate, candidate.why, passed_over)
                second_best = second_best or candidate
            passed_over.append((candidate.name, against))
        chosen = second_best or self._reference
        return chosen, self._choice(chosen, chosen.why, [pair for pair in passed_over if pair[0] != chosen.name])

    def _named(self, name: str, device: str, args: tuple, kwargs: dict) -> Backend:
        if name == "reference":
            return self._reference
        if name not in self.backends:
            known = ", ".join(candidate.name for candidate in self.candidates())
            raise ValueError(f"{self.name} has no backend {name!r}; choose one of auto, {known}")
        chosen = self.backends[name]
        against = _absent(chosen, device) or chosen.refuses(*args, **kwargs)
        if against is not None:
            raise ValueError(f"{self.name}: backend {name!r} cannot serve this call: {against}")
        return chosen

    def _choice(self, chosen: Backend, reason: str, passed_over: list[tuple[str, str]] | None = None) -> Choice:
        return Choice(operation=self.name, backend=chosen.name, reason=reason, passed_over=tuple(passed_over or ()))


def _constant(missing: Callable[[], str | None]) -> Callable[[], str | None]:
    """What is installed does not change: torch.compile asks once instead of tracing the search."""

    def ask() -> str | None:
        return missing()

    # The mark of torch.compiler.assume_constant_result, which would import the compiler: one second for everybody.
    ask._dynamo_marked_constant = True
    return ask


def _absent(backend: Backend, device: str) -> str | None:
    if device not in backend.devices:
        return f"runs on {' and '.join(backend.devices)}, not on {device}"
    return backend.missing()


def _device_of(args: tuple) -> str:
    for value in args:
        if isinstance(value, torch.Tensor):
            return value.device.type
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
            return value[0].device.type
    return "cpu"


def _wanted(backend: str) -> tuple[str, str]:
    if backend != "auto":
        return backend, "named by the caller"
    if _in_use:
        return _in_use[-1], f'inside use("{_in_use[-1]}")'
    if chosen := os.environ.get(ENVIRONMENT):
        check_known(chosen)
        return chosen, f"{ENVIRONMENT}={chosen}"
    return "auto", ""


def check_known(name: str) -> None:
    """Raise ValueError unless `name` is "auto" or a backend of at least one operation."""
    known = {"auto", "reference"}.union(*(operation.backends for operation in OPERATIONS.values()))
    if name not in known:
        raise ValueError(f"no operation has a backend {name!r}; choose one of {', '.join(sorted(known))}")


@contextlib.contextmanager
def use(backend: str) -> Iterator[None]:
    """Run everything inside through `backend` where an operation has one; the others keep their automatic choice."""
    check_known(backend)
    _in_use.append(backend)
    try:
        yield
    finally:
        _in_use.remove(backend)


def explain(device: str = "cpu") -> list[Choice]:
    """What "auto" takes for every operation on `device`, in order of registration; `omnitrunk doctor` prints it."""
    return [operation.choice_on(device) for operation in OPERATIONS.values()]
