"""Launchers as registered torch operators, for torch.compile only.

A compiler must see a kernel launch as one operation with known shapes, not look inside. Crossing torch's dispatcher
costs 5 to 40 microseconds, as long as a short kernel runs; so eager calls go to the Python function itself, and only a
trace records torch.ops.omnitrunk.<name>.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from omnitrunk.kernels import gpu

Launcher = TypeVar("Launcher", bound=Callable[..., Any])
_LIBRARY = torch.library.Library("omnitrunk", "FRAGMENT")


def operator(
    *, mutates: tuple[str, ...] = (), fake: Callable[..., Any] | None = None
) -> Callable[[Launcher], Launcher]:
    """Decorate a launcher: a function of tensors and numbers that returns fresh tensors only.

    `mutates` names arguments written in place. `fake` computes the shapes of the results; left out, it is the function
    itself with all launches left out, so that the function may only compute shapes, allocate and launch.
    """

    def register(launcher: Launcher) -> Launcher:
        name = launcher.__name__
        if not hasattr(torch.ops.omnitrunk, name):
            # A second copy of this package in one process finds the operator there already.
            _LIBRARY.define(name + torch.library.infer_schema(launcher, mutates_args=mutates))
            _LIBRARY.impl(name, launcher, "CPU")
            _LIBRARY.impl(name, launcher, "CUDA")
            torch.library.register_fake(f"omnitrunk::{name}", fake or _shapes_of(launcher), lib=_LIBRARY)
        registered = getattr(torch.ops.omnitrunk, name).default

        @functools.wraps(launcher)
        def call(*args: Any, **options: Any) -> Any:
            return registered(*args, **options) if torch.compiler.is_compiling() else launcher(*args, **options)

        return call

    return register


def _shapes_of(launcher: Callable[..., Any]) -> Callable[..., Any]:
    def fake(*args: Any, **options: Any) -> Any:
        with gpu.shapes_only():
            return launcher(*args, **options)

    return fake
