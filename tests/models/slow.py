"""MultiMAE again, written as slowly and literally as possible: one sample, one decoder, one patch at a time.

Everything is projected and decoded in full and selected afterwards, nothing comes from omnitrunk.kernels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from omnitrunk.models.modality import find_modality


def slow_losses(model, tensors, ids_keep, alive=None):
    """Losses by output for visible tokens `ids_keep` (B, K); `alive` (2 * depth, B) are the factors of drop path."""
    config, weights = model.config, dict(model.named_parameters()) | dict(model.named_buffers())
    per_sample = {output: [] for output in config.outputs}
    for sample, ids in enumerate(ids_keep.tolist()):
        maps = {name: prepare(config, name, tensor[sample]) for name, tensor in tensors.items()}
        scales = None if alive is None else alive[:, sample]
        predictions = slow_predictions(config, weights, maps, ids, scales)
        for output, prediction in predictions.items():
            errors = patch_errors(config, output, prediction, maps)
            scored = [row for row in range(len(errors)) if is_scored(config, output, row, ids)]
            if scored:
                per_sample[output].append(errors[scored].mean())
    return {output: torch.stack(values).mean() for output, values in per_sample.items() if values}


def slow_predictions(config, weights, maps, ids, scales=None):
    encoded = encode(config, weights, maps, ids, scales)
    return {output: decode(config, weights, output, encoded, ids) for output in config.outputs}


def prepare(config, name, pixels):
    modality = find_modality(name)
    if modality.kind == "classes":
        return pixels.long()
    if pixels.dtype == torch.uint8:
        mean, std = (torch.tensor(values, dtype=torch.float64) for values in (modality.mean, modality.std))
        return (pixels.double() / 255 - mean) / std
    if modality.standardize == "robust" and config.standardize_depth:
        flat = sorted(pixels.flatten().tolist())
        middle = torch.tensor(flat[int(0.1 * len(flat)) : int(0.9 * len(flat))], dtype=torch.float64)
        return (pixels - middle.mean()) / (middle.var() + 1e-6).sqrt()
    return pixels


def cut(image, patch):
    rows, columns = image.shape[0] // patch, image.shape[1] // patch
    return [
        image[r * patch : (r + 1) * patch, c * patch : (c + 1) * patch] for r in range(rows) for c in range(columns)
    ]


def owner(config, token):
    """The input of a token of the whole sequence, and its number there."""
    for name in config.inputs:
        if token < config.tokens(name):
            return name, token
        token -= config.tokens(name)
    raise AssertionError("no such token")


def encode(config, weights, maps, ids, scales):
    tokens = []
    for token in ids:
        name, row = owner(config, token)
        values = cut(maps[name], config.patch(name))[row]
        if find_modality(name).kind == "classes":
            values = torch.stack([weights[f"tokenizers.{name}.class_embedding"][label] for label in values.flatten()])
        projected = weights[f"tokenizers.{name}.weight"] @ values.flatten() + weights[f"tokenizers.{name}.bias"]
        tokens.append(projected + weights[f"tokenizers.{name}.position"][row])
    x = torch.cat([torch.stack(tokens), weights["global_tokens"][0]])
    for number in range(config.depth):
        pair = (1, 1) if scales is None else scales[2 * number : 2 * number + 2]
        x = block(weights, f"blocks.{number}.", x, config.heads, pair)
    return x


def decode(config, weights, output, encoded, ids):
    width, place, prefix = config.decoder_width, config.outputs.index(output), f"decoders.{output}."
    part = slice(place * width, (place + 1) * width)
    context = encoded @ weights["context.weight"][part].T + weights["context.bias"][part]
    own, source = {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}, None
    visible = []
    for token, projected in zip(ids, context[: len(ids)], strict=True):
        name, row = owner(config, token)
        positions = own["position"]
        if "context_position" in own:
            sizes = [config.tokens(other) for other in config.inputs]
            positions = own["context_position"].split(sizes)[config.inputs.index(name)]
        visible.append(projected + positions[row] + own["task_embedding"][config.inputs.index(name)])
    queries = own["mask_token"] + own["position"]
    source = config.masked_like(output)
    if source is not None:
        queries = list(queries + own["task_embedding"][config.inputs.index(source)])
        for token, embedded in zip(ids, visible, strict=True):
            if owner(config, token)[0] == source:
                queries[owner(config, token)[1]] = embedded
        queries = torch.stack(queries)
    context = norm(own, "context_norm", torch.cat([torch.stack(visible), context[len(ids) :]]))
    keys, values = affine(own, "cross.kv", context).chunk(2, dim=1)
    query = affine(own, "cross.q", norm(own, "query_norm", queries))
    x = affine(own, "cross.proj", attend(query, keys, values, config.decoder_heads))
    x = x + mlp(own, "mlp.", norm(own, "out_norm", x))
    for number in range(config.decoder_depth):
        x = block(own, f"blocks.{number}.", x, config.decoder_heads, (1, 1))
    return affine(own, "out", x)


def patch_errors(config, output, prediction, maps):
    """Mean error of every patch, (n,)."""
    modality, errors = find_modality(output), []
    for row, target in zip(prediction, cut(maps[modality.data], config.patch(output)), strict=True):
        if modality.loss == "cross_entropy":
            scores = row.view(-1, config.semseg_classes)
            errors.append(F.cross_entropy(scores, target.flatten(), label_smoothing=config.label_smoothing))
            continue
        target = target.flatten()
        if modality.standardize_patches:
            target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
        difference = row - target
        errors.append((difference.abs() if modality.loss == "l1" else difference**2).mean())
    return torch.stack(errors)


def is_scored(config, output, row, ids):
    source = config.masked_like(output)
    return source is None or config.loss_on_unmasked or (source, row) not in {owner(config, token) for token in ids}


def block(weights, prefix, x, heads, scales):
    q, k, v = affine(weights, prefix + "attn.qkv", norm(weights, prefix + "norm1", x)).chunk(3, dim=1)
    x = x + scales[0] * affine(weights, prefix + "attn.proj", attend(q, k, v, heads))
    return x + scales[1] * mlp(weights, prefix + "mlp.", norm(weights, prefix + "norm2", x))


def attend(q, k, v, heads):
    mixed = []
    for q_head, k_head, v_head in zip(q.chunk(heads, 1), k.chunk(heads, 1), v.chunk(heads, 1), strict=True):
        mixed.append((q_head @ k_head.T / q_head.shape[1] ** 0.5).softmax(dim=1) @ v_head)
    return torch.cat(mixed, dim=1)


def mlp(weights, prefix, x):
    hidden = affine(weights, prefix + "fc1", x)
    return affine(weights, prefix + "fc2", 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5)))


def affine(weights, name, x):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(weights, name, x):
    centered = x - x.mean(1, keepdim=True)
    scale = (centered.square().mean(1, keepdim=True) + 1e-6).sqrt()
    return centered / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]
