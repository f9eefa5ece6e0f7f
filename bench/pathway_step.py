"""omnitrunk bench pathway_step: what joining a trunk with another costs a training step (M2PT).

Three steps of one classifier take turns in processes of their own, on the same batch: plain; joined, as the engine does
it (the effective weight is kept, one gradient a layer, the rest is the optimizer's); joined as the definition reads,
x (W + lambda W')^T in every forward pass and three gradients from autograd. A second plain step is the control:
processes of equal code differ by several per cent, from one start to the next, so all are started several times.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from omnitrunk.bench import harness, machine, stopwatch
from omnitrunk.bench.worker import Worker
from omnitrunk.engine.adamw import AdamW
from omnitrunk.engine.host_memory import keep_freed
from omnitrunk.engine.optimizer import OptimizerConfig
from omnitrunk.engine.pairing import pair
from omnitrunk.engine.stopwatch import Stopwatch
from omnitrunk.models import Classifier, ClassifierConfig
from omnitrunk.models.pathway import PathwayConfig, PathwayWeights, join, joined_layers

SEED, SCALE = 0, 0.01
PLAIN, CONTROL, ENGINE, DEFINITION = "plain", "plain, once more", "joined", "joined, by definition"
WAYS = (PLAIN, CONTROL, ENGINE, DEFINITION)
BOTH = "forward + backward"
SIZES = {
    "tiny": ({"image_size": 32, "patch_size": 8, "width": 32, "depth": 2, "heads": 2}, 4),
    "demo": ({"image_size": 64, "patch_size": 8, "width": 128, "depth": 4, "heads": 4}, 64),
    "base": ({"image_size": 224, "patch_size": 16, "width": 768, "depth": 12, "heads": 12}, 8),
}
"""Encoder and samples of a step; base is ViT-B/16."""


class DefinedWeights(nn.Module):
    """The weight of a joined layer as M2PT writes it down, anew in every call."""

    def __init__(self, joined: PathwayWeights) -> None:
        super().__init__()
        self.auxiliaries, self.scales = joined.auxiliaries, joined.scales

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight (outputs, inputs)."""
        return sum((scale * part for scale, part in zip(self.scales, self.auxiliaries, strict=True)), weight)


def build(way: str, size: str) -> Classifier:
    """A classifier joined with an untrained one of its size in one of WAYS."""
    encoder, _ = SIZES[size]
    config = ClassifierConfig(encoder={"system": "mae", **encoder})
    model = Classifier(config, SEED)
    if way in (ENGINE, DEFINITION):
        join(model.blocks, [Classifier(config, SEED + 1).blocks.state_dict()], PathwayConfig(scale=SCALE))
    if way == DEFINITION:
        for layer in joined_layers(model).values():
            layer.pathway = DefinedWeights(layer.pathway)
    return model


def training_step(way: str, size: str) -> harness.Contender:
    """A model and an optimizer of their own, and the step that they take again and again on one random batch."""
    model = build(way, size)
    paired = pair(model, "fp32") if way == ENGINE else []
    optimizer = AdamW(model.parameter_groups(0.05), OptimizerConfig(lr=1e-4), paired)
    edge, samples = SIZES[size][0]["image_size"], SIZES[size][1]
    random = torch.Generator().manual_seed(SEED)
    batch = {
        "rgb": torch.randint(0, 256, (samples, edge, edge, 3), dtype=torch.uint8, generator=random),
        "label": torch.randint(0, 1000, (samples,), generator=random),
    }
    plan = model.plan(SEED, np.arange(samples))

    def step() -> Mapping[str, float]:
        watch = Stopwatch()
        with watch.spent_on("forward"):
            loss = model(batch, plan)["loss"]
        with watch.spent_on("backward"):
            loss.backward()
        with watch.spent_on("optimizer"):
            optimizer.update(1e-4)
            optimizer.clear_gradients()
        entry = dict(watch.lap())
        return entry | {BOTH: entry["forward"] + entry["backward"]}

    return step


def contender(way: str, size: str, threads: int) -> harness.Contender:
    """One way; every turn's entry also says what model, optimizer and two steps took at most, in bytes."""
    torch.set_num_threads(threads)
    keep_freed()  # as a run does

    def twice() -> None:
        step = training_step(way, size)
        step()
        step()

    memory, step = stopwatch.peak(twice, "cpu"), training_step(way, size)
    return lambda: {**step(), "memory": memory}


def measure(size: str, rounds: int, start: int, threads: int) -> harness.Samples:
    """So many turns of all ways in fresh processes; each `start` begins a round with another of them."""
    first = start % len(WAYS)
    with ExitStack() as stack:
        contenders = {
            way: stack.enter_context(Worker(contender, way, size, threads, threads=threads))
            for way in (*WAYS[first:], *WAYS[:first])
        }
        return harness.interleave(contenders, rounds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and the memory, append the rows to the file asked for."""
    options = parser().parse_args(arguments)
    size, starts, rounds = ("tiny", 1, 2) if options.quick else (options.size, options.starts, options.steps)
    neighbors = machine.Neighbors()
    samples: harness.Samples = {way: {} for way in WAYS}
    for start in range(starts):
        for way, turns in measure(size, rounds, start, options.threads).items():
            samples[way] |= {start * rounds + number: entry for number, entry in turns.items()}
    memory = {way: max(entry.pop("memory") for entry in turns.values()) for way, turns in samples.items()}
    table = harness.rows(f"pathway step {size}", samples, machine.context(options.threads, neighbors))
    print(harness.markdown(table), "", sep="\n")
    print(", ".join(f"{way}: {size / 1e6:.1f} MB" for way, size in memory.items()), "at most")
    if options.json:
        harness.append_json(options.json, [row | {"peak_bytes": memory[row["contender"]]} for row in table])
    return 0


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(prog="omnitrunk bench pathway_step", description=__doc__)
    options.add_argument("--size", choices=SIZES, default="demo", help="model and batch")
    options.add_argument("--steps", type=int, default=20, help="measured steps of each way and start")
    options.add_argument("--starts", type=int, default=4, help="how often the processes are started (default 4)")
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of each")
    options.add_argument("--quick", action="store_true", help="a tiny model and two steps: does it run?")
    options.add_argument("--json", type=Path, help="append the rows to this file, one JSON object a line")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
