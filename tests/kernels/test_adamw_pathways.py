from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import sys

import pytest
import torch

from omnitrunk.kernels import adamw_, native
from omnitrunk.kernels.adamw import Pathway
from tests.kernels.test_adamw import LISTS, assert_same_state, needs_module, random_state, update

PAIRED = [pytest.param("cpu", marks=needs_module), "reference"]
NUMBERS = {"betas": (0.9, 0.95), "eps": 1e-8}
# A weight with two auxiliaries, one with a frozen and a learning one, a plain matrix, a plain vector.
ODD, EVEN = (3, 1025), (64, 40)
PATHWAY_SHAPES = [ODD, (5, 7), ODD, ODD, (), (1,), EVEN, EVEN, (9,), (1, 1)]
GIVEN = (0, 1, 6, 8)


def pathways_of(frozen, effective):
    return [
        Pathway(weight=0, auxiliaries=(2, 3), scales=(4, 5), effective=effective[0]),
        Pathway(weight=6, auxiliaries=(frozen, 7), scales=(9, 0.25), effective=effective[1]),
    ]


def pathway_problem(frozen_dtype=torch.bfloat16, dtype=torch.bfloat16):
    """State with gradients of the weights alone, scale 4 still 0, and two pathways."""
    state = random_state(shapes=PATHWAY_SHAPES, step=0)
    for name in ("exp_avgs", "exp_avg_sqs"):
        state[name] = [torch.zeros_like(tensor) for tensor in state[name]]
    state["params"][4].zero_()
    for scale in (5, 9):  # below 1, as scales are: of greater ones float32 rounds more than is allowed for
        state["params"][scale].mul_(0.1)
    state["grads"] = [grad if place in GIVEN else None for place, grad in enumerate(state["grads"])]
    frozen = torch.randn(EVEN).to(frozen_dtype)
    return state, pathways_of(frozen, [torch.zeros(shape, dtype=dtype) for shape in (ODD, EVEN)])


