"""The tensors of the released MAE (He et al. 2022); its published encoders are the keys of `encoder_layout`."""

from __future__ import annotations

from collections.abc import Iterator

from omnitrunk.models.mae import CHANNELS, MAEConfig
from omnitrunk.models.official.layers import blocks, linear, norm, patch_projection, position_table, reshaped
from omnitrunk.models.official.parts import Part


def layout(config: MAEConfig) -> Iterator[Part]:
    """All tensors of a released model of these sizes."""
    yield from encoder_layout(config)
    width = config.decoder_width
    yield from linear("decoder_embed", "decoder.embed", width, config.width)
    yield reshaped("mask_token", "decoder.mask_token", (1, 1, width), (width,))
    yield position_table("decoder_pos_embed", "decoder.position", width, config, class_row=True)
    yield from blocks("decoder_blocks", "decoder.blocks", config.decoder_depth, width, config.mlp_ratio)
    yield from norm("decoder_norm", "decoder.norm", width)
    yield from linear("decoder_pred", "decoder.out", config.patch_size**2 * CHANNELS, width)


def encoder_layout(config: MAEConfig) -> Iterator[Part]:
    """The tensors of the encoder alone."""
    width, patch = config.width, config.patch_size
    yield reshaped("cls_token", "class_token", (1, 1, width), (width,))
    yield position_table("pos_embed", "tokenizer.position", width, config, class_row=False)
    yield from patch_projection("patch_embed.proj", "tokenizer", width, CHANNELS, (patch, patch))
    yield from blocks("blocks", "blocks", config.depth, width, config.mlp_ratio)
    yield from norm("norm", "norm", width)
