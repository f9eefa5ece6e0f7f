"""The tensors of the released OmniMAE (Girdhar et al. 2023): a trunk that holds the decoder, and a head."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from omnitrunk.models.objectives import CHANNELS
from omnitrunk.models.official.layers import blocks, linear, norm, patch_projection, reshaped
from omnitrunk.models.official.parts import Part
from omnitrunk.models.omnimae_config import OmniMAEConfig


def layout(config: OmniMAEConfig) -> Iterator[Part]:
    """All tensors of a released model of these sizes."""
    width, table = config.width, (config.clip_tokens, config.width)
    yield reshaped("trunk.pos_embed", "tokenizer.position", (1, *table), table)
    yield from patch_projection("trunk.patch_embed.proj.1", "tokenizer", width, CHANNELS, config.cube)
    yield from blocks("trunk.blocks", "blocks", config.depth, width, config.mlp_ratio, config.qkv_bias)
    yield from norm("trunk.norm", "norm", width)
    yield reshaped("trunk.mask_token", "decoder.mask_token", (1, width), (width,))
    yield reshaped("trunk.decoder.pos_embed", "decoder.position", (1, *table), table)
    yield from linear("trunk.decoder.decoder_embed", "decoder.embed", config.decoder_width, width)
    yield from blocks(
        "trunk.decoder.decoder_blocks",
        "decoder.blocks",
        config.decoder_depth,
        config.decoder_width,
        config.mlp_ratio,
        config.decoder_trunk["bias"],
    )
    yield from norm("trunk.decoder.norm", "decoder.norm", config.decoder_width)
    yield from linear("head.projector", "decoder.out", prod(config.cube) * CHANNELS, config.decoder_width)
