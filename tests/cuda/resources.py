"""What nvcc makes of the CUDA kernels, without a GPU: registers, shared memory, stack and spills of every one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "csrc" / "cuda"
BUDGETS = Path(__file__).parent / "budgets.json"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")

_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '\w+'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def nvcc():
    """Path of nvcc, or None; the CUDA toolkit is in CUDA_HOME, CUDA_PATH or on PATH."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    places = [os.path.join(home, "bin") for home in homes] + [os.environ.get("PATH", os.defpath)]
    return shutil.which("nvcc", path=os.pathsep.join(places))


def sources():
    return sorted(SOURCES.glob("*.cu"))


def measure():
    """{architecture: {kernel: {"registers", "shared", "stack", "spills"}}}, memory in bytes."""
    table = {architecture: {} for architecture in ARCHITECTURES}
    jobs = [(architecture, source) for architecture in ARCHITECTURES for source in sources()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (architecture, _), kernels in zip(jobs, pool.map(lambda job: _measure(*job), jobs), strict=True):
            table[architecture].update(kernels)
    return {architecture: dict(sorted(kernels.items())) for architecture, kernels in table.items()}


def _measure(architecture, source):
    output = _compile("-cubin", f"-arch={architecture}", "-Xptxas=-v", source)
    kernels = {}
    for entry in _ENTRY.finditer(output):
        shared = re.search(r"(\d+) bytes smem", entry["rest"])
        kernels[_readable(entry["name"])] = {
            "registers": int(entry["registers"]),
            "shared": int(shared[1]) if shared else 0,
            "stack": int(entry["stack"]),
            "spills": int(entry["stores"]) + int(entry["loads"]),
        }
    assert kernels, f"no kernel found in what ptxas said of {source.name}:\n{output}"
    return kernels


def ptx(source, architecture="compute_90"):
    """The code of a source before the last step of compilation, as text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "code.ptx"
        _compile("-ptx", f"-arch={architecture}", source, output=path)
        return path.read_text()


def _compile(*arguments, output=os.devnull):
    command = [nvcc(), "-std=c++17", "-O3", *map(str, arguments), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def _readable(symbol):
    """The kernel's struct, NearestNeighbors<1> for example, of a symbol run<omnitrunk::NearestNeighbors<1>>(...)."""
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout
    return re.search(r"run<omnitrunk::(.*?) ?>\(omnitrunk", name)[1]


def budgets():
    return json.loads(BUDGETS.read_text())


def write(table):
    BUDGETS.write_text(json.dumps(table, indent=1) + "\n")
