"""The recorded files of Point-MAE: pretraining cases, a classifier, and what happens to points before the model.

A recording does not say how many heads the model has. The number that reproduces what it recorded best is taken, among
the divisors of the width; with any other one hardly a digit agrees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from omnitrunk.engine.data.decode import points as point_rules
from omnitrunk.engine.data.decode.points import PointRule
from omnitrunk.kernels import chamfer, farthest_point_sample, knn
from omnitrunk.models import MaskedAutoencoder, PointClassifier, PointClassifierConfig, TokenPlan, make_token_plan
from omnitrunk.models.masking.token_plan import all_tokens
from omnitrunk.models.official.state_dicts import from_official
from omnitrunk.models.pointmae import PointMAEConfig
from tests.parity import autoencoder
from tests.parity.folder import Check, Recorded
from tests.parity.recorder import Recorder
from tests.parity.report import Precision, Report

MARKS = {"weights": "increase_dim.0.weight", "io": "neighborhood", "grads": "__total_norm"}
# The recorded run was a float32 one: its own rounding is what remains between it and float64.
FORWARD, LOSS, GRADIENT = 5e-6, 1e-6, 5e-6
WITHOUT_EFFECT = ("first_conv.0.bias", "first_conv.3.bias", "second_conv.0.bias")
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
SCALE, SHIFT = (2 / 3, 3 / 2), 0.2


def find(files: list[Recorded]) -> list[Check]:
    """Every comparison that `files` allow."""
    checks = [
        Check(files=tuple(file.name for file in group.values()), run=partial(_compare_group, prefix, group))
        for prefix, group in autoencoder.cases(files, MARKS).items()
    ]
    groups = autoencoder.cases(files, MARKS)
    for file in (file for file in files if "cls_head_finetune.0.weight" in file.content):
        prefix = file.name.rpartition("_")[0]
        checks.append(Check(files=(file.name,), run=partial(_compare_classifier, file, prefix, groups.get(prefix, {}))))
    front_ends = [file for file in files if "fps_idx_plain" in file.content]
    return checks + [Check(files=(file.name,), run=partial(_compare_front_end, file)) for file in front_ends]


def model_config(io: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> PointMAEConfig:
    """Sizes as the shapes tell them; a single head, for now."""
    width, hidden = weights["mask_token"].shape[2], weights["MAE_encoder.blocks.blocks.0.mlp.fc1.weight"].shape[0]
    return PointMAEConfig(
        faithful=True,
        points=io["points"].shape[1],
        groups=io["mask"].shape[1],
        group_size=io["neighborhood"].shape[2],
        width=width,
        depth=_count(weights, "MAE_encoder.blocks.blocks."),
        heads=1,
        mlp_ratio=hidden / width,
        decoder_width=width,
        decoder_depth=_count(weights, "MAE_decoder.blocks."),
        decoder_heads=1,
        mask_ratio=io["mask"].double().mean().item() + 1e-9,
    )


def _count(weights: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in weights if key.startswith(prefix)})


def _compare_group(prefix: str, group: dict[str, Recorded], report: Report, precision: Precision) -> None:
    autoencoder.check_complete(prefix, group)
    io, weights = group["io"].content, group["weights"].content
    config, plan = model_config(io, weights), recorded_plan(io["mask"])
    assert config.keep == plan.keep.shape[1], "the ratio masks another number of groups"
    tensors = {"points": io["points"].to(precision.dtype)}
    config = with_heads(config, weights, tensors, plan, io, precision)
    ours = intermediates(config, weights, tensors, plan, precision)
    for key in sorted(ours.keys() & io.keys()):
        tolerance = max(LOSS, precision.loss) if key.startswith("loss") else max(FORWARD, precision.forward)
        report.close(prefix, key, ours[key], io[key], tolerance)
    compared = ours.keys() | _compare_grouping(prefix, io, report) | _compare_chamfer(prefix, io, report, precision)
    model = autoencoder.loaded(config, weights, precision.dtype)
    gradients = autoencoder.gradients(model, tensors, plan)
    recorded = group["grads"].content if "grads" in group else {}
    compared |= _compare_gradients(prefix, gradients, recorded, report, precision)
    for key in sorted((io.keys() | recorded.keys()) - compared - {"points", "mask"}):
        report.not_covered(prefix, key)


def recorded_plan(mask: Tensor) -> TokenPlan:
    return make_token_plan(np.nonzero(mask.numpy() == 0)[1].reshape(len(mask), -1), mask.shape[1])


def with_heads(
    config: PointMAEConfig,
    weights: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    plan: TokenPlan,
    io: Mapping[str, Tensor],
    precision: Precision,
) -> PointMAEConfig:
    """The configuration with the numbers of heads that come closest to the recording, encoder first."""
    for field, key in (("heads", "x_vis_train"), ("decoder_heads", "pred_points_train")):
        errors = {}
        for heads in (count for count in range(1, config.width + 1) if config.width % count == 0):
            ours = intermediates(replace(config, **{field: heads}), weights, tensors, plan, precision)
            errors[heads] = (ours[key] - io[key]).abs().max().item()
        config = replace(config, **{field: min(errors, key=errors.get)})
    return config


def intermediates(
    config: PointMAEConfig,
    weights: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    plan: TokenPlan,
    precision: Precision,
) -> dict[str, Tensor]:
    """Our tensors under the recorded keys, of a step in training and of an evaluation."""
    found = {}
    for mode in ("train", "eval"):
        model = autoencoder.loaded(config, weights, precision.dtype).train(mode == "train")
        sample = model.prepare(tensors)
        with Recorder(model) as recorder:
            found[f"loss_{mode}"] = model(tensors, plan)["loss"].detach()
        points = recorder.outputs["decoder.out"].detach().unflatten(1, (-1, 3))
        found[f"pred_points_{mode}"] = points
        found |= _tokens(model, sample, recorder, mode)
    batch, masked = len(plan.keep), plan.masked.shape[1]
    found["x_rec_train"] = found.pop("decoded").unflatten(0, (batch, masked))
    found |= {"center": sample["centers"], "neighborhood": sample["groups"], "gt_points": sample["groups"][plan.mask]}
    return found


def _tokens(model: MaskedAutoencoder, sample: Mapping[str, Tensor], recorder: Recorder, mode: str) -> dict[str, Tensor]:
    everything = all_tokens(len(sample["centers"]), model.config.total_tokens, torch.device("cpu"))
    tokens = {f"group_tokens_{mode}": model.tokenizer(sample, everything).detach()}
    if mode == "train":
        tokens["x_vis_train"] = recorder.outputs["blocks"].detach()
        tokens["decoded"] = recorder.outputs["decoder.blocks"].detach()
    return tokens


def _compare_classifier(
    file: Recorded, prefix: str, group: dict[str, Recorded], report: Report, precision: Precision
) -> None:
    """Logits of the clouds of a pretraining case, by its encoder and a recorded head."""
    autoencoder.check_complete(prefix, group)
    io, weights, recorded = group["io"].content, group["weights"].content, dict(file.content)
    expected, tensors = recorded.pop("__logits_eval"), {"points": io["points"].to(precision.dtype)}
    encoder = model_config(io, weights)
    encoder = with_heads(encoder, weights, tensors, recorded_plan(io["mask"]), io, precision)
    config = PointClassifierConfig(faithful=True, encoder=asdict(encoder), classes=len(expected[0]))
    start = "MAE_encoder."
    state = {key.removeprefix(start): value for key, value in weights.items() if key.startswith(start)}
    normed = [key.removesuffix("running_mean") for key in recorded if key.endswith("running_mean")]
    counts = {f"{name}num_batches_tracked": torch.zeros(()) for name in normed}  # not recorded, and without effect
    state = {key: value.to(precision.dtype) for key, value in (state | recorded | counts).items()}
    model = PointClassifier(config).to(precision.dtype)
    model.load_state_dict(from_official(state, config))
    report.close(file.name, "logits_eval", model.eval().logits(tensors), expected, max(FORWARD, precision.forward))


def _compare_grouping(prefix: str, io: Mapping[str, Tensor], report: Report) -> set[str]:
    points, centers = io["points"], io["center"]
    centers_at = farthest_point_sample(points, centers.shape[1], pointnet2=True)
    report.equal(prefix, "fps_idx", centers_at, io["fps_idx"].long())
    report.equal(prefix, "knn_idx", knn(points, centers, io["knn_idx"].shape[2])[0], io["knn_idx"].long())
    for raw, normalized in zip(io["points_raw"].numpy(), points, strict=True):
        report.close(prefix, "points", _by_rule(raw, normalize=True), normalized, 1e-6)
    return {"fps_idx", "knn_idx", "points_raw"}


def _compare_chamfer(prefix: str, io: Mapping[str, Tensor], report: Report, precision: Precision) -> set[str]:
    prediction, truth = (io[key].to(precision.dtype) for key in ("pred_points_train", "gt_points"))
    compared = set()
    for number, queries, points in ((1, prediction, truth), (2, truth, prediction)):
        index, distance = (nearest[..., 0] for nearest in knn(points, queries, 1))
        report.equal(prefix, f"chamfer_idx{number}", index, io[f"chamfer_idx{number}"].long())
        report.close(prefix, f"chamfer_dist{number}", distance, io[f"chamfer_dist{number}"], FORWARD)
        compared |= {f"chamfer_idx{number}", f"chamfer_dist{number}"}
    for norm in ("l1", "l2"):
        leaf = prediction.clone().requires_grad_()
        loss = chamfer(leaf, truth, norm=norm).mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
        report.close_to_largest(prefix, f"chamfer_{norm}", loss, io[f"chamfer_{norm}"], LOSS)
        tolerance = max(GRADIENT, precision.gradient)
        report.close_to_largest(prefix, f"grad_pred_cd{norm}", gradient, io[f"grad_pred_cd{norm}"], tolerance)
        compared |= {f"chamfer_{norm}", f"grad_pred_cd{norm}"}
    return compared


def _compare_gradients(
    prefix: str, ours: Mapping[str, Tensor], recorded: Mapping[str, Tensor], report: Report, precision: Precision
) -> set[str]:
    """Gradients, and the buffers that the one step left, which stand among them by name.

    A bias that shifts all that a batch normalization sees has no effect: its gradient is rounding, on both sides.
    """
    tolerance, largest = max(GRADIENT, precision.gradient), recorded["__total_norm"] if recorded else torch.zeros(())
    for key, expected in sorted(recorded.items()):
        kind, _, name = key.partition(".")
        value = ours.get(name)
        if kind == "__total_norm":
            norms = [value.double().norm() for name, value in ours.items() if not name.endswith(BUFFERS)]
            report.close_to_largest(prefix, key, torch.stack(norms).norm(), expected, tolerance)
        elif kind == "buffer_after":
            report.close(prefix, key, value, expected, max(FORWARD, precision.forward))
        elif name.endswith(WITHOUT_EFFECT):
            report.close(prefix, key, value.double().norm() / largest, torch.zeros(()), tolerance)
        else:
            value = value.double().norm() if kind == "gradnorm" else value
            report.close_to_largest(prefix, key, value, expected, tolerance)
    return set(recorded)


def _by_rule(cloud: np.ndarray, draws: np.ndarray | None = None, **options: Any) -> Tensor:
    """A cloud through our rule for training, all points in their order; `draws` (6,) stand for its random numbers."""
    numbers = np.full((1, 6), 0.5) if draws is None else draws[None]
    with (
        mock.patch.object(point_rules, "choose", return_value=np.arange(len(cloud))),
        mock.patch.object(point_rules, "uniform", return_value=numbers),
    ):
        return torch.from_numpy(PointRule(count=len(cloud), **options).apply(cloud, seed=0, position=0)[0])


def _compare_front_end(file: Recorded, report: Report, _: Precision) -> None:
    content, name = file.content, file.name
    for key, cloud, pointnet2 in (
        ("fps_idx_skip_origin", "points", True),
        ("fps_idx_plain", "points", False),
        ("fps_idx_start_in_ball", "points_start_in_ball", True),
    ):
        picks = farthest_point_sample(content[cloud], content[key].shape[1], pointnet2=pointnet2)
        report.equal(name, key, picks, content[key].long())
    for cloud, normalized in zip(content["pc_norm_in"].numpy(), content["pc_norm_out"], strict=True):
        report.close(name, "pc_norm_out", _by_rule(cloud, normalize=True), normalized, 1e-6)
    rows = (content[f"scale_translate_{part}"].numpy() for part in ("in", "params", "out"))
    for cloud, (scale, shift), moved in zip(*rows, strict=True):
        draws = np.concatenate([(scale - SCALE[0]) / (SCALE[1] - SCALE[0]), (shift / SHIFT + 1) / 2])
        found = _by_rule(cloud, draws, normalize=False, scale=SCALE, shift=SHIFT)
        report.close(name, "scale_translate_out", found, torch.from_numpy(moved), 1e-6)
