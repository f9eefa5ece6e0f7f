"""What GPUs can do, from their data sheets: dense matrix rates, main memory and its bandwidth."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Peak figures of one GPU; rates are dense (without structured sparsity)."""

    name: str
    bf16: float
    """FLOP/s of bf16 matrix products with float32 accumulation."""
    tf32: float
    """FLOP/s of float32 matrix products through tf32."""
    fp32: float
    """FLOP/s of float32 arithmetic outside the matrix units."""
    memory: float
    """Bytes of main memory."""
    bandwidth: float
    """Bytes/s of main memory."""


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(name="b200", bf16=2250e12, tf32=1125e12, fp32=75e12, memory=180e9, bandwidth=7.7e12),
        Gpu(name="h200", bf16=989e12, tf32=494e12, fp32=67e12, memory=141e9, bandwidth=4.8e12),
        Gpu(name="h100", bf16=989e12, tf32=494e12, fp32=67e12, memory=80e9, bandwidth=3.35e12),
        Gpu(name="a100", bf16=312e12, tf32=156e12, fp32=19.5e12, memory=80e9, bandwidth=2.0e12),
        Gpu(name="l40s", bf16=362e12, tf32=183e12, fp32=91.6e12, memory=48e9, bandwidth=0.864e12),
        Gpu(name="a10", bf16=125e12, tf32=62.5e12, fp32=31.2e12, memory=24e9, bandwidth=0.6e12),
        Gpu(name="4090", bf16=165e12, tf32=82.6e12, fp32=82.6e12, memory=24e9, bandwidth=1.008e12),
        Gpu(name="3090", bf16=71e12, tf32=35.6e12, fp32=35.6e12, memory=24e9, bandwidth=0.936e12),
    )
}


def gpu_named(name: str) -> Gpu | None:
    """The GPU whose short name occurs in `name` (as drivers report it), None if it is not in the table."""
    lowered = name.lower().replace("rtx", "")
    return next((gpu for short, gpu in GPUS.items() if short in lowered), None)


def peak_flop_per_s(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of one device at "bf16" or "fp32"; None where it is not known, so that nobody divides by a guess."""
    if device.type != "cuda":
        return None
    gpu = gpu_named(torch.cuda.get_device_name(device))
    if gpu is None:
        return None
    if precision == "bf16":
        return gpu.bf16
    return gpu.tf32 if torch.backends.cuda.matmul.allow_tf32 else gpu.fp32
