"""attention on GPUs: which of the kernels in triton_tile and triton_resident serves a call, and their gradients.

All strides are read as they are, so that q, k and v may be slices of one projection. Settings in configs.json are keyed
by the padded head width and by the number of keys. PERSISTENT is the number of programs per multiprocessor that walk
over all heads, or 0 for a program per head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from omnitrunk.kernels import gpu
from omnitrunk.kernels.attention.packed import joined
from omnitrunk.kernels.attention.triton_resident import resident_backward_kernel
from omnitrunk.kernels.attention.triton_tile import backward_kernel, forward_kernel
from omnitrunk.kernels.library import operator

MOST_ROWS = 256
"""Rows of the largest tile."""
PACKED = 32
"""Greatest length of sequences that share a tile."""
TILE = 64
"""Rows of such a tile, and of a block of queries: the fewest that Hopper's tensor cores take at full rate."""


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Steps from sequence to sequence, row to row, head to head. A ragged tensor's sequences begin at any row."""
    return (x.stride(0), *x.stride()[:2]) if x.dim() == 3 else x.stride()[:3]


def _addressable(x: Tensor) -> Tensor:
    """The tensor, or a copy where its heads are not contiguous or the rows of a tile lie 2^31 elements apart."""
    shared = x.dim() == 4 and x.shape[1] <= PACKED
    near = x.stride(-3) * MOST_ROWS < 2**31 and not (shared and x.stride(0) * TILE >= 2**31)
    return x if x.stride(-1) == 1 and near else x.contiguous()


def _pack(q: Tensor, longest_q: int, longest_k: int) -> int:
    """How many sequences share a tile."""
    longest = max(longest_q, longest_k)
    return TILE // longest if q.dim() == 4 and longest <= PACKED else 1


def _padded(longest: int, pack: int) -> int:
    return TILE if pack > 1 else max(16, gpu.next_power_of_2(longest))


def _settings(kernel: str, q: Tensor, keys: int) -> dict[str, Any]:
    head = q.shape[-1]
    width = gpu.next_power_of_2(head)
    chosen = dict(gpu.settings("attention", f"{kernel}, width {width}", keys))
    return {"HEAD": head, "WIDTH": width, "KEYS": keys, **chosen}


def _grid(programs: int, persistent: int, device: torch.device) -> tuple[int]:
    return (min(programs, persistent * gpu.multiprocessors(device)) if persistent else programs,)


def _sequences(q: Tensor, cu_seqlens: Tensor | None) -> int:
    return len(q) if cu_seqlens is None else len(cu_seqlens) - 1


@operator()
def tile_attention_forward(
    q: Tensor, k: Tensor, v: Tensor, scale: float,
    cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None, longest_q: int, longest_k: int,
) -> Tensor:  # fmt: skip
    """The output of attention on dense or ragged q, k and v with up to 256 keys; last axes contiguous."""
    out = gpu.new(q.shape, q.dtype, q.device)
    if q.numel() == 0 or k.numel() == 0:
        return out.zero_()
    sequences, heads, pack = _sequences(q, cu_seqlens_q), q.shape[-2], _pack(q, longest_q, longest_k)
    settings, queries = _settings("forward", q, _padded(longest_k, pack)), _padded(longest_q, pack)
    settings["QUERIES"] = queries if pack > 1 else min(settings["QUERIES"], queries)
    tiles = 1 if pack > 1 else triton.cdiv(longest_q, settings["QUERIES"])
    programs = triton.cdiv(sequences, pack) * heads * tiles
    gpu.launch(
        forward_kernel, _grid(programs, settings["PERSISTENT"], q.device),
        q, k, v, out, cu_seqlens_q, cu_seqlens_k,
        programs, sequences, heads, tiles, longest_q, longest_k, scale * math.log2(math.e),
        *_strides(q), *_strides(k), *_strides(v), *_strides(out), PACK=pack, **settings,
    )  # fmt: skip
    return out


def _gradients(q: Tensor, k: Tensor, v: Tensor, joint: int) -> tuple[Tensor, ...]:
    apart = tuple(gpu.new(x.shape, x.dtype, x.device) for x in (q, k, v)[: 3 - joint])
    if not joint:
        return apart
    return *apart, *gpu.new((*k.shape[:-2], joint, *k.shape[-2:]), k.dtype, k.device).unbind(-3)


