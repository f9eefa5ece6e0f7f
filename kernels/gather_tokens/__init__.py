"""gather_tokens: picks rows out of a token buffer.

    out[m] = tokens[index[m]]

tokens (R, D), index int64 (M,) -> (M, D). Backward: the gradient of a row is the sum over the places that it went to.
Where no row is picked twice, that is scatter_tokens with zeros for the rows not picked: every row of the gradient is
written exactly once, without atomics, so that it is the same in every run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation
from omnitrunk.kernels.scatter_tokens import placed_rows


def cost(rows: int, width: int, *, picked: int, bytes_per_element: int = 2, backward: bool = False) -> Cost:
    """Least work to pick `picked` of `rows`: each one read and written; backward writes the rows not picked as well."""
    return Cost(bytes=(picked + (rows if backward else picked)) * width * bytes_per_element)


def reference(tokens: Tensor, index: Tensor, unique: bool = True) -> Tensor:
    """The definition; `unique` promises something about `index` and changes no result."""
    return tokens.index_select(0, index)


OPERATION = Operation("gather_tokens", reference)


def _refuses(tokens: Tensor, index: Tensor, unique: bool = True) -> str | None:
    return None if unique else "rows may be picked more than once, so their gradients must be added up"


def _triton_refuses(tokens: Tensor, index: Tensor, unique: bool = True) -> str | None:
    return _refuses(tokens, index, unique) or (None if tokens.is_floating_point() else "moves floating rows only")


@OPERATION.backend(
    "triton",
    devices=gpu.DEVICES,
    why="one pass over memory in each direction, without atomics",
    missing=gpu.missing,
    refuses=_triton_refuses,
)
def _triton(*call: Any) -> Tensor:
    from omnitrunk.kernels.gather_tokens import triton_kernels

    return triton_kernels.gather_tokens(*call)


class _GatherTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = len(tokens)
        return tokens.index_select(0, index)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return placed_rows(grad, *ctx.saved_tensors, ctx.size, grad.new_zeros(1, grad.shape[1])), None


@OPERATION.backend(
    "torch", devices=("cpu", "cuda"), why="its backward pass writes every row once, without atomics", refuses=_refuses
)
def _torch(tokens: Tensor, index: Tensor, unique: bool = True) -> Tensor:
    return _GatherTokens.apply(tokens, index)


def gather_tokens(tokens: Tensor, index: Tensor, *, unique: bool = True, backend: str = "auto") -> Tensor:
    """Pick rows of a token buffer.

    tokens (R, D), index int64 (M,) -> (M, D). `unique` promises that no row is picked twice, which makes the backward
    pass cheaper; where the promise does not hold, gradients are wrong. Differentiable in tokens. Raises ValueError on a
    buffer or index of another shape, IndexError on the CPU for a row that there is not; the Triton backend, which
    cannot raise without waiting for the device, makes that row NaN.
    """
    if tokens.dim() != 2 or index.dim() != 1:
        raise ValueError(f"gather_tokens takes (R, D) and (M,), not {tuple(tokens.shape)} and {tuple(index.shape)}")
    return OPERATION.run(backend, tokens, index, unique)
