"""omnitrunk bench joint: is one model of several data sets as good as one for each? (Omnivore)

Girdhar et al. 2022, table 2, at any size: a joint recipe is trained as it is, and each of its data sets alone, by a
model of the same size, with as many samples of the data set, in steps as large as those of the joint run. Every
training is a run of its own: a stopped experiment goes on where it was, and measures nothing twice.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np

from omnitrunk.bench import harness, machine
from omnitrunk.bench.trainings import Row, measured, run_recipe, threads_of
from omnitrunk.engine import durable
from omnitrunk.engine.config import RunConfig, as_dict, dump, load, read
from omnitrunk.engine.data import open_index
from omnitrunk.engine.datasets import DataSet, batches_of_each, data_sets, micro_batches
from omnitrunk.models import OmnivoreConfig

JOINT = "joint"
KINDS = ("image_sets", "video_sets", "rgbd_sets")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, append a row for each training, print the table."""
    options = parser().parse_args(arguments)
    config = load(options.config)
    if not isinstance(config.model, OmnivoreConfig):
        raise ValueError(f"{options.config} is a recipe of {config.model.system}; give one of {OmnivoreConfig.system}")
    if len(data_sets(config)) < 2:
        raise ValueError(f"{options.config} has one data set alone; give a recipe with a [mixture]")
    settings = {
        "recipe": options.config.stem,
        "joint_steps": config.run.steps,
        "batches": config.mixture.batches,
    }
    rows = measured(options.json, settings)
    done = {(row["arm"], row["seed"]) for row in rows}
    wanted = [
        (arm, seed, path)
        for seed in range(options.seeds)
        for arm, path in recipes(config, options.folder, seed)
        if (arm, seed) not in done
    ]
    neighbors, threads = machine.Neighbors(), threads_of(options.jobs)
    with ThreadPoolExecutor(options.jobs) as pool:
        results = pool.map(lambda path: run_recipe(path, threads), [path for *_, path in wanted])
        for (arm, seed, path), (scores, last) in zip(wanted, results, strict=True):
            row = {"arm": arm, "seed": seed, **settings, "steps": load(path).run.steps, "scores": scores}
            rows.append(row | {"train_loss": last["loss"]} | machine.context(threads, neighbors))
            harness.append_json(options.json, rows[-1:])
            print(f"{len(rows)} measured: {arm}, seed {seed}", flush=True)
    print("", markdown(rows, list(data_sets(config))), sep="\n")
    return 0


def recipes(config: RunConfig, folder: Path, seed: int) -> Iterator[tuple[str, Path]]:
    """The joint recipe, and one for each of its data sets alone, as files."""
    steps = steps_of_each(config)
    for arm in (JOINT, *data_sets(config)):
        values = as_dict(config) if arm == JOINT else alone(config, arm, *steps[arm])
        values["run"] |= {"folder": str(folder / f"{arm}-{seed}"), "seed": seed}
        values["log"] |= {"tensorboard": False}
        path = folder / "recipes" / f"{arm}-{seed}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_text(path, dump(read(values)))
        yield arm, path


def steps_of_each(config: RunConfig) -> dict[str, tuple[int, int]]:
    """Data set -> steps and their samples that show it as often as the joint run does, by the mean over an epoch."""
    sets = data_sets(config)
    rows = {
        name: len(open_index(one.data, one.data.train_split, one.modalities)) * one.data.copies
        for name, one in sets.items()
    }
    counts = batches_of_each(config, rows)
    mixed = config.mixture.batches == "mixed"
    epoch = (max if mixed else sum)(counts.values())
    together = sum(counts[name] * sets[name].data.batch for name in sets) / epoch
    found = {}
    for name, one in sets.items():
        batch = _whole(config, one, together) if mixed else one.data.batch
        found[name] = round(config.run.steps * counts[name] / epoch * one.data.batch / batch), batch
    return found


def _whole(config: RunConfig, one: DataSet, batch: float) -> int:
    """The nearest batch of a data set that leaves copies, micro-batches and pairs that are mixed in one piece."""
    unit = lcm(one.data.copies, micro_batches(config, one) * (2 if config.model.mixes else 1))
    return max(1, round(batch / unit)) * unit


def alone(config: RunConfig, name: str, steps: int, batch: int) -> dict[str, Any]:
    """The joint recipe with one of its data sets."""
    values, one = as_dict(config), data_sets(config)[name]
    values["data"], values["mixture"] = as_dict(one.data) | {"batch": batch}, {}
    values["optimizer"]["accumulate"] = micro_batches(config, one)
    for phase in ("warmup_steps", "cooldown_steps"):
        values["optimizer"][phase] = round(values["optimizer"][phase] * steps / config.run.steps)
    for field in (*KINDS, "head_dropout", "erase"):
        values["model"][field] = {key: value for key, value in values["model"][field].items() if key == name}
    if not values["model"]["rgbd_sets"]:
        values["model"]["rgb_drop"] = 0.0
    values["run"]["steps"] = steps
    values["evaluate"] |= {"retrieval": [], "every": steps}
    values["log"] |= {"images_every": 0}
    return values


def markdown(rows: Sequence[Row], names: Sequence[str]) -> str:
    """A line for each data set, then what the joint models retrieve."""
    seeds = sorted({row["seed"] for row in rows})
    found = {(row["arm"], row["seed"]): row["scores"] for row in rows}
    lines = ["| data set | alone, top-1 | joint, top-1 | joint - alone, standard error | seeds |", "|---" * 5 + "|"]
    for name in names:
        pairs = [
            (found[name, seed][f"top1/{name}"], found[JOINT, seed][f"top1/{name}"])
            for seed in seeds
            if (name, seed) in found and (JOINT, seed) in found
        ]
        if pairs:
            own, joint = 100 * np.array(pairs).T
            cells = (_spread(own), _spread(joint), _spread(joint - own, signed=True), str(len(pairs)))
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *retrieved([found[JOINT, seed] for seed in seeds if (JOINT, seed) in found])])


def retrieved(scores: Sequence[Mapping[str, float]]) -> list[str]:
    """A line for each figure of retrieval: trained, untrained and by chance, means over seeds."""
    pairs = {name.rsplit("/", 1)[0] for row in scores for name in row if name.endswith("/chance")}
    lines = ["| retrieval | trained | untrained | by chance |", "|---" * 4 + "|"]
    for name in sorted(pairs):
        means = [np.array([row.get(name + end, np.nan) for row in scores]) for end in ("", "/untrained", "/chance")]
        scale = 1 if name.endswith("mean rank") else 100
        lines.append(f"| {name} | " + " | ".join(f"{scale * values.mean():.1f}" for values in means) + " |")
    return lines


def _spread(values: np.ndarray, *, signed: bool = False) -> str:
    """Mean and deviation, or of differences the standard error of the mean."""
    mean = f"{values.mean():{'+' if signed else ''}.1f}"
    if len(values) < 2:
        return mean
    deviation = values.std(ddof=1) / (len(values) ** 0.5 if signed else 1)
    return f"{mean} ± {deviation:.1f}"


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(prog="omnitrunk bench joint", description=__doc__)
    options.add_argument("folder", type=Path, help="where runs and recipes go; a stopped call goes on from them")
    options.add_argument("--config", type=Path, required=True, metavar="TOML", help="a joint recipe")
    options.add_argument("--json", type=Path, required=True, metavar="FILE", help="rows, one JSON object a line")
    options.add_argument("--seeds", type=int, default=3, help="trainings of each kind (default 3)")
    options.add_argument("--jobs", type=int, default=1, help="trainings at a time; they share the cores (default 1)")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
