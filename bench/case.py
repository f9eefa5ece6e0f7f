"""A case: one operation at one shape, the ways to compute it, its inputs, its least work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation

OURS = "omnitrunk"
OWN = ("triton", "triton_gather", "cuda", "cpu", "onednn", "cached")
"""Backends written here; all others, the definition among them, are what a user would take instead."""

Run = Callable[..., Tensor | Sequence[Tensor] | None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """`contenders` compute the same from the same inputs, ours first; the others are peers.

    inputs: seed -> arguments of a run; gradients are taken of those floating tensors that require them. definition: the
    same in float64, for errors (None where results are exact or random). forward, backward: least work; backward None
    where there is none.
    """

    operation: str
    shape: str
    inputs: Callable[[int], tuple]
    contenders: Mapping[str, Run]
    forward: Cost
    backward: Cost | None = None
    definition: Run | None = None


def ways(operation: Operation, run: Callable[[str], Run], inputs: tuple, **peers: Run) -> dict[str, Run]:
    """Our automatic choice, every backend of others that can serve these inputs, and further peers."""
    found, automatic = {OURS: run("auto")}, _automatic(operation, run("auto"), inputs)
    for backend in operation.candidates():
        if backend.name not in (*OWN, automatic) and _serves(run(backend.name), inputs):
            found["definition" if backend.name == "reference" else backend.name] = run(backend.name)
    return found | peers


def _automatic(operation: Operation, run: Run, inputs: tuple) -> str:
    """The backend that serves these inputs by itself: it is no peer of ours."""
    chosen, original = [], operation.run

    def noting(backend: str, *arguments: object, **options: object) -> object:
        chosen.append(operation.explain(*arguments, backend=backend, **options).backend)
        return original(backend, *arguments, **options)

    operation.run = noting
    try:
        with torch.no_grad():
            run(*inputs)
    finally:
        del operation.run
    return chosen[0]


def _serves(run: Run, inputs: tuple) -> bool:
    try:
        with torch.no_grad():
            run(*inputs)
    except ValueError:
        return False
    return True


def random(seed: int, *shape: int, dtype: torch.dtype, device: str, grad: bool = True, scale: float = 1.0) -> Tensor:
    """Normal values that ask for gradients."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.empty(shape).normal_(0, scale, generator=generator).to(device, dtype)
    return values.requires_grad_(grad)


def working_dtype(device: str) -> torch.dtype:
    """What models compute in on the device: bfloat16 on GPUs; on CPUs float32, which is faster there."""
    return torch.bfloat16 if device == "cuda" else torch.float32
