"""Recorded losses and their gradients against `masked_patch_loss` on rows of patches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from omnitrunk.kernels.masked_patch_loss import masked_patch_loss
from tests.parity.folder import Check, Recorded
from tests.parity.multimae.layout import to_rows
from tests.parity.report import Precision, Report

NAMES = {"mse": "mse", "l1": "l1", "ce": "cross_entropy"}
LABEL_SMOOTHING = 0.1


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One recorded loss: its name, prediction (B, C, h, w), target, patch side in its pixels, and mask (B, n)."""

    name: str
    pred: Tensor
    target: Tensor
    patch: int
    mask: Tensor


def find(files: Iterable[Recorded]) -> list[Check]:
    return [
        Check(files=(file.name,), run=lambda report, precision, file=file: compare(file, report, precision))
        for file in files
        if any(key.endswith(".loss_masked") for key in file.content)
    ]


def compare(file: Recorded, report: Report, precision: Precision) -> None:
    for name in sorted({key.split(".")[0] for key in file.content if "." in key}):
        recorded = {key: file.content[f"{name}.{key}"] for key in ("pred", "target")}
        mask = file.content["mask"]
        patch = side(recorded["pred"].shape, mask.shape[1])
        for part, chosen in (("masked", mask), ("nomask", torch.ones_like(mask))):
            variant = Variant(name=name, patch=patch, mask=chosen, **recorded)
            loss, gradient = loss_and_gradient(variant, precision.dtype)
            scalar, image = (file.content[f"{name}.{kind}_{part}"] for kind in ("loss", "grad"))
            report.close_to_largest(file.name, f"{name}.loss_{part}", loss.reshape(1), scalar, precision.loss)
            # A sample without masked patches has no gradient; the release divides nothing by nothing there.
            report.close_to_largest(
                file.name, f"{name}.grad_{part}", gradient, image.nan_to_num(nan=0.0), precision.gradient
            )


def side(shape: torch.Size, patches: int) -> int:
    """Side of the `patches` square patches that tile maps (B, C, h, w)."""
    return round((shape[2] * shape[3] / patches) ** 0.5)


def loss_and_gradient(variant: Variant, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Our loss, and its gradient as an image (B, C, h, w)."""
    pred = variant.pred.to(dtype).requires_grad_()
    rows = to_rows(pred, variant.patch).flatten(0, 1)
    index = variant.mask.flatten().nonzero().flatten()
    base, _, option = variant.name.partition("_")
    loss = masked_patch_loss(
        rows[index],
        target_map(variant.target, dtype),
        index,
        weights(variant.mask).to(dtype),
        patch=variant.patch,
        loss=NAMES[base],
        standardize=option == "normpix",
        label_smoothing=LABEL_SMOOTHING if option == "smooth" else 0.0,
    )
    return loss.detach(), torch.autograd.grad(loss, pred)[0]


def target_map(target: Tensor, dtype: torch.dtype) -> Tensor:
    """Recorded targets as the kernel takes them: pixels (B, h, w, C), or classes (B, h, w)."""
    return target.permute(0, 2, 3, 1).to(dtype).contiguous() if target.is_floating_point() else target


def weights(mask: Tensor) -> Tensor:
    """Weight float64 of each masked patch of (B, n), so that every sample with masked patches counts the same."""
    masked = mask.sum(dim=1)
    shares = 1.0 / (masked.double() * (masked > 0).sum())
    return shares.repeat_interleave(masked)
