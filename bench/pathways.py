"""omnitrunk bench pathways: does a model learn more when its trunk is joined with one of another modality? (M2PT)

Zhang et al. 2024, M2PT, section 4, at any size: every given pre-trained run is fine-tuned to name classes, alone and
joined with each of the others, with the same data, steps and seeds. The controls: joined with its own weights (as many
parameters, nothing of another modality), with random weights, with the blocks of the other in reversed order. The paper
has neither of the first two, nor several auxiliary models at once. Each training is a run of its own: a stopped
experiment goes on where it was, and measures nothing twice.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from omnitrunk.bench import harness, machine
from omnitrunk.bench.pathway_report import draw, markdown
from omnitrunk.bench.trainings import measured, run_recipe, threads_of
from omnitrunk.engine import durable
from omnitrunk.engine.config import RunConfig, as_dict, dump, load, read
from omnitrunk.engine.data import open_index
from omnitrunk.models import build_model

ALONE, ITSELF, RANDOM, REVERSED, ALL = "alone", "itself", "random", "reversed", "all others"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train a target, with one seed."""

    target: str
    """The modality that is classified."""
    name: str
    seed: int
    auxiliaries: tuple[str, ...] = ()
    """Runs or files whose blocks are joined with the target's."""
    order: str = "normal"

    @property
    def label(self) -> str:
        """A name for its folder."""
        return f"{self.target}-{self.name.replace(' ', '_')}-{self.seed}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, append a row for each training, print the table, draw the plot where asked."""
    options = parser().parse_args(arguments)
    pretrained = pretrained_runs(options.runs)
    shots = shots_of(options.shots, pretrained)
    settings = {"steps": options.steps, "lr": options.lr, "batch": options.batch}
    rows = [row for row in measured(options.json, settings) if row["shots"] == shots.get(row["target"])]
    done = {(row["target"], row["arm"], row["seed"]) for row in rows}
    wanted = [
        arm
        for seed in range(options.seeds)
        for arm in arms(pretrained, options.folder, seed)
        if (arm.target, arm.name, arm.seed) not in done
    ]
    places = {name: options.folder / place(name, options, count) for name, count in shots.items()}
    for target, config in pretrained.items():
        write_lists(config, places[target] / "lists", shots[target])
    neighbors, threads = machine.Neighbors(), threads_of(options.jobs)
    with ThreadPoolExecutor(options.jobs) as pool:
        work = ((arm, recipe(arm, pretrained[arm.target], places[arm.target], options)) for arm in wanted)
        for arm, found in pool.map(lambda pair: (pair[0], fine_tune(pair[1], threads)), work):
            row = {"target": arm.target, "arm": arm.name, "seed": arm.seed, "shots": shots[arm.target]}
            row |= settings | found
            rows.append(row | machine.context(threads, neighbors))
            harness.append_json(options.json, rows[-1:])
            print(f"{len(rows)} measured: {arm.label} {100 * row['top1']:.1f} %", flush=True)
    print("", markdown(rows), sep="\n")
    if options.plot:
        draw(rows, options.plot)
    return 0


def pretrained_runs(folders: Sequence[Path]) -> dict[str, RunConfig]:
    """The configurations of pre-trained runs by their modality. ValueError unless there are two, each of its own."""
    configs = [load(folder / "config.toml", ["--run.folder", str(folder)]) for folder in folders]
    found = {config.model.inputs[0]: config for config in configs}
    if len(found) < max(2, len(configs)):
        raise ValueError(f"--runs gives the modalities {', '.join(found)}: give two runs or more, each of another one")
    return found


def shots_of(words: Sequence[str], targets: Collection[str]) -> dict[str, int]:
    """Labelled samples of a class for each target, from a number for all of them, and others as TARGET=N."""
    found = dict.fromkeys(targets, 0)
    for word in sorted(words, key=lambda word: "=" in word):
        name, _, count = word.rpartition("=")
        if not count.isdecimal() or (name and name not in found):
            raise ValueError(f"--shots {word} must be a number or TARGET=N, where TARGET is {', '.join(found)}")
        found.update(dict.fromkeys([name] if name else targets, int(count)))
    return found


def place(target: str, options: argparse.Namespace, shots: int) -> str:
    """A folder for the runs of a target with these settings: runs with others are other runs."""
    return f"{target}-{shots}_shots-{options.steps}_steps-batch_{options.batch}-lr_{options.lr:g}"


