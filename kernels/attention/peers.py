"""attention through other libraries: flash-attention 4, 3 and 2, torch's cuDNN and variable-length calls, xformers.

All of them keep this operation's layout, (B, N, H, d) or (total, H, d), and compute in float16 or bfloat16 only. Their
order is a prediction that no measurement has confirmed yet: flash-attention, then cuDNN for sequences of one length and
torch's variable-length attention for ragged ones, then xformers.
Sequences without keys: the kernels of flash-attention, which torch's variable-length calls share, write zeros for them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from omnitrunk.kernels import gpu, peers
from omnitrunk.kernels.dispatch import Operation
from omnitrunk.kernels.peers import Package

# The newest first, each with the widest heads that it is given.
_FLASH_ATTN = ((peers.FLASH_ATTN_4, 128), (peers.FLASH_ATTN_3, 256), (peers.FLASH_ATTN_2, 256))
_WIDEST = 256


def register(operation: Operation) -> None:
    """Add the libraries as backends of `operation`, in the order in which "auto" asks them."""
    operation.backend(
        "flash_attn",
        devices=("cuda",),
        why="the newest flash-attention installed; predicted, not measured, to lead on long sequences",
        missing=_flash_attn_missing,
        refuses=_flash_attn_refuses,
    )(_flash_attn)
    operation.backend(
        "cudnn",
        devices=("cuda",),
        why="cuDNN's attention; predicted, not measured, to lead among torch's own",
        missing=_cudnn_missing,
        refuses=_cudnn_refuses,
    )(_cudnn)
    operation.backend(
        "varlen",
        devices=("cuda",),
        why="torch's ragged sequences in one launch; predicted, not measured, to lead where flash_attn is missing",
        missing=_missing(peers.VARLEN),
        refuses=_varlen_refuses,
    )(_varlen)
    operation.backend(
        "xformers",
        devices=("cuda",),
        why="xformers' attention; predicted, not measured, to lead over grouping by length, but waits for the lengths",
        missing=_xformers_missing,
        refuses=_refuses,
    )(_xformers)


def _missing(package: Package) -> Callable[[], str | None]:
    @torch.compiler.assume_constant_result
    def missing() -> str | None:
        return peers.missing(package)

    return missing


def _dtype(q: Tensor) -> torch.dtype:
    """The dtype in which the products are computed: autocast's, which leaves float64 alone."""
    return q.dtype if q.dtype == torch.float64 else gpu.autocast_dtype(q) or q.dtype


def _cast(*tensors: Tensor) -> list[Tensor]:
    """None of the libraries knows about autocast, or each has ideas of its own."""
    return [tensor.to(_dtype(tensor)) for tensor in tensors]


def _refuses(
    q: Tensor,
    k: Tensor,
    _v: Tensor,
    _scale: float,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    *_longest: int,
    widest: int = _WIDEST,
) -> str | None:
    if _dtype(q) not in (torch.float16, torch.bfloat16):
        return "computes in float16 or bfloat16"
    if q.shape[-1] % 8 or q.shape[-1] > widest:
        return f"takes heads of a width that is a multiple of 8, up to {widest}, not {q.shape[-1]}"
    if q.numel() == 0 or k.numel() == 0:
        return "nothing to attend"
    if any(x is not None and x.dtype != torch.int32 for x in (cu_seqlens_q, cu_seqlens_k)):
        return "takes cu_seqlens in int32"
    return None


def _usable() -> list[tuple[Package, int]]:
    return [(package, widest) for package, widest in _FLASH_ATTN if peers.missing(package) is None]


@torch.compiler.assume_constant_result
def _flash_attn_missing() -> str | None:
    if _usable():
        return None
    found = [package for package, _ in _FLASH_ATTN if peers.absent(package) is None]
    if not found:
        return peers.absent(peers.FLASH_ATTN_4)
    return "; ".join(dict.fromkeys(f"{peers.missing(package)}" for package in found))


@torch.compiler.assume_constant_result
def _flash_attn_widest() -> int:
    return max(widest for _, widest in _usable())


