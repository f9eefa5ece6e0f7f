from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from omnitrunk.kernels import native, philox, sample_mask
from omnitrunk.kernels.sample_mask import WORDS, cost, select_tokens

needs_module = pytest.mark.skipif(not native.available(), reason=str(native.missing_reason()))
TRACE = Path(__file__).parents[1] / "fixtures" / "multimae" / "sampler_trace.safetensors"
SIZES = [((16, 16, 16), 8), ((5,), 2), ((24, 6, 12), 30), ((7, 0, 3), 10), ((4, 4), 0), ((1, 9), 1)]


def by_counting(counts, sizes, keep, seed, position):
    """One sample with plain Python: sort pairs (noise, index), offer, then sort again."""
    task_noise, fill_noise = (
        philox.uniform_bits(seed, purpose, np.array([position]), sum(sizes))[0].tolist()
        for purpose in ("mask.task", "mask.fill")
    )
    offered, start = set(), 0
    for count, size in zip(counts, sizes, strict=True):
        tokens = sorted(range(start, start + size), key=lambda token: (task_noise[token], token))
        offered |= set(tokens[: max(0, count)])
        start += size
    order = sorted(range(start), key=lambda token: (token not in offered, fill_noise[token], token))
    return sorted(order[:keep])


def random_counts(samples, sizes, keep):
    return torch.randint(0, keep + 2, (samples, len(sizes)), dtype=torch.int32)


@pytest.mark.parametrize("backend", [pytest.param("cpu", marks=needs_module), "reference"])
@pytest.mark.parametrize(("sizes", "keep"), SIZES)
def test_matches_plain_python(backend, sizes, keep, seed):
    torch.manual_seed(seed)
    counts, positions = random_counts(9, sizes, keep), torch.randint(0, 2**62, (9,))
    ids_keep, mask = sample_mask(counts, sizes, keep, seed=seed, positions=positions, backend=backend)
    assert ids_keep.dtype == torch.int64 and mask.dtype == torch.bool and mask.shape == (9, sum(sizes))
    for sample in range(9):
        expected = by_counting(counts[sample].tolist(), sizes, keep, seed, positions[sample].item())
        assert ids_keep[sample].tolist() == expected
        assert mask[sample].logical_not().nonzero().flatten().tolist() == expected