def autograd_gradients(params, grads, pathways):
    """Gradients of sum <G, weight> with the joined weights spelled out, by autograd in float64."""
    leaves = [param.double().requires_grad_() for param in params]
    loss = 0
    for place, grad in enumerate(grads):
        if grad is None:
            continue
        weight = leaves[place]
        for pathway in pathways:
            if pathway.weight == place:
                for auxiliary, scale in zip(pathway.auxiliaries, pathway.scales, strict=True):
                    other = leaves[auxiliary] if isinstance(auxiliary, int) else auxiliary.double()
                    weight = weight + (leaves[scale] if isinstance(scale, int) else scale) * other
        loss = loss + (weight * grad.double()).sum()
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("backend", PAIRED)
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_pathways_run_like_torch_optim_on_gradients_written_out(backend, max_norm, seed):
    torch.manual_seed(seed)
    state, pathways = pathway_problem()
    decays = [0.02 * place for place in range(len(PATHWAY_SHAPES))]
    scales = [1 - 0.05 * place for place in range(len(PATHWAY_SHAPES))]
    peers = [torch.nn.Parameter(param.double()) for param in state["params"]]
    groups = [
        {"params": [peer], "lr": 0.01 * scale, "weight_decay": decay}
        for peer, scale, decay in zip(peers, scales, decays, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, **NUMBERS, foreach=False)
    averages = [ema.double() for ema in state["emas"]]
    casts = [torch.empty_like(param, dtype=torch.float16) for param in state["params"]]
    for step in range(10):
        state["grads"] = [torch.randn(shape) if place in GIVEN else None for place, shape in enumerate(PATHWAY_SHAPES)]
        for peer, grad in zip(peers, autograd_gradients(peers, state["grads"], pathways), strict=True):
            peer.grad = grad
        assert step > 0 or ((peers[2].grad == 0).all() and peers[4].grad != 0)
        expected = torch.nn.utils.clip_grad_norm_(peers, float("inf") if max_norm is None else max_norm)
        optimizer.step()
        averages = [0.99 * average + 0.01 * peer.detach() for average, peer in zip(averages, peers, strict=True)]
        options = {"lr_scale": scales, "weight_decay": decays, "max_norm": max_norm, "casts": casts}
        norm, skipped = update(state, backend, pathways=pathways, **options)
        torch.testing.assert_close(norm.double(), expected, rtol=1e-5, atol=0)
        assert not skipped
    for place, (param, peer) in enumerate(zip(state["params"], peers, strict=True)):
        # Where a gradient is about eps, rounding decides its direction: rare, and by a step at most.
        off = (param.double() - peer.detach()).abs()
        assert off.median() < 1e-6 and off.max() < 5e-3, f"params[{place}]"
        assert (state["emas"][place].double() - averages[place]).abs().max() < 1e-4
        assert torch.equal(casts[place], param.half())
    assert_effective(state["params"], pathways)


def assert_effective(params, pathways):
    """The effective weights are those of the float32 parameters, rounded once."""
    for pathway in pathways:
        total = params[pathway.weight]
        for auxiliary, scale in zip(pathway.auxiliaries, pathway.scales, strict=True):
            other = params[auxiliary] if isinstance(auxiliary, int) else auxiliary.float()
            total = total + (params[scale] if isinstance(scale, int) else scale) * other
        assert torch.equal(pathway.effective, total.to(pathway.effective.dtype))


@pytest.mark.parametrize("backend", PAIRED)
@pytest.mark.parametrize("frozen_dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_pathways_match_the_definition_in_float64(backend, frozen_dtype, dtype, seed):
    torch.manual_seed(seed)
    state, pathways = pathway_problem(frozen_dtype, dtype)
    state["params"][4].fill_(0.3)
    exact = {name: [None if tensor is None else tensor.double() for tensor in state[name]] for name in LISTS} | {
        "step": state["step"].clone()
    }
    exact_pathways = pathways_of(pathways[1].auxiliaries[0].double(), [torch.empty(s).double() for s in (ODD, EVEN)])
    norm, _ = update(state, backend, pathways=pathways, max_norm=1.0)
    expected, _ = update(exact, "auto", pathways=exact_pathways, max_norm=1.0)
    torch.testing.assert_close(norm.double(), expected, rtol=1e-6, atol=0)
    exact["grads"] = state["grads"] = []
    assert_same_state(state, exact, rtol=2e-5, atol=1e-6)
    assert_effective(state["params"], pathways)
    for pathway, truth in zip(pathways, exact_pathways, strict=True):
        error = (pathway.effective.double() - truth.effective).norm() / truth.effective.norm()
        assert error < torch.finfo(dtype).eps


@pytest.mark.parametrize("backend", PAIRED)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_pathways_and_casts_change_nothing_where_the_norm_is_not_finite(backend, bad, seed):
    torch.manual_seed(seed)
    state, pathways = pathway_problem()
    casts = [torch.randn(shape).bfloat16() for shape in PATHWAY_SHAPES]
    state["grads"][6][63, 39] = bad
    before = copy.deepcopy((state, casts, [pathway.effective for pathway in pathways]))
    norm, skipped = update(state, backend, pathways=pathways, casts=casts, max_norm=1.0)
    assert skipped.item() is True and not norm.isfinite()
    state["grads"] = before[0]["grads"] = []
    assert_same_state(state, before[0], rtol=0, atol=0)
    after = (*casts, *(pathway.effective for pathway in pathways))
    assert all(torch.equal(a, b) for a, b in zip(after, (*before[1], *before[2]), strict=True))


@needs_module
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_frozen_number_in_half_precision_is_read_right(dtype):
    frozen = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    zeros = [torch.zeros(2**16) for _ in range(4)]
    pathway = Pathway(weight=0, auxiliaries=(frozen,), scales=(1.0,), effective=torch.empty(2**16))
    step = torch.zeros(())
    options = {"lr": 0.0, "weight_decay": 0.0, **NUMBERS, "backend": "cpu"}
    adamw_(zeros[:1], zeros[1:2], zeros[2:3], zeros[3:], step, pathways=[pathway], **options)
    torch.testing.assert_close(pathway.effective, frozen.float(), rtol=0, atol=0, equal_nan=True)


def digest(seed):
    """A large update with everything on; the results as one number."""
    torch.manual_seed(seed)
    state, pathways = pathway_problem()
    state["params"][4].fill_(0.3)
    shapes = [(300_001,), (16384,), (16385,)]
    more = random_state(shapes=shapes)
    merged = {name: state[name] + more[name] for name in LISTS} | {"step": state["step"]}
    casts = [torch.zeros_like(param, dtype=torch.bfloat16) for param in merged["params"]]
    norm, _ = update(merged, "cpu", pathways=pathways, casts=casts, max_norm=1.0)
    results = [norm, *merged["params"], *merged["exp_avgs"], *merged["exp_avg_sqs"], *merged["emas"]]
    halves = [*casts, *(pathway.effective for pathway in pathways)]
    hashed = hashlib.sha256()
    for tensor in [*results, *(half.view(torch.int16) for half in halves)]:
        hashed.update(tensor.numpy().tobytes())
    return hashed.hexdigest()


@needs_module
def test_results_do_not_depend_on_the_number_of_threads(seed):
    before, results = torch.get_num_threads(), set()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.add(digest(seed))
    finally:
        torch.set_num_threads(before)
    assert len(results) == 1


@needs_module
@pytest.mark.parametrize("isa", ["scalar", "avx2"])
def test_results_do_not_depend_on_the_instruction_set(isa):
    if native.module().isa() in ("scalar", isa):
        pytest.skip(f"needs a processor with more than {isa}")
    program = "from tests.kernels.test_adamw_pathways import digest; print(digest(5))"
    environment = {**os.environ, "OMNITRUNK_ISA": isa}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.stdout.split() == [digest(5)], result.stderr


@pytest.mark.parametrize("backend", PAIRED)
def test_kept_combinations_notice_the_update(backend, seed):
    """What pathway_linear keeps goes by versions: weights, scales and the effective weight must count the writes."""
    torch.manual_seed(seed)
    state, pathways = pathway_problem()
    watched = [*state["params"], *(pathway.effective for pathway in pathways)]
    before = [tensor._version for tensor in watched]
    update(state, backend, pathways=pathways)
    assert all(tensor._version > old for tensor, old in zip(watched, before, strict=True))


def test_refuses_pathways_that_do_not_fit(seed):
    torch.manual_seed(seed)
    state, pathways = pathway_problem()
    with pytest.raises(ValueError, match=r"grads\[2\] must not be None: no pathway derives it"):
        update(state, "auto")
    with pytest.raises(ValueError, match=r"grads\[2\] must be None: a pathway derives it"):
        grads = [torch.zeros(ODD) if place == 2 else grad for place, grad in enumerate(state["grads"])]
        update(state | {"grads": grads}, "auto", pathways=pathways)
    for wrong in ({"auxiliaries": (2, 2)}, {"scales": (4, 99)}, {"scales": (4, -1)}, {"weight": 7}):
        options = {"weight": 0, "auxiliaries": (2, 3), "scales": (4, 5)} | wrong
        with pytest.raises(ValueError, match="must name different places below 10"):
            update(state, "auto", pathways=[Pathway(**options), pathways[1]])
    with pytest.raises(ValueError, match="joins weights of one shape"):
        fitting = pathways_of(torch.zeros(3), [None, None])
        update(state, "auto", pathways=fitting)
    with pytest.raises(ValueError, match="a parameter of one element, or a float"):
        wrong = Pathway(weight=6, auxiliaries=(7,), scales=(8,))
        grads = [grad if place in (0, 1, 6) else None for place, grad in enumerate(state["grads"])]
        update(state | {"grads": [*grads[:9], torch.zeros(1, 1)]}, "auto", pathways=[pathways[0], wrong])
    with pytest.raises(ValueError, match="one scale for each of its 2"):
        Pathway(weight=0, auxiliaries=(1, 2), scales=(3,))
    with pytest.raises(ValueError, match="knows neither casts nor pathways"):
        update(state, "torch", pathways=pathways)
