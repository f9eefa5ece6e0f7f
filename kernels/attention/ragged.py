"""Ragged sequences through functions that take a dense batch: all of one length at once, whatever the device."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from omnitrunk.kernels.gather_tokens import gather_tokens

Dense = Callable[[Tensor, Tensor, Tensor, float], Tensor]
Ragged = Callable[[Tensor, Tensor, Tensor, float, Tensor, Tensor, int, int], Tensor]


def serving(dense: Dense, ragged: Ragged) -> Callable[..., Tensor]:
    """The operation out of `dense`, for sequences that are all of one length, and `ragged` for all others."""

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
        batch = as_batch(q, k, v, len(cu_seqlens_q) - 1, max_seqlen_q, max_seqlen_k)
        if batch is not None:
            return dense(*batch, scale).flatten(0, 1)
        return ragged(q, k, v, scale, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)

    return run


def by_length(dense: Dense, without_keys: Dense) -> Ragged:
    """Ragged sequences through a function on sequences of one length; `without_keys` serves those that have none."""

    def run(
        q: Tensor, k: Tensor, v: Tensor, scale: float, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, *_longest: int
    ) -> Tensor:
        return _by_length(dense, without_keys, q, k, v, scale, cu_seqlens_q, cu_seqlens_k)

    return run


def as_batch(
    q: Tensor, k: Tensor, v: Tensor, sequences: int, max_seqlen_q: int, max_seqlen_k: int
) -> list[Tensor] | None:
    """Sequences that are all of one length, seen as a batch (B, N, H, d) in the same memory, or None."""
    if not sequences or (sequences * max_seqlen_q, sequences * max_seqlen_k) != (len(q), len(k)):
        return None
    return [x.unflatten(0, (sequences, -1)) for x in (q, k, v)]


def _by_length(
    dense: Dense,
    without_keys: Dense,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
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
        outputs.append((dense if length_k else without_keys)(*picked, scale).flatten(0, 1))
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
