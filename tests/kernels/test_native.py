from __future__ import annotations

import contextlib
import hashlib
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from omnitrunk.kernels import native, philox

ISAS = ("scalar", "avx2", "avx512")
GUARD = 64  # elements before and after a tensor that no kernel may touch

needs_module = pytest.mark.skipif(not native.available(), reason=str(native.missing_reason()))
seeds = st.integers(0, 2**32 - 1)


def guarded(*shape, dtype=torch.float32):
    """A contiguous, oddly aligned tensor amid a poisoned buffer: (tensor, check that the surroundings are intact)."""
    elements = math.prod(shape)
    buffer = torch.full(((2 * GUARD + elements + 1) * dtype.itemsize,), 0xA5, dtype=torch.uint8)
    start = (GUARD + 1) * dtype.itemsize
    stop = start + elements * dtype.itemsize

    def check():
        assert (buffer[:start] == 0xA5).all() and (buffer[stop:] == 0xA5).all(), "written outside of the output"

    return buffer[start:stop].view(dtype).view(shape), check


@contextlib.contextmanager
def guarded_outputs():
    """While this lasts, torch.empty hands out guarded tensors; afterwards their surroundings are checked."""
    checks, empty = [], torch.empty

    def guarded_empty(*shape, dtype):
        tensor, check = guarded(*shape, dtype=dtype)
        checks.append(check)
        return tensor

    torch.empty = guarded_empty
    try:
        yield
    finally:
        torch.empty = empty
    assert checks
    for check in checks:
        check()


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- the module itself


def test_a_missing_module_is_explained(monkeypatch):
    for error, text in [(ModuleNotFoundError("_C"), "make setup"), (ImportError("no libgomp"), "no libgomp")]:
        with monkeypatch.context() as patch:
            patch.setattr(native.importlib, "import_module", lambda _name, error=error: (_ for _ in ()).throw(error))
            native._load.cache_clear()
            assert not native.available() and text in native.missing_reason()
            with pytest.raises(AssertionError, match=text):
                native.module()
    native._load.cache_clear()


@needs_module
def test_module_names_its_build():
    module = native.module()
    assert module.isa() in ISAS
    assert module.compiler() and isinstance(module.openmp(), bool)


@needs_module
@given(st.lists(st.integers(0, 2**32 - 1), min_size=6, max_size=6))
def test_philox_has_the_bits_of_the_python_one(words):
    counter, key = words[:4], tuple(words[4:])
    assert native.module().philox4x32(counter, key) == tuple(philox.philox4x32(np.array(counter), key).tolist())


# --- sample_mask


def sorted_mask(counts, sizes, keep, seed, positions):
    """The definition of sample_mask, by sorting."""
    tokens = sum(sizes)
    first = philox.uniform_bits(seed, "mask.task", positions, tokens).astype(np.int64)
    second = philox.uniform_bits(seed, "mask.fill", positions, tokens).astype(np.int64)
    candidate = np.zeros((len(positions), tokens), dtype=bool)
    for task, (begin, end) in enumerate(pairwise(np.cumsum([0, *sizes]))):
        order = np.argsort(first[:, begin:end], axis=1, kind="stable")
        rank = np.argsort(order, axis=1, kind="stable")
        candidate[:, begin:end] = rank < counts[:, task : task + 1]
    order = np.argsort(second + (~candidate).astype(np.int64) * 2**32, axis=1, kind="stable")
    mask = np.ones((len(positions), tokens), dtype=bool)
    np.put_along_axis(mask, order[:, :keep], False, axis=1)
    return np.sort(order[:, :keep], axis=1), mask


def assert_mask_is_sorted_mask(counts, sizes, keep, seed, positions):
    with guarded_outputs():
        ids_keep, mask = native.sample_mask(
            torch.from_numpy(counts), sizes, keep, seed=seed, positions=torch.from_numpy(positions)
        )
    expected_ids, expected_mask = sorted_mask(counts, sizes, keep, seed, positions)
    assert np.array_equal(ids_keep.numpy(), expected_ids) and np.array_equal(mask.numpy(), expected_mask)


