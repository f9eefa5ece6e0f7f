"""The four kernels of adamw_ on GPUs. All find their tensors through tables on the device.

A row of the address table is one gradient and all that is updated with it, in 64-bit words:

    first and one past the last chunk, gradient, effective weight, then WORDS words for each of 1 + 2 SLOTS parameters:
    the weight, and for every slot an auxiliary weight and its scale
    a parameter is its own address and those of first moment, second moment, average and cast

0 stands for nothing there: no average, no cast; an auxiliary without moments is frozen; a scale without an address is
fixed, and its value in the table of factors, whose rows hold learning rate factor and weight decay of each of the
1 + 2 SLOTS parameters, then the SLOTS fixed scales. Rows with pathways come first.
A chunk is (row, its number within the row, elements, whether those are a multiple of 8 and all addresses of 16).
"""

from __future__ import annotations

import triton
import triton.language as tl

HEAD = tl.constexpr(4)
WORDS = tl.constexpr(5)
GRADIENT_WORD = tl.constexpr(2)
EFFECTIVE_WORD = tl.constexpr(3)
# What the finalizing kernel leaves for the update.
CLIP = tl.constexpr(0)
CORRECTION = tl.constexpr(1)
ROOT_CORRECTION = tl.constexpr(2)
RATE = tl.constexpr(3)
FINITE = tl.constexpr(4)


@triton.jit
def chunk_at(table, word, origin, element: tl.constexpr, ALIGNMENT: tl.constexpr):
    """Pointer to where a chunk begins in the tensor whose address is a word of the table."""
    return tl.multiple_of(tl.load(table + word).to(tl.pointer_type(element)), ALIGNMENT) + origin


@triton.jit
def chunk_lanes(count, CHUNK: tl.constexpr, ALIGNMENT: tl.constexpr):
    """Elements of a chunk counted from its beginning, and which of them are inside."""
    if ALIGNMENT > 1:
        # Nothing changes, but the compiler learns that eight neighbours are in or out together.
        count = count // 8 * 8
    lane = tl.arange(0, CHUNK)
    return lane, lane < count


@triton.jit
def advance(
    parameter, first, second, average, cast, inside, has_cast, gradient, rate, decay, correction, root_correction,
    beta1_rest, beta2, beta2_rest, eps, average_rest,
    AVERAGE: tl.constexpr, CAST: tl.constexpr,
):  # fmt: skip
    """One AdamW update of the elements that the pointers name; returns the new parameters."""
    p = tl.load(parameter, mask=inside)
    m = tl.load(first, mask=inside)
    v = tl.load(second, mask=inside)
    m += beta1_rest * (gradient - m)
    v = v * beta2 + beta2_rest * gradient * gradient
    if AVERAGE:
        a = tl.load(average, mask=inside)
    p -= rate * decay * p + rate * correction * m / (tl.sqrt(v) * root_correction + eps)
    tl.store(first, m, mask=inside)
    tl.store(second, v, mask=inside)
    tl.store(parameter, p, mask=inside)
    if AVERAGE:
        tl.store(average, a + average_rest * (p - a), mask=inside)
    if CAST is not None:
        tl.store(cast, p.to(CAST), mask=inside & has_cast)
    return p


@triton.jit
def auxiliary_weight(table, word, origin, lane, inside, FROZEN: tl.constexpr, ALIGNMENT: tl.constexpr):
    """Elements of an auxiliary weight in float32; those that learn are stored so, frozen ones as FROZEN."""
    if tl.load(table + word + 1) != 0:
        weight = tl.load(chunk_at(table, word, origin, tl.float32, ALIGNMENT) + lane, mask=inside, other=0.0)
    else:
        weight = tl.load(chunk_at(table, word, origin, FROZEN, ALIGNMENT) + lane, mask=inside, other=0.0)
        weight = weight.to(tl.float32)
    return weight


