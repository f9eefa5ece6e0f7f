"""The point-cloud kernels in C++, bit for bit against their definitions, on whatever hypothesis finds."""

from __future__ import annotations

import hashlib
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnitrunk.kernels import native, native_points
from omnitrunk.kernels.farthest_point_sample import OPERATION as SAMPLE
from omnitrunk.kernels.knn import GROUP, OPERATION
from tests.cuda import definitions

from .test_native import ISAS, guarded_outputs, run_with_isa, threads

pytestmark = pytest.mark.skipif(native_points.missing_reason() is not None, reason=str(native_points.missing_reason()))
seeds = st.integers(0, 2**32 - 1)
# Around the lengths of vectors, the 32 vectors that kNN looks at in one turn, and the groups that it makes.
sizes_of = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 127, 129, 255, 513, 700, 1100]))
KINDS = ("normal", "grid", "line", "copies", "tiny", "huge", "not finite")
# Of the three NaN one has a sign, and one more bits than the others.
NOT_FINITE = (
    torch.tensor([0x7FC00000, -0x00400000, 0x7FC12345, 0x7F800000, -0x00800000, 0x7F000000]).int().view(torch.float)
)


def points_of(generator, kind, total):
    """Points (total, 3): spread out, or with many equal distances, or where rounding and overflow are at work."""
    points = torch.randn(total, 3, generator=generator)
    if kind == "grid":
        return points.mul_(2).round_()
    if kind == "line":
        return points[:, :1].round(decimals=1) * torch.tensor([1.0, -2.0, 0.5])
    if kind == "copies":
        return points[:1].repeat(total, 1)
    if kind == "not finite":
        where = torch.rand(total, 3, generator=generator) < 0.05
        return torch.where(where, NOT_FINITE[torch.randint(0, 6, (total, 3), generator=generator)], points)
    return points * {"normal": 1.0, "tiny": 1e-22, "huge": 1e19}[kind]


def clouds_of(generator, kind, sizes, ragged):
    """Points and offsets: clouds of these sizes, or, where not ragged, of the first size all."""
    if ragged:
        return points_of(generator, kind, sum(sizes)), torch.tensor([0, *sizes]).cumsum(0)
    return points_of(generator, kind, sizes[0] * len(sizes)).view(len(sizes), sizes[0], 3), None


def split(points, offsets):
    return points.unbind() if offsets is None else points.split(offsets.diff().tolist())


def assert_same(results, expected):
    """Equal to the last bit, but that all NaN are one."""
    for result, truth in zip(results, expected, strict=True):
        torch.testing.assert_close(result, truth, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=150, deadline=None)
@given(seeds, st.sampled_from(KINDS), st.lists(sizes_of, min_size=1, max_size=4), st.booleans(), st.integers(0, 40))
def test_farthest_point_sample(seed, kind, sizes, ragged, count):
    generator = torch.Generator().manual_seed(seed)
    points, offsets = clouds_of(generator, kind, sizes, ragged)
    fewest = min(sizes) if ragged else sizes[0]
    starts = torch.randint(0, fewest, (len(sizes),), generator=generator)
    for start, pointnet2 in ((None, False), (starts, False), (None, True)):
        with guarded_outputs():
            index = native_points.native_farthest_point_sample(points, count, offsets, start, pointnet2)
        assert_same([index], [SAMPLE.run("reference", points, count, offsets, start, pointnet2)])


@settings(max_examples=300, deadline=None)
@given(st.data(), seeds, st.sampled_from(KINDS), st.lists(sizes_of, min_size=1, max_size=3), st.booleans())
def test_nearest_neighbors(data, seed, kind, sizes, ragged):
    query_sizes = [data.draw(st.integers(0, 9)) for _ in sizes]
    k = data.draw(st.integers(1, min(sizes) if ragged else sizes[0]))
    generator = torch.Generator().manual_seed(seed)
    points, offsets = clouds_of(generator, kind, sizes, ragged)
    queries, query_offsets = clouds_of(generator, kind, query_sizes, data.draw(st.booleans()))
    call = (points, queries, k, offsets, query_offsets)
    with guarded_outputs():
        found = native_points.native_nearest_neighbors(*call)
    assert_same(found, OPERATION.run("reference", *call))
    with guarded_outputs():
        groups = native_points.native_group_points(*call)
    assert_same([groups], [GROUP.run("reference", *call)])


@settings(max_examples=150, deadline=None)
@given(st.data(), seeds, st.sampled_from(KINDS), st.lists(sizes_of, min_size=1, max_size=3), st.booleans())
def test_chamfer(data, seed, kind, sizes, root):
    """Gradients to the last bit as the kernels for GPUs have them; the loss is a sum in another order."""
    generator = torch.Generator().manual_seed(seed)
    a, offsets_a = clouds_of(generator, kind, sizes, data.draw(st.booleans()))
    other_sizes = [data.draw(sizes_of) for _ in sizes]
    b, offsets_b = clouds_of(generator, kind, other_sizes, data.draw(st.booleans()))
    with guarded_outputs():
        loss, *gradients = native_points.native_chamfer(a, b, offsets_a, offsets_b, root, True)
    pairs = zip(split(a, offsets_a), split(b, offsets_b), strict=True)
    expected_loss, *expected = zip(*(definitions.chamfer(*pair, root) for pair in pairs), strict=True)
    expected_loss = torch.stack(expected_loss)
    finite = expected_loss.isfinite()
    assert torch.equal(loss.isfinite(), finite)
    torch.testing.assert_close(loss[finite], expected_loss[finite], rtol=1e-6, atol=0)
    if kind != "not finite":  # it matters little what a point without distances is matched with
        assert_same((x.view(-1, 3) for x in gradients), map(torch.cat, expected))
    alone, *nothing = native_points.native_chamfer(a, b, offsets_a, offsets_b, root, False)
    assert_same([alone], [loss])
    assert all(x.numel() == 0 for x in nothing)


