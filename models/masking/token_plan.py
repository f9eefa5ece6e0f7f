"""The plan of a batch of one modality: which tokens of each sample are visible and which are masked.

B batch, N tokens, V visible, M masked, N = V + M. The counts are the same for all samples and all batches, so that a
step has one shape and a CUDA graph can capture it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from omnitrunk.models.masking.plan import Plan


@dataclass(frozen=True, kw_only=True)
class TokenPlan(Plan):
    """Indices of one batch; see the module's text for the shapes."""

    keep: Tensor
    """int64 (B, V): the visible tokens, in the order in which the trunk takes them."""
    masked: Tensor
    """int64 (B, M): the others, ascending."""
    drop_scale: Tensor | None = None
    """float32 (2 * depth, B): factor of every residual branch of the trunk, or None without drop path."""
    decoder_drop_scale: Tensor | None = None
    """float32 (2 * decoder_depth, B): the same for the decoder."""

    @property
    def mask(self) -> Tensor:
        """The mask, bool (B, N): True where a token is masked."""
        total = self.keep.shape[1] + self.masked.shape[1]
        nowhere = torch.zeros(len(self.keep), total, dtype=torch.bool, device=self.keep.device)
        return nowhere.scatter(1, self.masked, True)


def make_token_plan(
    keep: np.ndarray | Tensor,
    tokens: int,
    *,
    drop_scale: Tensor | None = None,
    decoder_drop_scale: Tensor | None = None,
) -> TokenPlan:
    """The plan that follows from visible tokens `keep` int64 (B, V), in any order, of N `tokens`.

    ValueError where a token is out of range or named twice in one sample.
    """
    keep = np.ascontiguousarray(keep, dtype=np.int64)
    if keep.ndim != 2 or (keep.size and not 0 <= keep.min() <= keep.max() < tokens):
        raise ValueError(f"keep must be (B, V) with tokens in 0..{tokens - 1}; its shape is {keep.shape}")
    mask = np.ones((len(keep), tokens), dtype=bool)
    np.put_along_axis(mask, keep, False, axis=1)
    if np.count_nonzero(mask) != mask.size - keep.size:
        raise ValueError("keep names a token twice in one sample; keep each token once")
    masked = np.nonzero(mask)[1].reshape(len(keep), tokens - keep.shape[1])
    return TokenPlan(
        keep=torch.from_numpy(keep),
        masked=torch.from_numpy(masked),
        drop_scale=drop_scale,
        decoder_drop_scale=decoder_drop_scale,
    )


def flat_rows(index: Tensor, length: int) -> Tensor:
    """Rows (B * K,) of a buffer (B * length, D) for places int64 (B, K) in each sample's `length` rows."""
    return (index + length * torch.arange(len(index), device=index.device)[:, None]).flatten()


def all_tokens(batch: int, tokens: int, device: torch.device) -> Tensor:
    """int64 (B, N): every token of every sample."""
    return torch.arange(tokens, device=device).expand(batch, -1)