@triton.jit
def chunk_products(
    table, partials, row, origin, count,
    SLOTS: tl.constexpr, GRADIENT: tl.constexpr, FROZEN: tl.constexpr, CHUNK: tl.constexpr, ALIGNMENT: tl.constexpr,
):  # fmt: skip
    base = row * (HEAD + WORDS * (1 + 2 * SLOTS))
    lane, inside = chunk_lanes(count, CHUNK, ALIGNMENT)
    source = chunk_at(table, base + GRADIENT_WORD, origin, GRADIENT, ALIGNMENT)
    gradient = tl.load(source + lane, mask=inside, other=0.0).to(tl.float32)
    tl.store(partials, tl.sum(gradient * gradient))
    for slot in tl.static_range(SLOTS):
        word = base + HEAD + WORDS * (1 + 2 * slot)
        if tl.load(table + word + WORDS) != 0:
            weight = auxiliary_weight(table, word, origin, lane, inside, FROZEN, ALIGNMENT)
            tl.store(partials + 1 + slot, tl.sum(gradient * weight))
        else:
            tl.store(partials + 1 + slot, 0.0)


@triton.jit
def partials_kernel(
    chunks, table, partials,
    SLOTS: tl.constexpr, GRADIENT: tl.constexpr, FROZEN: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Of every chunk ||G||^2 and, for every scale that learns, <G, W'>."""
    chunk = tl.program_id(0).to(tl.int64)
    row, origin = tl.load(chunks + 4 * chunk), tl.load(chunks + 4 * chunk + 1) * CHUNK
    count, aligned = tl.load(chunks + 4 * chunk + 2).to(tl.int32), tl.load(chunks + 4 * chunk + 3)
    partials += chunk * (1 + SLOTS)
    if aligned != 0:
        chunk_products(table, partials, row, origin, count, SLOTS, GRADIENT, FROZEN, CHUNK, 16)
    else:
        chunk_products(table, partials, row, origin, count, SLOTS, GRADIENT, FROZEN, CHUNK, 1)


@triton.jit
def sums_kernel(table, partials, sums, SLOTS: tl.constexpr, BLOCK: tl.constexpr):
    """Adds up the chunks of every row, in float64 and in a fixed order."""
    row = tl.program_id(0).to(tl.int64)
    base = row * (HEAD + WORDS * (1 + 2 * SLOTS))
    begin, end = tl.load(table + base), tl.load(table + base + 1)
    for column in tl.static_range(1 + SLOTS):
        total = tl.zeros((BLOCK,), tl.float64)
        for first in range(begin, end, BLOCK):
            chunk = first + tl.arange(0, BLOCK)
            total += tl.load(partials + chunk * (1 + SLOTS) + column, mask=chunk < end, other=0.0).to(tl.float64)
        tl.store(sums + row * (1 + SLOTS) + column, tl.sum(total))


@triton.jit
def scale_values(table, factors, row, inside, slot, SLOTS: tl.constexpr):
    """The factor of a slot in a block of rows, whether it learns, and its word in the table."""
    word = row * (HEAD + WORDS * (1 + 2 * SLOTS)) + HEAD + WORDS * (2 + 2 * slot)
    address = tl.load(table + word, mask=inside, other=0)
    learns = inside & (address != 0)
    fixed = tl.load(factors + row * (2 + 5 * SLOTS) + 2 + 4 * SLOTS + slot, mask=inside, other=0.0)
    value = tl.load(address.to(tl.pointer_type(tl.float32)), mask=learns, other=0.0)
    return tl.where(learns, value, fixed), learns, word


@triton.jit
def finalize_kernel(
    table, factors, sums, scales, state, step, norm, skipped, lr, rows, joined,
    log_beta1, log_beta2, max_norm, beta1_rest, beta2, beta2_rest, eps, average_rest,
    LR_ON_DEVICE: tl.constexpr, SLOTS: tl.constexpr, AVERAGE: tl.constexpr, CAST: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Norm, clip factor, step count and bias corrections, and the update of all scales; one program."""
    total = tl.zeros((ROWS,), tl.float64)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = row < rows
        square = tl.load(sums + row * (1 + SLOTS), mask=inside, other=0.0)
        total += square
        for slot in tl.static_range(SLOTS):
            value, learns, word = scale_values(table, factors, row, inside, slot, SLOTS)
            trained = tl.load(table + word - WORDS + 1, mask=inside, other=0) != 0
            product = tl.load(sums + row * (1 + SLOTS) + 1 + slot, mask=inside, other=0.0)
            wide = value.to(tl.float64)
            total += tl.where(trained, wide * wide * square, 0.0) + tl.where(learns, product * product, 0.0)
    length = tl.sqrt(tl.sum(total))
    finite = tl.where(length.to(tl.float32) < float("inf"), 1, 0)
    tl.store(norm, length.to(tl.float32))
    tl.store(skipped, finite == 0)
    clip = 1.0
    if max_norm is not None:
        clip = tl.minimum(max_norm / (length + 1e-6), 1.0).to(tl.float32)
    if LR_ON_DEVICE:
        lr = tl.load(lr)
    updates = tl.load(step).to(tl.float64) + 1.0
    correction = (1.0 / (1.0 - tl.exp(updates * log_beta1))).to(tl.float32)
    root_correction = (1.0 / tl.sqrt(1.0 - tl.exp(updates * log_beta2))).to(tl.float32)
    tl.store(step, updates.to(step.dtype.element_ty), mask=finite != 0)
    tl.store(state + CLIP, clip)
    tl.store(state + CORRECTION, correction)
    tl.store(state + ROOT_CORRECTION, root_correction)
    tl.store(state + RATE, lr)
    tl.store(state + FINITE, finite.to(tl.float32))
    for first in range(0, joined, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = row < joined
        for slot in tl.static_range(SLOTS):
            value, learns, word = scale_values(table, factors, row, inside, slot, SLOTS)
            parameter = tl.load(table + word, mask=inside, other=0).to(tl.pointer_type(tl.float32))
            first_moment = tl.load(table + word + 1, mask=inside, other=0).to(tl.pointer_type(tl.float32))
            second_moment = tl.load(table + word + 2, mask=inside, other=0).to(tl.pointer_type(tl.float32))
            average = tl.load(table + word + 3, mask=inside, other=0).to(tl.pointer_type(tl.float32))
            cast = tl.load(table + word + 4, mask=inside, other=0)
            factor = factors + row * (2 + 5 * SLOTS) + 2 * (2 + 2 * slot)
            gradient = tl.load(sums + row * (1 + SLOTS) + 1 + slot, mask=inside, other=0.0).to(tl.float32) * clip
            new = advance(
                parameter, first_moment, second_moment, average, cast.to(tl.pointer_type(CAST or tl.float32)),
                learns & (finite != 0), cast != 0, gradient,
                lr * tl.load(factor, mask=inside, other=0.0), tl.load(factor + 1, mask=inside, other=0.0),
                correction, root_correction, beta1_rest, beta2, beta2_rest, eps, average_rest, AVERAGE, CAST,
            )  # fmt: skip
            pair = scales + 2 * (row * SLOTS + slot)
            tl.store(pair, value, mask=inside)
            tl.store(pair + 1, tl.where(learns, new, value), mask=inside)


@triton.jit
def advance_chunk(
    table, factors, word, factor, origin, lane, inside, gradient, rate, correction, root_correction,
    beta1_rest, beta2, beta2_rest, eps, average_rest,
    AVERAGE: tl.constexpr, CAST: tl.constexpr, ALIGNMENT: tl.constexpr,
):  # fmt: skip
    """The update of a chunk of the parameter at a word of the table; returns its new elements."""
    return advance(
        chunk_at(table, word, origin, tl.float32, ALIGNMENT) + lane,
        chunk_at(table, word + 1, origin, tl.float32, ALIGNMENT) + lane,
        chunk_at(table, word + 2, origin, tl.float32, ALIGNMENT) + lane,
        chunk_at(table, word + 3, origin, tl.float32, ALIGNMENT) + lane,
        chunk_at(table, word + 4, origin, CAST or tl.float32, ALIGNMENT) + lane,
        inside, tl.load(table + word + 4) != 0, gradient,
        rate * tl.load(factors + factor), tl.load(factors + factor + 1),
        correction, root_correction, beta1_rest, beta2, beta2_rest, eps, average_rest, AVERAGE, CAST,
    )  # fmt: skip


@triton.jit
def update_chunk(
    table, factors, scales, state, row, origin, count, beta1_rest, beta2, beta2_rest, eps, average_rest,
    SLOTS: tl.constexpr, GRADIENT: tl.constexpr, FROZEN: tl.constexpr, EFFECTIVE: tl.constexpr,
    AVERAGE: tl.constexpr, CAST: tl.constexpr, BLOCK: tl.constexpr, ALIGNMENT: tl.constexpr,
):  # fmt: skip
    base, factor = row * (HEAD + WORDS * (1 + 2 * SLOTS)), row * (2 + 5 * SLOTS)
    rate, correction = tl.load(state + RATE), tl.load(state + CORRECTION)
    root_correction = tl.load(state + ROOT_CORRECTION)
    lane, inside = chunk_lanes(count, BLOCK, ALIGNMENT)
    source = chunk_at(table, base + GRADIENT_WORD, origin, GRADIENT, ALIGNMENT)
    gradient = tl.load(source + lane, mask=inside).to(tl.float32) * tl.load(state + CLIP)
    total = advance_chunk(
        table, factors, base + HEAD, factor, origin, lane, inside, gradient, rate, correction, root_correction,
        beta1_rest, beta2, beta2_rest, eps, average_rest, AVERAGE, CAST, ALIGNMENT,
    )  # fmt: skip
    for slot in tl.static_range(SLOTS):
        word = base + HEAD + WORDS * (1 + 2 * slot)
        if tl.load(table + word) != 0:
            pair = scales + 2 * (row * SLOTS + slot)
            if tl.load(table + word + 1) != 0:
                weight = advance_chunk(
                    table, factors, word, factor + 2 * (1 + 2 * slot), origin, lane, inside, gradient * tl.load(pair),
                    rate, correction, root_correction, beta1_rest, beta2, beta2_rest, eps, average_rest,
                    AVERAGE, CAST, ALIGNMENT,
                )  # fmt: skip
            else:
                frozen = chunk_at(table, word, origin, FROZEN, ALIGNMENT)
                weight = tl.load(frozen + lane, mask=inside).to(tl.float32)
            total += tl.load(pair + 1) * weight
    if EFFECTIVE is not None:
        effective = chunk_at(table, base + EFFECTIVE_WORD, origin, EFFECTIVE, ALIGNMENT)
        wanted = tl.load(table + base + EFFECTIVE_WORD) != 0
        tl.store(effective + lane, total.to(EFFECTIVE), mask=inside & wanted)


@triton.jit
def update_kernel(
    chunks, table, factors, scales, state, beta1_rest, beta2, beta2_rest, eps, average_rest,
    SLOTS: tl.constexpr, GRADIENT: tl.constexpr, FROZEN: tl.constexpr, EFFECTIVE: tl.constexpr,
    AVERAGE: tl.constexpr, CAST: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Everything but the scales: weights, auxiliary weights, moments, averages, casts and effective weights.

    A program takes a block of a chunk: the norm pass, which reads one tensor, wants longer pieces than this one.
    """
    blocks: tl.constexpr = CHUNK // BLOCK
    chunk, skip = tl.program_id(0).to(tl.int64) // blocks, tl.program_id(0) % blocks * BLOCK
    row, origin = tl.load(chunks + 4 * chunk), tl.load(chunks + 4 * chunk + 1) * CHUNK + skip
    count, aligned = tl.load(chunks + 4 * chunk + 2).to(tl.int32) - skip, tl.load(chunks + 4 * chunk + 3)
    if tl.load(state + FINITE) != 0:
        if aligned != 0:
            update_chunk(
                table, factors, scales, state, row, origin, count, beta1_rest, beta2, beta2_rest, eps, average_rest,
                SLOTS, GRADIENT, FROZEN, EFFECTIVE, AVERAGE, CAST, BLOCK, 16,
            )  # fmt: skip
        else:
            update_chunk(
                table, factors, scales, state, row, origin, count, beta1_rest, beta2, beta2_rest, eps, average_rest,
                SLOTS, GRADIENT, FROZEN, EFFECTIVE, AVERAGE, CAST, BLOCK, 1,
            )  # fmt: skip
