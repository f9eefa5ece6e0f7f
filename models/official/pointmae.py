"""The tensors of the released Point-MAE (Pang et al. 2022), running statistics of the batch norms included.

Files of multi-GPU runs prefix every name with "module."; take that off first.
"""

from __future__ import annotations

from collections.abc import Iterator

from omnitrunk.models.layers.part_head import CLASS_WIDTH
from omnitrunk.models.official.layers import blocks, linear, norm, reshaped, same
from omnitrunk.models.official.parts import Part
from omnitrunk.models.part_segmenter import PartSegmenterConfig
from omnitrunk.models.point_classifier import HIDDEN, PointClassifierConfig
from omnitrunk.models.pointmae import PointMAEConfig
from omnitrunk.models.tokenizers.points import AXES, POSITION_WIDTH


def layout(config: PointMAEConfig) -> Iterator[Part]:
    """All tensors of a released model of these sizes."""
    yield from encoder_layout(config, "MAE_encoder.")
    width, depth = config.decoder_width, config.decoder_depth
    yield reshaped("mask_token", "decoder.mask_token", (1, 1, width), (width,))
    yield from _positions("decoder_pos_embed", "decoder.positions", width)
    yield from blocks("MAE_decoder.blocks", "decoder.blocks", depth, width, config.mlp_ratio, config.qkv_bias)
    yield from norm("MAE_decoder.norm", "decoder.norm", width)
    yield from _convolution("increase_dim.0", "decoder.out", config.group_size * AXES, width)


def classifier_layout(config: PointClassifierConfig) -> Iterator[Part]:
    """All tensors of a released model that was fine-tuned to classify."""
    width = config.encoder_config.width
    yield from encoder_layout(config.encoder_config)
    yield reshaped("cls_token", "head.class_token", (1, 1, width), (width,))
    yield reshaped("cls_pos", "head.class_position", (1, 1, width), (width,))
    for place, ours, inputs in ((0, "fc1", 2 * width), (4, "fc2", HIDDEN)):
        yield from linear(f"cls_head_finetune.{place}", f"head.{ours}.linear", HIDDEN, inputs)
        yield from _batch_norm(f"cls_head_finetune.{place + 1}", f"head.{ours}.norm", HIDDEN)
    yield from linear("cls_head_finetune.8", "head.fc3", config.classes, HIDDEN)


def segmenter_layout(config: PartSegmenterConfig) -> Iterator[Part]:
    """All tensors of a released model that was fine-tuned to segment."""
    encoder, points = config.encoder_config, config.point_width
    width, features = encoder.width, len(config.taps) * encoder.width
    yield from encoder_layout(encoder)
    yield reshaped("label_conv.0.weight", "head.label.linear.weight", *_kernel(CLASS_WIDTH, config.classes))
    yield from _batch_norm("label_conv.1", "head.label.norm", CLASS_WIDTH)
    yield from _convolution("propagation_0.mlp_convs.0", "head.propagate1", 4 * width, AXES + features)
    yield from _batch_norm("propagation_0.mlp_bns.0", "head.propagate_norm1", 4 * width)
    yield from _convolution("propagation_0.mlp_convs.1", "head.propagate2.linear", points, 4 * width)
    yield from _batch_norm("propagation_0.mlp_bns.1", "head.propagate2.norm", points)
    yield from _convolution("convs1", "head.fc1", points // 2, points + 2 * features + CLASS_WIDTH)
    yield from _batch_norm("bns1", "head.norm1", points // 2)
    yield from _convolution("convs2", "head.fc2.linear", points // 4, points // 2)
    yield from _batch_norm("bns2", "head.fc2.norm", points // 4)
    yield from _convolution("convs3", "head.fc3", config.parts, points // 4)


def encoder_layout(config: PointMAEConfig, prefix: str = "") -> Iterator[Part]:
    """The tensors of the encoder alone, whose official names begin with `prefix`."""
    width = config.width
    yield from _convolution(f"{prefix}encoder.first_conv.0", "tokenizer.fc1", 128, AXES)
    yield from _batch_norm(f"{prefix}encoder.first_conv.1", "tokenizer.norm1", 128)
    yield from _convolution(f"{prefix}encoder.first_conv.3", "tokenizer.fc2", 256, 128)
    yield from _convolution(f"{prefix}encoder.second_conv.0", "tokenizer.fc3", 512, 512)
    yield from _batch_norm(f"{prefix}encoder.second_conv.1", "tokenizer.norm2", 512)
    yield from _convolution(f"{prefix}encoder.second_conv.3", "tokenizer.fc4", width, 512)
    yield from _positions(f"{prefix}pos_embed", "block_positions", width)
    yield from blocks(f"{prefix}blocks.blocks", "blocks", config.depth, width, config.mlp_ratio, config.qkv_bias)
    yield from norm(f"{prefix}norm", "norm", width)


def _convolution(official: str, ours: str, rows: int, columns: int) -> Iterator[Part]:
    """A convolution of length 1."""
    yield reshaped(f"{official}.weight", f"{ours}.weight", *_kernel(rows, columns))
    yield same(f"{official}.bias", f"{ours}.bias", rows)


def _kernel(rows: int, columns: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of its weight, there and here."""
    return (rows, columns, 1), (rows, columns)


def _batch_norm(official: str, ours: str, width: int) -> Iterator[Part]:
    yield from norm(official, ours, width)
    yield same(f"{official}.running_mean", f"{ours}.running_mean", width)
    yield same(f"{official}.running_var", f"{ours}.running_var", width)
    yield reshaped(f"{official}.num_batches_tracked", f"{ours}.num_batches_tracked", (), (1,))


def _positions(official: str, ours: str, width: int) -> Iterator[Part]:
    yield from linear(f"{official}.0", f"{ours}.fc1", POSITION_WIDTH, AXES)
    yield from linear(f"{official}.2", f"{ours}.fc2", width, POSITION_WIDTH)
