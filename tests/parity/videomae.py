"""The recorded files of VideoMAE: pretraining cases, classifiers made of them, and tube masks.

A recording does not say how many heads the model has. The number that reproduces what it recorded best is taken, among
the divisors of the width; with any other one hardly a digit agrees.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from omnitrunk.models import MaskedAutoencoder, TokenPlan, VideoMAEConfig, make_token_plan
from omnitrunk.models.masking.policies import tube_tokens
from tests.parity import autoencoder
from tests.parity.folder import Check, Recorded
from tests.parity.recorder import Recorder
from tests.parity.report import Precision, Report

MARKS = {"weights": "encoder_to_decoder.weight", "io": "videos", "grads": "__total_norm", "finetune": "fc_norm.weight"}
WINDOW = re.compile(r"win(\d+)x(\d+)x(\d+)_ratio([\d.]+)_seed(\d+)")
# The recorded run was a float32 one: its own rounding is what remains between it and float64.
FORWARD, LOSS, GRADIENT = 5e-6, 1e-6, 5e-6


def find(files: list[Recorded]) -> list[Check]:
    """Every comparison that `files` allow."""
    checks = [
        Check(files=tuple(file.name for file in group.values()), run=partial(_compare_group, prefix, group))
        for prefix, group in autoencoder.cases(files, MARKS).items()
    ]
    tubes = [file for file in files if any(WINDOW.fullmatch(key) for key in file.content)]
    return checks + [Check(files=(file.name,), run=partial(_compare_tubes, file)) for file in tubes]


def model_config(io: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> VideoMAEConfig:
    """Sizes as the shapes tell them; a single head, for now."""
    width, _, tubelet, patch, _ = weights["encoder.patch_embed.proj.weight"].shape
    frames, height, columns = io["videos"].shape[2:]
    return VideoMAEConfig(
        frames=frames,
        image_size=(height, columns),
        tubelet=tubelet,
        patch_size=patch,
        width=width,
        depth=_count(weights, "encoder.blocks"),
        heads=1,
        mlp_ratio=weights["encoder.blocks.0.mlp.fc1.weight"].shape[0] / width,
        decoder_width=weights["encoder_to_decoder.weight"].shape[0],
        decoder_depth=_count(weights, "decoder.blocks"),
        decoder_heads=1,
        mask_ratio=io["mask"].double().mean().item() + 1e-9,
    )


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.split(".")[2] for key in weights if key.startswith(f"{prefix}.")})


def _compare_group(prefix: str, group: dict[str, Recorded], report: Report, precision: Precision) -> None:
    autoencoder.check_complete(prefix, group)
    io, weights = group["io"].content, group["weights"].content
    tensors = {"video": io["videos"].permute(0, 2, 3, 4, 1).to(precision.dtype).contiguous()}
    config = model_config(io, weights)
    plan = recorded_plan(config, io["mask"])
    report.equal(prefix, "mask", plan.mask.long(), io["mask"].long())

    def compute(tried: VideoMAEConfig) -> dict[str, Tensor]:
        return intermediates(autoencoder.loaded(tried, weights, precision.dtype), tensors, plan)

    sought = {"heads": (config.width, "encoder_out"), "decoder_heads": (config.decoder_width, "pred")}
    config = autoencoder.with_heads(config, sought, io, compute)
    model = autoencoder.loaded(config, weights, precision.dtype)
    with torch.no_grad():
        ours = intermediates(model, tensors, plan)
    for key in sorted(io.keys() & ours.keys()):
        report.close(prefix, key, ours[key], io[key], max(FORWARD, precision.forward))
    loss = model(tensors, plan)["loss"]
    report.close_to_largest(prefix, "loss", loss, io["loss"], max(LOSS, precision.loss))
    report.close_to_largest(prefix, "loss_f64", loss, io["loss_f64"], precision.loss)
    recorded = group["grads"].content if "grads" in group else {}
    _compare_gradients(prefix, autoencoder.gradients(model, tensors, plan), recorded, report, precision)
    for key in sorted(io.keys() - ours.keys() - {"videos", "mask", "loss", "loss_f64"}):
        report.not_covered(prefix, key)
    if "finetune" in group:
        _compare_fine_tuned(group["finetune"], config, weights, tensors, report, precision)


def _compare_fine_tuned(
    file: Recorded,
    config: VideoMAEConfig,
    weights: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    report: Report,
    precision: Precision,
) -> None:
    """The classifier made of the encoder, without its last norm, for clips of the classes 0, 1, ..."""
    recorded, prefix = file.content, "encoder."
    named = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    encoder = {key: value for key, value in named.items() if not key.startswith("norm.")}
    model = autoencoder.fine_tuned(config, encoder, recorded, precision.dtype)
    labels = torch.arange(len(tensors["video"]))
    report.close(file.name, "logits", model.logits(tensors), recorded["logits"], max(FORWARD, precision.forward))
    loss = model({**tensors, "label": labels}, model.plan(0, labels.numpy()))["loss"]
    report.close_to_largest(file.name, "loss", loss, recorded["loss"], max(LOSS, precision.loss))
    tolerance = max(GRADIENT, precision.gradient)
    autoencoder.compare_gradient_norms(file.name, model, loss, recorded, report, tolerance)


def recorded_plan(config: VideoMAEConfig, mask: Tensor) -> TokenPlan:
    """The plan that our tubes make of the recorded pattern of the first slice."""
    slices, cells = config.grid[0], config.grid[1] * config.grid[2]
    pattern = np.nonzero(mask[:, :cells].numpy() == 0)[1].reshape(len(mask), -1)
    assert config.keep == slices * pattern.shape[1], "the ratio masks another number of cells"
    return make_token_plan(tube_tokens(pattern, slices, cells), config.total_tokens)


def intermediates(model: MaskedAutoencoder, tensors: Mapping[str, Tensor], plan: TokenPlan) -> dict[str, Tensor]:
    """Our tensors under the recorded keys."""
    sample, batch = model.prepare(tensors), len(plan.keep)
    everything = torch.arange(model.config.total_tokens).expand(batch, -1)
    with Recorder(model) as recorder:
        prediction = model.predict(tensors, plan)["norm_video"]
    return {
        "encoder_pos_embed": model.tokenizer.position[None],
        "decoder_pos_embed": model.decoder.positions.table[None],
        "encoder_out": recorder.outputs["blocks"],
        "pred": prediction[plan.mask].unflatten(0, (batch, -1)),
        "target": model.objective.target(sample, plan.masked).unflatten(0, (batch, -1)),
        "patches_all": model.objective.target(sample, everything).unflatten(0, (batch, -1)),
    }


def _compare_gradients(
    prefix: str, ours: Mapping[str, Tensor], recorded: Mapping[str, Tensor], report: Report, precision: Precision
) -> None:
    tolerance = max(GRADIENT, precision.gradient)
    for key, expected in sorted(recorded.items()):
        if key == "__total_norm":
            total = torch.stack([value.double().norm() for value in ours.values()]).norm()
            report.close_to_largest(prefix, key, total, expected, tolerance)
        else:
            report.close_to_largest(prefix, f"grad.{key}", ours[key], expected, tolerance)


def _compare_tubes(file: Recorded, report: Report, _: Precision) -> None:
    """Our tubes from the patterns that numpy's global generator shuffled for the release."""
    for key, recorded in file.content.items():
        if not (match := WINDOW.fullmatch(key)):
            report.not_covered(file.name, key)
            continue
        slices, rows, columns, seed = (int(match[group]) for group in (1, 2, 3, 5))
        generator, cells = np.random.RandomState(seed), rows * columns
        masked = int(float(match[4]) * cells)
        patterns = np.tile(np.arange(cells) >= cells - masked, (len(recorded), 1))
        for pattern in patterns:
            generator.shuffle(pattern)
        keep = tube_tokens(np.nonzero(~patterns)[1].reshape(len(patterns), -1), slices, cells)
        plan = make_token_plan(keep, slices * cells)
        report.equal(file.name, key, plan.mask.long(), recorded.long())
