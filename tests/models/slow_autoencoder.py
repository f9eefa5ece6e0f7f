"""MAE and VideoMAE again, as slowly and literally as possible: one sample and one token at a time, in float64.

Every token is projected, decoded and predicted, and what is wanted is selected afterwards. Nothing comes from
omnitrunk.kernels or omnitrunk.models.
"""

from __future__ import annotations

import math

import torch

from tests.models.slow import affine, attend, cut, mlp, norm

MEAN, STD = (torch.tensor(values, dtype=torch.float64) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def slow_mae_loss(model, images, keep):
    config, weights = model.config, weights_of(model)
    errors = []
    for image, ids in zip(images, keep.tolist(), strict=True):
        patches = cut((image.double() / 255 - MEAN) / STD, config.patch_size)
        tokens = tokenize(weights, patches, mae_positions(config, config.width))
        encoded = blocks(weights, "blocks.", torch.stack([weights["class_token"], *tokens[ids]]), config.heads)
        embedded = affine(weights, "decoder.embed", norm(weights, "norm", encoded))
        places = [weights["decoder.mask_token"]] * len(patches)
        for token, place in zip(embedded[1:], ids, strict=True):
            places[place] = token
        places = torch.stack(places) + mae_positions(config, config.decoder_width)
        decoded = blocks(weights, "decoder.blocks.", torch.cat([embedded[:1], places]), config.decoder_heads)
        predicted = affine(weights, "decoder.out", norm(weights, "decoder.norm", decoded))[1:]
        for place in set(range(len(patches))) - set(ids):
            target = patches[place].flatten()
            if config.standardize_targets:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            errors.append((predicted[place] - target).square().mean())
    return torch.stack(errors).mean()


def slow_videomae_loss(model, clips, keep):
    config, weights = model.config, weights_of(model)
    errors = []
    for clip, ids in zip(clips, keep.tolist(), strict=True):
        cubes = cut_cubes(clip, config.tubelet, config.patch_size)
        hidden = [place for place in range(len(cubes)) if place not in ids]
        tokens = tokenize(weights, [(cube / 255 - MEAN) / STD for cube in cubes], waves(len(cubes), config.width))
        encoded = norm(weights, "norm", blocks(weights, "blocks.", tokens[ids], config.heads))
        positions = waves(len(cubes), config.decoder_width)
        visible = encoded @ weights["decoder.embed.weight"].T + positions[ids]
        joined = torch.cat([visible, weights["decoder.mask_token"] + positions[hidden]])
        decoded = blocks(weights, "decoder.blocks.", joined, config.decoder_heads)
        predicted = affine(weights, "decoder.out", norm(weights, "decoder.norm", decoded))[len(ids) :]
        for prediction, place in zip(predicted, hidden, strict=True):
            target = (cubes[place] / 255).reshape(-1, 3).clone()
            for channel in range(3):
                values = target[:, channel]
                if config.standardize_targets:
                    target[:, channel] = (values - values.mean()) / (values.var().sqrt() + 1e-6)
            errors.append((prediction - target.flatten()).square().mean())
    return torch.stack(errors).mean()


def weights_of(model):
    """The parameters, with one bias for queries, keys and values where the model stores it in parts."""
    weights = dict(model.named_parameters())
    for name in [name for name in weights if name.endswith("q_bias")]:
        stem = name.removesuffix("q_bias")
        q, v = weights[name], weights[f"{stem}v_bias"]
        weights[f"{stem}bias"] = torch.cat([q, torch.zeros_like(q), v])
    return weights


def tokenize(weights, patches, positions):
    rows = [weights["tokenizer.weight"] @ patch.flatten() + weights["tokenizer.bias"] for patch in patches]
    return torch.stack(rows) + positions


def blocks(weights, prefix, x, heads):
    depth = len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})
    for number in range(depth):
        own = f"{prefix}{number}."
        q, k, v = affine(weights, f"{own}attn.qkv", norm(weights, f"{own}norm1", x)).chunk(3, dim=1)
        x = x + affine(weights, f"{own}attn.proj", attend(q, k, v, heads))
        x = x + mlp(weights, f"{own}mlp.", norm(weights, f"{own}norm2", x))
    return x


def mae_positions(config, dim):
    rows = []
    for row in range(config.grid[0]):
        for column in range(config.grid[1]):
            angles = [[place * 10000 ** (-j / (dim // 4)) for j in range(dim // 4)] for place in (column, row)]
            rows.append([wave(angle) for part in angles for wave in (math.sin, math.cos) for angle in part])
    return torch.tensor(rows).double()


def waves(count, dim):
    return torch.tensor(
        [
            [(math.sin, math.cos)[channel % 2](n / 10000 ** (2 * (channel // 2) / dim)) for channel in range(dim)]
            for n in range(count)
        ]
    ).double()


def cut_cubes(clip, tubelet, patch):
    cubes = []
    for start in range(0, len(clip), tubelet):
        frames = [cut(frame.double(), patch) for frame in clip[start : start + tubelet]]
        cubes += [torch.stack(cube) for cube in zip(*frames, strict=True)]
    return cubes
