"""The recorded files of Omnivore: pictures, clips and pictures with depth through a small trunk, and its gradients.

A case is <prefix>.inputs, <prefix>.outputs and <prefix>.weights, which may be split over several files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from omnitrunk.models import Omnivore, OmnivoreConfig
from omnitrunk.models.official.omnivore import layout
from omnitrunk.models.official.parts import Part
from omnitrunk.models.official.state_dicts import from_official, to_official
from omnitrunk.models.omnivore_plan import OmnivorePlan
from tests.parity.folder import Check, Recorded
from tests.parity.recorder import Recorder
from tests.parity.report import Precision, Report

KINDS = {"image": ("rgb",), "video": ("video",), "rgbd": ("rgb", "depth")}
INDEX = "trunk.layers.0.blocks.0.attn.relative_position_index"
# Tensors without .f64 were computed in float32: their own rounding is what remains.
FORWARD, GRADIENT, NORM, DOUBLE = 1e-5, 2e-5, 1e-5, 1e-10
SINGLE = {"logits": 2e-5, "pooled": 2e-5, "loss": 2e-5}


def find(files: list[Recorded]) -> list[Check]:
    """Every comparison that `files` allow."""
    groups: dict[str, dict[str, list[Recorded]]] = defaultdict(lambda: defaultdict(list))
    for file in (file for file in files if "config" in file.metadata and "param_names" in file.metadata):
        prefix, _, kind = file.name.rpartition(".")
        groups[prefix][kind.partition("_")[0]].append(file)
    return [
        Check(
            files=tuple(file.name for parts in group.values() for file in parts),
            run=partial(_compare_case, prefix, group),
        )
        for prefix, group in groups.items()
    ]


def model_config(recorded: Mapping[str, Any]) -> OmnivoreConfig:
    """The sizes that a file's header has."""
    if not recorded["patch_norm"] or recorded["depth_mode"] not in (None, "summed_rgb_d_tokens"):
        raise ValueError("only models with normed patches, and depth summed after its own norm, are comparable")
    sets = {f"{kind}_sets": {kind: recorded["num_classes"][kind]} for kind in KINDS if kind in recorded["num_classes"]}
    return OmnivoreConfig(
        faithful=True,
        **{"image_sets": {}} | sets,
        head_dropout={"video": 0.5} if "video_sets" in sets else {},
        patch=tuple(recorded["patch_size"]),
        width=recorded["embed_dim"],
        depths=tuple(recorded["depths"]),
        heads=tuple(recorded["num_heads"]),
        window=tuple(recorded["window_size"]),
        mlp_ratio=recorded["mlp_ratio"],
        drop_path=recorded["drop_path_rate"],
    )