def arms(pretrained: Mapping[str, RunConfig], folder: Path, seed: int) -> Iterator[Arm]:
    """Every way to train every target with one seed."""
    for target, config in pretrained.items():
        runs = {name: other.run.folder for name, other in pretrained.items() if name != target}
        yield Arm(target=target, name=ALONE, seed=seed)
        yield Arm(target=target, name=ITSELF, seed=seed, auxiliaries=(config.run.folder,))
        yield Arm(target=target, name=RANDOM, seed=seed, auxiliaries=(random_trunk(config, folder, seed),))
        for name, run in runs.items():
            yield Arm(target=target, name=name, seed=seed, auxiliaries=(run,))
            yield Arm(target=target, name=f"{name} {REVERSED}", seed=seed, auxiliaries=(run,), order="reversed")
        if len(runs) > 1:
            yield Arm(target=target, name=ALL, seed=seed, auxiliaries=tuple(runs.values()))


def random_trunk(config: RunConfig, folder: Path, seed: int) -> str:
    """A file with the blocks of an untrained model of that size; other seeds than those of heads and orders."""
    path = folder / "random" / f"{config.model.inputs[0]}-{seed}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = build_model(config.model, 1_000_003 + seed).blocks.state_dict()
        save_file({f"blocks.{name}": value for name, value in blocks.items()}, durable.aside(path))
        durable.aside(path).rename(path)
    return str(path)


def write_lists(config: RunConfig, folder: Path, shots: int) -> None:
    """The first `shots` training samples of each class as a list, and all of the val split as another; 0 takes all."""
    folder.mkdir(parents=True, exist_ok=True)
    modality = config.model.inputs[0]
    for split, most in ((config.data.train_split, shots), (config.data.val_split, 0)):
        index, taken = open_index(config.data, split, (modality,)), dict.fromkeys(range(10**6), 0)
        with durable.aside(folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label"])
            for sample, label in enumerate(index.labels.tolist()):
                taken[label] += 1
                if not most or taken[label] <= most:
                    writer.writerow([Path(index.path(sample, modality)).resolve(), index.classes[label]])
        durable.aside(folder / f"{split}.csv").rename(folder / f"{split}.csv")


def recipe(arm: Arm, pretrained: RunConfig, folder: Path, options: argparse.Namespace) -> Path:
    """Write the configuration of a fine-tuning; everything that is not said here is as in the pre-training."""
    classes = len(open_index(pretrained.data, pretrained.data.train_split, pretrained.model.inputs).classes)
    data = as_dict(pretrained.data) | {
        "source": "list",
        "root": str(folder / "lists"),
        "batch": options.batch,
        "threads": 1,
    }
    values: dict[str, Any] = {
        "run": {
            "folder": str(folder / arm.label),
            "steps": options.steps,
            "seed": arm.seed,
            "weights": pretrained.run.folder,
        },
        "data": data,
        "model": {
            "system": "classifier",
            "encoder": as_dict(pretrained.model),
            "classes": classes,
            "drop_path": 0.1,
            "label_smoothing": 0.1,
            "layer_decay": 0.75,
        },
        "pathway": {"auxiliaries": list(arm.auxiliaries), "order": arm.order if arm.auxiliaries else "normal"},
        "optimizer": {"lr": options.lr, "warmup_steps": options.steps // 10, "betas": [0.9, 0.999]},
        "checkpoint": {"every": max(1, options.steps // 2)},
        "log": {"every": max(1, options.steps // 5), "tensorboard": False},
        "evaluate": {"every": options.steps},  # once, at the end
    }
    path = folder / "recipes" / f"{arm.label}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_text(path, dump(read(values)))
    return path


def fine_tune(path: Path, threads: int) -> dict[str, float]:
    """Train, or go on with, one run; its accuracy, its loss and the mean size of its scales."""
    scores, last = run_recipe(path, threads)
    scales = [abs(value) for row in last.get("scales", {}).values() for value in row]
    found = {"top1": scores["top1"], "train_loss": last["loss"]}
    return found | ({"mean_scale": sum(scales) / len(scales)} if scales else {})


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(prog="omnitrunk bench pathways", description=__doc__)
    options.add_argument("folder", type=Path, help="where runs, recipes and lists go; a stopped call goes on from them")
    options.add_argument("--runs", type=Path, nargs="+", required=True, help="finished pre-trainings, a modality each")
    options.add_argument("--json", type=Path, required=True, metavar="FILE", help="rows, one JSON object a line")
    options.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the gains (needs matplotlib)")
    options.add_argument("--seeds", type=int, default=3, help="trainings of each kind (default 3)")
    options.add_argument("--steps", type=int, default=200, help="of each fine-tuning (default 200)")
    options.add_argument(
        "--shots",
        nargs="+",
        default=["10"],
        help="labelled samples of a class, N or TARGET=N; 0 takes all (default 10)",
    )
    options.add_argument("--batch", type=int, default=32, help="samples a step (default 32)")
    options.add_argument("--lr", type=float, default=1e-3, help="learning rate (default 1e-3)")
    options.add_argument("--jobs", type=int, default=1, help="trainings at a time; they share the cores (default 1)")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