@needs_module
@settings(max_examples=150, deadline=None)
@given(st.data(), seeds)
def test_sample_mask_is_the_sorted_one(data, seed):
    sizes = tuple(data.draw(st.lists(st.integers(0, 70), min_size=1, max_size=4)))
    keep = data.draw(st.sampled_from([0, sum(sizes)]) | st.integers(0, sum(sizes)))
    rng = np.random.default_rng(seed)
    samples = data.draw(st.integers(0, 9))
    counts = rng.integers(-2, 75, (samples, len(sizes)), dtype=np.int32)
    positions = rng.integers(-(2**63), 2**63, samples)
    assert_mask_is_sorted_mask(counts, sizes, keep, seed, positions)


@needs_module
def test_sample_mask_with_equal_noise_takes_the_lower_index(seed):
    """Among enough tokens two have equal noise; the counts are chosen so that just one of the two is wanted."""
    tokens, positions = 300_000, np.array([seed])
    ties = 0
    for purpose, exact in [("mask.task", True), ("mask.fill", False)]:
        ordered = np.sort(philox.uniform_bits(seed, purpose, positions, tokens)[0])
        for place in np.flatnonzero(ordered[1:] == ordered[:-1])[:3].tolist():
            # With no candidates at all, the fill noise alone decides.
            counts = np.array([[place + 1 if exact else 0]], dtype=np.int32)
            assert_mask_is_sorted_mask(counts, (tokens,), place + 1, seed, positions)
            ties += 1
    assert ties > 0


@needs_module
def test_sample_mask_is_uniform(seed):
    """Every token is visible equally often, in the exact, the surplus and the deficit case alike."""
    samples, sizes, keep = 6000, (12, 20), 8
    for counts in [(3, 5), (6, 10), (1, 1)]:
        _, mask = native.sample_mask(
            torch.tensor([counts] * samples, dtype=torch.int32), sizes, keep, seed=seed, positions=torch.arange(samples)
        )
        visible = (~mask).double().mean(0)
        for part in visible.split(sizes):
            # Six standard deviations of a share that lies between 1/32 and 1/2.
            assert (part - part.mean()).abs().max() < 6 * 0.5 / math.sqrt(samples)


# --- patches


def unfolded(pixels, index, patch):
    """The definition of a patch gather: cut every image with tensor.unfold, then index."""
    cells = pixels.unfold(1, patch, patch).unfold(2, patch, patch)  # (B, rows, columns, C, patch, patch)
    return cells.permute(0, 1, 2, 4, 5, 3).reshape(-1, patch * patch * pixels.shape[3])[index]


@st.composite
def patch_problems(draw):
    patch, channels = draw(st.integers(1, 17)), draw(st.integers(1, 5))
    images, rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    shape = (images, rows * patch, columns * patch, channels)
    index = draw(st.lists(st.integers(0, images * rows * columns - 1), max_size=80))
    return shape, torch.tensor(index, dtype=torch.int64), patch


def random_pixels(shape, dtype, rng):
    pixels, _ = guarded(*shape, dtype=dtype)
    values = rng.integers(0, 256, shape) if dtype == torch.uint8 else rng.standard_normal(shape)
    return pixels.copy_(torch.from_numpy(values))


@needs_module
@settings(max_examples=100, deadline=None)
@given(patch_problems(), seeds)
def test_gather_patches_normalizes_picked_patches(problem, seed):
    shape, index, patch = problem
    rng = np.random.default_rng(seed)
    pixels = random_pixels(shape, torch.uint8, rng)
    mean, std = rng.random(shape[3]), rng.random(shape[3]) + 0.05
    with guarded_outputs():
        rows = native.gather_patches(pixels, index, patch, mean=mean.tolist(), std=std.tolist())
    expected = unfolded((pixels.double() / 255 - torch.from_numpy(mean)) / torch.from_numpy(std), index, patch)
    assert rows.dtype == torch.float32 and rows.shape == expected.shape
    # Scale, shift, product and sum are each rounded once, none of them beyond 1 / std.
    assert torch.allclose(rows.double(), expected, rtol=0, atol=4 * 2.0**-24 / std.min())


@needs_module
@settings(max_examples=100, deadline=None)
@given(patch_problems(), st.sampled_from([torch.uint8, torch.float32, torch.bfloat16, torch.float64]), seeds)
def test_copy_patches_copies_any_type(problem, dtype, seed):
    shape, index, patch = problem
    pixels = random_pixels(shape, dtype, np.random.default_rng(seed))
    with guarded_outputs():
        rows = native.copy_patches(pixels, index, patch)
    assert rows.dtype == dtype and torch.equal(rows, unfolded(pixels, index, patch))