def batch_of(kind: str, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Our batch of recorded pixels (B, C, T, H, W), or (B, C, H, W)."""
    last = (pixels if pixels.dim() == 5 else pixels[:, :, None]).permute(0, 2, 3, 4, 1)
    if kind == "video":
        return {"video": last.contiguous(), "label": labels}
    tensors = {"rgb": last[:, 0, ..., :3].contiguous(), "label": labels}
    return tensors | ({"depth": last[:, 0, ..., 3:].contiguous()} if kind == "rgbd" else {})


def _compare_case(prefix: str, group: Mapping[str, list[Recorded]], report: Report, precision: Precision) -> None:
    if lacking := [kind for kind in ("weights", "inputs", "outputs") if kind not in group]:
        raise ValueError(f"the case {prefix} lacks {prefix}.{lacking[0]}.safetensors")
    inputs, recorded = group["inputs"][0].content, group["outputs"][0].content
    config, names = model_config(group["outputs"][0].header("config")), group["outputs"][0].header("param_names")
    model = Omnivore(config).to(precision.dtype)
    weights = {key: value.to(precision.dtype) for part in group["weights"] for key, value in part.content.items()}
    model.load_state_dict(from_official(weights, config))
    back = to_official(model.state_dict(), config)
    report.add(prefix, "weights, there and back", sum(not torch.equal(back[key], weights[key]) for key in weights), 0)
    if "relative_position_index" in inputs:
        report.equal(prefix, "relative_position_index", back[INDEX], inputs["relative_position_index"])
    compared = set()
    for kind in (kind for kind in KINDS if f"{kind}.input" in inputs):
        batch = batch_of(kind, inputs[f"{kind}.input"].to(precision.dtype), inputs[f"{kind}.labels"])
        ours = _forward(kind, model, batch) | _backward(kind, model, batch, names)
        compared |= ours.keys()
        for key in sorted(ours.keys() & recorded.keys()):
            _compare_tensor(prefix, key, ours[key], recorded[key], report, precision)
    for key in sorted(recorded.keys() - compared):
        report.not_covered(prefix, key)


def _compare_tensor(
    prefix: str, key: str, ours: Tensor, recorded: Tensor, report: Report, precision: Precision
) -> None:
    name, double = key.partition(".")[2].removesuffix(".f64"), precision.dtype == torch.float64
    exact = double and key.endswith(".f64")
    if name.endswith("grad_norms") or name == "input_grad_norm":
        none = recorded < 0
        report.equal(prefix, f"{key}, which are none", ours < 0, none)
        error = ((ours - recorded).abs() / recorded.abs().clamp_min(1e-12))[~none].max()
        report.add(prefix, key, error, DOUBLE if exact else NORM if double else precision.gradient_norm)
    elif name.startswith("grad."):
        report.close_to_largest(prefix, key, ours, recorded, GRADIENT if double else precision.gradient)
    elif name in SINGLE:
        report.close(prefix, key, ours, recorded, DOUBLE if exact else SINGLE[name])
    else:
        report.close(prefix, key, ours, recorded, FORWARD if double else precision.forward)


@torch.no_grad()
def _forward(kind: str, model: Omnivore, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model makes of a batch on the way, by the recorded keys, channels first."""
    with Recorder(model) as recorder:
        logits = model.logits(batch, kind)
    maps = {"patch_embed": model.tokens(batch), "final_norm_map": recorder.outputs["trunk"]}
    maps |= {f"stage{stage}": model.features(batch, stage=stage) for stage in range(len(model.trunk.stages))}
    found = {name: value.permute(0, 4, 1, 2, 3) for name, value in maps.items()}
    found |= {"logits": logits, "logits.f64": logits}
    found |= dict.fromkeys(("pooled", "pooled.f64"), model.features(batch))
    return {f"{kind}.{name}": value for name, value in found.items()}


def _backward(kind: str, model: Omnivore, batch: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The loss and its gradients, by the recorded keys; `names` is the order of their norms."""
    model.zero_grad()
    with Recorder(model) as recorder:
        loss = model(batch, OmnivorePlan(dataset=kind))["loss"]
    colors = ["rgb", "depth"] if kind == "rgbd" else ["rgb"]
    projected = {name: recorder.inputs[f"tokenizers.{name}.norm"][0] for name in colors}
    for value in projected.values():
        value.retain_grad()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    ours = {part.official: part.ours for part in layout(model.config) if isinstance(part, Part)}
    norms = [-1.0 if gradients[ours[name]] is None else gradients[ours[name]].double().norm() for name in names]
    pairs = zip(KINDS[kind], projected.items(), strict=True)
    pixels = [_pixel_gradient(model, name, value.grad, batch[key]) for key, (name, value) in pairs]
    found = dict.fromkeys(("loss", "loss.f64"), loss.detach()[None])
    found |= dict.fromkeys(("grad_norms", "grad_norms.f64"), torch.tensor(norms, dtype=torch.float64))
    of_input = torch.stack([value.double().norm() for value in pixels]).norm()[None]
    found |= dict.fromkeys(("input_grad_norm", "input_grad_norm.f64"), of_input)
    filled = {name: torch.zeros_like(model.get_parameter(name)) if g is None else g for name, g in gradients.items()}
    found |= {f"grad.{name}": value for name, value in to_official(filled, model.config).items()}
    return {f"{kind}.{name}": value for name, value in found.items()}


def _pixel_gradient(model: Omnivore, name: str, gradient: Tensor, pixels: Tensor) -> Tensor:
    """The gradient of the pixels from that of their projection (B, t, h, w, D); the model computes none."""
    tokenizer = model.tokenizers[name]
    patches = (gradient @ tokenizer.weight).detach().unflatten(-1, (*tokenizer.patch, -1))
    batch, *size = gradient.shape[:4]
    sides = [prod(pair) for pair in zip(size, tokenizer.patch, strict=True)]
    whole = patches.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, *sides, -1)
    clips = pixels if pixels.dim() == 5 else pixels[:, None]
    return whole[:, : clips.shape[1], : clips.shape[2], : clips.shape[3]]
