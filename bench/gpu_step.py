"""A training step on a GPU: the engine, the engine from a CUDA graph, and the plain model, eager or compiled.

Contenders take turns in one process, each on batches and masks that lie on the device already, as a loader would have
put them there. All compute in bfloat16 where autocast allows it, and all take the norm of the gradient; the plain model
has torch's fused AdamW and SDPA. "wall" is a step of several in a row, "host" the time until the host is free again:
where host is as long as wall, the GPU waits for Python. With --profile, the engine's kernels are listed by their time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from omnitrunk.bench import harness, machine
from omnitrunk.bench.flops import step_flops
from omnitrunk.bench.plain_multimae import PlainMultiMAE, normalize
from omnitrunk.bench.sizes import SIZES, Size, random_batch
from omnitrunk.bench.step import ADAMW, SEED, engine_config
from omnitrunk.engine import durable
from omnitrunk.engine.adamw import AdamW
from omnitrunk.engine.data import Batch
from omnitrunk.engine.distributed import World
from omnitrunk.engine.graphs import CapturedGradients
from omnitrunk.engine.optimizer import OptimizerConfig
from omnitrunk.engine.step import autocast, compute_gradients, dry_step, train_step
from omnitrunk.models import MultiMAE

BATCHES, STEPS = 4, 5
"""Batches that rotate, and steps between two looks at the clock."""
ONE_INPUT = "-rgb"
"""Ending of a size's name that leaves rgb alone, as in MAE: steps of one shape, which a CUDA graph can hold."""
SAMPLES = {"base": 128, "large": 64}
"""Samples of a step on a GPU."""
PRECISIONS = {"cpu": "fp32", "cuda": "bf16"}

Step = Callable[[], object]


