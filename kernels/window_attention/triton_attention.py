"""window_attention on GPUs: the launchers of the kernels for short and for long windows, and their gradients.

qkv is read as it lies in memory, a row per token. Settings in configs.json are keyed by the padded head width;
PERSISTENT is the number of programs per multiprocessor that walk over all windows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.library import operator
from omnitrunk.kernels.window_attention.triton_bias import expand_kernel, fold_kernel
from omnitrunk.kernels.window_attention.triton_gradients import (
    bias_gradient_kernel,
    key_gradient_kernel,
    query_gradient_kernel,
)
from omnitrunk.kernels.window_attention.triton_long import long_forward_kernel
from omnitrunk.kernels.window_attention.triton_short import short_backward_kernel, short_forward_kernel
from omnitrunk.kernels.window_attention.windows import Windows, cut

SHORT = 64
"""Tokens of the largest window whose scores are one tile."""
LARGEST_TILE = 128
"""Rows of the largest tile of longer ones."""


def _cut(qkv: Tensor, window: list[int], shift: list[int], faithful: bool) -> Windows:
    return cut(tuple(qkv.shape[1:4]), tuple(window), tuple(shift), faithful)


def _padded_tokens(windows: Windows) -> int:
    """Tokens of a window filled up to whole tiles of any size."""
    if windows.tokens > SHORT:
        return triton.cdiv(windows.tokens, LARGEST_TILE) * LARGEST_TILE
    return max(16, gpu.next_power_of_2(windows.tokens))


def _sizes(qkv: Tensor, windows: Windows) -> tuple[int, ...]:
    """Windows of all samples, heads, and the extents of the map."""
    return len(qkv) * windows.number, qkv.shape[5], *windows.size


def _settings(kernel: str, qkv: Tensor, windows: Windows) -> dict[str, Any]:
    """Launch settings and the constants that all kernels of attention share."""
    head = qkv.shape[-1]
    width = gpu.next_power_of_2(head)
    constants = {"WINDOW": windows.window, "SHIFT": windows.shift, "TOKENS": windows.tokens, "PADDED": windows.padded}
    return {**constants, "HEAD": head, "WIDTH": width, **gpu.settings("window_attention", kernel, width)}


def _table(windows: Windows) -> dict[str, Any]:
    return {"GRID": windows.bias_grid, "TABLE": windows.table_window}


def _shares(qkv: Tensor, windows: Windows, tiles: int, persistent: int) -> int:
    """Into how many programs the windows of a tile are divided."""
    wanted = triton.cdiv(persistent * gpu.multiprocessors(qkv.device), tiles)
    return max(1, min(wanted, len(qkv) * windows.number))


def _short_forward(qkv: Tensor, bias_table: Tensor, padding: Tensor, windows: Windows, scale: float) -> Tensor:
    batch, *size, _, heads, width = qkv.shape
    out = gpu.new((batch, *size, heads, width), qkv.dtype, qkv.device)
    settings = _settings("short forward", qkv, windows)
    shares = _shares(qkv, windows, heads, settings.pop("PERSISTENT"))
    gpu.launch(
        short_forward_kernel, (shares * heads,),
        qkv, bias_table, padding, out, *_sizes(qkv, windows), scale,
        TILE=_padded_tokens(windows), **_table(windows), **settings,
    )  # fmt: skip
    return out


def _expanded(qkv: Tensor, bias_table: Tensor, windows: Windows, transposed: bool) -> tuple[Tensor, Tensor | None]:
    """Bias and mask of all pairs, (patterns, heads, L, L) with L filled up to whole tiles, and their transpose."""
    heads, tokens, patterns = qkv.shape[5], _padded_tokens(windows), 2 ** sum(by > 0 for by in windows.shift)
    shape = (patterns, heads, tokens, tokens)
    bias = gpu.new(shape, qkv.dtype, qkv.device)
    other = gpu.new(shape, qkv.dtype, qkv.device) if transposed else None
    settings = gpu.settings("window_attention", "expand", tokens)
    tiles = tokens // settings["TILE"]
    gpu.launch(
        expand_kernel, (tiles, tiles, patterns * heads), bias_table, bias, other, heads,
        WINDOW=windows.window, SHIFT=windows.shift, TOKENS=windows.tokens, PADDED_TOKENS=tokens,
        **_table(windows), **settings,
    )  # fmt: skip
    return bias, other


def _long_forward(
    qkv: Tensor, bias_table: Tensor, padding: Tensor, windows: Windows, scale: float
) -> tuple[Tensor, Tensor]:
    batch, *size, _, heads, width = qkv.shape
    tokens, padded = batch * math.prod(size), _padded_tokens(windows)
    out = gpu.new((batch, *size, heads, width), qkv.dtype, qkv.device)
    lse = gpu.new((heads, tokens), torch.float32, qkv.device)
    bias, _ = _expanded(qkv, bias_table, windows, False)
    settings, pairs = _settings("long forward", qkv, windows), batch > 1
    items = windows.number * (triton.cdiv(batch, 2) if pairs else batch)
    gpu.launch(
        long_forward_kernel, (triton.cdiv(windows.tokens, settings["QUERIES"]) * items * heads,),
        qkv, bias, padding, out, lse, *_sizes(qkv, windows), tokens, scale,
        PADDED_TOKENS=padded, PAIRS=pairs, **settings,
    )  # fmt: skip
    return out, lse


@operator()
def window_attention_forward(
    qkv: Tensor, bias_table: Tensor, padding: Tensor, window: list[int], shift: list[int], faithful: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The output (B, T, H, W, heads, d); log2 of the sums of exp2 (heads, B T H W), without rows for short windows."""
    windows = _cut(qkv, window, shift, faithful)
    if windows.tokens > SHORT:
        return _long_forward(qkv, bias_table, padding, windows, scale)
    none = gpu.new((0, len(qkv) * math.prod(windows.size)), torch.float32, qkv.device)
    return _short_forward(qkv, bias_table, padding, windows, scale), none


