"""What a GPU machine is and what it reaches: versions, and the rates that all fractions of a floor refer to."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from omnitrunk.bench import harness, machine
from omnitrunk.kernels import dispatch, gpu

LAUNCHES = 1000
PEERS = ("flash-attn", "flash-attn-4", "xformers", "apex", "timm", "liger-kernel", "pytest", "nvidia-dali-cuda130")


def launch_seconds(device: str) -> dict[str, float]:
    """Seconds of the host for one launch of the shortest kernel there is, by torch and by Triton where it can run."""
    x = torch.zeros(16, device=device)
    ways: dict[str, Callable[[], object]] = {"torch": lambda: x.add_(1)}
    if gpu.missing() is None:
        from omnitrunk.kernels.mlp.triton_elementwise import gelu_kernel

        ways["triton"] = lambda: gpu.launch(gelu_kernel, (1,), x, x, 16, EXACT=False, SIZE=16, num_warps=1)
    return {name: _seconds(way, device) for name, way in ways.items()}


def _seconds(way: Callable[[], object], device: str) -> float:
    for number in range(LAUNCHES + 3):
        if number == 3:
            _wait(device)
            start = time.perf_counter()
        way()
    spent = time.perf_counter() - start
    _wait(device)
    return spent / LAUNCHES


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def examine(device: str, quick: bool) -> dict[str, object]:
    """One row: rates, launch latencies, versions, and the backend that every operation takes."""
    row = machine.context(torch.get_num_threads(), machine.Neighbors())
    row |= machine.rates(device, 0.3 if quick else 3.0)
    row |= {f"{name}_launch_s": seconds for name, seconds in launch_seconds(device).items()}
    row["packages"] = {name: machine.version(name) for name in PEERS}
    row["backends"] = {choice.operation: choice.backend for choice in dispatch.explain(device)}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        row |= {"cuda": torch.version.cuda, "architecture": gpu.architecture(), "gpu_memory": properties.total_memory}
        row["multiprocessors"] = properties.multi_processor_count
    return row


def text(row: Mapping[str, object]) -> str:
    """The row as a person reads it."""
    rates = "{:.0f} GB/s copied, {:.1f} TFLOP/s of products, {:.0f} G exponentials/s".format(
        row["bytes_per_s"] / 1e9, row["flop_per_s"] / 1e12, row["exps_per_s"] / 1e9
    )
    launches = ", ".join(
        f"{name.removesuffix('_launch_s')} {1e6 * value:.1f} us"
        for name, value in row.items()
        if name.endswith("_launch_s")
    )
    found = ", ".join(f"{name} {version}" for name, version in row["packages"].items() if version != "absent")
    backends = ", ".join(f"{operation} {backend}" for operation, backend in row["backends"].items())
    return "\n".join(
        [
            f"{row['device']}, torch {row['torch']}, triton {row['triton']}, Python {row['python']}, "
            f"commit {row['commit']}, {row['time']}.",
            f"{rates}; the host launches in {launches}.",
            f"Peers: {found or 'none'}. Backends: {backends}.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine the machine, print the row and append it where asked."""
    options = argparse.ArgumentParser(prog="python -m omnitrunk.bench.gpu_doctor", description=__doc__)
    options.add_argument("--cpu", action="store_true", help="examine the CPU although there is a GPU")
    options.add_argument("--quick", action="store_true", help="a tenth of a second for each rate")
    options.add_argument("--json", type=Path, metavar="FILE", help="append the row as a JSON object on a line")
    chosen = options.parse_args(arguments)
    row = examine("cpu" if chosen.cpu or not torch.cuda.is_available() else "cuda", chosen.quick)
    print(text(row))
    if chosen.json:
        harness.append_json(chosen.json, [row])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
