"""The tensors of the released VideoMAE (Tong et al. 2022), which computes its position tables and stores none."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from omnitrunk.models.layers.positions import interleaved_table
from omnitrunk.models.official.layers import blocks, linear, norm, patch_projection, reshaped
from omnitrunk.models.official.parts import Computed, Part
from omnitrunk.models.videomae import CHANNELS, VideoMAEConfig


def layout(config: VideoMAEConfig) -> Iterator[Part | Computed]:
    """All tensors of a released model of these sizes."""
    yield from encoder_layout(config, "encoder.")
    width, depth = config.decoder_width, config.decoder_depth
    yield from linear("encoder_to_decoder", "decoder.embed", width, config.width, bias=False)
    yield reshaped("mask_token", "decoder.mask_token", (1, 1, width), (width,))
    yield Computed(ours="decoder.positions.table", value=interleaved_table(config.total_tokens, width))
    yield from blocks("decoder.blocks", "decoder.blocks", depth, width, config.mlp_ratio, config.qkv_bias)
    yield from norm("decoder.norm", "decoder.norm", width)
    yield from linear("decoder.head", "decoder.out", prod(config.cube) * CHANNELS, width)


def encoder_layout(config: VideoMAEConfig, prefix: str = "") -> Iterator[Part | Computed]:
    """The tensors of the encoder alone, whose official names begin with `prefix`."""
    width = config.width
    yield Computed(ours="tokenizer.position", value=interleaved_table(config.total_tokens, width))
    yield from patch_projection(f"{prefix}patch_embed.proj", "tokenizer", width, CHANNELS, config.cube)
    yield from blocks(f"{prefix}blocks", "blocks", config.depth, width, config.mlp_ratio, config.qkv_bias)
    yield from norm(f"{prefix}norm", "norm", width)
