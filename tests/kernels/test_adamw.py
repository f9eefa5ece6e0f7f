from __future__ import annotations

import copy

import pytest
import torch

from omnitrunk.kernels import adamw_, native
from omnitrunk.kernels.adamw import cost

needs_module = pytest.mark.skipif(not native.available(), reason=str(native.missing_reason()))
BACKENDS = [pytest.param("cpu", marks=needs_module), "torch", "reference"]
SHAPES = [(3, 5), (17,), (1,), (2, 3, 4), (0, 4), ()]
LISTS = ("params", "grads", "exp_avgs", "exp_avg_sqs", "emas")


def random_state(dtype=torch.float32, shapes=SHAPES, step=3):
    state = {name: [torch.randn(shape, dtype=dtype) for shape in shapes] for name in LISTS}
    state["exp_avg_sqs"] = [tensor.square() for tensor in state["exp_avg_sqs"]]
    return state | {"step": torch.tensor(step)}


def update(state, backend, **options):
    defaults = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.05, "ema_decay": 0.99}
    lists = {name: state[name] for name in LISTS}
    return adamw_(**lists, step=state["step"], **(defaults | options), backend=backend)


def assert_same_state(a, b, **tolerance):
    for name in LISTS:
        for left, right in zip(a[name], b[name], strict=True):
            torch.testing.assert_close(left.double(), right.double(), **tolerance)
    assert a["step"] == b["step"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("max_norm", [None, 0.5, 1e9])
def test_runs_like_torch_optim_over_several_steps(backend, max_norm, seed):
    torch.manual_seed(seed)
    scales, decays = [1.0, 0.5, 0.25, 1.0, 1.0, 0.0], [0.05, 0.0, 0.1, 0.05, 0.0, 0.2]
    shapes = [shape for shape in SHAPES if 0 not in shape] + [(7,)]
    state = random_state(shapes=shapes, step=0)
    for name in ("exp_avgs", "exp_avg_sqs"):
        state[name] = [torch.zeros_like(tensor) for tensor in state[name]]
    peers = [torch.nn.Parameter(param.double()) for param in state["params"]]
    groups = [
        {"params": [peer], "lr": 0.01 * scale, "weight_decay": decay}
        for peer, scale, decay in zip(peers, scales, decays, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, foreach=False)
    averages = [ema.double() for ema in state["emas"]]
    for _ in range(4):
        state["grads"] = [torch.randn_like(param) for param in state["params"]]
        given = copy.deepcopy(state["grads"])
        norm, skipped = update(state, backend, lr_scale=scales, weight_decay=decays, max_norm=max_norm)
        for peer, grad in zip(peers, given, strict=True):
            peer.grad = grad.double()
        expected = torch.nn.utils.clip_grad_norm_(peers, float("inf") if max_norm is None else max_norm)
        optimizer.step()
        averages = [0.99 * average + 0.01 * peer.detach() for average, peer in zip(averages, peers, strict=True)]
        torch.testing.assert_close(norm.double(), expected, rtol=1e-5, atol=0)
        assert skipped.item() is False and norm.dim() == skipped.dim() == 0
        assert all(torch.equal(a, b) for a, b in zip(state["grads"], given, strict=True)), "gradients were rewritten"
    assert state["step"] == 4
    for peer, param, average, ema in zip(peers, state["params"], averages, state["emas"], strict=True):
        torch.testing.assert_close(param.double(), peer.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ema.double(), average, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS[:2])
@pytest.mark.parametrize("step_dtype", [torch.int64, torch.float32])
def test_matches_the_definition_in_float64(backend, step_dtype, seed):
    torch.manual_seed(seed)
    state = random_state()
    state["step"] = torch.tensor(41).to(step_dtype)
    exact = {name: [tensor.double() for tensor in state[name]] for name in LISTS} | {"step": state["step"].clone()}
    norm, _ = update(state, backend, max_norm=1.0)
    expected, _ = update(exact, "auto", max_norm=1.0)
    torch.testing.assert_close(norm.double(), expected, rtol=1e-6, atol=0)
    assert_same_state(state, exact, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_a_norm_that_is_not_finite_changes_nothing(backend, bad, max_norm, seed):
    torch.manual_seed(seed)
    state = random_state()
    state["grads"][1][5] = bad
    before = copy.deepcopy(state)
    norm, skipped = update(state, backend, max_norm=max_norm)
    assert skipped.item() is True and not norm.isfinite()
    assert_same_state(state, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_moving_averages_are_optional(backend, seed):
    torch.manual_seed(seed)
    with_averages, without = (copy.deepcopy(state) for state in [random_state()] * 2)
    update(with_averages, backend)
    lists = {name: without[name] for name in LISTS if name != "emas"}
    options = {"lr": 0.01, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.05}
    adamw_(**lists, step=without["step"], **options, backend=backend)
    without["emas"] = with_averages["emas"]
    assert_same_state(with_averages, without, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_updates_leaf_parameters_in_place(backend):
    param = torch.nn.Parameter(torch.ones(3))
    address = param.data_ptr()
    moments = [torch.zeros(3)], [torch.zeros(3)]
    options = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0, "backend": backend}
    adamw_([param], [torch.ones(3)], *moments, torch.zeros(()), **options)
    assert param.data_ptr() == address and param.requires_grad
    torch.testing.assert_close(param.detach(), torch.full((3,), 0.9))


def test_strided_and_double_tensors_fall_back_to_the_definition(seed):
    torch.manual_seed(seed)
    state = random_state(shapes=[(4, 6)])
    state["params"] = [state["params"][0].t().contiguous().t()]
    exact = {name: [tensor.double() for tensor in state[name]] for name in LISTS} | {"step": state["step"].clone()}
    update(state, "auto", max_norm=1.0)
    update(exact, "reference", max_norm=1.0)
    assert_same_state(state, exact, rtol=2e-5, atol=1e-6)
    with pytest.raises(ValueError, match="contiguous float32"):
        update(state, "torch")


def test_refuses_lists_that_do_not_fit():
    state = random_state()
    with pytest.raises(ValueError, match="lists of one length"):
        update(state | {"grads": state["grads"][:2]}, "auto")
    with pytest.raises(ValueError, match="lists of one length"):
        update(state, "auto", weight_decay=[0.1])
    with pytest.raises(ValueError, match="at least 1"):
        update({name: [] for name in LISTS} | {"step": state["step"]}, "auto")


def test_cost_is_that_of_two_passes():
    assert cost(10).bytes == 10 * 32 and cost(10, ema=True).bytes == 10 * 40
    assert cost(10, clip=False, bytes_per_gradient=2).bytes == 10 * 26
    assert cost(10, ema=True, bytes_per_cast=2).bytes == 10 * 42
    assert cost(10, ema=True, bytes_per_cast=2, bytes_per_gradient=2).bytes == 10 * 38
    assert cost(10, auxiliaries=10, effective_bytes=20).bytes == 10 * 62
    assert cost(10, frozen_bytes=20, effective_bytes=20).bytes == 10 * (32 + 4 + 2)


# --- casts

SPECIAL = [0.0, -0.0, 1e-45, 2**-126, 2**-24, 2**-25, 2**-14, 65504.0, 65519.99, 65520.0, 1e38, 3.4e38, float("inf")]


def random_bits(seed, count):
    """Float32 numbers of all sizes: random bits, and numbers at the edges of the narrow formats."""
    bits = torch.randint(-(2**31), 2**31, (count,), generator=torch.Generator().manual_seed(seed)).int()
    ties = (bits & -0x10000) | 0x8000
    edges = torch.tensor([*SPECIAL, *(-value for value in SPECIAL), float("nan")])
    return torch.cat([bits.view(torch.float32), ties.view(torch.float32), torch.randn(count), edges])


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_module)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("offset", [0, 1])
def test_casts_are_the_rounded_parameters(backend, dtype, offset, seed):
    param = random_bits(seed, 9000)
    kept, whole = param.clone(), torch.full((len(param) + 40,), 7, dtype=dtype)
    cast = whole[offset : len(param) + offset]
    zeros = [torch.zeros_like(param) for _ in range(3)]
    numbers = {"lr": 0.0, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0, "backend": backend}
    adamw_([param], zeros[:1], zeros[1:2], zeros[2:], torch.zeros(()), casts=[cast], **numbers)
    torch.testing.assert_close(param, kept, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(cast, param.to(dtype), rtol=0, atol=0, equal_nan=True)
    assert (whole[:offset] == 7).all() and (whole[len(param) + offset :] == 7).all()


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_module)])
def test_casts_follow_the_updates_and_are_optional_one_by_one(backend, seed):
    torch.manual_seed(seed)
    state = random_state()
    plain = copy.deepcopy(state)
    dtypes = [torch.bfloat16, None, torch.float16, torch.bfloat16, torch.bfloat16, torch.float32]
    casts = [None if d is None else torch.empty(s, dtype=d) for s, d in zip(SHAPES, dtypes, strict=True)]
    update(state, backend, casts=casts, max_norm=1.0)
    update(plain, backend, max_norm=1.0)
    assert_same_state(state, plain, rtol=0, atol=0)
    for param, cast in zip(state["params"], casts, strict=True):
        assert cast is None or torch.equal(cast, param.to(cast.dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_learning_rate_may_be_a_tensor(backend, seed):
    torch.manual_seed(seed)
    as_number, as_tensor = (copy.deepcopy(state) for state in [random_state()] * 2)
    update(as_number, backend, lr=0.25, lr_scale=[0.5, 1.0, 0.25, 1.0, 1.0, 0.0])
    update(as_tensor, backend, lr=torch.tensor(0.25), lr_scale=[0.5, 1.0, 0.25, 1.0, 1.0, 0.0])
    assert_same_state(as_number, as_tensor, rtol=1e-6, atol=1e-7)
