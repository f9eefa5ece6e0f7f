"""What is installed, what is missing, and which backend every operation will use."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from omnitrunk.engine.doctor_columns import aligned
from omnitrunk.engine.doctor_peers import libraries, prospects
from omnitrunk.kernels import dispatch, native

PACKAGES = ("omnitrunk", "torch", "triton", "numpy", "safetensors", "jsonargparse", "tensorboard", "pillow", "av")
DALI = "nvidia.dali"


def report() -> str:
    """The whole report, one finding per line."""
    on_gpu = _operations("cuda") if torch.cuda.is_available() else prospects()
    here = aligned([*_packages(), *_machine(), _native()], indent="")
    return "\n".join([*here, *_operations("cpu"), *on_gpu, *libraries()])


def _packages() -> Iterator[tuple[str, str]]:
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for name in PACKAGES:
        yield name, _version(name) or f"missing: pip install {name}"
    dali = next((d for d in importlib.metadata.distributions() if d.name.startswith("nvidia-dali-cuda")), None)
    found = f"{dali.version} ({dali.name})" if dali and find_spec("nvidia") and find_spec(DALI) else None
    yield "dali", found or "missing, folders of files cannot be read: pip install omnitrunk[data]"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _machine() -> Iterator[tuple[str, str]]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "cpu", f"{_cpu_name()}, {cores} cores, torch uses {torch.backends.cpu.get_cpu_capability()}"
    if not torch.cuda.is_available():
        reason = "this torch is built without CUDA" if torch.version.cuda is None else "no driver or device found"
        yield "gpu", f"none: {reason}"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        memory = f"{properties.total_memory / 1e9:.0f} GB"
        yield "gpu", f"{index}: {properties.name}, {memory}, compute capability {capability}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in _lines(info) if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def _native() -> tuple[str, str]:
    missing = native.missing_reason()
    if missing is not None:
        return "native", f"C++ kernels for the CPU are missing: {missing}"
    module = native.module()
    threads = "with OpenMP" if module.openmp() else "without OpenMP, on one thread"
    return "native", f"C++ kernels for the CPU, compiled by {module.compiler()}, running on {module.isa()} {threads}"


def _operations(device: str) -> Iterator[str]:
    yield f"operations on {device}, each with the backend that serves it and why; reference is the plain PyTorch"
    yield from aligned([_choice(choice, device) for choice in dispatch.explain(device)])


def _choice(choice: dispatch.Choice, device: str) -> tuple[str, str, str]:
    # That a backend for another device was passed over goes without saying.
    backends = dispatch.OPERATIONS[choice.operation].backends
    against = [(name, reason) for name, reason in choice.passed_over if device in backends[name].devices]
    passed = "; ".join(f"not {name}: {reason}" for name, reason in against)
    return choice.operation, choice.backend, choice.reason + (f" ({passed})" if passed else "")
