"""What an operation would launch on a GPU, found by running it on tensors without memory."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from omnitrunk import kernels
from omnitrunk.kernels import gpu

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64", torch.bool: "i1",
         torch.uint8: "u8", torch.int8: "i8", torch.int32: "i32", torch.int64: "i64"}  # fmt: skip
OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")
ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True)
class Launch:
    """A kernel as Triton's launcher would specialise it: argument types, constants, what is divisible by 16."""

    operation: str
    case: str
    module: str
    kernel: str
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    divisible: tuple[str, ...]
    options: Mapping[str, Any]

    @property
    def key(self) -> str:
        return f"{self.case}: {self.kernel}"


def operations() -> list[str]:
    """Every operation that has Triton kernels: a folder with configs.json."""
    return sorted(path.parent.name for path in Path(kernels.__path__[0]).glob("*/configs.json"))


def modules(operation: str) -> list[Any]:
    """The modules of an operation that list what they ship."""
    folder = Path(kernels.__path__[0]) / operation
    names = sorted(path.stem for path in folder.glob("triton*.py"))
    found = [importlib.import_module(f"omnitrunk.kernels.{operation}.{name}") for name in names]
    return [module for module in found if hasattr(module, "shipped")]


def launches(operation: str, architecture: int) -> dict[str, Launch]:
    """All launches of all shipped cases of an operation, with the settings of one architecture; each kernel once."""
    seen: dict[str, Launch] = {}
    saved = gpu.launch, gpu.architecture
    gpu.architecture = lambda: f"sm_{architecture}"
    gpu.settings.cache_clear()
    try:
        for module in modules(operation):
            for case, run in module.shipped().items():
                gpu.launch = _recorder(operation, case, seen)
                run()
    finally:
        gpu.launch, gpu.architecture = saved
        gpu.settings.cache_clear()
    return seen


def _recorder(operation: str, case: str, seen: dict[str, Launch]) -> Any:
    def record(kernel: Any, grid: tuple[int, ...], *arguments: Any, **settings: Any) -> None:
        options = {name: settings.pop(name) for name in OPTIONS if name in settings}
        given = dict(zip(kernel.arg_names, arguments, strict=False)) | settings
        assert set(given) == set(kernel.arg_names), set(given) ^ set(kernel.arg_names)
        types, constants, divisible = {}, {}, []
        for parameter in kernel.params:
            value = given[parameter.name]
            if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
                constants[parameter.name] = value
                continue
            types[parameter.name] = _type(value)
            if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
                divisible.append(parameter.name)
        module = kernel.fn.__module__
        launch = Launch(operation, case, module, kernel.fn.__name__, types, constants, tuple(divisible), options)
        key, number = launch.key, 1
        while key in seen and seen[key] != launch:
            number += 1
            key = f"{launch.key} {number}"
        seen[key] = launch

    return record


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + NAMES[value.dtype]
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"
