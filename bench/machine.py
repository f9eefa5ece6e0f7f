"""What this machine is and what it can do: identity for every row, and the two rates a floor is computed from."""

from __future__ import annotations

import functools
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import torch


def best_seconds(work: Callable[[], object], budget: float) -> float:
    """Shortest time of `work()` in `budget` seconds: the least disturbed run is the closest to what is possible."""
    work()
    best, end = float("inf"), time.perf_counter() + budget
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def _onednn_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product a @ b.T by oneDNN, which torch ships but does not use for plain float32 products."""
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


def matmul_rates(budget: float = 3.0, sizes: tuple[int, ...] = (512, 1024, 2048)) -> dict[str, float]:
    """Library -> its highest float32 rate in FLOP/s (2 per multiply-add) over square products of the given sides.

    torch.mm goes to MKL, which on processors of other makers than Intel may leave half of the vector width unused; a
    floor must not inherit that, so oneDNN is measured as well where torch has it.
    """
    libraries: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"torch.mm": torch.mm}
    if torch.backends.mkldnn.is_available():
        libraries["oneDNN"] = _onednn_product
    rates = dict.fromkeys(libraries, 0.0)
    for size in sizes:
        a, b = torch.rand(size, size), torch.rand(size, size)
        for name, product in libraries.items():
            seconds = best_seconds(functools.partial(product, a, b), budget / len(sizes) / len(libraries))
            rates[name] = max(rates[name], 2 * size**3 / seconds)
    return rates


def memory_bandwidth(budget: float = 2.0, megabytes: int = 256) -> float:
    """Bytes per second, read plus written, on blocks that fit in no cache: a copy or a change in place, what is faster.

    A copy may have to fetch the lines that it overwrites, traffic which nobody asked for; a change in place never does.
    """
    source = torch.zeros(megabytes * 250_000)
    target = torch.zeros_like(source)
    ways = (lambda: target.copy_(source), lambda: target.neg_())
    return max(2 * source.nbytes / best_seconds(way, budget / len(ways)) for way in ways)


def rates(device: str, budget: float = 3.0) -> dict[str, float]:
    """The three rates that floors are computed from: bytes, FLOP and exponentials per second, in `budget` seconds."""
    if device == "cuda":
        return _cuda_rates()
    values = torch.rand(100_000)
    exponential = best_seconds(lambda: torch.exp(values), budget / 8)
    return {
        "bytes_per_s": memory_bandwidth(budget / 2),
        "flop_per_s": max(matmul_rates(budget / 2, (1024,) if budget < 1 else (512, 1024, 2048)).values()),
        "exps_per_s": len(values) / exponential,
    }


def _cuda_rates() -> dict[str, float]:
    """A copy of 2 GB, a product of random bfloat16 matrices of side 8192, and 16 exponentials per clock and SM."""
    source, target = torch.empty(2, 1 << 30, dtype=torch.uint8, device="cuda")
    a, b = torch.randn(2, 8192, 8192, dtype=torch.bfloat16, device="cuda")
    properties = torch.cuda.get_device_properties(0)
    return {
        "bytes_per_s": 2 * source.nbytes / _cuda_seconds(lambda: target.copy_(source)),
        "flop_per_s": 2 * 8192**3 / _cuda_seconds(lambda: a @ b),
        "exps_per_s": 16 * properties.multi_processor_count * 1e3 * properties.clock_rate,
    }


def _cuda_seconds(work: Callable[[], object], repeats: int = 20) -> float:
    """Mean seconds on the device, after a few calls to settle."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for number in range(repeats + 3):
        if number == 3:
            start.record()
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def cpu_model() -> str:
    """The processor's own name, with family and model numbers where a virtual machine hides the rest."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    fields = dict(line.split("\t: ", 1) for line in info.read_text().split("\n\n")[0].splitlines() if "\t: " in line)
    fields = {key.strip(): value for key, value in fields.items()}
    name = fields.get("model name", platform.machine())
    return f"{name} family {fields.get('cpu family')} model {fields.get('model')}"


def commit() -> str:
    """The checkout's commit, "-dirty" with uncommitted changes, "unknown" outside a checkout."""
    folder = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True)
        state = subprocess.run(["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("-dirty" if state.stdout.strip() else "")


def version(package: str) -> str:
    """The installed version of a package, or "absent"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


class Neighbors:
    """How much of the machine other processes took since this object was made."""

    def __init__(self) -> None:
        self._start = self._readings()

    def cores(self) -> float | None:
        """Mean number of cores taken by others; this process's ended children are its own. None where nobody counts."""
        if self._start is None:
            return None
        wall, busy, own = (now - then for now, then in zip(self._readings(), self._start, strict=True))
        return max(0.0, busy - own) / wall

    @staticmethod
    def _readings() -> tuple[float, float, float] | None:
        """Seconds by the clock, of all busy cores together, and of this process and its ended children."""
        counters = Path("/proc/stat")
        if not counters.exists():
            return None
        user, nice, system, _idle, _waiting, *interrupts = map(int, counters.read_text().splitlines()[0].split()[1:9])
        busy = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, sum(os.times()[:4])


def command(words: Sequence[str]) -> list[str]:
    """The command line of a process without the folders of this machine: python ..., or omnitrunk ..."""
    if len(words) > 1 and Path(words[1]).name == "omnitrunk":
        return ["omnitrunk", *words[2:]]
    return ["python", *words[1:]]


def context(threads: int, neighbors: Neighbors) -> dict[str, object]:
    """What every row states besides its numbers: command, device, threads, versions, commit, and who disturbed."""
    return {
        "command": shlex.join(command(sys.orig_argv)),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "cores_of_others": neighbors.cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "commit": commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def disturbance(row: Mapping[str, object]) -> str:
    """What a reader must know before believing a row's times."""
    cores = row["cores_of_others"]
    return "nobody counted other processes" if cores is None else f"other processes took {cores:.2f} cores meanwhile"
