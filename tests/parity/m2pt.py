"""The recorded files of M2PT: one joined layer, and a small ViT whose layers are all joined, over 8 steps of AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnitrunk.engine.adamw import AdamW
from omnitrunk.engine.optimizer import OptimizerConfig
from omnitrunk.engine.pairing import pair
from omnitrunk.kernels import pathway_linear
from omnitrunk.models import Classifier, ClassifierConfig
from omnitrunk.models.pathway import PathwayConfig, join, joined_layers, merge
from tests.parity.folder import Check, Recorded
from tests.parity.report import Precision, Report

FIELDS = {"patch": "patch_size", "dim": "width", "depth": "depth", "heads": "heads", "mlp_ratio": "mlp_ratio"}
RENAMED = {"norm.": "fc_norm.", "tokenizer.": "patch_embed.proj."}
JOINED = {".pathway.auxiliaries.0": ".aux_weight", ".pathway.scales.0": ".cross_modal_scale"}
RECORDED_IN_SINGLE = 5e-6
"""All but the *_f64 tensors were computed in float32."""
TRAINED = 2e-4


def find(files: list[Recorded]) -> list[Check]:
    """Every comparison that `files` allow."""
    checks, named = [], {file.name: file for file in files}
    for file in files:
        if "merged_weight" in file.content:
            checks.append(Check(files=(file.name,), run=partial(_compare_linear, file)))
        if "trace" in file.content and "forward_scales" in file.content:
            prefix = file.name.removesuffix("_trace")
            parts = [f"{prefix}_{kind}" for kind in ("weights", "io", "grads", "trace_end")]
            group = [named[name] for name in parts if name in named]
            names = (file.name, *(part.name for part in group))
            checks.append(Check(files=names, run=partial(_compare_vit, prefix, file.content, group)))
    return checks


def _compare_linear(file: Recorded, report: Report, precision: Precision) -> None:
    single = {key: value for key, value in file.content.items() if not key.endswith("_f64")}
    names = ("x", "weight", "aux_weight", "cross_modal_scale", "bias")
    inputs = {name: single[name].to(precision.dtype).requires_grad_() for name in names}
    y = pathway_linear(*(inputs[name] for name in names))
    y.backward(single["grad_y"].to(precision.dtype))
    merged = inputs["weight"] + inputs["cross_modal_scale"] * inputs["aux_weight"]
    ours = {"y": y, "merged_weight": merged} | {f"grad_{name}": value.grad for name, value in inputs.items()}
    for name, value in ours.items():
        report.close_to_largest(file.name, name, value, single[name], max(precision.forward, RECORDED_IN_SINGLE))
        if f"{name}_f64" in file.content:
            tolerance = 1e-12 if precision.dtype == torch.float64 else precision.forward
            report.close_to_largest(file.name, f"{name}_f64", value, file.content[f"{name}_f64"], tolerance)


def _compare_vit(
    prefix: str, trace: Mapping[str, Any], group: list[Recorded], report: Report, precision: Precision
) -> None:
    weights, io, grads, end = (_of_kind(prefix, group, kind) for kind in ("weights", "io", "grads", "trace_end"))
    config, batch = _config(trace["config"]), _batch(io, precision.dtype)
    model = _model(config, weights, precision.dtype)
    forward, gradient = max(precision.forward, 5e-6), max(precision.gradient, 1e-5)
    report.close(prefix, "logits", model.logits(batch), io["logits"], forward)
    if precision.dtype == torch.float64:
        report.close(prefix, "logits_f64", model.logits(batch), io["logits_f64"], 1e-9)
    plain = Classifier(config).to(precision.dtype)
    plain.load_state_dict(merge(model.state_dict()))
    report.close(prefix, "logits_merged", plain.logits(batch), io["logits_merged"], forward)
    plan = model.plan(0, np.arange(len(io["label"])))
    loss = model(batch, plan)["loss"]
    report.close(prefix, "loss", loss, io["loss"], max(precision.loss, 1e-6))
    loss.backward()
    ours = _official({name: value.grad for name, value in model.named_parameters()}, config)
    merged = _official({name: value.detach() for name, value in plain.named_parameters()}, config)
    ours |= {f"merged.{name}": value for name, value in merged.items()}
    for key, expected in grads.items():
        report.close_to_largest(f"{prefix}_grads", key, ours[key], expected, gradient)
    _zero_scales(model)
    report.close(prefix, "logits_lambda0", model.logits(batch), io["logits_lambda0"], forward)
    for key in ("grad_image", "logits_autocast_bf16"):
        report.not_covered(prefix, key)
    _compare_training(prefix, trace, _model(config, weights, torch.float32), _batch(io, torch.float32), end, report)


def _compare_training(
    prefix: str,
    trace: Mapping[str, Any],
    model: Classifier,
    batch: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    report: Report,
) -> None:
    """In float32, as it was recorded: groups of parameters, then loss, gradient norm and scales of every step."""
    _zero_scales(model)
    settings, config = trace["config"], model.config
    groups = model.parameter_groups(settings["weight_decay"])
    _compare_groups(prefix, groups, trace["param_groups"], report)
    options = OptimizerConfig(lr=settings["lr"], betas=tuple(settings["betas"]), eps=settings["eps"])
    optimizer = AdamW(groups, options, pair(model, "fp32"))
    plan = model.plan(0, np.arange(len(batch["label"])))
    for step in trace["trace"]:
        loss = model(batch, plan)["loss"]
        loss.backward()
        norm, _ = optimizer.update(settings["lr"])
        optimizer.clear_gradients()
        case, values = f"{prefix} step {step['step']}", _official(dict(model.named_parameters()), config)
        scales = torch.stack([values[name].flatten()[0] for name in step["scales"]])
        lengths = torch.stack([values[name].norm() for name in step["norms"]])
        for name, value, expected in (
            ("loss", loss, step["loss"]),
            ("grad_norm", norm, step["grad_norm"]),
            ("scales", scales, list(step["scales"].values())),
            ("norms", lengths, list(step["norms"].values())),
        ):
            report.close_to_largest(case, name, value, torch.tensor(expected, dtype=torch.float64), 1e-3)
    for key, expected in end.items():
        value = model.logits(batch) if key == "final_logits" else values[key]
        # The keys' biases have no gradient, and AdamW makes full steps out of its rounding.
        tolerance = 1e-2 if key.endswith("qkv.bias") or key == "final_logits" else TRAINED
        report.close(f"{prefix}_trace_end", key, value, expected, tolerance)


def _compare_groups(prefix: str, groups: list[dict[str, Any]], recorded: list[dict[str, Any]], report: Report) -> None:
    expected = {name: (group["lr_scale"], group["weight_decay"]) for group in recorded for name in group["params"]}
    ours = {_name(name): (group["lr_scale"], group["weight_decay"]) for group in groups for name in group["names"]}
    wrong = {name for name in expected if torch.tensor(expected[name]).sub(torch.tensor(ours[name])).abs().max() > 1e-9}
    missing = set(ours) ^ set(expected)
    report.add(prefix, "groups of parameters", len(wrong) + len(missing), 0)


def _of_kind(prefix: str, group: list[Recorded], kind: str) -> dict[str, Tensor]:
    found = [file.content for file in group if file.name == f"{prefix}_{kind}"]
    if not found:
        raise ValueError(f"the case {prefix} lacks {prefix}_{kind}.safetensors")
    return found[0]


def _config(recorded: Mapping[str, Any]) -> ClassifierConfig:
    encoder = {ours: recorded[theirs] for theirs, ours in FIELDS.items()}
    encoder |= {"system": "mae", "image_size": tuple(recorded["img"])}
    return ClassifierConfig(
        encoder=encoder,
        classes=recorded["classes"],
        label_smoothing=recorded["label_smoothing"],
        layer_decay=recorded["layer_decay"],
        train_positions=True,
    )


def _batch(io: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {"rgb": io["image"].permute(0, 2, 3, 1).to(dtype).contiguous(), "label": io["label"]}


def _model(config: ClassifierConfig, recorded: Mapping[str, Tensor], dtype: torch.dtype) -> Classifier:
    """Our model with recorded weights, all layers joined."""
    model = Classifier(config).to(dtype)
    join(model.blocks, [model.blocks.state_dict()], PathwayConfig())
    position, kernel = recorded["pos_embed"][0], recorded["patch_embed.proj.weight"]
    given = {
        "class_token": recorded["cls_token"].flatten(),
        "class_position": position[0],
        "tokenizer.position": position[1:],
        "tokenizer.weight": kernel.permute(0, 2, 3, 1).flatten(1),
    }
    names = [name for name in model.state_dict() if name not in given]
    model.load_state_dict(given | {name: recorded[_name(name)] for name in names})
    return model


def _zero_scales(model: Classifier) -> None:
    with torch.no_grad():
        for layer in joined_layers(model).values():
            layer.pathway.scales[0].zero_()


def _official(ours: dict[str, Tensor], config: ClassifierConfig) -> dict[str, Tensor]:
    """Tensors of ours under the release's names and shapes."""
    special = {name: ours[name] for name in ("class_token", "class_position", "tokenizer.position", "tokenizer.weight")}
    patch = config.encoder_config.patch_size
    kernel = special["tokenizer.weight"].unflatten(1, (patch, patch, -1)).permute(0, 3, 1, 2)
    table = torch.cat([special["class_position"][None], special["tokenizer.position"]])[None]
    plain = {_name(name): value for name, value in ours.items() if name not in special}
    return plain | {
        "cls_token": special["class_token"][None, None],
        "pos_embed": table,
        "patch_embed.proj.weight": kernel,
    }


def _name(ours: str) -> str:
    """The release's name of a parameter."""
    if ours == "class_token":
        return "cls_token"
    if ours in ("class_position", "tokenizer.position"):
        return "pos_embed"
    for old, new in JOINED.items():
        ours = ours.replace(old, new)
    for old, new in RENAMED.items():
        if ours.startswith(old):
            return new + ours.removeprefix(old)
    return ours
