"""linear_cross_entropy: a classification head and its loss, without the logits in memory.

    z = x W^T + b,   loss = mean over rows of  sum_c w_c (logsumexp(z) - z_c)

x (M, D), W (C, D), b (C,). The weights w of a row come from its target: a class number gives 1 - e + e / C to that
class and e / C to all others, e being the label smoothing; a row of C weights t (mixup) gives (1 - e) t + e / C. Rows
whose class is `ignore_index` count for nothing, and the mean is over the others; their number stays on the device.
Where none is left the loss is NaN and its gradients are 0, as in torch. Losses and sums are in float32 or wider.

Backward is done on the way forward, a chunk of rows at a time: dz = softmax(z) sum_c w_c - w takes the place of z while
that is still in the cache; dx = dz W, dW = dz^T x and db = column sums of dz follow at once, dW and db in float32;
and the backward pass only scales all three. The logits of all rows never exist.
Sources: Szegedy et al. 2016, section 7 (label smoothing); Zhang et al. 2018 (mixup); the chunked form is that of
Liger-Kernel (Hsu et al. 2024) and its peers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from omnitrunk.kernels import gpu
from omnitrunk.kernels.cost import Cost
from omnitrunk.kernels.dispatch import Operation


def cost(rows: int, width: int, classes: int, *, bytes_per_element: int = 2, backward: bool = False) -> Cost:
    """Least work on (rows, width): forward makes one product and reads rows and weight once; backward two more.

    Backward reads rows and weight again and writes both gradients; the logits stay on chip. One exponential per logit.
    """
    matrices = rows * width + classes * width
    return Cost(
        bytes=(2 if backward else 1) * matrices * bytes_per_element,
        flop=(4 if backward else 2) * rows * width * classes,
        exps=rows * classes,
    )


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """The definition; see the module's text for the formula."""
    logits = functional.linear(x, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(logits, target, ignore_index=ignore_index, label_smoothing=label_smoothing)


MOST_CLASSES = 32768
OPERATION = Operation("linear_cross_entropy", reference)


def _refuses(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *_options: Any) -> str | None:
    if target.requires_grad:
        return "gives no gradient to the target"
    tensors = (weight,) if bias is None else (weight, bias)
    if gpu.autocast_dtype(x) is None and any(tensor.dtype != x.dtype for tensor in tensors):
        return "x and the weights differ in dtype"
    return None


def _triton_refuses(x: Tensor, weight: Tensor, *call: Any) -> str | None:
    if x.dtype == torch.float64:
        return "computes in float32 or narrower"
    if len(weight) > MOST_CLASSES:
        return f"holds at most {MOST_CLASSES} classes in registers"
    return _refuses(x, weight, *call)


@OPERATION.backend(
    "triton",
    devices=gpu.DEVICES,
    why="the logits stay in the cache, softmax and its gradient are one kernel",
    missing=gpu.missing,
    refuses=_triton_refuses,
)
def _triton(*call: Any) -> Tensor:
    from omnitrunk.kernels.linear_cross_entropy import chunked, triton_kernels

    return chunked.linear_cross_entropy(*call, softmax=triton_kernels.softmax_gradient)


@OPERATION.backend("torch", devices=("cpu", "cuda"), why="the logits stay in the cache", refuses=_refuses)
def _torch(*call: Any) -> Tensor:
    from omnitrunk.kernels.linear_cross_entropy import chunked

    return chunked.linear_cross_entropy(*call, softmax=chunked.softmax_gradient)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    backend: str = "auto",
) -> Tensor:
    """Cross entropy of the classes x W^T + b against the target, averaged over the rows that are not ignored.

    x (M, D) floating, weight (C, D), bias (C,), target int64 (M,), or (M, C) floating with a weight for every class ->
    one number, in float32 or wider. Differentiable in x, weight and bias, once. A class outside of [0, C) that is not
    `ignore_index` is an error on CPUs, and makes the loss NaN in the Triton kernel. Raises ValueError where the shapes
    do not fit together.
    """
    if x.dim() != 2 or weight.shape[1:] != x.shape[1:] or (bias is not None and bias.shape != weight.shape[:1]):
        shapes = ", ".join(str(tuple(t.shape)) for t in (x, weight, bias) if t is not None)
        raise ValueError(f"linear_cross_entropy: x, weight (and bias) must be (M, D), (C, D), (C,), not {shapes}")
    if target.shape not in ((len(x),), (len(x), len(weight))) or target.is_floating_point() != (target.dim() == 2):
        raise ValueError(
            f"linear_cross_entropy: target must be int64 {(len(x),)} or floating {(len(x), len(weight))}, "
            f"not {target.dtype} {tuple(target.shape)}"
        )
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"linear_cross_entropy: label_smoothing must lie in [0, 1], not {label_smoothing}")
    return OPERATION.run(backend, x, weight, bias, target, label_smoothing, ignore_index)
