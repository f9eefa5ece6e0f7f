"""The doctor on libraries by others, and on what a GPU would change that this machine does not have."""

from __future__ import annotations

from collections.abc import Iterator

from omnitrunk.engine.doctor_columns import aligned
from omnitrunk.kernels import dispatch, peers


def libraries() -> Iterator[str]:
    """Every library that can serve an operation: its version or how to get it, and when it would be used."""
    yield "libraries by others that can serve an operation on a GPU; none is needed"
    yield from aligned([(package.name, f"{_state(package)}; serves {_served(package)}") for package in peers.KNOWN])


def _served(package: peers.Package) -> str:
    return f"{package.serves}, on GPUs of compute capability {_gpus(package)}"


def _state(package: peers.Package) -> str:
    lacking = peers.absent(package)
    if lacking is not None:
        return lacking
    found = f"{package.distribution} {peers.version(package.distribution) or 'of unknown version'}"
    against = peers.missing(package)
    return found if against is None else f"{found}, not used here: {against}"


def _gpus(package: peers.Package) -> str:
    if package.newest is None:
        return f"{package.oldest}.0 or newer"
    return f"{package.oldest}.x" if package.newest == package.oldest else f"{package.oldest}.x to {package.newest}.x"


def prospects() -> Iterator[str]:
    """What "auto" would ask, operation by operation, if this machine with its packages had a GPU."""
    yield "operations on cuda, if there were a GPU: the first backend that the GPU and the call allow"
    yield "  (unknown from here: the GPU's age, what the libraries accept on it, and what is fastest there)"
    yield from aligned([_prospect(operation) for operation in dispatch.OPERATIONS.values()])


def _prospect(operation: dispatch.Operation) -> tuple[str, str, str]:
    possible, passed = [], []
    for backend in operation.candidates():
        against = backend.missing() if "cuda" in backend.devices else None
        if against not in (None, peers.NO_GPU):
            passed.append(f"not {backend.name}: {against}")
        elif "cuda" in backend.devices:
            possible.append(backend)
    first, *others = possible
    rest = "".join(f", else {backend.name}" for backend in others)
    return operation.name, first.name, f"{first.why}{rest}" + (f" ({'; '.join(passed)})" if passed else "")
