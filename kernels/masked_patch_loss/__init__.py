"""masked_patch_loss: the error of predicted patches, summed with one weight per patch.

    loss = sum_m weight[m] * e[m],   e[m] = mean over the pixels of patch index[m] of the error of pred[m]

"mse" and "l1": pred (M, P) with P = p * p * C in (row, column, channel) order, target pixels (B, H, W, C) as in
gather_patches; the error is the mean over channels of (pred - t)^2 or |pred - t|. With `standardize`, t is each patch
brought to mean 0 and variance 1 over its P values: (x - mean) / sqrt(var + 1e-6), var with denominator P - 1.
"cross_entropy": pred (M, p * p * K) holds K logits per pixel, target is a class map (B, h, w), and the error of a pixel
of class c is (1 - s) (-log q_c) + s / K sum_k (-log q_k), with q = softmax and label smoothing s. A pixel of class
`ignore_index` has error 0 and still counts in the mean.
Weights make the reduction: 1 / (B masked[b]) for the mean over samples of per-sample means (MultiMAE), 1 / M for the
mean over all masked patches (MAE). Errors and their sum are computed in float32 or wider.
Sources: He et al. 2022, section 3 and 4.1 (standardized targets); Bachmann et al. 2022, section 3.4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.kernels import gpu
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation
from omnitrunk.kernels.patches import copy_patches, gather_patches

LOSSES = ("mse", "l1", "cross_entropy")
STANDARDIZE_EPS = 1e-6
SPENT = (
    "masked_patch_loss hands out its gradient once, without keeping a copy; "
    'compute the loss again, or use backend="reference", to go backward twice'
)
MOST_VALUES = 16384
"""Values of a patch, or classes of a pixel, that a program of the Triton kernels holds in registers."""


def cost(rows: int, values: int, *, target_bytes: int = 1, bytes_per_element: int = 2, exps: float = 0.0) -> Cost:
    """Least work, gradient included: predictions and targets read once, the gradient written once.

    rows masked patches of `values` predicted values each; `target_bytes` bytes of target per predicted value (1 for
    uint8 pixels, 1 / K for a uint8 class map), `exps` exponentials per predicted value (1 for cross-entropy).
    """
    elements = rows * values
    return Cost(bytes=elements * (2 * bytes_per_element + target_bytes), flop=6 * elements, exps=exps * elements)


def reference(
    pred: Tensor,
    target: Tensor,
    index: Tensor,
    weight: Tensor,
    patch: int,
    loss: str,
    standardize: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """The definition; see the module's text for the formulas."""
    pred = pred.to(_wide(pred.dtype))
    if loss == "cross_entropy":
        classes = copy_patches(target.unsqueeze(3), index, patch, backend="reference").long()
        logits = pred.unflatten(1, (patch * patch, -1)).transpose(1, 2)
        errors = functional.cross_entropy(
            logits, classes, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
        )
    else:
        rows = gather_patches(target, index, patch, mean=mean, std=std, dtype=pred.dtype, backend="reference")
        if standardize and len(rows):  # torch warns about the variance of nothing
            rows = (rows - rows.mean(1, keepdim=True)) / (rows.var(1, keepdim=True) + STANDARDIZE_EPS).sqrt()
        errors = (pred - rows).square() if loss == "mse" else (pred - rows).abs()
    return (errors.mean(1) * weight.to(pred.dtype)).sum()


OPERATION = Operation("masked_patch_loss", reference)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _standardize_(rows: Tensor) -> Tensor:
    values = rows.shape[1]
    rows.sub_(rows.mean(1, keepdim=True))
    deviation = torch.linalg.vector_norm(rows, dim=1, keepdim=True).square_().div_(values - 1)
    return rows.mul_(deviation.add_(STANDARDIZE_EPS).rsqrt_())


