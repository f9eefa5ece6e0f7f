"""The tensors of the released AudioMAE (Huang et al. 2022), with either decoder.

The released tables are those of the transposed grid: weights bring the table that they were trained with along.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from omnitrunk.models.audiomae import AudioMAEConfig
from omnitrunk.models.decoders.local import BIAS_WIDTH
from omnitrunk.models.official.layers import blocks, linear, norm, patch_projection, position_table, reshaped, same
from omnitrunk.models.official.parts import Part, SequenceTable


class GridTable(SequenceTable):
    """A table of a grid that is no square: it is accepted for its own grid only."""

    def accepts(self, shape: torch.Size) -> bool:
        """Whether an official tensor may have this shape."""
        return tuple(shape) == self.shape


def layout(config: AudioMAEConfig) -> Iterator[Part]:
    """All tensors of a released model of these sizes."""
    yield from encoder_layout(config)
    width, depth, local = config.decoder_width, config.decoder_depth, config.decoder == "local"
    yield from linear("decoder_embed", "decoder.embed", width, config.width)
    yield reshaped("mask_token", "decoder.mask_token", (1, 1, width), (width,))
    yield position_table("decoder_pos_embed", "decoder.position", width, config, class_row=not local, kind=GridTable)
    yield from blocks("decoder_blocks", "decoder.blocks", depth, width, config.mlp_ratio)
    if local:
        for number in range(depth):
            yield from _cosine(f"decoder_blocks.{number}.attn", f"decoder.blocks.{number}.attn", config.decoder_heads)
    yield from norm("decoder_norm", "decoder.norm", width)
    yield from linear("decoder_pred", "decoder.out", config.patch_size**2, width)


def encoder_layout(config: AudioMAEConfig) -> Iterator[Part]:
    """The tensors of the encoder alone."""
    width, patch = config.width, config.patch_size
    yield reshaped("cls_token", "class_token", (1, 1, width), (width,))
    yield position_table("pos_embed", "tokenizer.position", width, config, class_row=False, kind=GridTable)
    yield from patch_projection("patch_embed.proj", "tokenizer", width, 1, (patch, patch))
    yield from blocks("blocks", "blocks", config.depth, width, config.mlp_ratio)
    yield from norm("norm", "norm", width)


def _cosine(official: str, ours: str, heads: int) -> Iterator[Part]:
    """What local attention has besides its projections."""
    yield same(f"{official}.tau", f"{ours}.temperature", heads)
    yield from linear(f"{official}.meta_mlp.fc1", f"{ours}.offset_bias.fc1", BIAS_WIDTH, 2)
    yield from linear(f"{official}.meta_mlp.fc2", f"{ours}.offset_bias.fc2", heads, BIAS_WIDTH)
