"""Takes pieces of one length out of encoded recordings: mono, at one sample rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from omnitrunk.engine.data.decode.dali import DaliPipeline, dali, encoded
from omnitrunk.engine.data.decode.decoder import by_row, by_sample, row_positions
from omnitrunk.engine.data.sample import EncodedSample, Sound
from omnitrunk.kernels.philox import uniform

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

Offsets: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(room, positions), int64 (R,) each, to the first sample of each piece, from 0 to room."""


def random_offsets(room: np.ndarray, positions: np.ndarray, *, seed: int) -> np.ndarray:
    """Uniform in [0, room], drawn from (seed, position) alone."""
    return np.floor(uniform(seed, "audio offset", positions, 1)[:, 0] * (room + 1)).astype(np.int64)


def center_offsets(room: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The piece in the middle of every recording: what evaluation hears at every position."""
    return room // 2


class AudioDecoder:
    """Turns up to `batch` encoded recordings, each into `copies` waveforms of `samples` samples at `rate` hertz.

    audio         float32 (R, samples)  the mean of the channels, full scale 1; zeros after the end of a short recording
    audio_length  int64 (R,)            samples before those zeros
    Decoding and resampling (windowed sinc) run on the host.
    """

    def __init__(self, offsets: Offsets, *, samples: int, rate: int, batch: int, threads: int, copies: int = 1) -> None:
        self._offsets = offsets
        self._samples = samples
        self._rate = rate
        self._copies = copies
        self._starts = np.empty(0, dtype=np.int64)
        self._pipeline = DaliPipeline(self._graph, ("audio",), batch=batch, threads=threads, device="cpu")

    def submit(self, rows: Sequence[EncodedSample]) -> None:
        """Starts decoding one batch and returns."""
        sounds = [row.facts[0] for row in rows]
        assert all(isinstance(sound, Sound) for sound in sounds)
        lengths = np.array([-(-sound.samples * self._rate // sound.rate) for sound in sounds], dtype=np.int64)
        room = np.maximum(lengths - self._samples, 0).repeat(self._copies)
        self._starts = self._offsets(room, row_positions(rows, self._copies))
        files = encoded([row.files[0] for row in rows])
        self._pipeline.submit(
            {"audio": files, "start": by_sample(self._starts[:, None].astype(np.int32), self._copies)}
        )

    def collect(self) -> dict[str, torch.Tensor]:
        """Waits for the waveforms of the batch in flight."""
        *waves, lengths = self._pipeline.collect()
        left = lengths.flatten().repeat_interleave(self._copies) - torch.from_numpy(self._starts)
        return {"audio": by_row(waves), "audio_length": left.clamp(0, self._samples)}

    def close(self) -> None:
        """Frees the pipeline."""
        self._pipeline.close()

    def _graph(self, modalities: Sequence[str], _on_gpu: bool) -> list[DataNode]:
        fn, types = dali("fn"), dali("types")
        start = fn.external_source(name="start", dtype=types.INT32, ndim=2)
        data = fn.external_source(name=modalities[0], dtype=types.UINT8, ndim=1)
        wave, _ = fn.decoders.audio(data, downmix=True, sample_rate=float(self._rate), dtype=types.FLOAT)
        padding = {"axes": [0], "out_of_bounds_policy": "pad", "fill_values": 0.0}
        pieces = [fn.slice(wave, start[row], [self._samples], **padding) for row in range(self._copies)]
        return [*pieces, wave.shape(dtype=types.INT64)]
