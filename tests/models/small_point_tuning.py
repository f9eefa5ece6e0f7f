"""Small fine-tuned Point-MAEs, their clouds, and their heads again by PyTorch's own layers."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch.nn import functional

from omnitrunk.models import PartSegmenterConfig, PointClassifierConfig
from tests.models.slow_pointmae import blocks, norm, perceptron, slow_groups, slow_tokens
from tests.models.small_pointmae import clouds, small_pointmae


def small_classifier(**changes):
    sizes = {"classes": 5, "dropout": 0.0, "drop_path": 0.0}
    return PointClassifierConfig(**{"encoder": asdict(small_pointmae()), **sizes, **changes})


def small_segmenter(**changes):
    sizes = {"part_counts": (2, 3, 1), "taps": (1, 2, 3), "point_width": 16, "dropout": 0.0, "drop_path": 0.0}
    return PartSegmenterConfig(**{"encoder": asdict(small_pointmae(depth=3)), **sizes, **changes})


def labeled_clouds(config, batch, seed):
    """Clouds with a class, and a part of that class for every point."""
    generator = torch.Generator().manual_seed(seed + 1)
    tensors = clouds(config.encoder_config, batch, seed)
    label = torch.randint(0, config.classes, (batch,), generator=generator)
    if isinstance(config, PointClassifierConfig):
        return tensors | {"label": label}
    draws = torch.rand(tensors["points"].shape[:2], generator=generator)
    first, counts = torch.tensor(config.first_parts[:-1])[label], torch.tensor(config.part_counts)[label]
    return tensors | {"label": label, "parts": first[:, None] + (draws * counts[:, None]).long()}


def slow_encoded(model, points, *, prepend=False, after=None):
    """Normed encodings (B, N, D) after `after` blocks, or all of them, by the class token first if asked for."""
    config, weights = model.config.encoder_config, dict(model.named_parameters())
    if after is not None:
        weights = {n: v for n, v in weights.items() if not n.startswith("blocks.") or int(n.split(".")[1]) < after}
    centers, groups = slow_groups(config, points)
    rows = []
    for cloud, tokens in zip(centers, slow_tokens(weights, groups), strict=True):
        position = perceptron(weights, "block_positions", cloud)
        if prepend:
            tokens = torch.cat([weights["head.class_token"][None], tokens])
            position = torch.cat([weights["head.class_position"][None], position])
        rows.append(norm(weights, "norm", blocks(weights, "blocks.", tokens, position, config.heads)))
    return torch.stack(rows), centers


def slow_class_logits(model, tensors):
    encoded, _ = slow_encoded(model, tensors["points"], prepend=True)
    weights = dict(model.named_parameters())
    x = torch.cat([encoded[:, 0], encoded[:, 1:].amax(1)], dim=1)
    for name in ("fc1", "fc2"):
        x = normed(weights, f"head.{name}.norm", dense(weights, f"head.{name}.linear", x)).relu()
    return dense(weights, "head.fc3", x)


def slow_part_logits(model, tensors):
    """As published: convolutions of length 1 over all that is known of a point, joined in one vector."""
    points, config, weights = tensors["points"], model.config, dict(model.named_parameters())
    taps = [slow_encoded(model, points, after=number) for number in config.taps]
    features, centers = torch.cat([tap for tap, _ in taps], dim=2), taps[0][1]
    distance = torch.cdist(points, centers).square()
    nearest = distance.argsort(dim=2)[:, :, :3]
    shares = 1 / (distance.gather(2, nearest) + 1e-8)
    shares = shares / shares.sum(2, keepdim=True)
    rows = [features[b][nearest[b]] for b in range(len(points))]
    near = (torch.stack(rows) * shares[..., None]).sum(2)
    x = dense(weights, "head.propagate1", torch.cat([points, near], dim=2))
    x = normed(weights, "head.propagate_norm1", x).relu()
    x = normed(weights, "head.propagate2.norm", dense(weights, "head.propagate2.linear", x)).relu()
    one_hot = functional.one_hot(tensors["label"], config.classes).double()
    label = normed(weights, "head.label.norm", dense(weights, "head.label.linear", one_hot))
    label = torch.where(label > 0, label, 0.2 * label)
    whole = torch.cat([features.amax(1), features.mean(1), label], dim=1)
    x = torch.cat([x, whole[:, None].expand(-1, x.shape[1], -1)], dim=2)
    x = normed(weights, "head.norm1", dense(weights, "head.fc1", x)).relu()
    x = normed(weights, "head.fc2.norm", dense(weights, "head.fc2.linear", x)).relu()
    return dense(weights, "head.fc3", x)


def dense(weights, name, x):
    return functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def normed(weights, name, x):
    """By the statistics of the batch."""
    rows = x.reshape(-1, x.shape[-1])
    values = functional.batch_norm(rows, None, None, weights[f"{name}.weight"], weights[f"{name}.bias"], training=True)
    return values.view(x.shape)
