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

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.kernels import native
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation
from omnitrunk.kernels.gather_tokens import gather_tokens

Dense = Callable[[Tensor, Tensor, Tensor, float], Tensor]


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


def _serving(dense: Dense) -> Callable[..., Tensor]:
    """Lets a function on sequences of one length serve ragged ones."""

    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        cu_seqlens_q: Tensor | None = None,
        cu_seqlens_k: Tensor | None = None,
        max_seqlen_q: int = 0,
        max_seqlen_k: int = 0,
    ) -> Tensor:
        if cu_seqlens_q is None:
            return dense(q, k, v, scale)
        sequences = len(cu_seqlens_q) - 1
        if sequences and (sequences * max_seqlen_q, sequences * max_seqlen_k) == (len(q), len(k)):
            # All of one length: the same memory, seen as a batch.
            q, k, v = (x.unflatten(0, (sequences, -1)) for x in (q, k, v))
            return dense(q, k, v, scale).flatten(0, 1)
        return _by_length(dense, q, k, v, scale, cu_seqlens_q, cu_seqlens_k)

    return run


def _by_length(
    dense: Dense, q: Tensor, k: Tensor, v: Tensor, scale: float, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor
) -> Tensor:
    """One dense call for every pair of lengths that occurs, on copies of the rows concerned."""
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    starts = list(zip(cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), strict=True))
    for (start_q, start_k), (end_q, end_k) in pairwise(starts):
        if end_q > start_q:
            groups.setdefault((end_q - start_q, end_k - start_k), []).append((start_q, start_k))
    outputs, places = [], []
    for (length_q, length_k), begins in groups.items():
        rows_q, rows_k = _row_numbers(begins, length_q, length_k, q.device)
        picked = [_pick(x, rows, len(begins)) for x, rows in ((q, rows_q), (k, rows_k), (v, rows_k))]
        outputs.append((dense if length_k else _dense_reference)(*picked, scale).flatten(0, 1))
        places.append(rows_q)
    if not outputs:
        return q.clone()
    return torch.cat(outputs).index_select(0, torch.cat(places).argsort())


def _row_numbers(
    begins: list[tuple[int, int]], length_q: int, length_k: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    starts = torch.tensor(begins, device=device)
    within_q, within_k = torch.arange(length_q, device=device), torch.arange(length_k, device=device)
    return (starts[:, :1] + within_q).flatten(), (starts[:, 1:] + within_k).flatten()


def _pick(x: Tensor, rows: Tensor, sequences: int) -> Tensor:
    """Rows of x (total, H, d) as (sequences, length, H, d)."""
    picked = gather_tokens(x.flatten(1), rows)
    return picked.view(sequences, len(rows) // sequences, *x.shape[1:])


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


OPERATION = Operation("attention", _serving(_dense_reference))


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
)(_serving(_dense_native))
OPERATION.backend("sdpa", devices=("cpu", "cuda"), why="torch's fused attention")(_serving(_dense_sdpa))


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
    the price of a wait for the device, when left out) -> (total_q, H, d). Differentiable in q, k and v. Raises
    ValueError where the shapes do not fit together.
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
