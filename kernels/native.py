"""The compiled module omnitrunk.kernels._C, as functions on torch CPU tensors.

The module may be absent: without a C++ compiler the package installs all the same. `missing_reason()` then says what to
do, and the operations use their definitions in PyTorch. These wrappers check what C++ cannot: device, dtype, shape and
contiguity, as assertions, because their callers are the operations of this package.
"""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import ModuleType

import torch
from torch import Tensor

from omnitrunk.kernels import philox
from omnitrunk.kernels.library import operator

GELU_ROWS_PER_SUM = 64
FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""How numbers may be stored for `gradient_products` and `adamw`, as numbered in csrc/kernels.h."""
_DTYPE, _ON_CPU = attrgetter("dtype"), attrgetter("is_cpu")


@functools.cache
def _load() -> ModuleType | str:
    """The compiled module, or the reason why there is none."""
    try:
        return importlib.import_module("omnitrunk.kernels._C")
    except ModuleNotFoundError:
        return "omnitrunk.kernels._C is not built; install a C++17 compiler and run `make setup`"
    except ImportError as error:
        return f"omnitrunk.kernels._C does not load ({error}); where it was built elsewhere, run `make setup`"


def available() -> bool:
    """Whether the compiled module is there."""
    return missing_reason() is None


def missing_reason() -> str | None:
    """Why the compiled module is not there and how to get it, in one line; None when it is there."""
    module = _load()
    return module if isinstance(module, str) else None


def module() -> ModuleType:
    """The compiled module itself: isa(), compiler(), openmp(). Call it only where `available()`."""
    module = _load()
    assert isinstance(module, ModuleType), module
    return module


def sample_mask(
    counts: Tensor, sizes: Sequence[int], keep: int, *, seed: int, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Choose the visible tokens of every sample; csrc/kernels.h has the definition.

    counts int32 (B, T), positions int64 (B,), `sizes` the tokens N_t of the T tasks -> ids_keep int64 (B, keep)
    ascending, mask bool (B, N) with True for masked, where N is the sum of `sizes`.
    """
    samples, tokens = len(counts), sum(sizes)
    assert 0 <= keep <= tokens and all(size >= 0 for size in sizes), (keep, sizes)
    ids_keep = torch.empty(samples, keep, dtype=torch.int64)
    mask = torch.empty(samples, tokens, dtype=torch.bool)
    module().sample_mask(
        _address(counts, torch.int32, (samples, len(sizes))),
        list(sizes),
        keep,
        philox.key(seed, "mask.task"),
        philox.key(seed, "mask.fill"),
        _address(positions, torch.int64, (samples,)),
        samples,
        ids_keep.data_ptr(),
        mask.data_ptr(),
        torch.get_num_threads(),
    )
    return ids_keep, mask


@operator(fake=lambda pixels, index, patch: pixels.new_empty(len(index), patch * patch * pixels.shape[3]))
def copy_patches(pixels: Tensor, index: Tensor, patch: int) -> Tensor:
    """Copy patches as they are: pixels (B, H, W, C) of any dtype, index int64 (M,) -> (M, patch * patch * C).

    Patch i of image b has the index b * n + i, row-major among the n = (H / patch)(W / patch) patches of an image;
    the columns of a row run over (row, column, channel). An index outside of [0, B * n) raises IndexError.
    """
    channels = pixels.shape[3]
    rows = torch.empty(len(index), patch * patch * channels, dtype=pixels.dtype)
    frames, where = _frames(pixels, pixels.dtype, patch), _index(index)
    pixel_bytes = channels * pixels.element_size()
    module().copy_patches(frames, pixel_bytes, patch, where, rows.data_ptr(), torch.get_num_threads())
    return rows


