"""mixup and CutMix: pairs of samples become mixtures, and so do their labels.

Zhang et al. 2018 (mixup): x = share * own + (1 - share) * other, share ~ Beta(a, a). Yun et al. 2019 (CutMix): a box of
the picture, of area 1 - share before it is cut at the borders, is that of the other sample. Tokozume et al. 2018, and
Huang et al. 2022 (AudioMAE), mix waveforms. B batch.

The samples at positions 2k and 2k + 1 are each other's partners. Positions are places in a shuffled epoch, so a partner
is random; and however a batch is cut into micro-batches of even size, over processes or in time, the pairs are the
same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.kernels.philox import generator, uniform
from omnitrunk.models.augmentation.boxes import box_shares, boxes_at, inside, like_pixels
from omnitrunk.models.masking.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Mixing(Plan):
    """Who is mixed with whom in one batch."""

    partner: Tensor
    """int64 (B,): the row of every sample's partner."""
    share: Tensor
    """float32 (B,): weight of a sample's own label; the partner's has the rest."""
    weight: Tensor
    """float32 (B,): weight of a sample's own values, but in its box."""
    box: Tensor | None
    """int64 (B, 4): top, bottom, left, right of what is all the partner's; None for samples that are no pictures."""


def draw_mixing(
    seed: int,
    positions: np.ndarray,
    *,
    mixup: float,
    cutmix: float,
    mixed: float,
    shape: tuple[int, int] | None,
) -> Mixing | None:
    """The mixing of the samples at `positions` int64 (B,); None where both parameters of Beta are 0.

    A share `mixed` of the samples is mixed, half of them by CutMix where both `mixup` and `cutmix` are above 0. `shape`
    is height and width of pictures. ValueError where a partner is not in the batch.
    """
    if mixup == cutmix == 0:
        return None
    partner = _partners(positions)
    draws = uniform(seed, "mixing", positions, 4)
    cut = (cutmix > 0) & ((mixup == 0) | (draws[:, 1] < 0.5))
    share = _beta(seed, positions, np.where(cut, cutmix, mixup))
    share[draws[:, 0] >= mixed] = 1
    box = None
    if shape is not None:
        sides = np.floor(np.sqrt(1 - share)[:, None] * shape).astype(np.int64) * cut[:, None]
        box = boxes_at(np.floor(draws[:, 2:] * shape).astype(np.int64), sides, shape)
    return Mixing(
        partner=torch.from_numpy(partner),
        share=_float32(share if box is None else np.where(cut, 1 - box_shares(box, shape), share)),
        weight=_float32(np.where(cut, 1, share)),
        box=None if box is None else torch.from_numpy(box),
    )


def mix_pixels(pixels: Tensor, mixing: Mixing) -> Tensor:
    """Images (B, H, W, C) or clips (B, T, H, W, C), uint8 or floating, of the same dtype.

    Bytes are rounded back to bytes: the error is half a level in 255, as in decoding, and tokenizers go on reading one
    byte per value, which they normalize while they read. The box of a clip is the same in all frames.
    """
    box = inside(mixing.box, *pixels.shape[-3:-1])
    dtype = torch.promote_types(pixels.dtype, torch.float32)
    weight = mixing.weight.to(dtype)[:, None, None].masked_fill(box, 0)
    mixture = pixels[mixing.partner].to(dtype).lerp_(pixels.to(dtype), like_pixels(weight, pixels))
    return mixture if pixels.is_floating_point() else mixture.round_().to(pixels.dtype)


def mix_sounds(tensors: Mapping[str, Tensor], mixing: Mixing) -> Tensor:
    """Waveforms (B, S), or spectrograms (B, T, F) or (B, T, F, 1), of a batch with "audio".

    Waveforms lose their means over the samples that are real by "audio_length" int64 (B,), all if left out, and the
    partner's is as if padded with zeros. A mixture is as long as its own recording.
    """
    own = tensors["audio"]
    if own.dim() == 2:
        own = _centered(own, tensors.get("audio_length"))
    weight = mixing.weight.to(own.dtype).view(-1, *[1] * (own.dim() - 1))
    return own[mixing.partner].lerp_(own, weight)


def mixed_cross_entropy(logits: Tensor, labels: Tensor, mixing: Mixing | None, *, label_smoothing: float) -> Tensor:
    """The mean cross-entropy of logits (B, classes), in float32 or wider, with labels int64 (B,).

    A mixture is as much of each of two classes as it shows of their samples: that is linear in the targets, so it is
    the two cross-entropies, weighed. Of a class that it is not, a target has label_smoothing / classes.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    options = {"reduction": "none", "label_smoothing": label_smoothing}
    losses = functional.cross_entropy(wide, labels, **options)
    if mixing is not None:
        others = functional.cross_entropy(wide, labels[mixing.partner], **options)
        losses = others.lerp(losses, mixing.share.to(losses.dtype))
    return losses.mean()


def _centered(waves: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return waves - waves.mean(dim=1, keepdim=True)
    real = torch.arange(waves.shape[1], device=waves.device) < lengths[:, None]
    means = (waves * real).sum(dim=1, keepdim=True) / lengths[:, None].clamp(min=1)
    return (waves - means) * real


def _partners(positions: np.ndarray) -> np.ndarray:
    """Rows int64 (B,) of the partners."""
    rows = {position: row for row, position in enumerate(positions.tolist())}
    try:
        return np.array([rows[position ^ 1] for position in rows], dtype=np.int64)
    except KeyError:
        raise ValueError(
            "mixup and cutmix pair the samples at even positions with the next, and a micro-batch lacks one of a pair: "
            "make data.batch a multiple of 2 x processes x optimizer.accumulate"
        ) from None


def _beta(seed: int, positions: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """One number from Beta(a, a) for every position and its parameter a, float64 (B,)."""
    pairs = zip(positions.tolist(), parameters.tolist(), strict=True)
    return np.array([generator(seed, "mixing share", position).beta(a, a) for position, a in pairs])


def _float32(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))