def size_named(name: str, device: str) -> Size:
    """The size of a step: a name of bench.sizes, perhaps with -rgb at its end."""
    size = SIZES[name.removesuffix(ONE_INPUT)]
    if device == "cuda":
        size = replace(size, batch=SAMPLES.get(name.removesuffix(ONE_INPUT), size.batch))
    if name.endswith(ONE_INPUT):
        model = replace(size.model, inputs=("rgb",), outputs=("norm_rgb",), keep=size.model.keep // 2)
        size = replace(size, model=model)
    return size


def engine_step(size: Size, device: str, *, graph: bool) -> Step:
    """The engine's own step."""
    model = MultiMAE(engine_config(size.model), SEED).to(device)
    optimizer = AdamW(model.parameter_groups(ADAMW["weight_decay"]), OptimizerConfig(**ADAMW))
    batches = []
    for number in range(BATCHES):
        positions = number * size.batch + np.arange(size.batch)
        tensors, labels = random_batch(size, number), torch.zeros(size.batch, dtype=torch.int64)
        batch = Batch(tensors=tensors, labels=labels, positions=positions, plan=model.plan(SEED, positions))
        batches.append(batch.to(device))
    options = {"precision": PRECISIONS[device], "world": World(rank=0, size=1, device=torch.device(device))}
    dry_step(model, optimizer, batches[0], **options)
    gradients = CapturedGradients() if graph else compute_gradients
    options |= {"lr": ADAMW["lr"], "gradients": gradients}
    return partial(train_step, model, optimizer, cycle(batches), **options)


def plain_step(size: Size, device: str, *, compiled: bool) -> Step:
    """The plain model's step, its losses and normalization included in what is compiled."""
    torch.manual_seed(SEED)
    model = PlainMultiMAE(replace(size.model, attention="sdpa")).to(device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, **ADAMW, fused=True)
    batches = [{name: x.to(device) for name, x in random_batch(size, number).items()} for number in range(BATCHES)]
    selections = [_on_device(model.draw_selection(size.batch), device) for _ in range(BATCHES)]
    inputs = cycle(zip(batches, selections, strict=True))

    def loss(batch: Mapping[str, torch.Tensor], selection: object) -> torch.Tensor:
        images = normalize(batch)
        return model.losses(model(images, selection), images, selection.masks)["loss"]

    run = torch.compile(loss) if compiled else loss

    def step() -> torch.Tensor:
        with autocast(torch.device(device), PRECISIONS[device]):
            value = run(*next(inputs))
        value.backward()
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        optimizer.step()
        optimizer.zero_grad()
        return norm

    return step


def _on_device(selection: object, device: str) -> object:
    return replace(
        selection,
        ids_keep=selection.ids_keep.to(device),
        ids_restore=selection.ids_restore.to(device),
        masks={name: mask.to(device) for name, mask in selection.masks.items()},
    )


def timed(step: Step, device: str) -> harness.Contender:
    """Seconds of a step, on the wall and on the host."""

    def turn() -> dict[str, float]:
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        host = time.perf_counter() - start
        if device == "cuda":
            torch.cuda.synchronize()
        return {"wall": (time.perf_counter() - start) / STEPS, "host": host / STEPS}

    return turn


def contenders(size: Size, device: str, *, compiled: bool) -> dict[str, Step]:
    """The plain model first: it is the baseline."""
    found = {"plain, compiled" if compiled else "plain": plain_step(size, device, compiled=compiled)}
    found["engine"] = engine_step(size, device, graph=False)
    if device == "cuda" and len(size.model.inputs) == 1:
        found["engine, CUDA graph"] = engine_step(size, device, graph=True)
    return found


def measure(name: str, device: str, *, compiled: bool, rounds: int) -> list[dict[str, object]]:
    """Rows of all contenders."""
    size, neighbors = size_named(name, device), machine.Neighbors()
    steps = contenders(size, device, compiled=compiled)
    samples = harness.interleave({key: timed(step, device) for key, step in steps.items()}, rounds, warmup=2)
    context = machine.context(torch.get_num_threads(), neighbors) | {"batch": size.batch}
    for least in (True, False):
        flop = step_flops(size.model, least=least).step * size.batch
        context["least_step_flop" if least else "plain_step_flop"] = flop
    return harness.rows(f"step {name}, batch {size.batch}, {device}", samples, context)


def profile(name: str, device: str) -> str:
    """The engine's kernels (operations, on a CPU) by the time they take, over a few steps."""
    step = engine_step(size_named(name, device), device, graph=False)
    timed(step, device)()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiled:
        timed(step, device)()
    order = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    table = profiled.key_averages().table(sort_by=order, row_limit=60, max_name_column_width=90)
    return f"{STEPS} steps of {name} on {device}\n{table}\n"


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(prog="python -m omnitrunk.bench.gpu_step", description=__doc__)
    names = [*SIZES, *(name + ONE_INPUT for name in SIZES)]
    options.add_argument("--size", choices=names, default="base", help="model; -rgb has one input, as MAE has")
    options.add_argument("--compile", action="store_true", help="compile the plain model")
    options.add_argument("--profile", type=Path, metavar="FILE", help="write a table of kernels instead of measuring")
    options.add_argument("--rounds", type=int, default=20, help="turns of each contender")
    options.add_argument("--quick", action="store_true", help="two turns")
    options.add_argument("--cpu", action="store_true", help="measure the CPU although there is a GPU")
    options.add_argument("--json", type=Path, metavar="FILE", help="append the rows, one JSON object a line")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure or profile, print the table, and write it where asked."""
    options = parser().parse_args(arguments)
    device = "cpu" if options.cpu or not torch.cuda.is_available() else "cuda"
    if options.profile:
        table = profile(options.size, device)
        durable.write_text(options.profile, table)
        print(table)
        return 0
    rows = measure(options.size, device, compiled=options.compile, rounds=2 if options.quick else options.rounds)
    print(harness.markdown(rows))
    if options.json:
        harness.append_json(options.json, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
