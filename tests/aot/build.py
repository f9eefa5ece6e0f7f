"""Compile a recorded launch for an architecture, without a GPU, and read what it takes from the machine code."""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.aot.record import Launch

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def resources(launch: Launch, architecture: int) -> dict[str, int]:
    """Registers and stack bytes a thread, shared bytes a block, tensor core instructions, widest access in bytes."""
    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    names = kernel.arg_names
    signature = {name: launch.types.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in launch.constants.items()}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in launch.divisible}
    source = ASTSource(kernel, signature, constants, attributes)
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=dict(launch.options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        code = _tool("cuobjdump", "-sass", file.name)
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "shared": compiled.metadata.shared,
        "instructions": len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.MULTILINE)),
        "wgmma": len(re.findall(r"\b[HQI]GMMA\b", code)),
        "mma": len(re.findall(r"\b(?:HMMA|IMMA|UTC\w*MMA)\b", code)),
        "widest_access": _widest(code),
    }


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def _widest(code: str) -> int:
    """Bytes a thread moves at most in one access to global memory; 128 stands for the bulk copy engine."""
    if re.search(r"\bUTMA(?:LDG|STG)", code):
        return 128
    accesses = re.findall(r"\b(?:LDG|STG|LDGSTS)\.E(\S*)", code)
    sizes = [
        int(bits) // 8 for access in accesses for bits in re.findall(r"\.(\d+)", access) if bits in ("64", "128", "256")
    ]
    return max(sizes, default=4 if accesses else 0)
