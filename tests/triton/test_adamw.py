from __future__ import annotations

import copy

import pytest
import torch

from omnitrunk.kernels import gpu
from omnitrunk.kernels.adamw import Pathway, adamw_
from omnitrunk.kernels.adamw.triton_update import KEPT_TABLES, _tables
from tests.triton.compare import error, random, strided

NUMBERS = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "ema_decay": 0.99}
LISTS = ("params", "exp_avgs", "exp_avg_sqs", "emas")
# The interpreter rounds to bfloat16 by dropping digits.
HALF = torch.float16 if gpu.interpreted() else torch.bfloat16
SIZES = [
    (),
    (1,),
    (7,),
    (0, 3),
    (8,),
    (33, 64),
    (1024,),
    (4095,),
    (4096,),
    (4097,),
    (3, 4099),
]  # chunks of 4096, blocks of 1024


def random_lists(seed, shapes, device):
    lists = {name: [random(seed + 97 * i + j, *shape, device=device) for j, shape in enumerate(shapes)]
             for i, name in enumerate((*LISTS, "grads"))}  # fmt: skip
    lists["exp_avg_sqs"] = [tensor.square() for tensor in lists["exp_avg_sqs"]]
    return lists


def exact(lists):
    return {name: [None if t is None else t.double().cpu() for t in tensors] for name, tensors in lists.items()}


def assert_same(lists, expected, tolerance=1e-5):
    for name in LISTS:
        for place, (result, truth) in enumerate(zip(lists[name], expected[name], strict=True)):
            # Values are of order 1; a lone number near 0 is what is left of greater ones.
            off = error(result, truth) * min(1.0, truth.norm().item())
            assert off < tolerance, f"{name}[{place}] is off by {off:.1e}"


def step_both(lists, truth, step, **options):
    """One update of `lists` by the kernels and one of `truth` by the definition, in float64."""
    own = {name: options.pop(name) for name in ("casts", "pathways") if name in options}
    steps = step.clone().cpu()
    result = adamw_(**lists, step=step, **(NUMBERS | options), **own, backend="triton")
    options["lr"] = float(options.pop("lr", NUMBERS["lr"]))
    pathways = [
        Pathway(weight=p.weight, auxiliaries=[a if isinstance(a, int) else a.double().cpu() for a in p.auxiliaries],
                scales=p.scales)
        for p in own.get("pathways", ())
    ]  # fmt: skip
    expected = adamw_(**truth, step=steps, **(NUMBERS | options), pathways=pathways, backend="reference")
    assert step.item() == steps.item() and result[1].item() == expected[1].item()
    assert result[0].dim() == result[1].dim() == 0
    if expected[0].isfinite():
        assert error(result[0], expected[0]) < 1e-6
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [{}, {"max_norm": 0.5}, {"max_norm": 1e9}], ids=str)
def test_matches_the_definition_over_several_steps(seed, device, dtype, options):
    lists = random_lists(seed, SIZES, device)
    truth, step = exact(lists), torch.tensor(2, device=device)
    decays = [0.01 * place for place in range(len(SIZES))]
    scales = [0.5 + 0.1 * place for place in range(len(SIZES))]
    casts = [None if place == 4 else torch.empty(s, dtype=HALF, device=device) for place, s in enumerate(SIZES)]
    for turn in range(2):
        lists["grads"] = [random(seed + 50 * turn + j, *s, device=device, dtype=dtype) for j, s in enumerate(SIZES)]
        before = copy.deepcopy(lists["grads"])
        truth["grads"] = exact(lists)["grads"]
        step_both(lists, truth, step, casts=casts, weight_decay=decays, lr_scale=scales, **options)
        assert_same(lists, truth)
        for param, cast, grad, old in zip(lists["params"], casts, lists["grads"], before, strict=True):
            assert cast is None or torch.equal(cast, param.to(cast.dtype))
            assert torch.equal(grad, old)


def test_averages_are_optional(seed, device):
    lists = random_lists(seed, SIZES, device)
    with_averages = copy.deepcopy(lists)
    step = torch.zeros((), device=device)
    adamw_(**with_averages, step=step.clone(), weight_decay=0.1, **NUMBERS, backend="triton")
    lists.pop("emas")
    adamw_(**lists, step=step, weight_decay=0.1, **NUMBERS, backend="triton")
    for a, b in zip(lists["params"], with_averages["params"], strict=True):
        assert torch.equal(a, b)


def test_addresses_that_are_not_multiples_of_16_bytes(seed, device):
    flat = random_lists(seed, [(6000,)], device)
    sizes = [1, 2048, 2, 3000, 13]
    lists = {name: list(tensors[0][: sum(sizes)].split(sizes)) for name, tensors in flat.items()}
    truth = exact(lists)
    _tables.clear()
    step_both(lists, truth, torch.zeros((), device=device), weight_decay=0.1, max_norm=1.0)
    assert_same(lists, truth)
    # The interpreter would not notice an access that is not aligned: the table must not promise one that is.
    (table,) = _tables.values()
    for row, _, count, promised in table.chunks.tolist():
        aligned = all(lists[name][row].data_ptr() % 16 == 0 for name in (*LISTS, "grads"))
        assert promised == (aligned and count % 8 == 0)
    assert not table.chunks[:, 3].all()
    for name in LISTS:
        assert torch.equal(flat[name][0][sum(sizes) :], random_lists(seed, [(6000,)], device)[name][0][sum(sizes) :])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_norm_that_is_not_finite_changes_nothing(seed, device, bad):
    shapes = [(40, 60), (40, 60), ()]
    lists = random_lists(seed, shapes, device)
    lists["grads"] = [lists["grads"][0].index_put_((torch.tensor(3), torch.tensor(59)), torch.tensor(bad)), None, None]
    casts = [random(seed + 5, *shape, dtype=torch.bfloat16, device=device) for shape in shapes]
    effective = random(seed + 6, 40, 60, device=device)
    before, step = (
        copy.deepcopy([*(lists[name] for name in LISTS), casts, [effective]]),
        torch.tensor(3.0, device=device),
    )
    pathways = [Pathway(weight=0, auxiliaries=(1,), scales=(2,), effective=effective)]
    norm, skipped = adamw_(
        **lists, step=step, weight_decay=0.1, max_norm=1.0, casts=casts, pathways=pathways, **NUMBERS, backend="triton"
    )
    assert skipped.item() is True and not norm.isfinite() and step.item() == 3
    for old, new in zip(before, [*(lists[name] for name in LISTS), casts, [effective]], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))