@needs_module
@pytest.mark.parametrize("bad", [-1, 8, 2**40])
def test_patches_outside_are_refused(bad):
    pixels = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    with pytest.raises(IndexError, match=rf"patch index {bad} is outside \[0, 8\)"):
        native.copy_patches(pixels, torch.tensor([0, bad]), 2)
    with pytest.raises(IndexError, match=str(bad)):
        native.gather_patches(pixels, torch.tensor([bad]), 2, mean=(0, 0, 0), std=(1, 1, 1))


@needs_module
def test_patches_of_strided_or_indivisible_images_are_a_broken_invariant():
    pixels = torch.zeros(1, 4, 4, 6)
    with pytest.raises(AssertionError):
        native.copy_patches(pixels[..., ::2], torch.tensor([0]), 2)
    with pytest.raises(AssertionError):
        native.copy_patches(pixels, torch.tensor([0]), 3)
    with pytest.raises(AssertionError):
        native.copy_patches(pixels, torch.tensor([0], dtype=torch.int32), 2)


# --- AdamW

SIZES = [16385, 0, 1, 15, 16, 17, 16384, 33000]  # around the width of a vector and the length of a piece
BETAS_AND_EPS = {"betas": (0.9, 0.95), "eps": 1e-8}
ONE_STEP = {"step": 1, "lrs": [0.1], "weight_decays": [0.0], **BETAS_AND_EPS}


def random_state(rng, sizes=SIZES):
    """Guarded parameters, gradients, moments and averages, with the checks of their surroundings."""
    pairs = [[guarded(size) for size in sizes] for _ in range(5)]
    for role, scale in enumerate([1, 0.1, 0, 0, 1]):
        for tensor, _ in pairs[role]:
            tensor.copy_(torch.from_numpy(scale * rng.standard_normal(tensor.shape)))
    return [[tensor for tensor, _ in role] for role in pairs], [check for role in pairs for _, check in role]


def torch_adamw(params, dtype, lrs, weight_decays):
    copies = [torch.nn.Parameter(param.to(dtype, copy=True)) for param in params]
    groups = [
        {"params": [copy], "lr": lr, "weight_decay": weight_decay}
        for copy, lr, weight_decay in zip(copies, lrs, weight_decays, strict=True)
    ]
    return copies, torch.optim.AdamW(groups, **BETAS_AND_EPS, foreach=False)


@needs_module
@pytest.mark.parametrize("with_ema", [False, True])
def test_adamw_is_as_exact_as_torch(with_ema, seed):
    rng = np.random.default_rng(seed)
    (params, grads, exp_avgs, exp_avg_sqs, emas), checks = random_state(rng)
    lrs, weight_decays = (10 ** rng.uniform(-4, -2, len(SIZES))).tolist(), rng.uniform(0, 0.3, len(SIZES)).tolist()
    exact, exact_optimizer = torch_adamw(params, torch.float64, lrs, weight_decays)
    peer, peer_optimizer = torch_adamw(params, torch.float32, lrs, weight_decays)
    exact_emas, untouched = [ema.double() for ema in emas], [ema.clone() for ema in emas]
    for step in range(1, 7):
        for grad in grads:
            grad.copy_(torch.from_numpy(rng.standard_normal(grad.shape)))
        rates = {"lrs": lrs, "weight_decays": weight_decays, "grad_scale": 0.3}
        averages = {"emas": emas, "ema_decay": 0.8} if with_ema else {}
        native.adamw(params, grads, exp_avgs, exp_avg_sqs, step=step, **rates, **averages, **BETAS_AND_EPS)
        for copies, optimizer in [(exact, exact_optimizer), (peer, peer_optimizer)]:
            for copy, grad in zip(copies, grads, strict=True):
                copy.grad = (0.3 * grad.double()).to(copy.dtype)
            optimizer.step()
        for ema, copy in zip(exact_emas, exact, strict=True):
            ema.lerp_(copy.detach(), 1 - 0.8)
    for param, copy, torch_copy in zip(params, exact, peer, strict=True):
        torch_error = (torch_copy.double() - copy).abs().max().item() if copy.numel() else 0.0
        assert torch.allclose(param.double(), copy, rtol=0, atol=2 * torch_error + 1e-6)
    for ema, exact_ema, before in zip(emas, exact_emas, untouched, strict=True):
        assert torch.allclose(ema.double(), exact_ema, rtol=0, atol=2e-6) if with_ema else torch.equal(ema, before)
    for check in checks:
        check()


