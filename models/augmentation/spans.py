"""SpecAugment: a span of frames and a span of bands of a spectrogram are blanked (Park et al. 2019, section 2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from omnitrunk.kernels.philox import uniform
from omnitrunk.models.masking.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Spans(Plan):
    """What is blanked in one batch, first and end (excluded), int64 (B, 2) each."""

    frames: Tensor
    bands: Tensor


def draw_spans(
    seed: int, positions: np.ndarray, *, most: tuple[int, int], shape: tuple[int, int] | None
) -> Spans | None:
    """Spans of the spectrograms of `shape` frames by bands at `positions` int64 (B,); None where `most` is (0, 0).

    `most` is the length that no span of frames and no span of bands reaches. Length and start are uniform, rounded down
    as in torchaudio, whose masks AudioMAE uses.
    """
    if most == (0, 0) or shape is None:
        return None
    draws = uniform(seed, "spectrogram spans", positions, 4)
    lengths = draws[:, :2] * most
    first = np.floor(draws[:, 2:] * (shape - lengths)).astype(np.int64)
    spans = torch.from_numpy(np.stack([first, first + np.floor(lengths).astype(np.int64)], axis=2))
    return Spans(frames=spans[:, 0], bands=spans[:, 1])


def blank(spectrograms: Tensor, spans: Spans, value: float) -> Tensor:
    """Spectrograms (B, T, F, C) with `value` in the spans."""
    frames, bands = (
        _within(span, length) for span, length in zip((spans.frames, spans.bands), spectrograms.shape[1:3], strict=True)
    )
    return spectrograms.masked_fill((frames[:, :, None] | bands[:, None])[..., None], value)


def _within(span: Tensor, length: int) -> Tensor:
    places = torch.arange(length, device=span.device)
    return (places >= span[:, :1]) & (places < span[:, 1:])