def _flash_attn_refuses(*call: Tensor | float | None) -> str | None:
    return _refuses(*call, widest=_flash_attn_widest())


def _flash_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int = 0,
    max_seqlen_k: int = 0,
) -> Tensor:
    package = next(package for package, widest in _usable() if q.shape[-1] <= widest)
    library = import_module(package.modules[0])
    options = {"softmax_scale": scale}
    if torch.are_deterministic_algorithms_enabled():
        options["deterministic"] = True
    if cu_seqlens_q is None:
        out = library.flash_attn_func(*_cast(q, k, v), **options)
    else:
        # By name: version 4 has another argument before the lengths.
        out = library.flash_attn_varlen_func(
            *_cast(q, k, v),
            cu_seqlens_q=cu_seqlens_q,
            cu_seqlens_k=cu_seqlens_k,
            max_seqlen_q=max_seqlen_q,
            max_seqlen_k=max_seqlen_k,
            **options,
        )
    # Version 4, and version 3 in its first year, return the log of the softmax's denominator too.
    return out[0] if isinstance(out, tuple) else out


@torch.compiler.assume_constant_result
def _cudnn_missing() -> str | None:
    without = peers.missing(peers.CUDNN)
    return without if without or torch.backends.cudnn.is_available() else "this torch comes without cuDNN"


def _cudnn_refuses(
    q: Tensor, k: Tensor, v: Tensor, _scale: float, cu_seqlens_q: Tensor | None = None, *_others: Tensor | int | None
) -> str | None:
    if cu_seqlens_q is not None:
        return "takes sequences of one length"
    against = _refuses(q, k, v, _scale)
    if against is not None:
        return against
    # What autocast will make of them, without contents: cuDNN looks at dtypes, shapes and strides.
    q, k, v = (x if x.dtype == _dtype(x) else torch.empty_like(x, dtype=_dtype(x)) for x in (q, k, v))
    parameters = SDPAParams(*(x.transpose(1, 2) for x in (q, k, v)), None, 0.0, False, False)
    return None if can_use_cudnn_attention(parameters) else "cuDNN does not take this shape on this GPU"


def _cudnn(q: Tensor, k: Tensor, v: Tensor, scale: float, *_ragged: Tensor | int | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    # A single backend is pinned, so there is no order among several to set.
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)


def _varlen_refuses(
    q: Tensor, k: Tensor, v: Tensor, scale: float, cu_seqlens_q: Tensor | None = None, *others: Tensor | int | None
) -> str | None:
    if cu_seqlens_q is None:
        return "takes ragged sequences"
    return _refuses(q, k, v, scale, cu_seqlens_q, *others)


def _varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(*_cast(q, k, v), cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scale=scale)


@torch.compiler.assume_constant_result
def _xformers_missing() -> str | None:
    without = peers.missing(peers.XFORMERS)
    if without is not None:
        return without
    flash = import_module("xformers.ops.fmha.flash")
    if flash.FwOp.is_available() and flash.BwOp.is_available():
        return None
    return f"xformers {peers.version('xformers')} finds no kernels that load beside torch {torch.__version__}"


def _xformers(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    *_longest: int,
) -> Tensor:
    fmha = import_module("xformers.ops.fmha")
    if cu_seqlens_q is None:
        return fmha.memory_efficient_attention(*_cast(q, k, v), scale=scale)
    lengths_q, lengths_k = torch.stack([cu_seqlens_q, cu_seqlens_k]).diff().tolist()
    mask = fmha.BlockDiagonalMask.from_seqlens(lengths_q, lengths_k, device=q.device)
    one_batch = (x.unsqueeze(0) for x in _cast(q, k, v))
    out = fmha.memory_efficient_attention(*one_batch, attn_bias=mask, scale=scale).squeeze(0)
    if 0 in lengths_k:
        # Which of its kernels runs is xformers' choice, and none promises zeros here.
        keyless = (cu_seqlens_k.diff() == 0).repeat_interleave(cu_seqlens_q.diff(), output_size=len(q))
        out = out.masked_fill(keyless[:, None, None], 0)
    return out
