"""One training step of the engine against the plain model: normalize, mask, forward, backward, optimizer.

Every contender runs in a process of its own; they take turns, one step each, on the same batch and with masks of their
own. Both take the gradient norm, which every loop logs. The plain model normalizes all pixels in "prepare", the engine
only the visible and the scored ones, in "forward". Before and after, the machine's matrix and memory rates are
measured, so that the table can end in what arithmetic alone would allow.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import torch

from omnitrunk.bench import harness, machine
from omnitrunk.bench.flops import step_flops
from omnitrunk.bench.plain_layers import ATTENTIONS
from omnitrunk.bench.plain_multimae import PlainConfig, PlainMultiMAE, normalize
from omnitrunk.bench.sizes import SIZES, Size, random_batch
from omnitrunk.bench.worker import Worker
from omnitrunk.engine.adamw import AdamW
from omnitrunk.engine.optimizer import OptimizerConfig
from omnitrunk.engine.stopwatch import Stopwatch
from omnitrunk.kernels.adamw import cost as adamw_cost
from omnitrunk.models import MultiMAE, MultiMAEConfig

SEED = 0
ADAMW = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.05}


def plain_step(size_name: str, attention: str, fused: bool, threads: int) -> harness.Contender:
    """The plain model's step."""
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    size = SIZES[size_name]
    model = PlainMultiMAE(replace(size.model, attention=attention))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, **ADAMW, fused=fused or None)
    batch = random_batch(size, SEED)

    def step() -> Mapping[str, float]:
        watch = Stopwatch()
        with watch.spent_on("prepare"):
            images = normalize(batch)
            selection = model.draw_selection(size.batch)
        with watch.spent_on("forward"):
            loss = model.losses(model(images, selection), images, selection.masks)["loss"]
        with watch.spent_on("backward"):
            loss.backward()
        with watch.spent_on("optimizer"):
            norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
            optimizer.step()
            optimizer.zero_grad()
        assert norm.isfinite(), "a random batch must give finite gradients"
        return watch.lap()

    return step


def engine_config(plain: PlainConfig) -> MultiMAEConfig:
    """The engine's configuration of the same sizes."""
    return MultiMAEConfig(
        inputs=plain.inputs,
        outputs=plain.outputs,
        image_size=plain.image_size,
        patch_size=plain.patch,
        width=plain.width,
        depth=plain.depth,
        heads=plain.heads,
        mlp_ratio=plain.mlp_ratio,
        global_tokens=plain.global_tokens,
        decoder_width=plain.decoder_width,
        decoder_depth=plain.decoder_depth,
        decoder_heads=plain.decoder_heads,
        keep=plain.keep,
        alphas={task: plain.alphas[task] for task in plain.inputs},
        semseg_classes=plain.classes,
        class_embedding_width=plain.class_width,
    )


def engine_step(size_name: str, threads: int) -> harness.Contender:
    """The engine's step on the same batch and sizes."""
    torch.set_num_threads(threads)
    size = SIZES[size_name]
    model = MultiMAE(engine_config(size.model), SEED)
    optimizer = AdamW(model.parameter_groups(ADAMW["weight_decay"]), OptimizerConfig(**ADAMW))
    batch = random_batch(size, SEED)
    positions = count(step=size.batch)

    def step() -> Mapping[str, float]:
        watch = Stopwatch()
        with watch.spent_on("prepare"):
            plan = model.plan(SEED, next(positions) + np.arange(size.batch))
        with watch.spent_on("forward"):
            loss = model(batch, plan)["loss"]
        with watch.spent_on("backward"):
            loss.backward()
        with watch.spent_on("optimizer"):
            _, skipped = optimizer.update(ADAMW["lr"])
            optimizer.clear_gradients()
        assert not skipped, "a random batch must give finite gradients"
        return watch.lap()

    return step


def machine_rates(quick: bool) -> dict[str, float]:
    """FLOP/s of products by library, and bytes/s of memory."""
    budget = 0.1 if quick else 3.0
    return machine.matmul_rates(budget) | {"memory": machine.memory_bandwidth(budget)}