@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_pathways_match_the_definition(seed, device, max_norm):
    """Two auxiliaries, a frozen one in half precision, a fixed scale, a scale that starts at 0; odd and even sizes."""
    shapes = [(3, 1025), (5, 7), (3, 1025), (3, 1025), (), (1,), (64, 40), (64, 40), (64, 40), (1, 1)]
    lists = random_lists(seed, shapes, device)
    frozen = random(seed + 1000, 64, 40, dtype=torch.bfloat16, device=device)
    made = [torch.empty(shape, dtype=HALF, device=device) for shape in ((3, 1025), (64, 40))]
    pathways = [
        Pathway(weight=0, auxiliaries=(2, 3), scales=(4, 5), effective=made[0]),
        Pathway(weight=6, auxiliaries=(frozen, 7), scales=(9, 0.25), effective=made[1]),
    ]
    lists["params"][4].zero_()
    given = {0, 1, 6, 8}
    decays = [0.05 * place for place in range(len(shapes))]
    scales = [2 - 0.15 * place for place in range(len(shapes))]
    truth, step = exact(lists), torch.zeros((), dtype=torch.int64, device=device)
    casts = [torch.empty(shape, dtype=torch.float16, device=device) for shape in shapes]
    for turn in range(3):
        grads = [random(seed + 50 * turn + j, *s, device=device) if j in given else None for j, s in enumerate(shapes)]
        lists["grads"] = grads
        truth["grads"] = exact(lists)["grads"]
        options = {"weight_decay": decays, "lr_scale": scales, "max_norm": max_norm}
        step_both(lists, truth, step, pathways=pathways, casts=casts, **options)
        assert_same(lists, truth, tolerance=1e-4)
    params = lists["params"]
    first = params[0] + params[4] * params[2] + params[5] * params[3]
    second = params[6] + params[9] * frozen.float() + 0.25 * params[7]
    for effective, combined in zip(made, (first, second), strict=True):
        # The kernel may fuse product and sum: a tie may fall to the other side.
        assert (effective != combined.to(HALF)).float().mean() < 0.01
        assert error(effective, combined) < 4e-3
    for param, cast in zip(params, casts, strict=True):
        assert torch.equal(cast, param.half())


def test_a_learning_rate_on_the_device(seed, device):
    lists = random_lists(seed, [(100,), (8, 8)], device)
    truth, rate = exact(lists), torch.tensor(0.02, device=device)
    for value in (0.02, 0.3):
        rate.fill_(value)
        step_both(lists, truth, torch.zeros((), device=device), lr=rate, weight_decay=0.1)
        assert_same(lists, truth)


def test_tables_follow_the_addresses(seed, device):
    """Tables are found again while nothing moves, made anew when a gradient does, and do not pile up."""
    lists = random_lists(seed, [(50,), (9, 9)], device)
    truth, step = exact(lists), torch.zeros((), device=device)
    _tables.clear()
    for _ in range(2):
        step_both(lists, truth, step, weight_decay=0.1)
    assert len(_tables) == 1
    kept = []
    for turn in range(KEPT_TABLES + 2):
        kept.append(lists["grads"][0])
        lists["grads"][0] = random(seed + turn, 50, device=device)
        truth["grads"][0] = lists["grads"][0].double().cpu()
        step_both(lists, truth, step, weight_decay=0.1)
    assert len(_tables) == KEPT_TABLES
    assert_same(lists, truth, tolerance=1e-4)


def test_two_runs_give_the_same_bits(seed, device):
    first, second = (random_lists(seed, SIZES, device) for _ in range(2))
    for lists in (first, second):
        adamw_(
            **lists, step=torch.zeros((), device=device), weight_decay=0.1, max_norm=1.0, **NUMBERS, backend="triton"
        )
    for name in LISTS:
        assert all(torch.equal(a, b) for a, b in zip(first[name], second[name], strict=True))


def test_autograd_notices_the_writes(seed, device):
    param = random(seed, 5, device=device).requires_grad_()
    loss = (param * param).sum()
    state = [[torch.zeros(5, device=device)] for _ in range(3)]
    step = torch.zeros((), device=device)
    adamw_([param], state[0], *state[1:], step, lr=0.1, betas=(0.9, 0.9), eps=1e-8, weight_decay=0.0, backend="triton")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_refuses_what_it_cannot_do(seed, device):
    lists = random_lists(seed, [(4, 6), (4, 6)], device)
    options = {"step": torch.zeros((), device=device), "weight_decay": 0.0, **NUMBERS, "backend": "triton"}
    for name, tensor in (("params", strided(lists["params"][0])), ("exp_avgs", lists["exp_avgs"][0].double())):
        with pytest.raises(ValueError, match="contiguous float32"):
            adamw_(**(lists | {name: [tensor, lists[name][1]]}), **options)
    with pytest.raises(ValueError, match="gradients on one device, of one dtype"):
        adamw_(**(lists | {"grads": [lists["grads"][0].half(), lists["grads"][1]]}), **options)
