from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from torch import distributed, multiprocessing

from omnitrunk.models.layers.batch_norm import BatchNorm, statistics


def lively_norm(width, seed):
    """Ours and PyTorch's with the same numbers, none of them 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = BatchNorm(width).double(), torch.nn.BatchNorm1d(width).double()
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            values = torch.rand(width, dtype=torch.float64, generator=generator) + 0.5
            getattr(ours, name).copy_(values)
            getattr(theirs, name).copy_(values)
    return ours, theirs


@pytest.mark.parametrize("sets", [None, [4, 0, 3]])
def test_batch_norm_is_that_of_pytorch_with_some_rows_left_out_afterwards(sets, seed):
    ours, theirs = lively_norm(5, seed)
    generator = torch.Generator().manual_seed(seed)
    x = (3 * torch.randn(6, 4, 5, dtype=torch.float64, generator=generator) + 2).requires_grad_()
    index = None if sets is None else torch.tensor(sets)
    found, whole = ours(x, index), theirs(x.flatten(0, 1)).unflatten(0, (6, 4))
    expected = whole if sets is None else whole[sets]
    torch.testing.assert_close(found, expected)
    weights = torch.randn(expected.shape, dtype=torch.float64, generator=generator)
    gradients = torch.autograd.grad((found * weights).sum(), [x, ours.weight, ours.bias])
    references = torch.autograd.grad((expected * weights).sum(), [x, theirs.weight, theirs.bias])
    for gradient, reference in zip(gradients, references, strict=True):
        torch.testing.assert_close(gradient, reference)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    assert ours.num_batches_tracked.item() == theirs.num_batches_tracked.item() == 1
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x.flatten(0, 1)).unflatten(0, (6, 4)))


def test_without_gradients_running_statistics_serve_and_stay(seed):
    norm, _ = lively_norm(5, seed)
    x, before = torch.randn(6, 4, 5, dtype=torch.float64), {k: v.clone() for k, v in norm.state_dict().items()}
    with torch.no_grad():
        found = norm(x)
    torch.testing.assert_close(found, norm.eval()(x))
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_half_precision_has_statistics_in_float32(seed):
    norm, _ = lively_norm(16, seed)
    x = (torch.randn(64, 32, 16, generator=torch.Generator().manual_seed(seed)) + 20).bfloat16()
    mean, variance, rows = statistics(x)
    assert mean.dtype == variance.dtype == torch.float32 and rows == 64 * 32
    torch.testing.assert_close(mean.double(), x.double().flatten(0, 1).mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(variance.double(), x.double().flatten(0, 1).var(0, correction=0), rtol=1e-4, atol=1e-4)
    found = norm.float()(x.requires_grad_())
    assert found.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert gradient.dtype == torch.bfloat16


def one_of_two(rank, folder, seed, rows, weights):
    """What a process finds on its half of the rows: gradients of x, weight and bias, and the running statistics."""
    store, patience = distributed.FileStore(str(folder / "store"), 2), timedelta(seconds=60)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=patience)
    norm, _ = lively_norm(5, seed)
    x = rows.chunk(2)[rank].clone().requires_grad_()
    loss = (norm(x, torch.tensor([2, 0])) * weights.chunk(2)[rank]).sum()
    found = (*torch.autograd.grad(loss, [x, norm.weight, norm.bias]), norm.running_mean, norm.running_var)
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="needs torch.distributed with gloo")
def test_two_processes_find_what_one_finds_on_the_whole_batch(tmp_path, seed):
    generator = torch.Generator().manual_seed(seed)
    rows, weights = (torch.randn(n, 4, 5, dtype=torch.float64, generator=generator) for n in (6, 4))
    rows[3:] += 2  # so that the halves have other means
    multiprocessing.spawn(one_of_two, (tmp_path, seed, rows, weights), nprocs=2)
    norm, _ = lively_norm(5, seed)
    x = rows.clone().requires_grad_()
    loss = (norm(x, torch.tensor([2, 0, 5, 3])) * weights).sum()
    expected = torch.autograd.grad(loss, [x, norm.weight, norm.bias])
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    torch.testing.assert_close(torch.cat([first[0], second[0]]), expected[0])
    for place in (1, 2):  # which DistributedDataParallel would average, as the losses of the halves are
        torch.testing.assert_close(first[place] + second[place], expected[place])
    for found in (first, second):
        torch.testing.assert_close(found[3:], (norm.running_mean, norm.running_var))
