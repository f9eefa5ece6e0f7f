"""Matrix arithmetic of a forward pass, 2 FLOP for each multiply-add; norms, softmax and losses do not count."""

from __future__ import annotations

from omnitrunk.models.masking.mask_plan import MaskPlan
from omnitrunk.models.modality import find_modality
from omnitrunk.models.multimae_config import MultiMAEConfig


def forward_flops(config: MultiMAEConfig, plan: MaskPlan) -> float:
    """FLOP of `MultiMAE.forward` for each sample, exact for this plan; a training step takes about three times as many.

    Only visible patches are projected, and only scored rows go through what follows a decoder's last attention.
    """
    batch, visible = plan.ids_keep.shape
    length = visible + config.global_tokens
    tokenizers = sum(2 * len(plan.visible[name]) * config.width * _patch_inputs(config, name) for name in config.inputs)
    trunk = config.depth * _block(batch, length, config.width, config.mlp_ratio, scored=batch * length)
    contexts = len(config.outputs) * config.decoder_width
    context = 2 * batch * length * contexts * (config.width + len(config.inputs))
    decoders = sum(_decoder(config, output, plan, length) for output in config.outputs)
    return (tokenizers + trunk + context + decoders) / batch


def _patch_inputs(config: MultiMAEConfig, name: str) -> int:
    modality = find_modality(name)
    channels = modality.channels if modality.kind == "pixels" else config.class_embedding_width
    return config.patch(name) ** 2 * channels


def _decoder(config: MultiMAEConfig, output: str, plan: MaskPlan, length: int) -> int:
    batch, width, tokens = len(plan.ids_keep), config.decoder_width, config.tokens(output)
    scored, source = len(plan.masked[output]), config.masked_like(output)
    if config.faithful and scored == 0:
        return 0
    positions = batch * tokens if config.decoder_depth else scored
    queries = tokens + (len(plan.visible[source]) if source else 0)
    cross = 2 * queries * width**2 + 2 * batch * length * 2 * width**2 + 4 * batch * tokens * length * width
    after = 2 * positions * width**2 + _mlp(positions, width, config.mlp_ratio)
    blocks = max(config.decoder_depth - 1, 0) * _block(batch, tokens, width, config.mlp_ratio, scored=batch * tokens)
    if config.decoder_depth:
        blocks += _block(batch, tokens, width, config.mlp_ratio, scored=scored)
    return cross + after + blocks + 2 * scored * width * config.patch_values(output)


def _block(batch: int, tokens: int, width: int, ratio: float, *, scored: int) -> int:
    """A block on `tokens` of each sample, of which `scored` rows in all are computed after the attention."""
    attention = 2 * batch * tokens * 3 * width**2 + 4 * batch * tokens**2 * width
    return attention + 2 * scored * width**2 + _mlp(scored, width, ratio)


def _mlp(rows: int, width: int, ratio: float) -> int:
    return 4 * rows * width * int(width * ratio)
