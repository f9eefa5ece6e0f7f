"""Queries, keys and values that are slices of one projection, and their gradients, which can be slices of one too.

torch gathers the gradients of qkv.unbind() by copying them: as much traffic again as the rest of a short sequence's
backward pass. Here the backward pass of attention writes into one buffer, and `unpack` recognizes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def joined(slices: Sequence[Tensor]) -> Tensor | None:
    """The tensor (..., n, H, d) whose n slices (..., H, d), in order, these are in memory, or None."""
    first, count = slices[0], len(slices)
    heads, width = first.shape[-2:]
    step, storage = heads * width, first.untyped_storage().data_ptr()
    for place, x in enumerate(slices):
        alike = x.shape == first.shape and x.stride() == first.stride() and x.dtype == first.dtype
        there = x.storage_offset() == first.storage_offset() + place * step
        if not (alike and there and x.untyped_storage().data_ptr() == storage):
            return None
    if first.stride()[-3:] != (count * step, width, 1):
        return None
    shape = (*first.shape[:-2], count, heads, width)
    return first.as_strided(shape, (*first.stride()[:-2], step, width, 1))


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, projection: Tensor) -> tuple[Tensor, ...]:
        return projection.unbind(-3)

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> Tensor:
        whole = None if torch.is_grad_enabled() else joined(grads)
        return torch.stack(grads, -3) if whole is None else whole


def unpack(projection: Tensor) -> tuple[Tensor, ...]:
    """The n slices of projection (..., n, H, d), n = 3 for q, k and v, 2 for k and v: what unbind(-3) gives.

    Where the slices go to `attention` and nowhere else, their gradients reach the projection without a copy.
    """
    return projection.unbind(-3) if torch.compiler.is_compiling() else _Unpack.apply(projection)
