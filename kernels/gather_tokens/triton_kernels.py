"""gather_tokens on GPUs: rows picked by an index, and rows placed by one, in tiles of 16-byte lanes.

To place rows, every row of the result must know whether one is placed there, and which. The inverse of the index says
so without being cleared first (Briggs and Torczon 1993, "An efficient representation for sparse sets"): inverse[r] may
be anything where nothing is placed, and is right exactly if index[inverse[r]] == r.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.library import operator


@triton.jit
def tile_of(program, rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows (ROWS,), columns (BLOCK,) and the mask of a program's tile; tiles of the same rows are neighbours."""
    across = tl.cdiv(width, BLOCK)
    row = (program // across) * ROWS + tl.arange(0, ROWS)
    column = (program % across) * BLOCK + tl.arange(0, BLOCK)
    return row, column, (row < rows)[:, None] & (column < width)[None, :]


@triton.jit
def pick_kernel(tokens, index, out, picked, rows, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    row, column, inside = tile_of(tl.program_id(0), picked, width, ROWS, BLOCK)
    source = tl.load(index + row, mask=row < picked, other=0).to(tl.int64)
    # An index outside of the buffer must not read foreign memory; NaN makes it known.
    exists = (source >= 0) & (source < rows)
    place = source[:, None] * width + column[None, :]
    value = tl.load(tokens + place, mask=inside & exists[:, None], other=float("nan"))
    tl.store(out + row.to(tl.int64)[:, None] * width + column[None, :], value, mask=inside)


@triton.jit
def invert_kernel(index, inverse, placed, size, BLOCK: tl.constexpr):
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(index + entry, mask=entry < placed, other=-1)
    tl.store(inverse + place, entry, mask=(place >= 0) & (place < size))


@triton.jit
def place_kernel(
    rows, index, inverse, fill, table, out, source,
    placed, size, width, positions,
    HAS_FILL: tl.constexpr, HAS_TABLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, column, inside = tile_of(tl.program_id(0), size, width, ROWS, BLOCK)
    entry = tl.load(inverse + row, mask=row < size, other=-1)
    covered = (entry >= 0) & (entry < placed)
    covered = covered & (tl.load(index + entry, mask=covered, other=-1) == row)
    value = tl.load(
        rows + entry.to(tl.int64)[:, None] * width + column[None, :], mask=inside & covered[:, None], other=0.0
    )
    if HAS_FILL or HAS_TABLE:
        background = tl.zeros((ROWS, BLOCK), tl.float32)
        if HAS_TABLE:
            position = (row % positions)[:, None] * width + column[None, :]
            background += tl.load(table + position, mask=inside & ~covered[:, None], other=0.0).to(tl.float32)
        if HAS_FILL:
            background += tl.load(fill + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
        value = tl.where(covered[:, None], value, background.to(value.dtype))
    tl.store(out + row.to(tl.int64)[:, None] * width + column[None, :], value, mask=inside)
    is_first = tl.program_id(0) % tl.cdiv(width, BLOCK) == 0
    tl.store(source + row, tl.where(covered, entry, -1), mask=(row < size) & is_first)


def tiles(rows: int, width: int, settings: Mapping[str, Any]) -> int:
    """How many programs `tile_of` takes for (rows, width)."""
    return triton.cdiv(rows, settings["ROWS"]) * triton.cdiv(width, settings["BLOCK"])


@operator()
def pick_rows(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows of tokens (R, D), index int64 (M,), both contiguous -> (M, D); NaN for an index that is not in [0, R)."""
    rows, width = tokens.shape
    out = gpu.new((len(index), width), tokens.dtype, tokens.device)
    settings = gpu.settings("gather_tokens", "pick", width)
    grid = (tiles(len(index), width, settings),)
    gpu.launch(pick_kernel, grid, tokens, index, out, len(index), rows, width, **settings)
    return out


@operator()
def place_rows(
    rows: Tensor, index: Tensor, size: int, fill: Tensor | None, table: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Rows (M, D) at index int64 (M,) of a buffer (size, D), fill + table[r mod n] elsewhere; all are contiguous.

    Returns the buffer and int32 (size,): for every row of it the number of the row placed there, or -1.
    """
    placed, width = rows.shape
    out = gpu.new((size, width), rows.dtype, rows.device)
    inverse, source = (gpu.new((size,), torch.int32, rows.device) for _ in range(2))
    settings = gpu.settings("gather_tokens", "invert", placed)
    grid = (triton.cdiv(placed, settings["BLOCK"]),)
    gpu.launch(invert_kernel, grid, index, inverse, placed, size, **settings)
    settings = gpu.settings("gather_tokens", "place", width)
    gpu.launch(
        place_kernel, (tiles(size, width, settings),),
        rows, index, inverse, fill, table, out, source,
        placed, size, width, 1 if table is None else len(table),
        HAS_FILL=fill is not None, HAS_TABLE=table is not None, **settings,
    )  # fmt: skip
    return out, source


class _GatherTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = len(tokens)
        return pick_rows(tokens, index)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return place_rows(grad.contiguous(), index, ctx.size, None, None)[0], None


def gather_tokens(tokens: Tensor, index: Tensor, _unique: bool = True) -> Tensor:
    """The operation for an index without repetition; see omnitrunk.kernels.gather_tokens."""
    return _GatherTokens.apply(tokens.contiguous(), index.contiguous())


def shipped() -> dict[str, Callable[[], object]]:
    """The visible tokens of a batch of 1,024 images: ViT-B before its encoder, MAE's decoder after it."""

    def run(rows: int, picked: int, width: int) -> None:
        gather_tokens(gpu.example(rows, width), gpu.example(picked, dtype=torch.int64)).sum().backward()

    return {
        "196 of 784 x 768": lambda: run(1024 * 784, 1024 * 196, 768),
        "50 of 197 x 512": lambda: run(1024 * 197, 1024 * 50, 512),
    }
