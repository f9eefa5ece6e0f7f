"""AudioMAE: masked autoencoding of sound, as patches of its spectrogram (Huang et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from omnitrunk.models.autoencoder_config import AutoencoderConfig
from omnitrunk.models.checks import check_divides, check_least, check_rate
from omnitrunk.models.decoders.local import WINDOW, LocalDecoder
from omnitrunk.models.decoders.restore import RestoreDecoder
from omnitrunk.models.initialize import AUDIOMAE, Rules
from omnitrunk.models.layers.positions import column_row_table, with_class_row
from omnitrunk.models.masking.policies import random_tokens, random_tokens_in_noise_order, time_frequency_tokens
from omnitrunk.models.objectives import PatchError
from omnitrunk.models.tokenizers.filter_bank import SILENCE, FilterBank
from omnitrunk.models.tokenizers.patches import PatchTokenizer


@dataclass(frozen=True, kw_only=True)
class AudioMAEConfig(AutoencoderConfig):
    """Sizes and choices of an AudioMAE; the defaults are those of the published base model.

    Faithful: the position tables are those of the transposed grid, frames after the end of a recording have the
    logarithm 0, visible tokens of random masks stay in the order of the noise, and weight decay takes in class and mask
    token.
    """

    system: Literal["audiomae"] = "audiomae"
    """Name of the system, by which a recipe chooses it."""
    sample_rate: int = 16_000
    """Samples per second of a waveform."""
    frames: int = 1024
    """Frames of a spectrogram, 10 ms each; longer recordings are cut, shorter ones padded."""
    mels: int = 128
    """Mel bands of a spectrogram."""
    patch_size: int = 16
    """Frames and bands of a patch."""
    mean: float = -4.2677393
    """Mean of the log-mel values of the data set; the default is AudioSet's."""
    std: float = 4.5689974
    """Their standard deviation; values become (x - mean) / (2 std)."""
    standardize_targets: bool = True
    """Bring every target patch to mean 0 and variance 1."""
    mask: Literal["random", "time_frequency"] = "random"
    """Masked are random patches, by mask_ratio, or whole times and whole bands."""
    mask_ratio: float = 0.8
    """Share of the patches that a random mask hides."""
    time_ratio: float = 0.7
    """Share of the times that a time_frequency mask hides."""
    frequency_ratio: float = 0.3
    """Share of the bands that a time_frequency mask hides."""
    decoder: Literal["local", "global"] = "local"
    """Attention of the decoder: inside of shifted windows of 4 x 4 patches, or of all on all."""
    decoder_depth: int = 16
    """Blocks of the decoder; the published models with a global one have 8."""

    class_token: ClassVar[bool] = True
    initial_values: ClassVar[Rules] = AUDIOMAE

    @property
    def inputs(self) -> tuple[str, ...]:
        """The modality that is tokenized."""
        return ("audio",)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The modality that is reconstructed."""
        return ("norm_audio",) if self.standardize_targets else ("audio",)

    @property
    def grid(self) -> tuple[int, int]:
        """Times and bands of patches."""
        return self.frames // self.patch_size, self.mels // self.patch_size

    @property
    def total_tokens(self) -> int:
        """Patches N of a spectrogram, numbered time by time."""
        return prod(self.grid)

    @property
    def keep(self) -> int:
        """Visible patches V: what the ratios leave, rounded down."""
        return (
            prod(self._kept_lines) if self.mask == "time_frequency" else int(self.total_tokens * (1 - self.mask_ratio))
        )

    @property
    def _kept_lines(self) -> tuple[int, int]:
        """Times and bands that a time_frequency mask leaves."""
        times, bands = self.grid
        return int(times * (1 - self.time_ratio)), int(bands * (1 - self.frequency_ratio))

    def check_sizes(self) -> None:
        """Raise ValueError where spectrogram, patch, masks and windows do not fit together."""
        check_least(self, {"patch_size": 1, "mels": 1, "sample_rate": 1000})
        sides = (self.frames, self.mels)
        check_divides("spectrogram of frames and mels", sides, (self.patch_size, self.patch_size))
        if self.std <= 0:
            raise ValueError(f"std = {self.std} must be above 0; 0.5 leaves values as they are")
        for field in ("time_ratio", "frequency_ratio"):
            check_rate(field, getattr(self, field))
        if self.mask == "time_frequency" and not 1 <= self.keep < self.total_tokens:
            raise ValueError(
                f"time_ratio = {self.time_ratio} and frequency_ratio = {self.frequency_ratio} leave {self.keep} of "
                f"{self.total_tokens} tokens visible; choose ratios that leave and mask at least one"
            )
        if self.decoder == "local":
            self._check_windows()

    def _check_windows(self) -> None:
        if any(side > WINDOW and side % WINDOW for side in self.grid):
            raise ValueError(
                f"{self.grid} patches do not divide into windows of {WINDOW} x {WINDOW}; make frames and mels "
                f'multiples of {WINDOW * self.patch_size}, or set decoder = "global"'
            )
        if self.decoder_drop_path:
            raise ValueError(f"decoder_drop_path = {self.decoder_drop_path}: a local decoder has none; set it to 0")

    def visible_tokens(self, seed: int, positions: np.ndarray) -> np.ndarray:
        """Visible patches (B, V), ascending, but for faithful random masks."""
        keyed = {"seed": seed, "positions": positions}
        if self.mask == "time_frequency":
            return time_frequency_tokens(self.grid, self._kept_lines, **keyed)
        policy = random_tokens_in_noise_order if self.faithful else random_tokens
        return policy(self.total_tokens, self.keep, **keyed)

    def build_tokenizer(self) -> SpectrogramTokenizer:
        """Patches of spectrograms, with the positions of AudioMAE."""
        return SpectrogramTokenizer(self)

    def build_decoder(self) -> LocalDecoder | RestoreDecoder:
        """All places, mask tokens where nothing is visible."""
        table, values = self.position_table(self.decoder_width), self.patch_size**2
        if self.decoder == "local":
            return LocalDecoder(self, self.grid, table, values)
        return RestoreDecoder(self, with_class_row(table), values)

    def build_objective(self) -> PatchError:
        """Squared error of masked patches."""
        return PatchError(output=self.outputs[0], tokens=self.total_tokens, patch=self.patch_size)

    def position_table(self, width: int) -> Tensor:
        """The table (N, width) of positions; faithful: of a grid of bands by times, whose rows fit no token."""
        return column_row_table(*(reversed(self.grid) if self.faithful else self.grid), width)

    def decays(self, name: str) -> bool:
        """Whether weight decay applies to a parameter."""
        return super().decays(name) or (self.faithful and name in ("class_token", "decoder.mask_token"))


class SpectrogramTokenizer(PatchTokenizer):
    """Patches of the spectrograms of waveforms."""

    def __init__(self, config: AudioMAEConfig) -> None:
        super().__init__("audio", (config.frames, config.mels), config.patch_size, config.position_table(config.width))
        self.filter_bank: nn.Module = FilterBank(
            sample_rate=config.sample_rate,
            frames=config.frames,
            mels=config.mels,
            mean=config.mean,
            std=config.std,
            padding=0.0 if config.faithful else SILENCE,
        )

    def prepare(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The spectrograms (B, T, F, 1) of a batch with "audio", waveforms (B, S) of full scale 1.

        "audio_length" int64 (B,) says how many samples are real, all if left out. Standardized spectrograms (B, T, F)
        or (B, T, F, 1) are taken as they are. ValueError where the batch has neither.
        """
        audio = tensors.get("audio")
        if audio is None:
            return super().prepare(tensors)
        if not audio.is_floating_point():
            raise ValueError(f"audio is {audio.dtype}; divide by its full scale to make it floating, from -1 to 1")
        if audio.dim() == 2:
            audio = self.filter_bank(audio, tensors.get("audio_length"))
        return super().prepare({"audio": audio[..., None] if audio.dim() == 3 else audio})
