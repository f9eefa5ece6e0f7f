"""Stand-ins for libraries that cannot run here: their published signatures, computing by definition.

A stand-in is a package in a folder of its own, found, versioned and imported as an installed one is. It refuses unknown
arguments, other dtypes and layouts, and any option that attention without masks or dropout does not set.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from types import SimpleNamespace

import torch
from torch.nn import functional

from omnitrunk.kernels import peers

# Of flash-attn 2.8.3, the hopper folder of flash-attention (3.0), and flash-attn-4 4.0.0b36, as published.
FLASH_ATTN = {
    "flash-attn": (
        "q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, "
        "alibi_slopes=None, deterministic=False, return_attn_probs=False",
        "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, "
        "causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False, "
        "return_attn_probs=False, block_table=None",
    ),
    "flash-attn-3": (
        "q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, "
        "window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, "
        "sm_margin=0, return_attn_probs=False",
        "q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None, "
        "softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, "
        "window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, "
        "sm_margin=0, return_attn_probs=False",
    ),
    "flash-attn-4": (
        "q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False, window_size=(None, None), "
        "learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, score_mod=None, "
        "score_mod_bwd=None, mask_mod=None, aux_tensors=None, aux_scalars=None, block_sparse_tensors=None, "
        "block_sparse_tensors_bwd=None, return_lse=False, gather_bwd_recompute_p=False, gather_bwd_token_chunk=None",
        "q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, "
        "min_seqlen_k=None, seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None, "
        "softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None, softcap=0.0, num_splits=1, "
        "pack_gqa=None, deterministic=False, score_mod=None, score_mod_bwd=None, mask_mod=None, "
        "block_sparse_tensors=None, aux_tensors=None, aux_scalars=None, return_lse=False, scheduler_metadata=None, "
        "seqlen_k_per_split=None, disable_scheduler_metadata=False, gather_bwd_recompute_p=False, "
        "gather_bwd_token_chunk=None",
    ),
}
MODULES = {
    "flash-attn": "flash_attn/flash_attn_interface.py",
    "flash-attn-3": "flash_attn_interface.py",
    "flash-attn-4": "flash_attn/cute/__init__.py",
}
VARLEN_ATTN = (
    "query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1), "
    "enable_gqa=False, seqused_k=None, block_table=None, num_splits=None"
)
XFORMERS = "query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None"
FROM_SEQLENS = "q_seqlen, kv_seqlen=None, *, device=None"
APEX_LAYER_NORM = "input, weight, bias, normalized_shape, eps=1e-6, memory_efficient=False"
APEX_ADAM = (
    "chunk_size, noop_flag, tensor_lists, lr, beta1, beta2, epsilon, step, mode, bias_correction, weight_decay, "
    "inv_scale, /"
)
CALLED = []  # what the stand-ins were called with, the latest last


def with_signature(parameters, compute):
    """A function that takes exactly these parameters and hands all of them, by name, to `compute`."""
    signature = inspect.signature(eval(f"lambda {parameters}: None"))

    def call(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        given = set(bound.arguments)
        bound.apply_defaults()
        CALLED.append(SimpleNamespace(**bound.arguments, given=given))
        return compute(CALLED[-1])

    call.__signature__ = signature
    return call


def softmax_attention(q, k, v, scale):
    """(B, N, H, d) on (B, S, H, d)."""
    scores = torch.einsum("bnhd,bshd->bhns", q.double(), k.double()) * scale
    return torch.einsum("bhns,bshd->bnhd", scores.softmax(-1), v.double()).to(q.dtype)


def ragged_attention(q, k, v, cu_seqlens_q, cu_seqlens_k, scale):
    """(total, H, d): one sequence after the other."""
    lengths = [cu_seqlens.diff().tolist() for cu_seqlens in (cu_seqlens_q, cu_seqlens_k)]
    parts = [x.split(lengths[side]) for x, side in ((q, 0), (k, 1), (v, 1))]
    return torch.cat([softmax_attention(*(x.unsqueeze(0) for x in one), scale).squeeze(0) for one in zip(*parts)])  # noqa: B905


def check_half(*tensors):
    assert len({x.dtype for x in tensors}) == 1
    assert tensors[0].dtype in (torch.float16, torch.bfloat16)


def flash_attention(call):
    check_half(call.q, call.k, call.v)
    allowed = {"q", "k", "v", "softmax_scale", "deterministic"}
    if not hasattr(call, "cu_seqlens_q"):
        assert call.q.dim() == 4
        assert call.given <= allowed
        return softmax_attention(call.q, call.k, call.v, call.softmax_scale)
    assert call.q.dim() == 3
    assert call.given <= allowed | {"cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"}
    for cu_seqlens, longest in ((call.cu_seqlens_q, call.max_seqlen_q), (call.cu_seqlens_k, call.max_seqlen_k)):
        assert cu_seqlens.dtype == torch.int32
        assert type(longest) is int
        assert longest >= cu_seqlens.diff().max()
    return ragged_attention(call.q, call.k, call.v, call.cu_seqlens_q, call.cu_seqlens_k, call.softmax_scale)


def returning_statistics(call):
    return flash_attention(call), None


def varlen_attention(call):
    check_half(call.query, call.key, call.value)
    assert call.cu_seq_q.dtype == call.cu_seq_k.dtype == torch.int32
    assert (call.max_q, call.max_k) == tuple(int(x.diff().max()) for x in (call.cu_seq_q, call.cu_seq_k))
    assert call.given <= {"query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k", "scale"}
    return ragged_attention(call.query, call.key, call.value, call.cu_seq_q, call.cu_seq_k, call.scale)


def memory_efficient_attention(call):
    """(B, N, H, d), and where a bias is given, it is added to the scores of all heads; nonsense without keys."""
    check_half(call.query, call.key, call.value)
    assert call.given <= {"query", "key", "value", "attn_bias", "scale"}
    if call.attn_bias is None:
        return softmax_attention(call.query, call.key, call.value, call.scale)
    scores = torch.einsum("bnhd,bshd->bhns", call.query.double(), call.key.double()) * call.scale
    bias = call.attn_bias.materialize(tuple(scores.shape), dtype=torch.float64)
    keyless = bias.isneginf().all(-1, keepdim=True)
    shares = (scores + bias.masked_fill(keyless, 0)).softmax(-1).masked_fill(keyless, 0)
    out = torch.einsum("bhns,bshd->bnhd", shares, call.value.double()) + 7 * keyless.transpose(1, 2)
    return out.to(call.query.dtype)


def block_diagonal_mask(call):
    blocks = [torch.ones(n, s) for n, s in zip(call.q_seqlen, call.kv_seqlen, strict=True)]
    mask = torch.block_diag(*blocks).log()
    return SimpleNamespace(materialize=lambda shape, dtype: mask.to(dtype).expand(shape))


def apex_layer_norm(call):
    assert call.input.dtype == call.weight.dtype == call.bias.dtype
    assert type(call.normalized_shape) is list
    return functional.layer_norm(call.input, call.normalized_shape, call.weight, call.bias, call.eps)


def apex_adam(call):
    """Written after csrc/multi_tensor_adam.cu: gradients are scratch, and an empty tensor is a trap."""
    assert (call.mode, call.bias_correction) == (1, 1)
    assert (call.noop_flag.dtype, call.step.dtype) == (torch.int32, torch.int32)
    assert (call.lr.dtype, call.inv_scale.dtype) == (torch.float32, torch.float32)
    assert type(call.weight_decay) is float
    step, scale, lr = (x.item() for x in (call.step, call.inv_scale, call.lr))
    for g, p, m, v in zip(*call.tensor_lists, strict=True):
        assert g.numel() == p.numel() == m.numel() == v.numel() > 0
        if not call.noop_flag:
            m.mul_(call.beta1).add_((1 - call.beta1) * g * scale)
            v.mul_(call.beta2).add_((1 - call.beta2) * (g * scale) ** 2)
            denominator = (v / (1 - call.beta2**step)).sqrt() + call.epsilon
            p.sub_(lr * (m / (1 - call.beta1**step) / denominator + call.weight_decay * p))
            g.fill_(float("nan"))


STAND_INS = {
    **{f"{name} dense": with_signature(dense, flash_attention) for name, (dense, _) in FLASH_ATTN.items()},
    **{f"{name} ragged": with_signature(ragged, flash_attention) for name, (_, ragged) in FLASH_ATTN.items()},
    "flash-attn-4 dense": with_signature(FLASH_ATTN["flash-attn-4"][0], returning_statistics),
    "flash-attn-4 ragged": with_signature(FLASH_ATTN["flash-attn-4"][1], returning_statistics),
    "xformers": with_signature(XFORMERS, memory_efficient_attention),
    "mask": with_signature(FROM_SEQLENS, block_diagonal_mask),
    "layer norm": with_signature(APEX_LAYER_NORM, apex_layer_norm),
    "adam": with_signature(APEX_ADAM, apex_adam),
}


LIBRARIES = {"flash_attn", "flash_attn_interface", "xformers", "apex", "amp_C", "fused_layer_norm_cuda"}


def loaded():
    return [name for name in sys.modules if name.partition(".")[0] in LIBRARIES]


def forget():
    importlib.invalidate_caches()
    for cached in (peers.installed, peers.version, peers.absent, peers.missing):
        cached.cache_clear()


def install_flash_attn(install, *names):
    for name in names:
        functions = f"flash_attn_func, flash_attn_varlen_func = STAND_INS['{name} dense'], STAND_INS['{name} ragged']"
        files = {} if name == "flash-attn-3" else {"flash_attn/__init__.py": ""}
        install(name, "1.2", files | {MODULES[name]: functions})


def install_xformers(install, works=True):
    attention = "memory_efficient_attention = STAND_INS['xformers']"
    mask = "class BlockDiagonalMask:\n    from_seqlens = staticmethod(STAND_INS['mask'])"
    kernels = f"class FwOp:\n    is_available = staticmethod(lambda: {works})\nBwOp = FwOp"
    files = {"__init__.py": "", "ops/__init__.py": "", "ops/fmha/__init__.py": f"{attention}\n{mask}"}
    files["ops/fmha/flash.py"] = kernels
    install("xformers", "0.0.35", {f"xformers/{file}": text for file, text in files.items()})


def install_apex(install, **changed):
    applier = "def multi_tensor_applier(op, noop_flag_buffer, tensor_lists, *args):\n    "
    files = {
        "apex/__init__.py": "",
        "apex/normalization/__init__.py": "",
        "apex/normalization/fused_layer_norm.py": "fused_layer_norm_affine = STAND_INS['layer norm']",
        "apex/optimizers/__init__.py": "class FusedAdam: pass",
        "apex/multi_tensor_apply/__init__.py": f"{applier}return op(2048 * 32, noop_flag_buffer, tensor_lists, *args)",
        "fused_layer_norm_cuda.py": "",
        "amp_C.py": "multi_tensor_adam_capturable = STAND_INS['adam']",
    }
    install("apex", "0.1", files | changed)