def _short_backward(
    grad: Tensor, qkv: Tensor, bias_table: Tensor, padding: Tensor, windows: Windows, scale: float, grads: list[Tensor]
) -> Tensor:
    """Write the gradients of qkv and of the padding's rows, return that of all pairs (heads, L, L), filled up."""
    heads, tokens = qkv.shape[5], _padded_tokens(windows)
    settings = _settings("short backward", qkv, windows)
    shares = _shares(qkv, windows, heads, settings.pop("PERSISTENT"))
    grad_bias = gpu.new((shares, heads, tokens, tokens), torch.float32, qkv.device)
    gpu.launch(
        short_backward_kernel, (shares * heads,),
        qkv, bias_table, padding, grad, *grads, grad_bias, *_sizes(qkv, windows), scale,
        TILE=tokens, **_table(windows), **settings,
    )  # fmt: skip
    return grad_bias.sum(0)


def _long_backward(
    grad: Tensor, out: Tensor, lse: Tensor, qkv: Tensor, bias_table: Tensor, padding: Tensor,
    windows: Windows, scale: float, grads: list[Tensor],
) -> Tensor:  # fmt: skip
    """The same for long windows, from the output and log2 of the sums of exp2 that the forward pass kept."""
    heads, padded, sizes = qkv.shape[5], _padded_tokens(windows), _sizes(qkv, windows)
    bias, transposed = _expanded(qkv, bias_table, windows, True)
    delta = gpu.new(lse.shape, torch.float32, qkv.device)
    numbers = (*sizes, lse.shape[1], scale)
    settings = _settings("query gradient", qkv, windows)
    gpu.launch(
        query_gradient_kernel, (sizes[0] * heads * triton.cdiv(windows.tokens, settings["QUERIES"]),),
        qkv, bias, padding, out, grad, lse, delta, grads[0], *numbers, PADDED_TOKENS=padded, **settings,
    )  # fmt: skip
    settings = _settings("key gradient", qkv, windows)
    gpu.launch(
        key_gradient_kernel, (sizes[0] * heads * triton.cdiv(windows.tokens, settings["KEYS"]),),
        qkv, transposed, padding, grad, lse, delta, *grads, *numbers, PADDED_TOKENS=padded, **settings,
    )  # fmt: skip
    settings = _settings("bias gradient", qkv, windows)
    tiles = heads * math.prod([triton.cdiv(windows.tokens, settings[side]) for side in ("QUERIES", "KEYS")])
    shares = _shares(qkv, windows, tiles, settings.pop("PERSISTENT"))
    grad_bias = gpu.new((shares, heads, padded, padded), torch.float32, qkv.device)
    gpu.launch(
        bias_gradient_kernel, (tiles, shares),
        qkv, bias, padding, grad, lse, delta, grad_bias, *numbers, PADDED_TOKENS=padded, **settings,
    )  # fmt: skip
    return grad_bias.sum(0)


