"""What all Triton kernels share: whether they can run here, memory for results, launch settings, what is shipped.

Launch settings (tile sizes, warps, stages) come from a table beside each operation's kernels, configs.json, written by
a tuner on the GPU in question: nothing is tuned while a model trains. Every module of Triton kernels has a function
shipped(), case -> a call on tensors without memory; ahead of time and without a GPU, the test suite records what those
calls launch, compiles it for every supported architecture, and holds registers and memory against a budget.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OLDEST = (8, 0)
_shapes_only = False
_trials: dict[tuple[str, str], Mapping[str, Mapping[str, Any]]] = {}


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors: TRITON_INTERPRET=1, for tests and debugging."""
    return os.environ.get("TRITON_INTERPRET") == "1"


DEVICES = ("cuda", "cpu") if interpreted() else ("cuda",)


@functools.cache
def missing() -> str | None:
    """Why Triton kernels cannot run on this machine, or None."""
    if find_spec("triton") is None:
        return "needs Triton: pip install triton"
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU"
    capability = torch.cuda.get_device_capability()
    return (
        None
        if capability >= OLDEST
        else "needs a GPU of compute capability 8.0 or newer, not {}.{}".format(*capability)
    )


def new(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Fresh memory, contents undefined, for a result or workspace of a kernel; tests fill it with NaN and guard it."""
    return torch.empty(shape, dtype=dtype, device=device)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **settings: Any) -> None:
    """Start a Triton kernel on a grid; nothing happens on an empty grid, or where only shapes are worked out."""
    if not _shapes_only and all(grid):
        kernel[grid](*arguments, **settings)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside, launchers allocate their results and start nothing: how torch.compile learns shapes."""
    global _shapes_only
    before, _shapes_only = _shapes_only, True
    try:
        yield
    finally:
        _shapes_only = before


@functools.cache
def _table(operation: str) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    return json.loads((Path(__file__).parent / operation / "configs.json").read_text())


@functools.cache
def architecture() -> str:
    """The GPU's architecture as in configs.json, "sm_90" for example; "default" without a GPU."""
    return "sm_{}{}".format(*torch.cuda.get_device_capability()) if torch.cuda.is_available() else "default"


@functools.lru_cache(maxsize=4096)
def settings(operation: str, kernel: str, size: int) -> Mapping[str, Any]:
    """Meta-parameters of a kernel for a problem of `size`: the row of configs.json with the smallest bucket that fits.

    A table has one column per architecture that was tuned, and "default" for all others; buckets are the greatest size
    served, "inf" the last of them.
    """
    buckets = _trials.get((operation, kernel)) or table_rows(operation, kernel)
    return next(row for bucket, row in buckets.items() if size <= float(bucket))


def table_rows(operation: str, kernel: str) -> Mapping[str, Mapping[str, Any]]:
    """The column of configs.json that serves this GPU: bucket -> meta-parameters."""
    columns = _table(operation)[kernel]
    return columns.get(architecture(), columns["default"])


@contextmanager
def trying(operation: str, kernel: str, buckets: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Inside, the settings of a kernel are these and not those of configs.json: how a tuner measures them."""
    _trials[operation, kernel] = buckets
    settings.cache_clear()
    try:
        yield
    finally:
        del _trials[operation, kernel]
        settings.cache_clear()


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of the device; in the interpreter a small number that exercises the same loops."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def next_power_of_2(size: int) -> int:
    """The smallest power of 2 that is at least `size`."""
    return 1 << max(0, size - 1).bit_length()


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks of products on the tensor's device, or None where it is off."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if device != "meta" and torch.is_autocast_enabled(device) else None


def example(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor without memory that asks for gradients where it can, for `shipped()` of the Triton modules."""
    return torch.empty(shape, dtype=dtype, device="meta", requires_grad=dtype.is_floating_point)
