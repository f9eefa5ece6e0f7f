"""From a configuration to all that a run needs; mistakes show here, before anything is written or deleted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from omnitrunk.engine import checkpoint, folder
from omnitrunk.engine.adamw import AdamW
from omnitrunk.engine.config import RunConfig, as_dict
from omnitrunk.engine.data import JointLoader, Loader, Order, seed_of
from omnitrunk.engine.datasets import DataSet, batches_of_each, check_head, data_sets, dataset_name, micro_batches
from omnitrunk.engine.description import check_description
from omnitrunk.engine.distributed import World
from omnitrunk.engine.evaluate import check_evaluation
from omnitrunk.engine.host_memory import keep_freed
from omnitrunk.engine.meters import Meters
from omnitrunk.engine.optimizer import Optimizer
from omnitrunk.engine.pairing import derived_names, pair
from omnitrunk.engine.pathways import attach
from omnitrunk.engine.plans import plan_maker
from omnitrunk.engine.schedule import warmup_cosine
from omnitrunk.engine.sgd import SGD
from omnitrunk.engine.weights import start_from
from omnitrunk.models import Classifier, build_model


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run, ready to go on at `start`."""

    config: RunConfig
    world: World
    model: nn.Module
    """Of the class that its system names."""
    network: nn.Module
    """The model, wrapped where several processes share the work."""
    optimizer: Optimizer
    learning_rates: np.ndarray
    """float64 (steps,)."""
    meters: Meters
    loader: Loader | JointLoader
    start: int
    """Optimizer steps that are done already."""

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return Path(self.config.run.folder)

    def save(self, step: int) -> None:
        """Write a checkpoint after `step` steps. Every process calls it, the main one writes."""
        tensors = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        if (averaged := self.optimizer.averaged(self.model)) is not None:
            tensors["ema"] = averaged
        state = {
            "step": step,
            "samples_seen": self.loader.samples_seen,
            "seed": self.config.run.seed,
            "fingerprint": self.loader.fingerprint,
            "meters": self.meters.state(self.loader.replaced),
            "config": as_dict(self.config),
        }
        keep = self.config.checkpoint.keep
        self.world.on_main(lambda: checkpoint.save(self.folder, step, tensors, state, keep))


def build(config: RunConfig, world: World) -> Run:
    """Make or restore a run, and prepare its folder. ValueError, in one line, for what cannot work."""
    if config.run.cuda_graph and world.size > 1:
        raise ValueError(f"run.cuda_graph = true serves one process, not {world.size}: set it to false")
    if world.device.type == "cpu":
        keep_freed()
    resumed = not config.run.overwrite and bool(checkpoint.complete(Path(config.run.folder)))
    model = make_model(config, fresh=not resumed, say=world.say).to(world.device)
    optimizer = make_optimizer(config, model)
    meters = Meters(config.model.outputs, world)
    state = _restore(config, model, optimizer, meters) if resumed else {}
    check_description(config)
    check_evaluation(config)
    with ExitStack() as opened:  # a loader that nobody closes makes the end of the process a crash
        loader = opened.enter_context(open_loader(config, model, world, state))
        _check_same_data(config, state, loader.fingerprint)
        if not world.same_everywhere((as_dict(config), loader.fingerprint, state.get("samples_seen", 0))):
            raise ValueError("the processes disagree on configuration, data or checkpoint: give all the same files")
        world.on_main(lambda: folder.prepare(config))
        run = Run(
            config=config,
            world=world,
            model=model,
            network=_shared(model, world, loader),
            optimizer=optimizer,
            learning_rates=_learning_rates(config),
            meters=meters,
            loader=loader,
            start=state.get("step", 0),
        )
        opened.pop_all()
    return run


def _shared(model: nn.Module, world: World, loader: Loader | JointLoader) -> nn.Module:
    """The model, wrapped where several processes share the work."""
    if world.size == 1:
        return model
    # What the optimizer derives has no gradient to exchange.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, derived_names(model))
    return DistributedDataParallel(
        model,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
        find_unused_parameters=isinstance(loader, JointLoader),  # the heads of other data sets rest
    )


def _learning_rates(config: RunConfig) -> np.ndarray:
    """float64 (steps,)."""
    return warmup_cosine(
        config.optimizer.lr,
        config.optimizer.min_lr,
        config.run.steps,
        config.optimizer.warmup_steps,
        start=config.optimizer.warmup_lr,
        cooldown=config.optimizer.cooldown_steps,
        end=config.optimizer.final_lr,
    )


