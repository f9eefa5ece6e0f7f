"""The recorded files of MAE: pretraining cases, position tables, the learning-rate schedule."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from omnitrunk.engine.schedule import warmup_cosine
from omnitrunk.models import MAEConfig, TokenPlan, make_token_plan
from omnitrunk.models.layers.positions import column_row_table, with_class_row
from omnitrunk.models.masking import policies
from tests.parity import autoencoder
from tests.parity.folder import Check, Recorded
from tests.parity.recorder import Recorder
from tests.parity.report import Precision, Report

MARKS = {"weights": "decoder_pred.weight", "io": "noise", "grads": "gradnorm.norm_pix.cls_token"}
FIELDS = {
    "img_size": "image_size",
    "patch_size": "patch_size",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "decoder_embed_dim": "decoder_width",
    "decoder_depth": "decoder_depth",
    "decoder_num_heads": "decoder_heads",
    "mlp_ratio": "mlp_ratio",
    "mask_ratio": "mask_ratio",
}
TABLE = re.compile(r"pos_embed_(\d+)_(\d+)x(\d+)_cls")
LOSSES = {"norm_pix": True, "raw_pix": False}


def find(files: list[Recorded]) -> list[Check]:
    """Every comparison that `files` allow."""
    checks = [
        Check(files=tuple(file.name for file in group.values()), run=partial(_compare_group, prefix, group))
        for prefix, group in autoencoder.cases(files, MARKS).items()
    ]
    for file in files:
        if any(TABLE.fullmatch(key) for key in file.content):
            checks.append(Check(files=(file.name,), run=partial(_compare_tables, file)))
        if {"epoch", "lr", "args"} <= file.content.keys():
            checks.append(Check(files=(file.name,), run=partial(_compare_schedule, file)))
    return checks


def model_config(recorded: Mapping[str, Any]) -> MAEConfig:
    return MAEConfig(faithful=True, **{ours: recorded[theirs] for theirs, ours in FIELDS.items() if theirs in recorded})


def _compare_group(prefix: str, group: dict[str, Recorded], report: Report, precision: Precision) -> None:
    autoencoder.check_complete(prefix, group)
    config, io = model_config(group["io"].header("config")), group["io"].content
    tensors = {"rgb": io["input"].permute(0, 2, 3, 1).to(precision.dtype).contiguous()}
    plan = recorded_plan(config, io["noise"])
    compared = {"input", "noise"} | _compare_masks(prefix, plan, io, report)
    weights = group["weights"].content
    with torch.no_grad():
        ours = intermediates(autoencoder.loaded(config, weights, precision.dtype), tensors, plan)
    for key in sorted(io.keys() & ours.keys()):
        report.close(prefix, key, ours[key], io[key], precision.forward)
    compared |= ours.keys()
    for loss, standardize in LOSSES.items():
        changed = replace(config, standardize_targets=standardize)
        model = autoencoder.loaded(changed, weights, precision.dtype)
        grads = group["grads"].content if "grads" in group else {}
        value = model(tensors, plan)["loss"].reshape(1)
        report.close_to_largest(prefix, f"loss.{loss}", value, io[f"loss.{loss}"], precision.loss)
        compared |= {f"loss.{loss}"}
        compared |= _compare_gradients(
            prefix, loss, autoencoder.gradients(model, tensors, plan), grads, report, precision
        )
    for key in sorted((io.keys() | grads.keys()) - compared):
        report.not_covered(prefix, key)


def recorded_plan(config: MAEConfig, noise: Tensor) -> TokenPlan:
    """The plan that our policy makes of the recorded noise."""
    with mock.patch.object(policies, "uniform", return_value=noise.numpy()):
        keep = config.visible_tokens(0, np.arange(len(noise)))
    return make_token_plan(keep, config.total_tokens)


def intermediates(model: Any, tensors: Mapping[str, Tensor], plan: TokenPlan) -> dict[str, Tensor]:
    """Our tensors under the recorded keys."""
    everything = torch.arange(model.config.total_tokens).expand(len(plan.keep), -1)
    with Recorder(model) as recorder:
        predictions = model.predict(tensors, plan)
    (prediction,) = predictions.values()
    patch = model.config.patch_size
    tiles = tensors["rgb"].unflatten(2, (-1, patch)).unflatten(1, (-1, patch)).transpose(2, 3)
    return {
        "patch_embed": model.tokenizer(model.prepare(tensors), everything) - model.tokenizer.position,
        "latent": recorder.outputs["blocks"],
        "decoder_pre_norm": model.decoder.blocks(recorder.inputs["decoder.blocks"][0]),
        "pred": prediction,
        "target_patches": tiles.flatten(3).flatten(1, 2),
    }


def _compare_masks(prefix: str, plan: TokenPlan, io: Mapping[str, Tensor], report: Report) -> set[str]:
    report.equal(prefix, "mask", plan.mask.long(), io["mask"].long())
    order = torch.from_numpy(io["noise"].numpy().argsort(axis=1, kind="stable"))
    report.equal(prefix, "kept tokens in their order", plan.keep, order[:, : plan.keep.shape[1]])
    report.equal(prefix, "ids_restore", order.argsort(dim=1), io["ids_restore"])
    return {"mask", "ids_restore"}


def _compare_gradients(
    prefix: str,
    loss: str,
    ours: Mapping[str, Tensor],
    recorded: Mapping[str, Tensor],
    report: Report,
    precision: Precision,
) -> set[str]:
    full, norm = f"grad.{loss}.", f"gradnorm.{loss}."
    for key, expected in sorted(recorded.items()):
        if key.startswith(full):
            report.close_to_largest(prefix, key, ours[key.removeprefix(full)], expected, precision.gradient)
        elif key.startswith(norm):
            value = ours[key.removeprefix(norm)].double().norm().reshape(expected.shape)
            report.close_to_largest(prefix, key, value, expected, precision.gradient_norm)
    return {key for key in recorded if key.startswith((full, norm))}


def _compare_tables(file: Recorded, report: Report, _: Precision) -> None:
    for key, recorded in file.content.items():
        if match := TABLE.fullmatch(key):
            dim, height, width = (int(number) for number in match.groups())
            report.close(file.name, key, with_class_row(column_row_table(height, width, dim)), recorded, 1e-6)
        else:
            report.not_covered(file.name, key)


def _compare_schedule(file: Recorded, report: Report, _: Precision) -> None:
    """The release reaches the base rate once; ours, with one warm-up step more, has it twice and is else the same."""
    arguments, epochs, recorded = (file.content[key] for key in ("args", "epoch", "lr"))
    per_epoch = round(1 / (epochs[1] - epochs[0]))
    steps, warmup = arguments["epochs"] * per_epoch, arguments["warmup_epochs"] * per_epoch
    ours = warmup_cosine(arguments["lr"], arguments["min_lr"], steps + 1, warmup + 1)
    once = torch.from_numpy(np.delete(ours, warmup))
    report.close_to_largest(file.name, "lr", once, torch.tensor(recorded, dtype=torch.float64), 1e-12)
