"""Small Omnivores, random batches for them, and the model written again in the plainest way."""

from __future__ import annotations

import torch
from torch.nn import functional

from omnitrunk.bench.plain_windows import window_attention
from omnitrunk.models import Omnivore, OmnivoreConfig
from omnitrunk.models.modality import IMAGENET_MEAN, IMAGENET_STD
from tests.models.small import lively

KINDS = ("image", "video", "rgbd")


def small_omnivore(**changes):
    sizes = {
        "width": 16, "depths": (2, 2), "heads": (2, 4), "window": (2, 3, 3), "image_size": (22, 27), "frames": 5,
        "image_sets": {"image": 5}, "video_sets": {"video": 4}, "rgbd_sets": {"rgbd": 3}, "faithful": True,
    }  # fmt: skip
    return OmnivoreConfig(**{**sizes, **changes})


def double_omnivore(config, seed):
    return lively(Omnivore(config, seed), seed).double()


def omnivore_batch(kind, config, seed, batch=3):
    """Bytes, and disparity around 0."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, config.frames, *config.image_shape) if kind == "video" else (batch, *config.image_shape)
    pixels = torch.randint(0, 256, (*shape, 3), generator=generator).to(torch.uint8)
    tensors = {"video" if kind == "video" else "rgb": pixels, "label": torch.arange(batch) % config.classes[kind]}
    depth = {"depth": torch.randn(*shape, 1, generator=generator, dtype=torch.float64)} if kind == "rgbd" else {}
    return tensors | depth


def normalized(pixels):
    """float64 of bytes."""
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels.double() / 255 - mean) / std


def slow_logits(model, tensors, kind, drop_scale=None):
    """By convolution, rolling and cutting up."""
    config, scales = model.config, iter([None] * 100 if drop_scale is None else drop_scale)
    pixels = normalized(tensors["video"] if kind == "video" else tensors["rgb"][:, None])
    x = _embedded(model.tokenizers["rgb"], pixels, config)
    if kind == "rgbd":
        x = x + _embedded(model.tokenizers["depth"], tensors["depth"][:, None], config)
    for stage in model.trunk.stages:
        for number, block in enumerate(stage.blocks):
            shift = tuple(extent // 2 for extent in config.window) if number % 2 else (0, 0, 0)
            x = x + _scaled(_attention(block.attn, _norm(block.norm1, x), config.window, shift), next(scales))
            hidden = functional.gelu(_linear(block.mlp.fc1, _norm(block.norm2, x)))
            x = x + _scaled(_linear(block.mlp.fc2, hidden), next(scales))
        if stage.merge is not None:
            x = functional.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
            corners = [x[:, :, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
            x = _linear(stage.merge.reduction, _norm(stage.merge.norm, torch.cat(corners, -1)))
    return _linear(model.heads[kind], _norm(model.trunk.norm, x).mean((1, 2, 3)))


def _embedded(tokenizer, clips, config):
    time, rows, columns = (-side % step for side, step in zip(clips.shape[1:4], config.patch, strict=True))
    padded = functional.pad(clips, (0, 0, 0, columns, 0, rows, 0, time)).permute(0, 4, 1, 2, 3)
    kernel = tokenizer.weight.unflatten(1, (*config.patch, -1)).permute(0, 4, 1, 2, 3)
    tokens = functional.conv3d(padded, kernel, tokenizer.bias, stride=config.patch).permute(0, 2, 3, 4, 1)
    return _norm(tokenizer.norm, tokens)


def _attention(layer, x, window, shift):
    qkv = _linear(layer.qkv, x).unflatten(-1, (3, layer.heads, -1))
    padding = layer.qkv.bias.unflatten(0, (3, layer.heads, -1))
    mixed = window_attention(qkv, layer.bias_table, window, shift, qkv.shape[-1] ** -0.5, padding)
    return _linear(layer.proj, mixed.flatten(4))


def _linear(layer, x):
    return functional.linear(x, layer.weight, layer.bias)


def _norm(layer, x):
    return functional.layer_norm(x, layer.weight.shape, layer.weight, layer.bias, 1e-5)


def _scaled(branch, scale):
    return branch if scale is None else branch * scale.view(-1, 1, 1, 1, 1).to(branch.dtype)