def floors(size: Size, rates: Mapping[str, float]) -> dict[str, object]:
    """The arithmetic of one step of the whole batch, in FLOP and in seconds at the best of the machine's rates."""
    best = max(rate for name, rate in rates.items() if name != "memory")
    plain = step_flops(size.model, least=False).step * size.batch
    least = step_flops(size.model, least=True).step * size.batch
    with torch.device("meta"):
        parameters = sum(p.numel() for p in PlainMultiMAE(size.model).parameters() if p.requires_grad)
    return {
        "batch": size.batch,
        "parameters": parameters,
        "rates": dict(rates),
        "plain_step_flop": plain,
        "least_step_flop": least,
        "least_matmul_seconds": least / best,
        "least_adamw_seconds": adamw_cost(parameters).bytes / rates["memory"],
    }


def limits(table: Sequence[Mapping[str, object]], floor: Mapping[str, object]) -> str:
    """How much of each contender's step is matrix arithmetic, and how far it is from the floor."""
    rates = ", ".join(f"{name} {rate / 1e9:.0f} G/s" for name, rate in floor["rates"].items())
    products, adamw = floor["least_matmul_seconds"], floor["least_adamw_seconds"]
    lines = [
        f"Machine (FLOP of float32 products, bytes of memory): {rates}; {machine.disturbance(table[0])}.",
        f"One step of {floor['batch']} samples: {floor['plain_step_flop'] / 1e9:.1f} GFLOP in the plain model, "
        f"{floor['least_step_flop'] / 1e9:.1f} GFLOP needed; AdamW on {floor['parameters']:,} parameters.",
        f"Floor at the best rates: {1e3 * products:.1f} ms of products and {1e3 * adamw:.1f} ms of AdamW traffic.",
    ]
    for row in table:
        if row["part"] == "wall":
            share, left = 100 * products / row["median"], row["median"] / (products + adamw)
            lines.append(f"{row['contender']}: {share:.0f} % of the step is arithmetic; {left:.2f} times the floor.")
    return "\n".join(lines)


def measure(size: str, attentions: Sequence[str], fused: bool, threads: int, steps: int) -> harness.Samples:
    """The contenders' parts over `steps` rounds; the first attention named is the baseline."""
    optimizer = "fused AdamW" if fused else "AdamW"
    with ExitStack() as stack:
        contenders: dict[str, harness.Contender] = {}
        for attention in attentions:
            worker = Worker(plain_step, size, attention, fused, threads, threads=threads)
            contenders[f"plain ({attention}, {optimizer})"] = stack.enter_context(worker)
        contenders["engine"] = stack.enter_context(Worker(engine_step, size, threads, threads=threads))
        return harness.interleave(contenders, rounds=steps, warmup=min(3, steps))


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(prog="omnitrunk bench step", description=__doc__)
    options.add_argument("--size", choices=SIZES, default="demo", help="model and batch")
    options.add_argument("--steps", type=int, default=10, help="measured steps of each contender")
    options.add_argument("--attention", choices=ATTENTIONS, nargs="+", default=list(ATTENTIONS), help="plain model's")
    options.add_argument("--fused", action="store_true", help="the plain model uses torch's fused AdamW")
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of each contender")
    options.add_argument("--quick", action="store_true", help="a tiny model and two steps: does it run?")
    options.add_argument("--json", type=Path, help="append the rows to this file, one JSON object a line")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the table and the limits, and appends the rows to the file asked for."""
    options = parser().parse_args(arguments)
    size, steps = ("tiny", 2) if options.quick else (options.size, options.steps)
    torch.set_num_threads(options.threads)
    neighbors = machine.Neighbors()
    before = machine_rates(options.quick)
    samples = measure(size, options.attention, options.fused, options.threads, steps)
    after = machine_rates(options.quick)
    floor = floors(SIZES[size], {name: max(rate, after[name]) for name, rate in before.items()})
    table = harness.rows(f"step {size}", samples, machine.context(options.threads, neighbors) | floor)
    print(harness.markdown(table), limits(table, floor), sep="\n\n")
    if options.json:
        harness.append_json(options.json, table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