def _joint(q: Tensor, k: Tensor, v: Tensor) -> int:
    """How many of the last tensors are slices of one projection; none for a compiler, whose operators may not alias."""
    if torch.compiler.is_compiling():
        return 0
    return next((len(slices) for slices in ((q, k, v), (k, v)) if joined(slices) is not None), 0)


@operator()
def tile_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float,
    cu_seqlens_q: Tensor | None, cu_seqlens_k: Tensor | None, longest_q: int, longest_k: int, joint: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of q, k and v from `grad`, that of the output; the last `joint` of them slices of one buffer."""
    grads = _gradients(q, k, v, joint)
    if q.numel() == 0 or k.numel() == 0:
        return tuple(x.zero_() for x in grads)
    sequences, heads, pack = _sequences(q, cu_seqlens_q), q.shape[-2], _pack(q, longest_q, longest_k)
    short = max(longest_q, longest_k) <= gpu.settings("attention", "one tile", q.shape[-1])["longest"]
    settings = _settings("backward" if short else "resident backward", q, _padded(longest_k, pack))
    tensors = (q, k, v, grad, *grads, cu_seqlens_q, cu_seqlens_k)
    sizes = (sequences, heads, longest_q, longest_k, scale * math.log2(math.e), scale)
    strides = [stride for x in (q, k, v, grad, *grads[:2]) for stride in _strides(x)]
    if short:
        programs = triton.cdiv(sequences, pack) * heads
        grid = _grid(programs, settings["PERSISTENT"], q.device)
        queries = _padded(longest_q, pack)
        gpu.launch(backward_kernel, grid, *tensors, programs, *sizes, *strides, QUERIES=queries, PACK=pack, **settings)
    else:
        gpu.launch(resident_backward_kernel, (sequences * heads,), *tensors, *sizes, *strides, **settings)
    return grads


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *others: Any) -> Tensor:
        _, cu_seqlens_q, cu_seqlens_k, *_ = others
        ctx.save_for_backward(q, k, v, cu_seqlens_q, cu_seqlens_k)
        ctx.scale, _, _, *ctx.longest = others
        return tile_attention_forward(q, k, v, *others)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, cu_seqlens_q, cu_seqlens_k = ctx.saved_tensors
        grads = tile_attention_backward(
            _addressable(grad), q, k, v, ctx.scale, cu_seqlens_q, cu_seqlens_k, *ctx.longest, _joint(q, k, v)
        )
        return *grads, None, None, None, None, None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int = 0,
    max_seqlen_k: int = 0,
) -> Tensor:
    """The operation on dense or ragged tensors; see omnitrunk.kernels.attention."""
    q, k, v = (_addressable(x.to(gpu.autocast_dtype(x) or x.dtype)) for x in (q, k, v))
    scale = float(scale)
    if cu_seqlens_q is None:
        return _Attention.apply(q, k, v, scale, None, None, q.shape[1], k.shape[1])
    return _Attention.apply(q, k, v, scale, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)


def shipped() -> dict[str, Callable[[], object]]:
    """The encoders of MAE, MultiMAE, VideoMAE and Point-MAE, and the decoders of MAE and MultiMAE."""

    def joint(tokens: int, heads: int, width: int) -> None:
        qkv = gpu.example(64, tokens, 3, heads, width)
        attention(*qkv.unbind(2), width**-0.5).sum().backward()

    def cross(queries: int, keys: int, heads: int, width: int) -> None:
        q, kv = gpu.example(64, queries, heads, width), gpu.example(64, keys, 2, heads, width)
        attention(q, *kv.unbind(2), width**-0.5).sum().backward()

    def ragged(longest: int, heads: int, width: int) -> None:
        qkv, cu_seqlens = gpu.example(4096, 3, heads, width), gpu.example(65, dtype=torch.int32)
        attention(*qkv.unbind(1), width**-0.5, cu_seqlens, cu_seqlens, longest, longest).sum().backward()

    return {
        "50 tokens, width 64": lambda: joint(50, 12, 64),
        "99 tokens, width 64": lambda: joint(99, 12, 64),
        "99 tokens, width 64, ragged": lambda: ragged(99, 12, 64),
        "197 tokens, width 32": lambda: joint(197, 16, 32),
        "196 queries, 98 keys, width 32": lambda: cross(196, 98, 8, 32),
        "160 tokens, width 64": lambda: joint(160, 12, 64),
        "26 tokens, width 64": lambda: joint(26, 6, 64),
    }
