"""The sound of a moving solid: a timbre that belongs to the class; pitch, pace, loudness and onset that do not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["SAMPLE_RATE", "TIMBRES", "Timbre", "Voice", "synthesize"]

SAMPLE_RATE = 16_000
BITS = 9  # of the 16: finer steps would only store the noise


@dataclass(frozen=True)
class Timbre:
    """What makes one class sound unlike another.

    partials are (frequency ratio, amplitude); attack and decay are seconds (decay 0 sustains); noise is the share of
    a noise that follows the envelope, smoothed over `hush` samples; sweep is octaves over one strike; vibrato is
    octaves and tremolo a share, both at `flutter` times the pace; fm is an index at the ratio fm_ratio.
    """

    partials: tuple[tuple[float, float], ...]
    attack: float = 0.01
    decay: float = 0.0
    noise: float = 0.0
    hush: int = 1
    sweep: float = 0.0
    vibrato: float = 0.0
    tremolo: float = 0.0
    flutter: float = 1.0
    fm: float = 0.0
    fm_ratio: float = 1.0


@dataclass(frozen=True)
class Voice:
    """What varies within a class: pitch in hertz, strikes or waves a second, peak loudness, onset in seconds, hiss."""

    pitch: float
    pace: float
    loudness: float
    onset: float
    hiss: float


def _harmonics(count: int, step: int, power: float) -> tuple[tuple[float, float], ...]:
    return tuple((float(k), k**-power) for k in range(1, count * step + 1, step))


TIMBRES: dict[str, Timbre] = {
    "bell": Timbre(((1, 1), (2.76, 0.6), (5.4, 0.4), (8.93, 0.2)), attack=0.002, decay=0.3),
    "boing": Timbre(((1, 1), (2, 0.2)), decay=0.18, sweep=-1.6),
    "buzz": Timbre(_harmonics(10, 1, 0.8), tremolo=0.9, flutter=5),
    "chime": Timbre(((1, 1),), attack=0.05, decay=0.5, fm=2.5, fm_ratio=3.5),
    "drum": Timbre(((0.5, 1), (0.8, 0.5)), attack=0.002, decay=0.07, noise=0.35, hush=6, sweep=-0.7),
    "flute": Timbre(((1, 1), (2, 0.12), (3, 0.06)), attack=0.12, noise=0.06, hush=2, vibrato=0.04, flutter=3),
    "hum": Timbre(((0.5, 1), (0.505, 1), (1, 0.3)), attack=0.08),
    "knock": Timbre(_harmonics(6, 2, 1.0), attack=0.001, decay=0.03),
    "rumble": Timbre(((0.25, 0.6), (0.5, 0.3)), attack=0.05, noise=1.0, hush=24, tremolo=0.6, flutter=1),
    "siren": Timbre(_harmonics(3, 1, 1.5), attack=0.03, vibrato=0.7),
    "sparkle": Timbre(((4, 1), (6, 0.7), (9, 0.4)), attack=0.002, decay=0.05, noise=0.1, tremolo=0.8, flutter=8),
    "twang": Timbre(_harmonics(8, 1, 0.6), attack=0.002, decay=0.15, sweep=0.8, vibrato=0.08, flutter=6),
}


def synthesize(timbre: Timbre, voice: Voice, generator: np.random.Generator, seconds: float = 1.0) -> np.ndarray:
    """The sound as int16 (seconds * SAMPLE_RATE,); generator draws its noise."""
    count = round(seconds * SAMPLE_RATE)
    since_onset = np.arange(count) / SAMPLE_RATE - voice.onset
    since_strike = np.where(since_onset > 0, since_onset % (1 / voice.pace), 0)
    wave = np.sin(2 * np.pi * voice.pace * timbre.flutter * since_onset)
    octaves = timbre.sweep * since_strike * voice.pace + timbre.vibrato * wave
    cycles = np.cumsum(voice.pitch * 2**octaves) / SAMPLE_RATE
    cycles += timbre.fm / (2 * np.pi) * np.sin(2 * np.pi * (timbre.fm_ratio * cycles % 1))
    tone = sum(level * np.sin(2 * np.pi * (ratio * cycles % 1)) for ratio, level in timbre.partials)
    noise = generator.standard_normal(count + timbre.hush)
    sound = tone / sum(level for _, level in timbre.partials) + timbre.noise * _smooth(noise, timbre.hush)[:count]
    sound *= _envelope(timbre, since_onset, since_strike) * (1 - timbre.tremolo * (0.5 + 0.5 * wave))
    sound *= voice.loudness / np.abs(sound).max()
    sound += voice.hiss * noise[:count]
    steps = np.clip(np.round(sound * 2 ** (BITS - 1)), -(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1)
    return (steps * 2 ** (16 - BITS)).astype(np.int16)


def _envelope(timbre: Timbre, since_onset: np.ndarray, since_strike: np.ndarray) -> np.ndarray:
    """Rise and fall: a decaying timbre is struck again at the voice's pace, a sustained one rises once."""
    if timbre.decay == 0:
        return np.clip(since_onset / timbre.attack, 0, 1)
    return np.clip(since_strike / timbre.attack, 0, 1) * np.exp(-since_strike / timbre.decay)


def _smooth(noise: np.ndarray, width: int) -> np.ndarray:
    """A moving average over width samples, scaled back to unit variance."""
    total = np.cumsum(np.insert(noise, 0, 0.0))
    return (total[width:] - total[:-width]) / np.sqrt(width)
