"""The recorded files of OmniMAE: pictures and clips through a small model, with the losses and gradients.

A case is <prefix>.inputs, <prefix>.outputs and <prefix>.weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnitrunk.models import OmniMAE, OmniMAEConfig, make_token_plan
from omnitrunk.models.masking.token_plan import all_tokens
from omnitrunk.models.official.omnimae import layout
from omnitrunk.models.omnimae import OmniMAEPlan
from tests.parity import autoencoder
from tests.parity.folder import Check, Recorded
from tests.parity.recorder import Recorder
from tests.parity.report import Precision, Report

KINDS = {"image": "rgb", "video": "video"}
RATIOS = {"rgb": "image_mask_ratio", "video": "mask_ratio"}
DOUBLES = ("loss_norm_per_channel", "loss_norm_patch", "grad_norms")
# Tensors without .f64 were computed in float32: their own rounding is what remains.
FORWARD, LOSS, NORM, DOUBLE = 1e-5, 1e-6, 1e-5, 1e-10


def find(files: list[Recorded]) -> list[Check]:
    """Every comparison that `files` allow."""
    groups: dict[str, dict[str, Recorded]] = defaultdict(dict)
    for file in (file for file in files if "dec_dim" in file.metadata.get("config", "")):
        prefix, _, kind = file.name.rpartition(".")
        groups[prefix][kind] = file
    return [
        Check(files=tuple(file.name for file in group.values()), run=partial(_compare_case, prefix, group))
        for prefix, group in groups.items()
    ]


def model_config(recorded: Mapping[str, Any], weights: Mapping[str, Tensor]) -> OmniMAEConfig:
    """The sizes that a file's header has."""
    (_, frames, *image), (tubelet, patch, _) = recorded["img_size"], recorded["patch_size"]
    return OmniMAEConfig(
        faithful=True,
        frames=frames,
        image_size=tuple(image),
        tubelet=tubelet,
        patch_size=patch,
        width=recorded["embed_dim"],
        depth=recorded["depth"],
        heads=recorded["heads"],
        mlp_ratio=len(weights["trunk.blocks.0.mlp.fc1.bias"]) / recorded["embed_dim"],
        decoder_width=recorded["dec_dim"],
        decoder_depth=recorded["dec_depth"],
        decoder_heads=recorded["dec_heads"],
        decoder_qkv_bias=recorded["dec_qkv_bias"],
    )


def _compare_case(prefix: str, group: Mapping[str, Recorded], report: Report, precision: Precision) -> None:
    if lacking := [kind for kind in ("weights", "inputs", "outputs") if kind not in group]:
        raise ValueError(f"the case {prefix} lacks {prefix}.{lacking[0]}.safetensors")
    inputs, recorded, weights = (group[kind].content for kind in ("inputs", "outputs", "weights"))
    names, compared = group["weights"].header("param_names"), set()
    found = [kind for kind in KINDS if f"{kind}.input" in inputs]
    masks = {KINDS[kind]: inputs[f"{kind}.mask"].flatten(1).numpy() for kind in found}
    ratios = {RATIOS[name]: (mask[0].sum() + 0.5) / mask.shape[1] for name, mask in masks.items()}
    config = replace(model_config(group["weights"].header("config"), weights), modalities=tuple(masks), **ratios)
    model = autoencoder.loaded(config, weights, precision.dtype)
    for kind in found:
        modality, mask = KINDS[kind], masks[KINDS[kind]]
        tokens = make_token_plan(np.nonzero(mask == 0)[1].reshape(len(mask), -1), mask.shape[1])
        plan = OmniMAEPlan(**vars(tokens), dataset=modality)
        report.add(prefix, f"{kind}.keep", abs(config.visible(modality) - plan.keep.shape[1]), 0)
        ours = _ours(model, _pixels(modality, inputs[f"{kind}.input"].to(precision.dtype)), plan, names)
        compared |= {f"{kind}.{name}" for name in ours}
        for name in sorted(ours):
            _compare_tensor(prefix, f"{kind}.{name}", ours[name], recorded[f"{kind}.{name}"], report, precision)
    for key in sorted(recorded.keys() - compared):
        report.not_covered(prefix, key)


def _pixels(modality: str, pixels: Tensor) -> dict[str, Tensor]:
    """Our batch of recorded pixels (B, C, H, W) or (B, C, T, H, W)."""
    return {modality: pixels.movedim(1, -1).contiguous()}


def _compare_tensor(
    prefix: str, key: str, ours: Tensor, recorded: Tensor, report: Report, precision: Precision
) -> None:
    double = precision.dtype == torch.float64
    exact = DOUBLE if double and key.endswith(".f64") else None
    if "grad_norms" in key:
        none = recorded < 0
        report.equal(prefix, f"{key}, which are none", ours < 0, none)
        error = ((ours - recorded).abs() / recorded.abs().clamp_min(1e-12))[~none].max()
        report.add(prefix, key, error, exact or (NORM if double else precision.gradient_norm))
    else:
        least = LOSS if ".loss" in key else FORWARD
        report.close(prefix, key, ours, recorded, exact or (least if double else precision.forward))


def _ours(model: OmniMAE, batch: Mapping[str, Tensor], plan: OmniMAEPlan, names: list[str]) -> dict[str, Tensor]:
    """Our tensors by the recorded keys; `names` is the order of the gradients' norms."""
    model.zero_grad()
    with Recorder(model) as recorder:
        loss = model(batch, plan)["loss"]
    loss.backward()
    ours = {part.official: part.ours for part in layout(model.config)}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    norms = [-1.0 if gradients[ours[name]] is None else gradients[ours[name]].double().norm() for name in names]
    by_values = replace(model.objective, channels=False)
    with torch.no_grad():
        encoded = model.encode_tokens(batch, plan.keep, norm=model.norm)
        scored = by_values(model.decoder(encoded, batch, plan), batch, plan.masked)
        with Recorder(model) as whole:
            predicted = model.decoder.everywhere(encoded, batch, plan)
    everything = all_tokens(*predicted.shape[:2], predicted.device)
    found = {
        "kept_tokens": recorder.outputs["tokenizer"],
        "encoder_out": encoded,
        "decoder_out": whole.inputs["decoder.out"][0].view(*predicted.shape[:2], -1),
        "pred": predicted,
        "patchified_unnormalised": model.objective.pixels(batch, everything).unflatten(0, everything.shape),
        "loss_norm_per_channel": loss.detach()[None],
        "loss_norm_patch": scored[None],
        "grad_norms": torch.tensor(norms, dtype=torch.float64),
    }
    return found | {f"{name}.f64": found[name] for name in DOUBLES}
