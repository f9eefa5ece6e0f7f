"""window_attention on GPUs: where tokens are, and the tiles that are read and written there.

A tile has one row per place of a window. From the number of the window and the place follow, by integer arithmetic, the
row of the token on the map, or that it is padding. No index is stored.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
MASKED = tl.constexpr(-100.0 * 1.4426950408889634)


@triton.jit
def on_axis(window, place, count, EXTENT: tl.constexpr, SHIFT: tl.constexpr):
    # Position on a shifted axis of `count` windows: behind the end, it continues at the beginning.
    behind = (window == count - 1) & (place >= EXTENT - SHIFT)
    return window * EXTENT + place + SHIFT - tl.where(behind, count * EXTENT, 0)


@triton.jit
def counts(size, WINDOW: tl.constexpr):
    # Windows along each axis.
    time, height, width = size
    return (time - 1) // WINDOW[0] + 1, (height - 1) // WINDOW[1] + 1, (width - 1) // WINDOW[2] + 1


@triton.jit
def position(window, place, size, WINDOW: tl.constexpr, SHIFT: tl.constexpr):
    # The sample, and where on the padded map, a place of a window is. Windows are numbered over all samples.
    deep, down, across = counts(size, WINDOW)
    t = on_axis(window // (across * down) % deep, place // (WINDOW[1] * WINDOW[2]), deep, WINDOW[0], SHIFT[0])
    h = on_axis(window // across % down, place // WINDOW[2] % WINDOW[1], down, WINDOW[1], SHIFT[1])
    w = on_axis(window % across, place % WINDOW[2], across, WINDOW[2], SHIFT[2])
    return window // (across * down * deep), t, h, w


@triton.jit
def locate(window, place, size, WINDOW: tl.constexpr, SHIFT: tl.constexpr):
    # The row of the token at a place of a window, and whether there is one.
    sample, t, h, w = position(window, place, size, WINDOW, SHIFT)
    real = (place < WINDOW[0] * WINDOW[1] * WINDOW[2]) & (t < size[0]) & (h < size[1]) & (w < size[2])
    return ((sample * size[0] + t) * size[1] + h) * size[2] + w, real


@triton.jit
def locate_padding(window, place, size, WINDOW: tl.constexpr, SHIFT: tl.constexpr):
    # Where there is none: the row among the tokens of the padding, which are numbered as they come on the padded map.
    sample, t, h, w = position(window, place, size, WINDOW, SHIFT)
    time, height, width = size
    deep, down, across = counts(size, WINDOW)
    row = ((sample * deep * WINDOW[0] + t) * down * WINDOW[1] + h) * across * WINDOW[2] + w
    before = tl.where(h < height, h * width + tl.minimum(w, width), height * width)
    return row - tl.where(t < time, t * height * width + before, time * height * width) - sample * time * height * width


@triton.jit
def pattern(window, size, WINDOW: tl.constexpr, SHIFT: tl.constexpr):
    # On which of the shifted axes two ends of the map meet in a window: one bit for each of these axes.
    deep, down, across = counts(size, WINDOW)
    bits = 0
    if SHIFT[0] > 0:
        bits = bits * 2 + (window // (across * down) % deep == deep - 1).to(tl.int32)
    if SHIFT[1] > 0:
        bits = bits * 2 + (window // across % down == down - 1).to(tl.int32)
    if SHIFT[2] > 0:
        bits = bits * 2 + (window % across == across - 1).to(tl.int32)
    return bits


@triton.jit
def region(place, WINDOW: tl.constexpr, SHIFT: tl.constexpr):
    # In a window where two ends of an axis meet, behind which of them a place is: the same bits.
    bits = place * 0
    if SHIFT[0] > 0:
        bits = bits * 2 + (place // (WINDOW[1] * WINDOW[2]) >= WINDOW[0] - SHIFT[0]).to(tl.int32)
    if SHIFT[1] > 0:
        bits = bits * 2 + (place // WINDOW[2] % WINDOW[1] >= WINDOW[1] - SHIFT[1]).to(tl.int32)
    if SHIFT[2] > 0:
        bits = bits * 2 + (place % WINDOW[2] >= WINDOW[2] - SHIFT[2]).to(tl.int32)
    return bits


@triton.jit
def masked(scores, rows, columns, bits, WINDOW: tl.constexpr, SHIFT: tl.constexpr):
    # Scores of places with the mask between regions added, in a window of the pattern `bits`.
    region_rows, region_columns = region(rows, WINDOW, SHIFT) & bits, region(columns, WINDOW, SHIFT) & bits
    return tl.where(region_rows[:, None] == region_columns[None, :], scores, scores + MASKED)


@triton.jit
def within(row, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    return row[:, None] if HEAD == WIDTH else row[:, None] & (tl.arange(0, WIDTH) < HEAD)[None, :]


@triton.jit
def load_tile(tensor, row, real, stride, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    # Rows of one head as a tile (rows, WIDTH), zero where there is nothing.
    place = tensor + row.to(tl.int64)[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    return tl.load(place, mask=within(real, HEAD, WIDTH), other=0.0)


@triton.jit
def store_tile(tensor, value, row, real, stride, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    place = tensor + row.to(tl.int64)[:, None] * stride + tl.arange(0, WIDTH)[None, :]
    tl.store(place, value.to(tensor.dtype.element_ty), mask=within(real, HEAD, WIDTH))


@triton.jit
def load_padded(
    tensor, padding, row, real, place, stride,
    TOKENS: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    # The same of keys or values, which padding has too.
    value = load_tile(tensor, row, real, stride, HEAD, WIDTH)
    if PADDED:
        column = tl.arange(0, WIDTH)
        fill = tl.load(padding + column, mask=column < HEAD, other=0.0)
        value = tl.where(((place < TOKENS) & (real == 0))[:, None], fill[None, :], value)
    return value


@triton.jit
def store_padded(
    tensor, spare, value, row, real, window, place, size, stride, spare_stride,
    WINDOW: tl.constexpr, SHIFT: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    # The gradient of keys or values: that of padding goes to rows of its own.
    store_tile(tensor, value, row, real, stride, HEAD, WIDTH)
    if PADDED:
        outside = (place < WINDOW[0] * WINDOW[1] * WINDOW[2]) & (real == 0)
        store_tile(spare, value, locate_padding(window, place, size, WINDOW, SHIFT), outside, spare_stride, HEAD, WIDTH)
