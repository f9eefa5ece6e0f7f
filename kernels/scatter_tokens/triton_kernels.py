"""scatter_tokens on GPUs: one kernel over the rows of the result, and one pass over its gradient.

Going back, the covered rows of the gradient are picked and the others are summed, each row read once. The sums run in
two stages of a fixed order: every program adds up its share of the batch for a few positions, then the shares are
added, so that the result is the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.gather_tokens.triton_kernels import pick_rows, place_rows, tile_of, tiles
from omnitrunk.kernels.library import operator

PROGRAMS_PER_MULTIPROCESSOR = 8


@triton.jit
def sums_kernel(grad, source, partial, size, width, period, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    # A program owns a tile of (position, column) and adds it up over its share of the groups of `period` rows.
    position, column, inside = tile_of(tl.program_id(0), period, width, ROWS, BLOCK)
    share, shares = tl.program_id(1), tl.num_programs(1)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in tl.range(share * period, size, shares * period, loop_unroll_factor=4):
        row = first + position
        bare = tl.load(source + row, mask=(position < period) & (row < size), other=0) < 0
        place = row.to(tl.int64)[:, None] * width + column[None, :]
        # Left out, not multiplied by 0: a covered row that is not finite has no part in these sums.
        total += tl.load(grad + place, mask=inside & bare[:, None], other=0.0).to(tl.float32)
    place = (share * period + position).to(tl.int64)[:, None] * width + column[None, :]
    tl.store(partial + place, total, mask=inside)


@operator()
def sum_bare_rows(grad: Tensor, source: Tensor, positions: int) -> Tensor:
    """Sums of the rows r of grad (R, D) with source[r] < 0, for every r mod n = positions: float32 (n, D)."""
    size, width = grad.shape
    settings = gpu.settings("scatter_tokens", "sums", width)
    # A few positions would leave a tile empty: several periods are taken as one.
    period = positions * triton.cdiv(settings["ROWS"], positions)
    groups, programs = triton.cdiv(size, period), tiles(period, width, settings)
    shares = min(groups, triton.cdiv(PROGRAMS_PER_MULTIPROCESSOR * gpu.multiprocessors(grad.device), max(programs, 1)))
    partial = gpu.new((shares, period, width), torch.float32, grad.device)
    gpu.launch(sums_kernel, (programs, shares), grad, source, partial, size, width, period, **settings)
    return partial.view(shares * period // positions, positions, width).sum(0)


class _ScatterTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, size: int, fill: Tensor | None, table: Tensor | None) -> Tensor:
        out, source = place_rows(rows, index, size, fill, table)
        ctx.save_for_backward(index, source)
        ctx.positions = 1 if table is None else len(table)
        ctx.dtypes = None if fill is None else fill.dtype, None if table is None else table.dtype
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        index, source = ctx.saved_tensors
        needs_rows, _, _, needs_fill, needs_table = ctx.needs_input_grad
        grad = grad.contiguous()
        grad_rows = pick_rows(grad, index) if needs_rows else None
        grad_fill = grad_table = None
        if needs_fill or needs_table:
            sums = sum_bare_rows(grad, source, ctx.positions if needs_table else 1)
            grad_table = sums.to(ctx.dtypes[1]) if needs_table else None
            grad_fill = sums.sum(0).to(ctx.dtypes[0]) if needs_fill else None
        return grad_rows, None, None, grad_fill, grad_table


def scatter_tokens(
    rows: Tensor, index: Tensor, size: int, fill: Tensor | None = None, table: Tensor | None = None
) -> Tensor:
    """The operation; see omnitrunk.kernels.scatter_tokens."""
    fill, table = (None if base is None else base.contiguous() for base in (fill, table))
    return _ScatterTokens.apply(rows.contiguous(), index.contiguous(), size, fill, table)


def shipped() -> dict[str, Callable[[], object]]:
    """Decoders at a batch of 1,024 images: MAE's with a mask token, MultiMAE's with a row for every position."""

    def run(covered: int, positions: int, fill: Tensor | None, table: Tensor | None) -> None:
        rows, index = gpu.example(1024 * covered, 512), gpu.example(1024 * covered, dtype=torch.int64)
        scatter_tokens(rows, index, 1024 * positions, fill, table).sum().backward()

    positions = gpu.example(197, 512, dtype=torch.float32)
    return {
        "50 of 197 x 512, mask token": lambda: run(50, 197, gpu.example(512, dtype=torch.float32), positions.detach()),
        "33 of 196 x 512, table": lambda: run(33, 196, None, gpu.example(196, 512)),
    }