def _folded(grad_bias: Tensor, bias_table: Tensor, windows: Windows) -> Tensor:
    rows, heads = bias_table.shape
    grad_table = gpu.new(bias_table.shape, bias_table.dtype, bias_table.device)
    settings = gpu.settings("window_attention", "fold", windows.tokens)
    gpu.launch(
        fold_kernel, (triton.cdiv(rows, settings["ROWS"]), heads), grad_bias, grad_table, heads,
        TOKENS=windows.tokens, PADDED_TOKENS=grad_bias.shape[-1], **_table(windows), **settings,
    )  # fmt: skip
    return grad_table


@operator()
def window_attention_backward(
    grad: Tensor, out: Tensor | None, lse: Tensor, qkv: Tensor, bias_table: Tensor, padding: Tensor,
    window: list[int], shift: list[int], faithful: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of qkv, the table and the padding from `grad`, that of the output; `out` if windows are long."""
    windows = _cut(qkv, window, shift, faithful)
    spare = len(qkv) * (windows.number * windows.tokens - math.prod(windows.size))
    grads = [gpu.new(shape, qkv.dtype, qkv.device) for shape in (qkv.shape, (spare, 2, *padding.shape[1:]))]
    if out is None:
        grad_bias = _short_backward(grad, qkv, bias_table, padding, windows, scale, grads)
    else:
        grad_bias = _long_backward(grad, out, lse, qkv, bias_table, padding, windows, scale, grads)
    # What a query of the padding attends to is in no output.
    outside = grads[1].sum(0, dtype=torch.float32).to(padding.dtype)
    return grads[0], _folded(grad_bias, bias_table, windows), torch.cat([torch.zeros_like(outside[:1]), outside])


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias_table: Tensor, padding: Tensor, windows: Windows, scale: float) -> Tensor:
        ctx.call = list(windows.table_window), list(windows.shift), windows.faithful, scale
        out, lse = window_attention_forward(qkv, bias_table, padding, *ctx.call)
        ctx.save_for_backward(out if windows.tokens > SHORT else None, lse, qkv, bias_table, padding)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *window_attention_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.call), None, None


def window_attention(qkv: Tensor, bias_table: Tensor, padding: Tensor, windows: Windows, scale: float) -> Tensor:
    """The operation; see omnitrunk.kernels.window_attention."""
    qkv, padding = (x.to(gpu.autocast_dtype(qkv) or qkv.dtype).contiguous() for x in (qkv, padding))
    return _WindowAttention.apply(qkv, bias_table.contiguous(), padding, windows, float(scale))


def shipped() -> dict[str, Callable[[], object]]:
    """The first stage of Omnivore on images and on videos."""

    def run(batch: int, size: tuple[int, int, int], window: tuple[int, int, int], shift: tuple[int, int, int]) -> None:
        windows = cut(size, window, shift)
        table, padding = gpu.example(windows.table_rows, 4, dtype=torch.float32), gpu.example(3, 4, 32)
        window_attention(gpu.example(batch, *size, 3, 4, 32), table, padding, windows, 32**-0.5).sum().backward()

    return {
        "image, 49 tokens": lambda: run(256, (1, 56, 56), (16, 7, 7), (0, 3, 3)),
        "video, 784 tokens": lambda: run(64, (16, 56, 56), (16, 7, 7), (0, 3, 3)),
    }