@needs_module
def test_squared_norm_is_exact_to_float64(seed):
    rng = np.random.default_rng(seed)
    (_, tensors, *_), _ = random_state(rng)
    tensors[0][:2] = torch.tensor([1e30, -1e-30])  # squares that float32 cannot hold
    expected = math.fsum(value * value for tensor in tensors for value in tensor.double().tolist())
    assert math.isclose(native.squared_norm(tensors), expected, rel_tol=1e-13)
    assert native.squared_norm([]) == 0.0
    for bad in [math.nan, math.inf]:
        tensors[3][-1] = bad
        assert not math.isfinite(native.squared_norm(tensors))


@needs_module
def test_autograd_notices_that_adamw_has_written():
    param = torch.ones(3, requires_grad=True)
    loss = (param * param).sum()
    state = [torch.zeros(3) for _ in range(3)]
    native.adamw([param], *([tensor] for tensor in state), **ONE_STEP)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_module
def test_adamw_wants_matching_contiguous_lists():
    tensor = torch.zeros(4, 4)
    for grad in [torch.zeros(3), torch.zeros(4, 8)[:, ::2], tensor.double()]:
        with pytest.raises(AssertionError):
            native.adamw([tensor.clone()], [grad], [tensor.clone()], [tensor.clone()], **ONE_STEP)


# --- all of them: threads, processes, instruction sets


def digest(seed=5):
    """All kernels on one input, large enough for several pieces each; the results as bytes."""
    rng = np.random.default_rng(seed)
    positions = torch.from_numpy(rng.integers(0, 2**63, 300))
    counts = torch.from_numpy(rng.integers(0, 20, (300, 2), dtype=np.int32))
    ids_keep, mask = native.sample_mask(counts, (30, 40), 22, seed=seed, positions=positions)
    pixels = random_pixels((40, 21, 21, 3), torch.uint8, rng)
    index = torch.from_numpy(rng.integers(0, 40 * 9, 300))
    rows = native.gather_patches(pixels, index, 7, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    copied = native.copy_patches(pixels, index, 7)
    state, _ = random_state(rng)
    norm = native.squared_norm(state[1])
    rates = {"lrs": [0.01] * len(SIZES), "weight_decays": [0.05] * len(SIZES), **BETAS_AND_EPS}
    native.adamw(*state[:4], step=3, **rates, grad_scale=1 / norm, emas=state[4], ema_decay=0.99)
    results = [ids_keep, mask, rows, copied, torch.tensor(norm), *(tensor for role in state for tensor in role)]
    return b"".join(result.numpy().tobytes() for result in results)


@needs_module
def test_results_do_not_depend_on_the_number_of_threads(seed):
    with threads(1):
        alone = digest(seed)
    with threads(2):
        assert digest(seed) == alone
    with threads(5):
        assert digest(seed) == alone


@needs_module
def test_python_threads_may_share_the_module(seed):
    expected = [digest(seed + i) for i in range(4)]
    with threads(2), ThreadPoolExecutor(4) as pool:
        assert list(pool.map(digest, [seed + i for i in range(4)])) == expected


@needs_module
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_loader_processes_may_use_the_module():
    with threads(2):
        here = digest(7)
        loader = DataLoader([7], batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=60)
        loader.collate_fn = digest
        assert next(iter(loader)) == here


def run_with_isa(isa, program):
    environment = {**os.environ, "OMNITRUNK_ISA": isa}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)


@needs_module
@pytest.mark.parametrize("isa", ISAS[:-1])
def test_results_do_not_depend_on_the_instruction_set(isa):
    if ISAS.index(isa) >= ISAS.index(native.module().isa()):
        pytest.skip(f"needs a processor with more than {isa}")
    program = (
        "import hashlib; from omnitrunk.kernels import native; from tests.kernels.test_native import digest;"
        "print(native.module().isa(), hashlib.sha256(digest()).hexdigest())"
    )
    result = run_with_isa(isa, program)
    assert result.stdout.split() == [isa, hashlib.sha256(digest()).hexdigest()], result.stderr


@needs_module
def test_an_unknown_instruction_set_is_one_readable_line():
    result = run_with_isa("mmx", "from omnitrunk.kernels import native; print(native.missing_reason())")
    assert "OMNITRUNK_ISA=mmx is not available" in result.stdout, result.stderr
    assert len(result.stdout.splitlines()) == 1