def everything(seed=0):
    """Results of all kernels on the same points, as tensors."""
    generator = torch.Generator().manual_seed(seed)
    points, offsets = clouds_of(generator, "normal", [700, 33, 1500], True)
    queries, _ = clouds_of(generator, "normal", [130] * 3, False)
    call = (points, queries, 31, offsets, None)
    return [
        native_points.native_farthest_point_sample(points, 33, offsets, None, False),
        *native_points.native_nearest_neighbors(*call),
        native_points.native_group_points(*call),
        *native_points.native_chamfer(points, queries, offsets, None, False, True),
        *native_points.native_chamfer(queries, points, None, offsets, True, True),
    ]


def digest():
    return hashlib.sha256(b"".join(x.numpy().tobytes() for x in everything())).hexdigest()


@pytest.mark.parametrize("isa", ISAS[:-1])
def test_results_do_not_depend_on_the_instruction_set(isa):
    if ISAS.index(isa) >= ISAS.index(native.module().isa()):
        pytest.skip(f"needs a processor with more than {isa}")
    program = (
        "from omnitrunk.kernels import native; from tests.kernels.test_native_points import digest;"
        "print(native.module().isa(), digest())"
    )
    result = run_with_isa(isa, program)
    assert result.stdout.split() == [isa, digest()], result.stderr


def test_results_do_not_depend_on_the_number_of_threads(seed):
    with threads(1):
        expected = everything(seed)
    with threads(4):
        assert_same(everything(seed), expected)


def test_calls_from_several_threads_do_not_disturb_each_other(seed):
    expected, results = everything(seed), {}
    workers = [threading.Thread(target=lambda i=i: results.update({i: everything(seed)})) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(results) == 4
    for result in results.values():
        assert_same(result, expected)


POINTS, QUERIES = torch.zeros(2, 5, 3), torch.zeros(2, 4, 3)
BROKEN = {
    "cu_seqlens must ascend from 0 to the number of points, 5": [
        [1, 3, 5],
        [0, 3, 6],
        [0, 3, 4],
        [0, 6, 5],
        [0, -1, 5],
    ],
    "a cloud has 0 points and needs 1: leave it out": [[0, 0, 5], [0, 5, 5]],
}


@pytest.mark.parametrize("message", BROKEN)
def test_values_that_a_compiler_did_not_see_are_checked(message):
    for ends in BROKEN[message]:
        offsets = torch.tensor(ends)
        for call in (
            lambda o: native_points.native_farthest_point_sample(POINTS[0], 1, o, None, False),
            lambda o: native_points.native_nearest_neighbors(POINTS[0], QUERIES, 1, o, None),
            lambda o: native_points.native_group_points(POINTS[0], QUERIES, 1, o, None),
            lambda o: native_points.native_chamfer(POINTS[0], QUERIES, o, None, False, True),
            lambda o: native_points.native_chamfer(QUERIES, POINTS[0], None, o, True, False),
        ):
            with pytest.raises(ValueError, match=message):
                call(offsets)
    with pytest.raises(ValueError, match="a cloud has 5 points and needs 6: leave it out"):
        native_points.native_nearest_neighbors(POINTS, QUERIES, 6, None, None)
    with pytest.raises(ValueError, match="cu_seqlens must ascend from 0 to the number of points, 4"):
        native_points.native_nearest_neighbors(POINTS, QUERIES[0], 1, None, torch.tensor([0, 1, 5]))
    for start in (-1, 5):
        with pytest.raises(ValueError, match=f"start must hold an index of every cloud, not {start}"):
            native_points.native_farthest_point_sample(POINTS, 1, None, torch.tensor([4, start]), False)


def test_tensors_are_checked():
    """What the operations have seen to: a mistake in this package, not a user's."""
    for points in (POINTS.double(), POINTS.to("meta"), POINTS.transpose(0, 1), POINTS[..., :2].contiguous()):
        with pytest.raises(AssertionError):
            native_points.native_farthest_point_sample(points, 1, None, None, False)
    with pytest.raises(AssertionError):
        native_points.native_farthest_point_sample(POINTS, 1, None, torch.zeros(2, dtype=torch.int32), False)
    with pytest.raises(AssertionError):
        native_points.native_nearest_neighbors(POINTS, QUERIES[:1], 1, None, None)
    with pytest.raises(AssertionError):
        native_points.native_chamfer(POINTS[0], QUERIES, torch.tensor([0, 2, 4, 5]), None, False, False)


def test_launchers_are_sound_operators(seed):
    generator = torch.Generator().manual_seed(seed)
    points, offsets = clouds_of(generator, "normal", [9, 6], True)
    queries, _ = clouds_of(generator, "normal", [4, 4], False)
    search = (points, queries, 5, offsets, None)
    cases = {
        "native_farthest_point_sample": (points, 4, offsets, None, False),
        "native_nearest_neighbors": search,
        "native_group_points": search,
        "native_chamfer": (points, queries, offsets, None, True, True),
    }
    for name, arguments in cases.items():
        torch.library.opcheck(getattr(torch.ops.omnitrunk, name).default, arguments)


def test_a_missing_module_is_explained(monkeypatch):
    assert native_points.missing_reason() is None
    monkeypatch.setattr(native, "_load", lambda: "needs this")
    assert native_points.missing_reason() == "needs this"
    monkeypatch.setattr(native, "_load", lambda: type(threading)("without_vectors"))
    assert native_points.missing_reason() == "needs GCC 12 or newer, or Clang, when csrc is built"
