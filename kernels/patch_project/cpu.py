"""patch_project on CPUs: patches are gathered and multiplied block by block.

All rows at once would take memory in proportion to the batch, often on fresh pages, each of which costs a fault; a
block stays in the cache, in memory that is used again and again. Where there are several blocks none is kept, and the
backward pass gathers anew, which is no slower; a single one waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.kernels.linear import ROWS, cropped, onednn_product, onednn_weight_gradient, padded_count, padded_rows
from omnitrunk.kernels.patches import gather_patches
from omnitrunk.kernels.patches.grid import Shape

BLOCK_VALUES = 3 << 18
"""3 MiB of float32: large enough for the full rate of the product, small enough for the cache."""

Statistics = tuple[Sequence[float] | None, Sequence[float] | None]


def _blocks(rows: int, values: int) -> list[slice]:
    """Slices that cover all rows, as even as multiples of ROWS can be: every new shape costs oneDNN a compilation."""
    most = max(ROWS, BLOCK_VALUES // values)
    count = -(-rows // most)
    size = -(-rows // (count * ROWS)) * ROWS
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _rows(clips: Tensor, index: Tensor, shape: Shape, statistics: Statistics) -> Tensor:
    """Patches, and the first of all again until they are as many as `padded_rows` makes: cheaper than zeros."""
    surplus = functional.pad(index, (0, padded_count(len(index)) - len(index)))
    return gather_patches(clips, surplus, shape, mean=statistics[0], std=statistics[1])


def _tokens(rows: Tensor, index: Tensor, weight: Tensor, bias: Tensor, position: Tensor | None) -> Tensor:
    """Tokens of the patches at index, whose rows are followed by surplus ones."""
    tokens = cropped(onednn_product(rows, weight, bias), index.shape)
    return tokens if position is None else tokens.add_(position.index_select(0, index % len(position)))


class _PatchProject(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, clips: Tensor, weight: Tensor, bias: Tensor, index: Tensor, position: Tensor | None,
        shape: Shape, statistics: Statistics,
    ) -> Tensor:  # fmt: skip
        blocks, kept = _blocks(len(index), weight.shape[1]), None
        if len(blocks) == 1:
            kept = _rows(clips, index, shape, statistics)
            tokens = _tokens(kept, index, weight, bias, position)
        else:
            tokens = weight.new_empty(len(index), len(weight))
            for block in blocks:
                rows = _rows(clips, index[block], shape, statistics)
                tokens[block] = _tokens(rows, index[block], weight, bias, position)
        ctx.save_for_backward(clips, index, kept)
        ctx.blocks, ctx.shape, ctx.statistics = blocks, shape, statistics
        ctx.positions = 0 if position is None else len(position)
        return tokens

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        clips, index, kept = ctx.saved_tensors
        _, needs_weight, needs_bias, _, needs_position, *_ = ctx.needs_input_grad
        grad_weight = grad_position = None
        if needs_position:
            place = index % ctx.positions
            grad_position = grad.new_zeros(ctx.positions, grad.shape[1]).index_add_(0, place, grad)
        for block in ctx.blocks if needs_weight else ():
            rows = _rows(clips, index[block], ctx.shape, ctx.statistics) if kept is None else kept
            part = onednn_weight_gradient(padded_rows(grad[block]), rows)
            grad_weight = part if grad_weight is None else grad_weight.add_(part)
        return None, grad_weight, grad.sum(0) if needs_bias else None, None, grad_position, None, None


def project_in_blocks(
    clips: Tensor, weight: Tensor, bias: Tensor, index: Tensor, shape: Shape,
    position: Tensor | None = None, mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
) -> Tensor:  # fmt: skip
    """The operation on clips (B, T, H, W, C) in float32; see omnitrunk.kernels.patch_project."""
    return _PatchProject.apply(clips.detach(), weight, bias, index, position, shape, (mean, std))
