"""Point-MAE again, literally: every group through the whole tokenizer, both halves of its product joined, in float64.

Nothing comes from omnitrunk.kernels or omnitrunk.models.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from tests.models.slow import affine, attend, mlp


def slow_pointmae_loss(model, points, keep):
    config, weights = model.config, dict(model.named_parameters())
    centers, groups = slow_groups(config, points)
    tokens = slow_tokens(weights, groups)
    losses = []
    for cloud, ids in enumerate(keep.tolist()):
        hidden = [number for number in range(config.groups) if number not in ids]
        position = perceptron(weights, "block_positions", centers[cloud])
        encoded = blocks(weights, "blocks.", tokens[cloud][ids], position[ids], config.heads)
        visible = norm(weights, "norm", encoded)
        position = perceptron(weights, "decoder.positions", centers[cloud])
        joined = torch.cat([visible, weights["decoder.mask_token"].expand(len(hidden), -1)])
        decoded = blocks(weights, "decoder.blocks.", joined, position[ids + hidden], config.decoder_heads)
        predicted = affine(weights, "decoder.out", norm(weights, "decoder.norm", decoded[len(ids) :]))
        for prediction, number in zip(predicted, hidden, strict=True):
            losses.append(slow_chamfer(prediction.reshape(-1, 3), groups[cloud, number], config.chamfer))
    return torch.stack(losses).mean()


def slow_groups(config, points):
    """Centers (B, G, 3) and groups (B, G, k, 3), cloud by cloud and pick by pick."""
    centers, groups = [], []
    for cloud in points:
        picks = [0]
        while len(picks) < config.groups:
            distance = torch.cdist(cloud, cloud[picks]).amin(1)
            if config.faithful:
                distance[cloud.square().sum(1) <= 1e-3] = -1
            picks.append(distance.argmax().item())
        if config.mask == "block":
            picks.sort(key=lambda pick, cloud=cloud: (cloud[pick] - cloud[0]).norm().item())
        nearest = [(cloud - cloud[pick]).norm(dim=1).argsort()[: config.group_size] for pick in picks]
        centers.append(cloud[picks])
        groups.append(torch.stack([cloud[near] - cloud[pick] for near, pick in zip(nearest, picks, strict=True)]))
    return torch.stack(centers), torch.stack(groups)


def slow_tokens(weights, groups, running=None):
    """Tokens (B, G, D) by PyTorch's own layers; `running` names buffers to normalize with."""
    x = groups.flatten(0, 1).transpose(1, 2)
    x = convolve(weights, "fc2", batch_norm(weights, "norm1", convolve(weights, "fc1", x), running).relu())
    x = torch.cat([x.amax(2, keepdim=True).expand_as(x), x], dim=1)
    x = convolve(weights, "fc4", batch_norm(weights, "norm2", convolve(weights, "fc3", x), running).relu())
    return x.amax(2).unflatten(0, groups.shape[:2])


def convolve(weights, name, x):
    return functional.conv1d(x, weights[f"tokenizer.{name}.weight"][..., None], weights[f"tokenizer.{name}.bias"])


def batch_norm(weights, name, x, running):
    name = f"tokenizer.{name}."
    mean, variance = (None, None) if running is None else (running[f"{name}running_{part}"] for part in ("mean", "var"))
    return functional.batch_norm(
        x, mean, variance, weights[f"{name}weight"], weights[f"{name}bias"], training=running is None
    )


def perceptron(weights, name, centers):
    return affine(weights, f"{name}.fc2", functional.gelu(affine(weights, f"{name}.fc1", centers)))


def blocks(weights, prefix, x, position, heads):
    depth = len({name.removeprefix(prefix).split(".")[0] for name in weights if name.startswith(prefix)})
    for number in range(depth):
        own, x = f"{prefix}{number}.", x + position
        q, k, v = (norm(weights, f"{own}norm1", x) @ weights[f"{own}attn.qkv.weight"].T).chunk(3, dim=1)
        x = x + affine(weights, f"{own}attn.proj", attend(q, k, v, heads))
        x = x + mlp(weights, f"{own}mlp.", norm(weights, f"{own}norm2", x))
    return x


def norm(weights, name, x):
    return functional.layer_norm(x, x.shape[1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-5)


def slow_chamfer(a, b, norm):
    distances = (a[:, None] - b).square().sum(2)
    ways = (distances.amin(1), distances.amin(0))
    return sum(way.mean() if norm == "l2" else way.sqrt().mean() / 2 for way in ways)
