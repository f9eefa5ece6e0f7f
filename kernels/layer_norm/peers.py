"""layer_norm through NVIDIA apex, which has the plain LayerNorm only: no residual, LayerScale or drop path."""

from __future__ import annotations

import torch
from torch import Tensor

from omnitrunk.kernels import gpu, peers
from omnitrunk.kernels.dispatch import Operation


def register(operation: Operation) -> None:
    """Add apex as a backend of `operation`."""
    operation.backend(
        "apex",
        devices=("cuda",),
        why="apex's fused kernels; not measured against torch's",
        missing=_missing,
        refuses=_refuses,
    )(_apex)


@torch.compiler.assume_constant_result
def _missing() -> str | None:
    return peers.missing(peers.APEX_NORM)


def _refuses(
    x: Tensor, weight: Tensor, bias: Tensor, _eps: float = 1e-6, residual: Tensor | None = None, *_scales: Tensor | None
) -> str | None:
    if residual is not None:
        return "normalizes only, and adds no residual"
    if not x.dtype == weight.dtype == bias.dtype:
        return "takes x, weight and bias of one dtype"
    if gpu.autocast_dtype(x) is not None:
        return "casts to half precision under autocast, where torch casts to float32"
    return None if x.numel() else "nothing to normalize"


def _apex(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6, *_residual: Tensor | None) -> Tensor:
    from apex.normalization.fused_layer_norm import fused_layer_norm_affine

    return fused_layer_norm_affine(x, weight, bias, list(weight.shape), eps)