@needs_module
@pytest.mark.parametrize(("sizes", "keep"), [((196, 196, 196), 98), ((196,), 49), ((1568,), 160)])
def test_backends_agree_on_every_bit(sizes, keep, seed):
    torch.manual_seed(seed)
    counts, positions = random_counts(64, sizes, keep // len(sizes)), torch.arange(seed, seed + 64)
    native_ids, native_mask = sample_mask(counts, sizes, keep, seed=seed, positions=positions, backend="cpu")
    ids, mask = sample_mask(counts, sizes, keep, seed=seed, positions=positions, backend="reference")
    assert torch.equal(native_ids, ids) and torch.equal(native_mask, mask)


def test_a_sample_depends_on_its_own_position_and_seed_only(seed):
    torch.manual_seed(seed)
    counts, positions = torch.full((6, 2), 4, dtype=torch.int32), torch.arange(6)
    ids, _ = sample_mask(counts, (9, 9), 8, seed=seed, positions=positions)
    alone, _ = sample_mask(counts[3:4], (9, 9), 8, seed=seed, positions=positions[3:4])
    other, _ = sample_mask(counts, (9, 9), 8, seed=seed + 1, positions=positions)
    assert torch.equal(alone[0], ids[3]) and not torch.equal(other, ids)


def test_every_token_is_equally_likely(seed):
    counts = torch.tensor([[3, 5]], dtype=torch.int32).expand(20_000, 2).contiguous()
    _, mask = sample_mask(counts, (8, 8), 8, seed=seed, positions=torch.arange(20_000))
    visible = mask.logical_not().double().mean(0)
    assert (visible[:8] - 3 / 8).abs().max() < 0.02 and (visible[8:] - 5 / 8).abs().max() < 0.02


def test_strided_counts_and_no_samples(seed):
    counts = torch.randint(0, 4, (2, 6), dtype=torch.int32)
    ids, _ = sample_mask(counts.t(), (5, 5), 4, seed=seed, positions=torch.arange(12)[::2])
    again, _ = sample_mask(counts.t().contiguous(), (5, 5), 4, seed=seed, positions=torch.arange(0, 12, 2))
    assert torch.equal(ids, again)
    ids, mask = sample_mask(counts.t()[:0], (5, 5), 4, seed=seed, positions=torch.arange(0))
    assert ids.shape == (0, 4) and mask.shape == (0, 10)


@pytest.mark.parametrize("floating", [True, False])
def test_select_tokens_orders_by_noise(floating, seed):
    torch.manual_seed(seed)
    sizes, keep, counts = (6, 4), 5, torch.tensor([[2, 1], [6, 4], [0, 0]])
    task_noise, fill_noise = torch.rand(2, 3, 10, dtype=torch.float64)
    if not floating:
        task_noise, fill_noise = (task_noise * WORDS).long(), (fill_noise * WORDS).long()
    ids_keep, ids_restore, mask = select_tokens(counts, sizes, keep, task_noise, fill_noise)
    for sample in range(3):
        first, second = (noise[sample].argsort().tolist() for noise in task_noise.split(sizes, 1))
        offered = [rank < counts[sample, 0] for rank in first] + [rank < counts[sample, 1] for rank in second]
        order = sorted(range(10), key=lambda token: (not offered[token], fill_noise[sample, token].item()))
        assert ids_keep[sample].tolist() == order[:keep]
        assert [order[rank] for rank in ids_restore[sample].tolist()] == list(range(10))
        assert mask[sample].tolist() == [int(token not in order[:keep]) for token in range(10)]


@pytest.mark.skipif(not TRACE.exists(), reason=f"needs {TRACE.name} in tests/fixtures/multimae")
@pytest.mark.parametrize("case", ["default", "uniform", "saturated", "unequal"])
def test_reproduces_the_trace_of_the_official_sampler(case):
    trace = {name.removeprefix(f"{case}."): value for name, value in load_file(TRACE).items() if name.startswith(case)}
    prefix = "noise."
    tasks = [task for task in ("rgb", "depth", "semseg") if prefix + task in trace]
    noise = [trace[prefix + task] for task in tasks]
    ids_keep, ids_restore, mask = select_tokens(
        trace["samples_per_task"],
        [values.shape[1] for values in noise],
        trace["ids_keep"].shape[1],
        torch.cat(noise, 1),
        trace["shuffle_noise"],
    )
    assert torch.equal(ids_keep, trace["ids_keep"]) and torch.equal(ids_restore, trace["ids_restore"])
    assert torch.equal(mask, torch.cat([trace[f"mask.{task}"] for task in tasks], 1))


def test_refuses_what_does_not_fit():
    counts, positions = torch.zeros(2, 2, dtype=torch.int32), torch.arange(2)
    with pytest.raises(ValueError, match="2 samples and 3 tasks"):
        sample_mask(counts, (4, 4, 4), 2, seed=0, positions=positions)
    with pytest.raises(ValueError, match="cannot keep 9 of 8"):
        sample_mask(counts, (4, 4), 9, seed=0, positions=positions)
    with pytest.raises(ValueError, match="int32"):
        sample_mask(counts.long(), (4, 4), 2, seed=0, positions=positions)
    with pytest.raises(ValueError, match="one device"):
        sample_mask(counts, (4, 4), 2, seed=0, positions=positions.to("meta"))


def test_cost_is_that_of_the_result():
    assert cost(10, 48, keep=8).bytes == 10 * (64 + 48)