def _fake_rows(pixels: Tensor, index: Tensor, patch: int, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return pixels.new_empty(len(index), patch * patch * pixels.shape[3], dtype=torch.float32)


@operator(fake=_fake_rows)
def gather_patches(pixels: Tensor, index: Tensor, patch: int, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Copy patches of bytes as (x / 255 - mean) / std: pixels uint8 (B, H, W, C) -> float32 (M, patch * patch * C).

    `mean` and `std` hold one value per channel. Computed as x * scale + shift with scale and shift rounded to float32
    once; the index is that of `copy_patches`.
    """
    channels = pixels.shape[3]
    assert len(mean) == len(std) == channels, (mean, std, pixels.shape)
    scale = [1 / (255 * deviation) for deviation in std]
    shift = [-center / deviation for center, deviation in zip(mean, std, strict=True)]
    rows = torch.empty(len(index), patch * patch * channels, dtype=torch.float32)
    frames, where = _frames(pixels, torch.uint8, patch), _index(index)
    module().normalize_patches(frames, scale, shift, patch, where, rows.data_ptr(), torch.get_num_threads())
    return rows


@operator(fake=lambda q, k, v, scale: q.new_empty(q.shape))
def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Softmax attention: float32 q (B, N, H, d), k and v (B, S, H, d), d a multiple of 16 -> (B, N, H, d).

    The axis of d must be contiguous, the others may have any stride. No size may be 0.
    """
    out = torch.empty(q.shape)
    module().attention(
        _attention_sizes(q, k), scale, (_heads(q), _heads(k), _heads(v)), _heads(out), torch.get_num_threads()
    )
    return out


@operator(fake=lambda q, k, v, grad, scale: (q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)))
def attention_backward(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v from `grad`, that of the output of `attention`."""
    grads = torch.empty(q.shape), torch.empty(k.shape), torch.empty(v.shape)
    module().attention_backward(
        _attention_sizes(q, k),
        scale,
        (_heads(q), _heads(k), _heads(v)),
        _heads(grad),
        tuple(_heads(x) for x in grads),
        torch.get_num_threads(),
    )
    return grads


def gelu(hidden: Tensor, out: Tensor) -> Tensor:
    """Write GELU of a float32 tensor to `out`, which may be the same, and return it."""
    addresses = (_address(tensor, torch.float32, hidden.shape) for tensor in (hidden, out))
    module().gelu(*addresses, hidden.numel(), torch.get_num_threads())
    return out


def gelu_backward_(grad: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply float32 grad (R, F) by GELU'(hidden) in place; return GELU(hidden) and grad's column sums (F,)."""
    rows, columns = grad.shape
    active, sums = torch.empty_like(grad), torch.empty(-(-rows // GELU_ROWS_PER_SUM), columns)
    module().gelu_backward(
        *(_address(tensor, torch.float32, grad.shape) for tensor in (hidden, grad, active)),
        (rows, columns, GELU_ROWS_PER_SUM),
        sums.data_ptr(),
        torch.get_num_threads(),
    )
    return active, sums.sum(0)


def squared_norm(tensors: Sequence[Tensor]) -> float:
    """The sum of the squares of all elements of float32 tensors, accumulated in float64 in a fixed order."""
    return sum((row[0] for row in gradient_products(tensors, [()] * len(tensors))), 0.0)


def gradient_products(grads: Sequence[Tensor], partners: Sequence[Sequence[Tensor]]) -> list[list[float]]:
    """For every float32 gradient the sum of its squares, then its inner product with each of its partners.

    Accumulated in float64 in a fixed order. Partners have the gradient's size and are float32, bfloat16 or float16.
    """
    rows = [
        (address, size, [_stored(partner, size) for partner in others])
        for address, size, others in zip(_addresses(grads), _sizes(grads), partners, strict=True)
    ]
    return module().gradient_products(rows, torch.get_num_threads())


@dataclass(frozen=True)
class Joined:
    """Tensors that `adamw` updates from the gradient of the tensor number `weight`, and what it makes of them.

    `gradient_scales` has their numbers, each with what it multiplies that gradient with; `effective`, where given,
    receives weight + sum of factor * tensor over `terms`, from updated values, rounded once.
    """

    weight: int
    gradient_scales: Mapping[int, float]
    terms: Sequence[tuple[Tensor, float]]
    effective: Tensor | None


def adamw(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    *,
    step: int,
    lrs: Sequence[float],
    weight_decays: Sequence[float],
    betas: tuple[float, float],
    eps: float,
    grad_scale: float = 1.0,
    emas: Sequence[Tensor] | None = None,
    ema_decay: float = 0.0,
    casts: Sequence[Tensor | None] | None = None,
    joined: Sequence[Joined] = (),
) -> None:
    """One AdamW update in place of float32 tensors, all lists in the same order.

    `step` counts from 1 and includes this update; `lrs` and `weight_decays` hold one value per tensor; gradients are
    multiplied by `grad_scale` on the fly; `emas`, where given, move by (1 - ema_decay)(param - ema) afterwards; `casts`
    receive the updated parameters, rounded to float32, bfloat16 or float16. A tensor without a gradient is left as it
    is, unless one of `joined` names it.
    """
    sizes, states = _sizes(params), [params, exp_avgs, exp_avg_sqs, *([] if emas is None else [emas])]
    assert step >= 1 and all(_sizes(state) == sizes for state in states), "lists of tensors differ in their sizes"
    given = [place for place, grad in enumerate(grads) if grad is not None]
    sources = [grads[place] for place in given]
    assert len(grads) == len(sizes) and _sizes(sources) == [sizes[place] for place in given], "gradients of other sizes"
    gradients = dict(zip(given, _addresses(sources), strict=True))
    addresses = [*map(_addresses, states), *([[0] * len(sizes)] if emas is None else [])]
    rows = list(zip(*addresses, lrs, weight_decays, strict=True))
    combinations = [
        [] if cast is None else [(row[0], [], *_stored(cast, size))]
        for row, size, cast in zip(rows, sizes, casts or [None] * len(sizes), strict=True)
    ]
    units = {
        place: (sizes[place], [(*rows[place], source, 1.0)], combinations[place]) for place, source in gradients.items()
    }
    for one in joined:
        size, tensors, results = units[one.weight]
        for place, scale in one.gradient_scales.items():
            tensors.append((*rows[place], gradients[one.weight], scale))
            results += combinations[place]
        if one.effective is not None:
            terms = [(*_stored(tensor, size), factor) for tensor, factor in one.terms]
            results.append((rows[one.weight][0], terms, *_stored(one.effective, size)))
    module().adamw(list(units.values()), betas, eps, step, grad_scale, ema_decay, torch.get_num_threads())
    # Autograd cannot see the writes: without this, a backward through old values would go unnoticed.
    written = [*(casts or ()), *(one.effective for one in joined)]
    torch.autograd.graph.increment_version([*itertools.chain(*states), *(x for x in written if x is not None)])


def _address(tensor: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> int:
    assert tensor.device.type == "cpu" and tensor.is_contiguous(), (tensor.device, tensor.stride())
    assert tensor.dtype == dtype and tensor.shape == tuple(shape), (tensor.dtype, tensor.shape, dtype, shape)
    return tensor.data_ptr()


def _attention_sizes(q: Tensor, k: Tensor) -> tuple[int, int, int, int, int]:
    batch, queries, heads, width = q.shape
    assert q.numel() and k.numel() and width % 16 == 0 and k.shape == (batch, k.shape[1], heads, width)
    return batch, queries, k.shape[1], heads, width


def _heads(x: Tensor) -> tuple[int, int, int, int]:
    assert x.device.type == "cpu" and x.dtype == torch.float32 and x.stride(3) == 1, (x.device, x.dtype, x.stride())
    return x.data_ptr(), *x.stride()[:3]


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    # One optimizer step checks a thousand tensors: only what can differ, in loops that do not run in the interpreter.
    kinds = set(map(_DTYPE, tensors)), set(map(_ON_CPU, tensors))
    assert kinds[0] <= {torch.float32} and kinds[1] <= {True}, "every tensor must be float32, on the CPU"
    assert all(map(Tensor.is_contiguous, tensors)), "every tensor must be contiguous"
    return list(map(Tensor.data_ptr, tensors))


def _stored(tensor: Tensor, size: int) -> tuple[int, int]:
    """Address and format of a tensor of `size` elements in one of the formats of csrc/kernels.h."""
    assert tensor.is_cpu and tensor.is_contiguous() and tensor.numel() == size, (tensor.device, tensor.shape, size)
    return tensor.data_ptr(), FORMATS[tensor.dtype]


def _sizes(tensors: Sequence[Tensor]) -> list[int]:
    return list(map(Tensor.numel, tensors))


def _frames(pixels: Tensor, dtype: torch.dtype, patch: int) -> tuple[int, int, int, int]:
    images, height, width, _ = pixels.shape
    assert patch > 0 and height % patch == 0 and width % patch == 0, (height, width, patch)
    return _address(pixels, dtype, pixels.shape), images, height, width


def _index(index: Tensor) -> tuple[int, int]:
    return _address(index, torch.int64, (len(index),)), len(index)
