"""omnitrunk bench window_step: forward and backward of a shifted-window model against its textbook form.

An Omnivore and the plain Swin of bench/plain_swin.py, with the same weights, take turns in processes of their own on
the same batch of pictures or clips, floating and normalized, each in the layout that it works in. The textbook runs
twice: with its scores written down, and with PyTorch's fused attention.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnitrunk.bench import harness, machine, stopwatch
from omnitrunk.bench.plain_swin import PlainSwin, PlainSwinConfig, from_omnivore
from omnitrunk.bench.worker import Worker
from omnitrunk.engine.host_memory import keep_freed
from omnitrunk.engine.stopwatch import Stopwatch
from omnitrunk.models import Omnivore, OmnivoreConfig

SEED, BATCH, CLASSES = 0, 2, 1000
HEAD = "classes"
OURS = "omnitrunk"
TEXTBOOKS = {"textbook": "eager", "textbook, SDPA": "sdpa"}
"""Contender -> how it computes attention; see plain_swin.PlainSwinConfig."""
WAYS = (*TEXTBOOKS, OURS)
BOTH = "forward + backward"
TINY = {"width": 32, "depths": (2, 2), "heads": (1, 2), "window": (4, 3, 3)}
SWIN_T = {"width": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24), "window": (8, 7, 7)}
CASES = {
    "picture": (SWIN_T, (1, 224, 224)),
    "clip": (SWIN_T, (8, 112, 112)),
    "tiny picture": (TINY, (1, 60, 60)),
    "tiny clip": (TINY, (6, 36, 36)),
}
"""Sizes of the model; frames, height and width of a sample."""
QUICK = "tiny "
"""What the names of cases for a quick run begin with."""


def omnivore(case: str) -> Omnivore:
    """The model of a case, with one head; it looks biases up like the releases, as the textbook does."""
    sizes, (frames, *_) = CASES[case]
    sets = {"image_sets": {HEAD: CLASSES}} if frames == 1 else {"image_sets": {}, "video_sets": {HEAD: CLASSES}}
    return Omnivore(OmnivoreConfig(faithful=True, **sizes, **sets), SEED)


def textbook(case: str, attention: str, like: Omnivore) -> PlainSwin:
    """The plain form of a case's model, with the weights of `like`."""
    config = PlainSwinConfig(classes=CLASSES, attention=attention, **CASES[case][0])
    model = PlainSwin(config)
    model.load_state_dict(from_omnivore(like.state_dict(), config, HEAD))
    return model


def samples(case: str) -> tuple[Tensor, Tensor]:
    """Random pixels (B, T, H, W, 3) and labels (B,)."""
    random = torch.Generator().manual_seed(SEED)
    pixels = torch.randn(BATCH, *CASES[case][1], 3, generator=random)
    return pixels, torch.randint(0, CLASSES, (BATCH,), generator=random)


def build(way: str, case: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    """One of WAYS: the model, and its loss on the batch of the case."""
    ours, (pixels, labels) = omnivore(case), samples(case)
    if way != OURS:
        model, clips = textbook(case, TEXTBOOKS[way], ours), pixels.permute(0, 4, 1, 2, 3).contiguous()
        return model, lambda: F.cross_entropy(model(clips), labels)
    batch = {"rgb": pixels[:, 0]} if pixels.shape[1] == 1 else {"video": pixels}
    plan = ours.plan(SEED, np.arange(BATCH))
    return ours, lambda: ours({**batch, "label": labels}, plan)["loss"]


def training_step(way: str, case: str) -> harness.Contender:
    """Forward and backward of one of WAYS, again and again on one batch; gradients do not outlive a step."""
    model, loss_of = build(way, case)

    def step() -> Mapping[str, float]:
        watch = Stopwatch()
        with watch.spent_on("forward"):
            loss = loss_of()
        with watch.spent_on("backward"):
            loss.backward()
        entry = dict(watch.lap())
        model.zero_grad()
        return entry | {BOTH: entry["forward"] + entry["backward"]}

    return step


def contender(way: str, case: str, threads: int) -> harness.Contender:
    """One way; every turn's entry also says what a step took at most, in bytes, beyond model and batch."""
    torch.set_num_threads(threads)
    keep_freed()  # as a run does
    step = training_step(way, case)
    step()
    memory = stopwatch.peak(step, "cpu")
    return lambda: {**step(), "memory": memory}


def measure(case: str, rounds: int, threads: int) -> list[dict[str, object]]:
    """Rows of one case, with the least time of every part and the peak of memory."""
    neighbors = machine.Neighbors()
    with ExitStack() as stack:
        contenders = {way: stack.enter_context(Worker(contender, way, case, threads, threads=threads)) for way in WAYS}
        turns = harness.interleave(contenders, rounds)
    memory = {way: max(entry.pop("memory") for entry in entries.values()) for way, entries in turns.items()}
    rows = harness.rows(f"window step, {case}", turns, machine.context(threads, neighbors))
    for row in rows:
        row["least"] = min(entry[row["part"]] for entry in turns[row["contender"]].values())
        row["peak_bytes"] = memory[row["contender"]]
    return rows


def summary(rows: Sequence[Mapping[str, object]]) -> str:
    """One line for each contender: its least time, and the memory of a step."""
    return "\n".join(
        f"{row['contender']}: {1e3 * row['least']:.1f} ms at least, {row['peak_bytes'] / 1e6:.1f} MB at most"
        for row in rows
        if row["part"] == BOTH
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, least times and memory for every case, append the rows to the file asked for."""
    options = parser().parse_args(arguments)
    for case in options.cases:
        name, rounds = (QUICK + case, 2) if options.quick else (case, options.steps)
        rows = measure(name, rounds, options.threads)
        print(harness.markdown(rows), summary(rows), sep="\n\n", end="\n\n")
        if options.json:
            harness.append_json(options.json, rows)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    cases = [case for case in CASES if not case.startswith(QUICK)]
    options = argparse.ArgumentParser(prog="omnitrunk bench window_step", description=__doc__)
    options.add_argument("--cases", nargs="+", choices=cases, default=cases, help="kinds of samples, two in a batch")
    options.add_argument("--steps", type=int, default=20, help="measured steps of each way")
    options.add_argument("--threads", type=int, default=1, help="threads of each")
    options.add_argument("--quick", action="store_true", help="a tiny model and two steps: does it run?")
    options.add_argument("--json", type=Path, help="append the rows to this file, one JSON object a line")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
