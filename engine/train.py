"""A run from start to end: build or restore, a dry start, steps, reports, saves. Read it from top to bottom."""

from __future__ import annotations

import gc
from functools import partial
from itertools import chain

from omnitrunk.engine import folder
from omnitrunk.engine.build import Run, build
from omnitrunk.engine.config import RunConfig
from omnitrunk.engine.distributed import Vote, world_of
from omnitrunk.engine.estimate import flop_per_sample, tokens_per_sample
from omnitrunk.engine.graphs import CapturedGradients
from omnitrunk.engine.hooks import draw_samples, evaluate_fully, evaluate_trained
from omnitrunk.engine.idle import without_effect
from omnitrunk.engine.log import RunLog
from omnitrunk.engine.overview import overview
from omnitrunk.engine.signals import REQUEUE, StopRequest
from omnitrunk.engine.step import compute_gradients, dry_step, train_step
from omnitrunk.engine.throughput import Throughput
from omnitrunk.models.pathway import scales


def train(config: RunConfig) -> int:
    """Run `config` to its last step, or resume it. Returns 0, or REQUEUE when a signal stopped it after a save."""
    with StopRequest() as stop, world_of(config.run.device) as world:
        if folder.is_finished(config):
            world.say(folder.finished(config))
            return 0
        for warning in without_effect(config):
            world.say(f"warning: {warning}")
        run = build(config, world)
        of_run = {"step": run.start, "steps": config.run.steps, "is_main": world.is_main}
        with run.loader, RunLog(run.folder, config.log, **of_run) as log:
            return _loop(run, log, stop)


def _loop(run: Run, log: RunLog, stop: StopRequest) -> int:
    config, world, steps = run.config, run.world, run.config.run.steps
    vote, first = Vote(world), next(run.loader)
    batches = chain([first], run.loader)
    log.say(overview(run))
    dry_step(run.network, run.optimizer, first, precision=config.run.precision, world=world)
    samples = run.loader.samples_per_step
    throughput = Throughput(
        samples=sum(samples.values()),
        tokens=tokens_per_sample(config, samples),
        flop=flop_per_sample(config, run.model, samples),
        devices=world.size,
        device=world.device,
        precision=config.run.precision,
    )
    on_gpu = world.device.type == "cuda"
    gradients = CapturedGradients() if config.run.cuda_graph and on_gpu else compute_gradients
    spent_on, reported = throughput.watch.spent_on, run.start

    for step in range(run.start + 1, steps + 1):
        lr = float(run.learning_rates[step - 1])
        outcome = train_step(
            run.network,
            run.optimizer,
            batches,
            lr=lr,
            precision=config.run.precision,
            world=world,
            gradients=gradients,
        )
        run.meters.add(outcome.losses, outcome.grad_norm, outcome.skipped)
        log.progress(step)
        if step == run.start + 1:
            gc.collect()
            gc.freeze()  # what is alive now lives as long as the run: it need not be searched again and again

        last = step == steps
        if last or step % config.log.every == 0:
            figures = run.meters.read(run.loader.replaced)
            timing = throughput.lap(steps=step - reported, left=steps - step, data_wait=run.loader.wait_seconds)
            log.write({"step": step, **figures, "lr": lr}, timing, scales(run.model))
            reported = step
        if _due(step, config.log.images_every):
            with spent_on("images"):
                world.on_main(partial(draw_samples, run, log, step))
        if _due(step, config.evaluate.every) and not last:
            with spent_on("evaluate"):
                world.on_main(partial(evaluate_trained, run, log, step))
        stopping = vote.cast(stop.requested)
        if last or stopping or _due(step, config.checkpoint.every):
            with spent_on("checkpoint"):
                log.sync()
                run.save(step)
        if stopping and not last:
            log.say(f"stopped by a signal after step {step}; the same command goes on from there")
            return REQUEUE

    vote.close()
    if config.evaluate.every:
        with spent_on("evaluate"):
            world.on_main(partial(evaluate_fully, run, log))
    log.say(f"done in {throughput.watch.summary(data=run.loader.wait_seconds)}")
    return 0


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