def open_loader(config: RunConfig, model: nn.Module, world: World, state: dict[str, Any]) -> Loader | JointLoader:
    """The batches of a run, from its start or from where the `state` of a checkpoint says that it was."""
    sets, run_seed, seen = data_sets(config), config.run.seed, state.get("samples_seen", 0)
    several, loaders = len(sets) > 1, {}
    with ExitStack() as opened:  # what is open already is closed where another one cannot be opened
        for name, one in sets.items():
            seed, place = (seed_of(run_seed, name), seen[name] if seen else 0) if several else (run_seed, seen)
            loaders[name] = opened.enter_context(_open_one(config, model, world, one, seed=seed, samples_seen=place))
            check_head(config, one, loaders[name].labels)
        opened.pop_all()
    if not several:
        return loaders.popitem()[1]
    batches = batches_of_each(config, {name: loader.rows_per_epoch for name, loader in loaders.items()})
    order = Order(batches, config.run.seed, config.mixture.batches == "mixed")
    return JointLoader(loaders, order, step=state.get("step", 0))


def _open_one(
    config: RunConfig, model: nn.Module, world: World, one: DataSet, *, seed: int, samples_seen: int
) -> Loader:
    parts = micro_batches(config, one)
    make_plan = plan_maker(
        model,
        seed=seed,
        start=samples_seen,
        batch=one.data.batch,
        parts=world.size * parts,
        dataset=dataset_name(config, one),
    )
    return Loader(
        one.data,
        one.modalities,
        seed=seed,
        samples_seen=samples_seen,
        rank=world.rank,
        world=world.size,
        device=world.device,
        make_plan=make_plan,
        micro_batches=parts,
    )


def make_model(config: RunConfig, *, fresh: bool, say: Callable[[str], None] = print) -> nn.Module:
    """The model of a configuration on the CPU: with the weights it starts from, or those of a checkpoint to come.

    What was taken of the weights it starts from is said.
    """
    model = build_model(config.model, config.run.seed)
    if fresh and config.run.weights:
        say(f"weights  {start_from(model, config.run.weights)}")
    attach(model, config.pathway, weights=fresh)
    if isinstance(model, Classifier):
        model.freeze()
    return model


def make_optimizer(config: RunConfig, model: nn.Module) -> Optimizer:
    """The optimizer of a model, whose weights it takes as they are now."""
    groups = model.parameter_groups(config.optimizer.weight_decay)
    if config.optimizer.kind == "sgd":
        return SGD(groups, config.optimizer)
    return AdamW(groups, config.optimizer, pair(model, config.run.precision))


def _restore(config: RunConfig, model: nn.Module, optimizer: Optimizer, meters: Meters) -> dict[str, Any]:
    """Load the newest complete checkpoint of the run's folder and return its state."""
    newest = checkpoint.complete(Path(config.run.folder))[-1]
    state = checkpoint.read_state(newest)
    if state["seed"] != config.run.seed:
        raise ValueError(
            f"{newest} was made with run.seed {state['seed']}, not {config.run.seed}: set it back, "
            "use another run.folder, or --run.overwrite true to start afresh"
        )
    load_model(newest, state, config, model)
    optimizer.load_state_dict(checkpoint.read_tensors(newest, "optimizer"), checkpoint.read_average(newest))
    meters.load(state["meters"])
    return state


def load_model(
    source: Path, state: dict[str, Any], config: RunConfig, model: nn.Module, *, name: str = "model"
) -> None:
    """Load the weights `name` ("model" or "ema") of a checkpoint; ValueError if it holds another model."""
    weights = checkpoint.read_tensors(source, name)
    checkpoint.check_same_model(source, state["config"]["model"], as_dict(config.model), weights, model)
    model.load_state_dict(weights)


def _check_same_data(config: RunConfig, state: dict[str, Any], fingerprint: str | dict[str, str]) -> None:
    """ValueError, naming what differs, where a checkpoint was made of other samples or in another order of them."""
    if not state:
        return
    fix = "use another run.folder, or --run.overwrite true to start afresh"
    sets, now = data_sets(config), config.mixture.batches
    if len(sets) > 1 and (was := state["config"]["mixture"]["batches"]) != now:
        raise ValueError(
            f'{config.run.folder} was trained with mixture.batches = "{was}", not "{now}": set it back, {fix}'
        )
    for name, one in sets.items():
        old, new = (given[name] if isinstance(given, dict) else given for given in (state["fingerprint"], fingerprint))
        if old != new:
            raise ValueError(
                f"{config.run.folder} was trained on other data: fingerprint {old[:12]}, but {one.section}.root = "
                f"{one.data.root} has {new[:12]}; bring the data back, {fix}"
            )
