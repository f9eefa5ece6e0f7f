"""attention: softmax attention of queries on keys and values, on sequences of one length or of many.

    out = softmax(scale q k^T) v     for every sequence and head, scale = 1 / sqrt(d) unless given

Dense: q (B, N, H, d), k and v (B, S, H, d) -> (B, N, H, d). Ragged: q (total_q, H, d), k and v (total_k, H, d), all
sequences one after the other, sequence i being rows cu_seqlens[i] to cu_seqlens[i + 1] (int32, sequences + 1). Softmax
runs in float32 or wider. A sequence without keys gives zeros.
Backward, with P the softmax, computed again from q and k: dv = P^T do, dP = do v^T, ds = P (dP - rowsum(P dP)),
dq = scale ds k, dk = scale ds^T q.
Sources: Vaswani et al. 2017, section 3.2; Dao et al. 2022, appendix B (recomputation).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.kernels import gpu, native
from omnitrunk.kernels.attention import peers
from omnitrunk.kernels.attention.ragged import by_length, serving
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation

MOST_KEYS_ON_CHIP = 256
"""Keys of a head that the Triton kernels take, up to a width of 64; half as many beyond."""


def cost(
    pairs: int,
    queries: int,
    keys: int,
    *,
    heads: int,
    head_width: int,
    bytes_per_element: int = 2,
    backward: bool = False,
) -> Cost:
    """Least work over all sequences: `pairs` = sum of N * S, `queries` = sum of N, `keys` = sum of S.

    Forward reads q, k, v and writes out; backward reads q, k, v, dout, computes the scores once more and writes three
    gradients. Two products of 2 d FLOP per pair forward, five backward, and one exponential each.
    """
    rows = (3 * queries + 4 * keys) if backward else (2 * queries + 2 * keys)
    flop = (10 if backward else 4) * pairs * heads * head_width
    return Cost(bytes=rows * heads * head_width * bytes_per_element, flop=flop, exps=pairs * heads)


def _dense_reference(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("bnhd,bshd->bhns", q.to(wide), k.to(wide)) * scale
    return torch.einsum("bhns,bshd->bnhd", scores.softmax(-1), v.to(wide)).to(q.dtype)


def _dense_sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)


def _dense_native(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    return _Attention.apply(q, k, v, scale)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        return native.attention(q, k, v, scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        grad = grad if grad.stride(3) == 1 else grad.contiguous()
        return *native.attention_backward(q, k, v, grad, ctx.scale), None


OPERATION = Operation("attention", serving(_dense_reference, by_length(_dense_reference, _dense_reference)))


def _triton_refuses(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    _scale: float,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    _max_seqlen_q: int = 0,
    max_seqlen_k: int = 0,
) -> str | None:
    keys, width = k.shape[1] if cu_seqlens_k is None else max_seqlen_k, q.shape[-1]
    dtypes = {x.dtype if x.dtype == torch.float64 else gpu.autocast_dtype(x) or x.dtype for x in (q, k, v)}
    # In Triton's interpreter products of bfloat16 are wrong. On a GPU tiles of float32 do not fit into registers.
    other = "float32" if gpu.interpreted() else "bfloat16"
    if len(dtypes) > 1 or not dtypes <= {torch.float16, getattr(torch, other)}:
        return f"computes in float16 or {other}, with q, k and v of one dtype"
    if width % 16 or width > 128:
        return f"takes heads of a width that is a multiple of 16, up to 128, not {width}"
    most = MOST_KEYS_ON_CHIP if width <= 64 else MOST_KEYS_ON_CHIP // 2
    if keys > most:
        return f"keeps all keys of a head on chip: up to {most} of width {width}, not {keys}"
    if any(x is not None and x.dtype != torch.int32 for x in (cu_seqlens_q, cu_seqlens_k)):
        return "takes cu_seqlens in int32"
    return None


@OPERATION.backend(
    "triton",
    devices=gpu.DEVICES,
    why="short sequences in one tile; nothing is saved for the backward pass",
    missing=gpu.missing,
    refuses=_triton_refuses,
)
def _triton(*call: Any) -> Tensor:
    from omnitrunk.kernels.attention import triton_attention

    return serving(triton_attention.attention, triton_attention.attention)(*call)


def _missing() -> str | None:
    if native.missing_reason() is not None:
        return native.missing_reason()
    if not hasattr(native.module(), "attention"):
        return "needs GCC 12 or newer, or Clang, when csrc is built"
    return None if native.module().isa() == "avx512" else "only with AVX-512 is it faster than torch"


def _refuses(q: Tensor, k: Tensor, v: Tensor, *_others: Any) -> str | None:
    if q.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return "computes in float32"
    if q.shape[-1] % 16:
        return f"takes heads of a width that is a multiple of 16, not {q.shape[-1]}"
    if q.numel() == 0 or k.numel() == 0:
        return "nothing to attend"
    return None


OPERATION.backend(
    "cpu",
    devices=("cpu",),
    why="keeps the scores of a head in the cache",
    missing=_missing,
    refuses=_refuses,
)(serving(_dense_native, by_length(_dense_native, _dense_reference)))
peers.register(OPERATION)
OPERATION.backend("sdpa", devices=("cpu", "cuda"), why="torch's fused attention")(
    serving(_dense_sdpa, by_length(_dense_sdpa, _dense_reference))
)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Softmax attention, self or cross, on a dense batch or on ragged sequences.

    Dense: q (B, N, H, d), k and v (B, S, H, d) -> (B, N, H, d). Ragged: q (total_q, H, d), k and v (total_k, H, d) with
    int32 cu_seqlens_q, cu_seqlens_k (sequences + 1,) and the greatest lengths as integers (taken from cu_seqlens, at
    the price of a wait for the device, when left out) -> (total_q, H, d). Differentiable in q, k and v. Slices of one
    projection are read in place; split it by omnitrunk.kernels.attention.packed.unpack, so that their gradients are not
    copied either. Raises ValueError where the shapes do not fit together.
    """
    ragged = cu_seqlens_q is not None
    if ragged != (cu_seqlens_k is not None) or q.dim() != (3 if ragged else 4):
        raise ValueError("attention takes q (B, N, H, d), or q (total, H, d) with both cu_seqlens_q and cu_seqlens_k")
    if k.shape != v.shape or q.shape[-2:] != k.shape[-2:] or (not ragged and len(q) != len(k)):
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in (("q", q), ("k", k), ("v", v)))
        raise ValueError(f"attention: shapes do not fit together: {shapes}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if not ragged:
        return OPERATION.run(backend, q, k, v, scale)
    if len(cu_seqlens_q) != len(cu_seqlens_k):
        raise ValueError(f"attention: {len(cu_seqlens_q) - 1} query and {len(cu_seqlens_k) - 1} key sequences")
    max_seqlen_q = _longest(cu_seqlens_q) if max_seqlen_q is None else max_seqlen_q
    max_seqlen_k = _longest(cu_seqlens_k) if max_seqlen_k is None else max_seqlen_k
    return OPERATION.run(backend, q, k, v, scale, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)


def _longest(cu_seqlens: Tensor) -> int:
    return max(cu_seqlens.diff().tolist(), default=0)