def _pixel_gradient(pred: Tensor, rows: Tensor, weight: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """Loss and gradient; `rows` (M, P), the targets, is overwritten by the gradient."""
    difference = torch.sub(pred, rows, out=rows)
    scale = (weight / rows.shape[1]).unsqueeze(1)
    if loss == "mse":
        errors = torch.linalg.vector_norm(difference, dim=1).square_()
        return torch.dot(errors, scale.flatten()), difference.mul_(2 * scale)
    errors = difference.abs().sum(1)
    return torch.dot(errors, scale.flatten()), difference.sign_().mul_(scale)


def _class_gradient(
    logits: Tensor, classes: Tensor, weight: Tensor, label_smoothing: float, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Loss and gradient of logits (M * p * p, K), softmax first and gradient then in one buffer; classes (M, p * p)."""
    count = logits.shape[1]
    ignored = classes == ignore_index
    scale = (weight / classes.shape[1]).unsqueeze(1).masked_fill(ignored, 0).view(-1, 1)
    classes = classes.masked_fill(ignored, 0).view(-1, 1)
    # Powers of two: torch's exp2 is four times faster than its exp on CPUs, and its softmax is slow on short rows.
    highest = logits.amax(1, keepdim=True)
    gradient = torch.sub(logits, highest).mul_(math.log2(math.e)).exp2_()
    total = gradient.sum(1, keepdim=True)
    # With lse = log sum exp: error = lse - (1 - s) logit_c - s mean(logits).
    errors = (total.log() + highest).sub_(logits.gather(1, classes), alpha=1 - label_smoothing)
    if label_smoothing:
        errors.sub_(logits.mean(1, keepdim=True), alpha=label_smoothing)
    gradient.mul_(scale / total)
    gradient.scatter_add_(1, classes, scale * (label_smoothing - 1))
    if label_smoothing:
        gradient.sub_(scale, alpha=label_smoothing / count)
    return torch.dot(errors.flatten(), scale.flatten()), gradient


class _MaskedPatchLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pred: Tensor, target: Tensor, index: Tensor, weight: Tensor, options: tuple) -> Tensor:
        patch, loss, standardize, mean, std, label_smoothing, ignore_index = options
        wide = pred.to(_wide(pred.dtype))
        weight = weight.to(wide.dtype)
        if loss == "cross_entropy":
            classes = copy_patches(target.unsqueeze(3), index, patch).long()
            logits = wide.reshape(classes.numel(), -1)
            value, gradient = _class_gradient(logits, classes, weight, label_smoothing, ignore_index)
        else:
            rows = gather_patches(target, index, patch, mean=mean, std=std, dtype=wide.dtype)
            rows = _standardize_(rows) if standardize else rows
            value, gradient = _pixel_gradient(wide, rows, weight, loss)
        # In float16 most of it would vanish before the scale of the loss, which is there to prevent that, comes in.
        ctx.dtype = pred.dtype
        ctx.gradient = gradient.view(pred.shape).to(wide.dtype if pred.dtype == torch.float16 else pred.dtype)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradient is None:
            raise RuntimeError(SPENT)
        gradient, ctx.gradient = ctx.gradient, None
        # On a GPU the comparison would wait for the device, and a tracer has no number; there it is cheap to multiply.
        known = grad.device.type == "cpu" and not torch.compiler.is_compiling()
        scaled = gradient if known and grad == 1 else gradient.mul_(grad)
        return scaled.to(ctx.dtype), None, None, None, None


def _triton_refuses(pred: Tensor, target: Tensor, index: Tensor, _weight: Tensor, *options: Any) -> str | None:
    if torch.float64 in (pred.dtype, target.dtype):
        return "computes in float32, not in float64"
    held = pred.shape[1] if options[1] != "cross_entropy" else pred.shape[1] // options[0] ** 2
    return None if held <= MOST_VALUES else f"holds at most {MOST_VALUES} values in registers, not {held}"


@OPERATION.backend(
    "triton",
    devices=gpu.DEVICES,
    why="reads pixels and predictions once and writes the gradient on the way",
    missing=gpu.missing,
    refuses=_triton_refuses,
)
def _triton(*call: Any) -> Tensor:
    from omnitrunk.kernels.masked_patch_loss import triton_kernels

    return triton_kernels.masked_patch_loss(*call)


def _refuses(pred: Tensor, target: Tensor, index: Tensor, *_others: object) -> str | None:
    return "no patch is masked" if index.numel() == 0 else None


@OPERATION.backend(
    "torch",
    devices=("cpu", "cuda"),
    why="computes the gradient along with the loss, in one pass over the masked patches",
    refuses=_refuses,
)
def _torch(pred: Tensor, target: Tensor, index: Tensor, weight: Tensor, *options: Any) -> Tensor:
    return _MaskedPatchLoss.apply(pred, target, index, weight, options)


def masked_patch_loss(
    pred: Tensor,
    target: Tensor,
    index: Tensor,
    weight: Tensor,
    *,
    patch: int,
    loss: str,
    standardize: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    backend: str = "auto",
) -> Tensor:
    """Sum over the masked patches of weight times mean error per pixel.

    pred (M, P) floating, target pixels (B, H, W, C) uint8 or floating ("mse", "l1") or classes (B, h, w) of any integer
    dtype ("cross_entropy"), index int64 (M,) as in gather_patches, weight (M,) -> a scalar, float32 or wider.
    Differentiable in pred alone, once: the default backend refuses a second backward pass. M = 0 gives a zero that is
    still part of the graph. Raises ValueError on an unknown loss, shapes or dtypes that do not fit together. A patch or
    class that there is not is an error on the CPU; the Triton backend makes the loss NaN.
    """
    if loss not in LOSSES:
        raise ValueError(f"masked_patch_loss: loss={loss!r} is unknown; choose one of {', '.join(LOSSES)}")
    if not len(pred) == len(index) == len(weight):
        raise ValueError(f"masked_patch_loss: {len(pred)} predictions, {len(index)} patches, {len(weight)} weights")
    _check_target(target, index, patch, loss, mean, std)
    channels = target.shape[3] if loss != "cross_entropy" else max(1, pred.shape[1] // (patch * patch))
    if pred.shape[1] != patch * patch * channels:
        raise ValueError(
            f"masked_patch_loss: predictions of {pred.shape[1]} values do not fit patches of "
            f"{patch} x {patch} x {channels}"
        )
    options = (patch, loss, standardize, mean, std, label_smoothing, ignore_index)
    return OPERATION.run(backend, pred, target, index, weight, *options)


def _check_target(
    target: Tensor,
    index: Tensor,
    patch: int,
    loss: str,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> None:
    axes, pixels = ("(B, h, w)", "classes") if loss == "cross_entropy" else ("(B, H, W, C)", "pixels")
    if target.dim() != axes.count(",") + 1 or target.shape[1] % patch or target.shape[2] % patch:
        raise ValueError(
            f"masked_patch_loss: {pixels} must be {axes} in multiples of {patch}, not {tuple(target.shape)}"
        )
    if index.dtype != torch.int64:
        raise ValueError(f"masked_patch_loss: the patch index must be int64, not {index.dtype}")
    if loss == "cross_entropy":
        return
    if target.dtype != torch.uint8 and not target.is_floating_point():
        raise ValueError(f"masked_patch_loss: pixels must be uint8 or floating, not {target.dtype}")
    if any(values is not None and len(values) != target.shape[3] for values in (mean, std)):
        raise ValueError(f"masked_patch_loss: mean and std need {target.shape[3]} values, one for each channel")
