"""Every library that can serve an operation against its published interface; stand_ins.py has those interfaces."""

from __future__ import annotations

import copy
import inspect
import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from omnitrunk.kernels import attention, gpu, layer_norm, peers
from omnitrunk.kernels.adamw import OPERATION as ADAMW
from omnitrunk.kernels.attention import OPERATION as ATTENTION
from omnitrunk.kernels.attention import peers as attention_peers
from omnitrunk.kernels.layer_norm import OPERATION as LAYER_NORM

from .compare import assert_agree
from .stand_ins import (
    CALLED,
    LIBRARIES,
    STAND_INS,
    VARLEN_ATTN,
    forget,
    install_apex,
    install_flash_attn,
    install_xformers,
    softmax_attention,
    varlen_attention,
    with_signature,
)
from .test_adamw import LISTS, assert_same_state, random_state, update

SCALE = 0.3


def cumulative(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def ragged_case(lengths_q, lengths_k, width=16, dtype=torch.float16):
    """q, k and v of three heads, and the other arguments of `attention`."""
    tensors = [torch.randn(sum(lengths), 3, width).to(dtype) for lengths in (lengths_q, lengths_k, lengths_k)]
    names = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
    values = (cumulative(lengths_q), cumulative(lengths_k), max(lengths_q), max(lengths_k))
    return tensors, {"scale": SCALE, **dict(zip(names, values, strict=True))}


def dense_case(queries=5, keys=7, width=16, dtype=torch.float16):
    return [torch.randn(2, length, 3, width).to(dtype) for length in (queries, keys, keys)], {"scale": SCALE}


def agrees_with_the_definition(name, case):
    tensors, options = case
    assert_agree(
        lambda *t: attention(*t, **options, backend=name),
        lambda *t: attention(*t, **options, backend="reference"),
        *tensors,
        tolerance=4e-3,
    )


def refused(name, case):
    """Why a backend of attention does not take the case, or None."""
    (q, k, v), options = case
    return ATTENTION.backends[name].refuses(q, k, v, *options.values())


@pytest.mark.parametrize(("name", "major"), [("flash-attn", 8), ("flash-attn-3", 9), ("flash-attn-4", 10)])
def test_flash_attn_computes_the_operation(name, major, install, on_gpu, seed):
    torch.manual_seed(seed)
    on_gpu(major)
    install_flash_attn(install, name)
    agrees_with_the_definition("flash_attn", dense_case())
    agrees_with_the_definition("flash_attn", ragged_case([3, 0, 4, 1], [2, 5, 6, 1]))
    assert len(CALLED) == 2


ALL = ("flash-attn", "flash-attn-3", "flash-attn-4")


@pytest.mark.parametrize(
    ("there", "major", "width", "expected"),
    [
        (ALL, 10, 64, "flash-attn-4"),
        (ALL, 9, 128, "flash-attn-4"),
        (ALL, 9, 136, "flash-attn-3"),
        (ALL, 12, 64, "flash-attn"),
        (ALL[:2], 8, 64, "flash-attn"),
        (ALL[1:2], 9, 256, "flash-attn-3"),
    ],
)
def test_the_newest_flash_attn_for_gpu_and_width_is_taken(there, major, width, expected, install, on_gpu):
    on_gpu(major)
    install_flash_attn(install, *there)
    tensors, options = dense_case(width=width)
    attention(*tensors, **options, backend="flash_attn")
    parameters = [name for name in vars(CALLED[-1]) if name != "given"]
    assert parameters == list(STAND_INS[f"{expected} dense"].__signature__.parameters)


def test_flash_attn_says_what_stands_against_it(install, on_gpu):
    missing = ATTENTION.backends["flash_attn"].missing
    assert missing() == "flash-attn-4 is not installed: pip install omnitrunk[flash]"
    install_flash_attn(install, "flash-attn-4")
    if not torch.cuda.is_available():
        assert missing() == peers.NO_GPU
    on_gpu(8, 6)
    assert missing() == "needs a GPU of compute capability 9.0 or newer, not 8.6"
    on_gpu(12)
    assert missing() == "knows GPUs up to compute capability 11.x, not 12.0"
    on_gpu(9)
    assert missing() is None
    assert "up to 128, not 136" in refused("flash_attn", dense_case(width=136))


def test_flash_attn_is_asked_to_be_deterministic_where_torch_is(install, on_gpu):
    on_gpu(8)
    install_flash_attn(install, "flash-attn")
    tensors, options = dense_case()
    torch.use_deterministic_algorithms(True)
    try:
        attention(*tensors, **options, backend="flash_attn")
    finally:
        torch.use_deterministic_algorithms(False)
    assert CALLED[-1].deterministic is True
    attention(*tensors, **options, backend="flash_attn")
    assert "deterministic" not in CALLED[-1].given


@pytest.mark.parametrize("name", ["flash_attn", "varlen", "xformers"])
def test_what_the_libraries_cannot_do_is_refused(name, install, on_gpu):
    on_gpu(8)
    install_flash_attn(install, "flash-attn")
    assert refused(name, ragged_case([2, 3], [4, 1])) is None
    assert refused(name, ragged_case([2, 3], [4, 1], dtype=torch.bfloat16)) is None
    for dtype in (torch.float32, torch.float64):
        assert refused(name, ragged_case([2, 3], [4, 1], dtype=dtype)) == "computes in float16 or bfloat16"
    for width in (12, 264):
        text = f"a multiple of 8, up to 256, not {width}"
        assert text in refused(name, ragged_case([2, 3], [4, 1], width=width))
    assert refused(name, ragged_case([2, 3], [0, 0])) == "nothing to attend"
    tensors, options = ragged_case([2, 3], [4, 1])
    assert "int32" in refused(name, (tensors, options | {"cu_seqlens_k": options["cu_seqlens_k"].long()}))


@pytest.mark.parametrize("name", ["flash_attn", "xformers"])
def test_autocast_is_honored(name, install, on_gpu):
    on_gpu(8)
    install_flash_attn(install, "flash-attn")
    install_xformers(install)
    tensors, options = dense_case(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(*tensors, **options, backend=name).dtype == torch.bfloat16
        assert refused(name, dense_case(dtype=torch.float64)) is not None
    assert refused(name, (tensors, options)) is not None


def test_xformers_computes_the_operation(install, on_gpu, seed):
    torch.manual_seed(seed)
    on_gpu(8)
    install_xformers(install)
    agrees_with_the_definition("xformers", dense_case())
    agrees_with_the_definition("xformers", ragged_case([3, 0, 4, 2, 1], [2, 5, 6, 0, 1]))


def test_xformers_without_kernels_is_missing(install, on_gpu):
    on_gpu(8)
    install_xformers(install, works=False)
    assert "xformers 0.0.35 finds no kernels that load" in ATTENTION.backends["xformers"].missing()


def test_against_the_real_xformers(on_gpu, monkeypatch, seed):
    fmha = pytest.importorskip("xformers.ops.fmha", reason="needs xformers: pip install --no-deps xformers==0.0.35")
    torch.manual_seed(seed)
    on_gpu(8)
    for real, stand_in in (
        (fmha.memory_efficient_attention, STAND_INS["xformers"]),
        (fmha.BlockDiagonalMask.from_seqlens, STAND_INS["mask"]),
    ):
        assert parameters_of(real) == parameters_of(stand_in)
    assert type(fmha.flash.FwOp.is_available()) is type(fmha.flash.BwOp.is_available()) is bool
    # No kernel of xformers runs on a CPU: the definition, reading the real mask.
    monkeypatch.setattr(fmha, "memory_efficient_attention", STAND_INS["xformers"])
    monkeypatch.setattr(fmha.flash.FwOp, "is_available", lambda: True)
    monkeypatch.setattr(fmha.flash.BwOp, "is_available", lambda: True)
    agrees_with_the_definition("xformers", ragged_case([3, 0, 4, 2, 1], [2, 5, 6, 0, 1]))
    mask = CALLED[-1].attn_bias
    assert type(mask) is fmha.BlockDiagonalMask
    assert mask.q_seqinfo.seqstart.tolist() == [0, 3, 3, 7, 9, 10]
    assert mask.k_seqinfo.seqstart.dtype == torch.int32


def parameters_of(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def test_varlen_computes_the_operation(on_gpu, monkeypatch, seed):
    from torch.nn.attention import varlen

    torch.manual_seed(seed)
    on_gpu(8)
    stand_in = with_signature(VARLEN_ATTN, varlen_attention)
    ours, theirs = (inspect.signature(function).parameters for function in (stand_in, varlen.varlen_attn))
    assert list(theirs)[:7] == list(ours)[:7]
    assert theirs["scale"].kind is inspect.Parameter.KEYWORD_ONLY
    monkeypatch.setattr(varlen, "varlen_attn", stand_in)
    agrees_with_the_definition("varlen", ragged_case([3, 0, 4, 1], [2, 5, 6, 1]))
    assert refused("varlen", dense_case()) == "takes ragged sequences"


def test_the_real_varlen_takes_the_call():
    (q, k, v), (scale, *lengths) = (lambda case: (case[0], case[1].values()))(ragged_case([3, 4], [2, 6]))
    shapes = [x.to("meta").requires_grad_() for x in (q, k, v)]
    lengths = [x.to("meta") if isinstance(x, torch.Tensor) else x for x in lengths]
    out = ATTENTION.backends["varlen"].run(*shapes, scale, *lengths)
    assert (out.shape, out.dtype) == (q.shape, q.dtype)
    gradients = torch.autograd.grad(out, shapes, torch.empty_like(out))
    assert [x.shape for x in gradients] == [x.shape for x in (q, k, v)]


def test_cudnn_alone_is_allowed_to_serve(on_gpu, monkeypatch, seed):
    torch.manual_seed(seed)
    on_gpu(9)
    switches = ("cudnn", "flash", "mem_efficient", "math")
    seen = []

    def state():
        return {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in switches}

    def attend(query, key, value, *, scale):
        seen.append(state())
        return softmax_attention(*(x.transpose(1, 2) for x in (query, key, value)), scale).transpose(1, 2)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    monkeypatch.setattr(attention_peers, "can_use_cudnn_attention", lambda parameters: True)
    before = state()
    agrees_with_the_definition("cudnn", dense_case())
    assert seen == [{"cudnn": True, "flash": False, "mem_efficient": False, "math": False}]
    assert state() == before


def test_cudnn_refuses_what_torch_says_it_cannot_do(monkeypatch):
    asked = []
    monkeypatch.setattr(attention_peers, "can_use_cudnn_attention", lambda parameters: asked.append(parameters))
    assert refused("cudnn", ragged_case([2, 3], [4, 1])) == "takes sequences of one length"
    assert "float16" in refused("cudnn", dense_case(dtype=torch.float32))
    assert not asked
    tensors, options = dense_case(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert refused("cudnn", (tensors, options)) == "cuDNN does not take this shape on this GPU"
    assert asked[0].query.shape == (2, 3, 5, 16)
    assert asked[0].key.stride() == tensors[1].transpose(1, 2).stride()
    assert {asked[0].query.dtype, asked[0].key.dtype, asked[0].value.dtype} == {torch.bfloat16}


def test_cudnn_may_be_left_out_of_a_torch(on_gpu, monkeypatch):
    on_gpu(9)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: False)
    assert ATTENTION.backends["cudnn"].missing() == "this torch comes without cuDNN"


def test_apex_normalizes(install, on_gpu, seed):
    torch.manual_seed(seed)
    on_gpu(8)
    install_apex(install)
    x, weight, bias = torch.randn(2, 3, 8), torch.randn(8), torch.randn(8)
    ours, definition = (lambda *t, name=name: layer_norm(*t, eps=0.1, backend=name) for name in ("apex", "reference"))
    assert_agree(ours, definition, x, weight, bias)
    refuses = LAYER_NORM.backends["apex"].refuses
    assert refuses(x, weight, bias, 1e-6, None, None, None) is None
    assert "residual" in refuses(x, weight, bias, 1e-6, x, None, None)
    assert "one dtype" in refuses(x.half(), weight, bias, 1e-6, None, None, None)
    assert refuses(x[:0], weight, bias, 1e-6, None, None, None) == "nothing to normalize"
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in refuses(x, weight, bias, 1e-6, None, None, None)


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("step_dtype", [torch.int64, torch.int32, torch.float32])
def test_apex_updates(max_norm, step_dtype, install, on_gpu, seed):
    torch.manual_seed(seed)
    on_gpu(8)
    install_apex(install)
    state = random_state(shapes=[(3, 5), (17,), (), (2, 3), (0, 4)])
    state["step"] = torch.tensor(3, dtype=step_dtype)
    exact = {name: [tensor.double() for tensor in state[name]] for name in LISTS} | {"step": torch.tensor(3)}
    options = {"max_norm": max_norm, "weight_decay": [0.05, 0.0, 0.05, 0.1, 0.1], "lr_scale": [1.0, 0.5, 1.0, 1.0, 1.0]}
    for _ in range(2):
        norm, skipped = update(state, "apex", **options)
        expected, _ = update(exact, "reference", **options)
        torch.testing.assert_close(norm.double(), expected, rtol=1e-5, atol=0)
        assert skipped.item() is False
    assert_same_state(state, exact, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_apex_changes_nothing_where_the_norm_is_not_finite(max_norm, install, on_gpu, seed):
    torch.manual_seed(seed)
    on_gpu(8)
    install_apex(install)
    state = random_state(shapes=[(3, 5), (17,)])
    state["grads"][1][2] = float("inf")
    before = copy.deepcopy(state)
    norm, skipped = update(state, "apex", max_norm=max_norm)
    assert skipped.item() is True
    assert not norm.isfinite()
    assert_same_state(state, before, rtol=0, atol=0)


def test_the_other_apex_is_recognized_without_importing_it(install):
    install("apex", "0.9.10.dev0", {"apex/__init__.py": "raise AssertionError('imported')"})
    for operation in (LAYER_NORM, ADAMW):
        text = operation.backends["apex"].missing()
        assert "the apex installed here (0.9.10.dev0) has no apex." in text
        assert "not NVIDIA's: pip uninstall apex; APEX_CPP_EXT=1" in text


def test_an_apex_without_its_kernels_and_one_that_does_not_load(install, on_gpu, tmp_path):
    on_gpu(8)
    install_apex(install, **{"amp_C.py": "raise ImportError('undefined symbol:\\n  _ZN3c10')"})
    text = ADAMW.backends["apex"].missing()
    assert text.startswith("apex 0.1 does not load beside torch ")
    assert text.endswith("ImportError: undefined symbol: _ZN3c10")
    assert LAYER_NORM.backends["apex"].missing() is None
    (tmp_path / "amp_C.py").unlink()
    forget()
    assert "has no amp_C" in ADAMW.backends["apex"].missing()


def test_looking_for_a_submodule_imports_nothing(install):
    install("apex", "1", {"apex/__init__.py": "raise AssertionError('imported')", "apex/inner/deep.py": ""})
    assert peers.installed("apex")
    assert peers.installed("apex.inner.deep")
    assert not peers.installed("apex.outer")
    assert not peers.installed("apex.inner.deep.deeper")
    assert not peers.installed("flash_attn_interface.inner")


def test_importing_the_package_imports_no_library(install, tmp_path):
    for number, name in enumerate(sorted(LIBRARIES)):
        install(name, str(number), {f"{name}/__init__.py": "raise AssertionError('imported')"})
    script = f"import sys, omnitrunk.kernels; sys.exit(bool(set(sys.modules) & {LIBRARIES}))"
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path}, check=False)
    assert done.returncode == 0


def test_the_order_in_which_auto_asks():
    names = [name for name, backend in ATTENTION.backends.items() if "cuda" in backend.devices]
    assert names[-5:] == ["flash_attn", "cudnn", "varlen", "xformers", "sdpa"]
    assert list(ADAMW.backends).index("torch") < list(ADAMW.backends).index("apex")


def test_all_name_the_lack_of_a_gpu_alike(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "interpreted", lambda: False)
    gpu.missing.cache_clear()
    try:
        assert gpu.missing() in (peers.NO_GPU, "needs Triton: pip install triton")
    finally:
        gpu.missing.cache_clear()


def test_asking_for_libraries_does_not_break_a_compiled_graph(install, monkeypatch):
    monkeypatch.setattr(peers, "_gpu_missing", lambda package: None)  # on_gpu() would lie to the compiler too
    install_flash_attn(install, "flash-attn")
    backend = ATTENTION.backends["flash_attn"]

    @torch.compile(fullgraph=True, backend="eager")
    def choose(q, k, v):
        return q + 1 if backend.missing() is None and backend.refuses(q, k, v, SCALE) is None else q

    assert choose(*(torch.zeros(1, 1, 1, 8, dtype=torch.float16) for _ in range(3))).sum() == 8
