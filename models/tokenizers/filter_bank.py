"""Sound as the models see it: the log-mel filter bank of Kaldi, for a batch of waveforms at a time, on their device.

Povey et al. 2011 (Kaldi), with the parameters of AudioMAE (Huang et al. 2022, as released): frames of 25 ms every
10 ms, wholly inside of the recording; each less its mean, pre-emphasized by 0.97, under a symmetric Hann window; the
power spectrum, zero-padded to a power of 2; triangles on the mel scale from 20 Hz to half the sample rate; the natural
logarithm, of float32's epsilon at least. B batch, S samples, T frames, F mel bands.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

FRAME_SECONDS, STEP_SECONDS = 0.025, 0.010
PRE_EMPHASIS = 0.97
LOWEST_HERTZ = 20.0
LEAST_ENERGY = torch.finfo(torch.float32).eps
SILENCE = math.log(LEAST_ENERGY)
"""The logarithm that digital silence has in every band."""


class FilterBank(nn.Module):
    """Waveforms to standardized log-mel spectrograms with a fixed number of frames."""

    def __init__(
        self, *, sample_rate: int, frames: int, mels: int, mean: float, std: float, padding: float = SILENCE
    ) -> None:
        """`sample_rate` in hertz, `frames` T, `mels` F; a logarithm x becomes (x - `mean`) / (2 `std`).

        `padding` stands, before that, in frames after the end of a recording.
        """
        super().__init__()
        self.frames, self.mean, self.std, self.padding = frames, mean, std, padding
        self.length, self.step = int(sample_rate * FRAME_SECONDS), int(sample_rate * STEP_SECONDS)
        self.points = 1 << (self.length - 1).bit_length()
        self.register_buffer("window", torch.hann_window(self.length, periodic=False), persistent=False)
        self.register_buffer("triangles", mel_triangles(mels, self.points, sample_rate), persistent=False)

    def forward(self, waves: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Waveforms (B, S), floating, full scale 1, and how many samples of each are real, int64 (B,) -> (B, T, F).

        Without `lengths` all samples are. Computed in float32 or wider, autocast or not.
        """
        with torch.autocast(waves.device.type, enabled=False):
            waves = waves.to(torch.promote_types(waves.dtype, torch.float32))
            lengths = torch.tensor(waves.shape[1:], device=waves.device) if lengths is None else lengths
            logarithms = self._log_mel(self._fit(waves))
            whole = (lengths - self.length) // self.step + 1
            real = torch.arange(self.frames, device=waves.device) < whole[:, None]
            return (logarithms.where(real[..., None], self.padding) - self.mean) / (2 * self.std)

    def _fit(self, waves: Tensor) -> Tensor:
        """As many samples as the frames span: a longer waveform is cut, a shorter one goes on with zeros."""
        samples = (self.frames - 1) * self.step + self.length
        return functional.pad(waves, (0, samples - waves.shape[1]))

    def _log_mel(self, waves: Tensor) -> Tensor:
        """(B, samples of T frames) -> (B, T, F).

        Pre-emphasis is computed before the waveform is cut, while every sample is there once: what it leaves of a
        frame's mean is subtracted after it, and a frame's first sample, which has none before it, has weight 0 in the
        window. Frames losing their own mean, that of the waveform matters to rounding only.
        """
        waves = waves - waves.mean(dim=1, keepdim=True)
        means = functional.avg_pool1d(waves[:, None], self.length, self.step)[:, 0, :, None]
        emphasized = functional.pad(waves[:, 1:] - PRE_EMPHASIS * waves[:, :-1], (1, 0))
        frames = emphasized.unfold(1, self.length, self.step) - (1 - PRE_EMPHASIS) * means
        spectrum = torch.fft.rfft(frames * self.window, n=self.points)
        power = spectrum.real.square() + spectrum.imag.square()
        return (power @ self.triangles.to(power.dtype)).clamp(min=LEAST_ENERGY).log()


def mel_triangles(mels: int, points: int, sample_rate: int) -> Tensor:
    """Weights (points / 2 + 1, F), float32, of the frequencies of a spectrum of `points` samples in each band.

    Bands overlap by half, and are linear in mel = 1127 ln(1 + hertz / 700). The highest frequency belongs to none, and
    a low band may lie between two frequencies and be empty.
    """
    edges = torch.linspace(*_mel(torch.tensor([LOWEST_HERTZ, sample_rate / 2])).tolist(), mels + 2, dtype=torch.float64)
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    mel = _mel(torch.arange(points // 2) * sample_rate / points)[:, None]
    weights = torch.minimum((mel - left) / (center - left), (right - mel) / (right - center)).clamp(min=0)
    return functional.pad(weights, (0, 0, 0, 1)).float()


def _mel(hertz: Tensor) -> Tensor:
    return 1127 * (1 + hertz.double() / 700).log()
