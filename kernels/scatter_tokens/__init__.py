"""scatter_tokens: puts rows at their places in a larger token buffer, and mask tokens with positions everywhere else.

    out[index[m]] = rows[m]
    out[r]        = fill + table[r mod n]      for every r that is not in index

rows (M, D), index int64 (M,) without repetition, fill (D,), table (n, D), n a divisor of the size R -> out (R, D).
Backward: drows picks rows of dout; dfill is the sum of dout over the rows not covered, dtable the same by r mod n.
Source: He et al. 2022, section 3 (mask tokens); there in four steps: repeat, concatenate, unshuffle, add.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation


def cost(rows: int, width: int, *, size: int, bytes_per_element: int = 2) -> Cost:
    """Least work, forward or backward: `rows` rows on the small side and `size` rows on the large one, each once."""
    return Cost(bytes=(rows + size) * width * bytes_per_element)


def reference(
    rows: Tensor, index: Tensor, size: int, fill: Tensor | None = None, table: Tensor | None = None
) -> Tensor:
    """The definition; see the module's text for the formula."""
    base = _base(rows, fill, table)
    background = base.repeat(size // len(base), 1)
    return background.index_copy(0, index, rows)


OPERATION = Operation("scatter_tokens", reference)


def _base(rows: Tensor, fill: Tensor | None, table: Tensor | None) -> Tensor:
    """What stands at the places that are not covered: (n, D), or (1, D) where it is the same everywhere."""
    if fill is None and table is None:
        return rows.new_zeros(1, rows.shape[1])
    if fill is None or table is None:
        return (table if fill is None else fill.unsqueeze(0)).to(rows.dtype)
    return (fill + table).to(rows.dtype)


def placed_rows(rows: Tensor, index: Tensor, size: int, base: Tensor) -> Tensor:
    """Rows (M, D) at index (M,) of a buffer (size, D), base[r mod n] elsewhere; every row is written exactly once."""
    covered, bare = torch.arange(len(rows) + len(base), device=index.device).tensor_split([len(rows)])
    source = bare.repeat(size // len(base)).index_copy_(0, index, covered)
    return torch.cat([rows, base]).index_select(0, source)


class _ScatterTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, size: int, fill: Tensor | None, table: Tensor | None) -> Tensor:
        ctx.save_for_backward(index)
        ctx.positions = 1 if table is None else len(table)
        return placed_rows(rows, index, size, _base(rows, fill, table))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        needs_rows, _, _, needs_fill, needs_table = ctx.needs_input_grad
        grad_rows = grad.index_select(0, index) if needs_rows else None
        if not (needs_fill or needs_table):
            return grad_rows, None, None, None, None
        # Written over, not multiplied by 0: a covered row that is not finite has no part in these sums.
        bare = grad.index_fill(0, index, 0)
        grad_fill = bare.sum(0) if needs_fill else None
        grad_table = bare.unflatten(0, (-1, ctx.positions)).sum(0) if needs_table else None
        return grad_rows, None, None, grad_fill, grad_table


def _triton_refuses(rows: Tensor, *_others: object) -> str | None:
    if rows.dtype == torch.float64 or not rows.is_floating_point():
        return f"adds up in float32, which does not serve {rows.dtype}"
    return None


@OPERATION.backend(
    "triton",
    devices=gpu.DEVICES,
    why="writes every row once in one launch, and reads every row of the gradient once",
    missing=gpu.missing,
    refuses=_triton_refuses,
)
def _triton(*call: Any) -> Tensor:
    from omnitrunk.kernels.scatter_tokens import triton_kernels

    return triton_kernels.scatter_tokens(*call)


@OPERATION.backend("torch", devices=("cpu", "cuda"), why="writes every row once and sums masked gradients in one pass")
def _torch(rows: Tensor, index: Tensor, size: int, fill: Tensor | None = None, table: Tensor | None = None) -> Tensor:
    return _ScatterTokens.apply(rows, index, size, fill, table)


def scatter_tokens(
    rows: Tensor,
    index: Tensor,
    size: int,
    *,
    fill: Tensor | None = None,
    table: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Put rows at their places in a buffer of `size` rows; the other rows become fill + table[row mod n].

    rows (M, D), index int64 (M,) without repetition, fill (D,) and table (n, D) zero when left out -> (size, D) in the
    dtype of rows. Differentiable in rows, fill and table. Raises ValueError where shapes do not fit together, and
    IndexError on the CPU for a place that there is not; the Triton backend leaves such a row out, its gradient is NaN.
    """
    if rows.dim() != 2 or index.shape != rows.shape[:1]:
        raise ValueError(f"scatter_tokens takes (M, D) and (M,), not {tuple(rows.shape)} and {tuple(index.shape)}")
    if table is not None and (table.shape[1:] != rows.shape[1:] or len(table) == 0 or size % len(table)):
        raise ValueError(f"scatter_tokens: table {tuple(table.shape)} does not divide a buffer of {size} rows")
    if fill is not None and fill.shape != rows.shape[1:]:
        raise ValueError(f"scatter_tokens: fill {tuple(fill.shape)} is not one row of {tuple(rows.shape)}")
    return OPERATION.run(backend, rows, index, size, fill, table)
