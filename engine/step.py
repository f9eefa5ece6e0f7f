"""One optimizer step: micro-batches, their losses and gradients, and the update. The host waits for nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from omnitrunk.engine.data import Batch
from omnitrunk.engine.distributed import World
from omnitrunk.engine.optimizer import Optimizer


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a step leaves on the device."""

    losses: dict[str, Tensor]
    """Output task, and "loss" -> this process's part of the mean over the global batch: they add up over processes.

    Where data sets have losses of their own, those that took no part in the step are left out."""
    grad_norm: Tensor
    """Norm of the gradient over all parameters, before the clip."""
    skipped: Tensor
    """1 where that norm was not finite, and so nothing was changed; else 0."""


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Matrix products in bf16 where `run.precision` asks for it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def compute_gradients(
    network: nn.Module, batches: Iterator[Batch], *, precision: str, world: World
) -> dict[str, Tensor]:
    """Forward and backward pass of the micro-batches of a step: gradients in `.grad`, and `Outcome.losses`."""
    sums: dict[str, Tensor] = {}
    for batch in step_of(batches):
        with _gradients_stay_local(network, world, last=batch.last):
            with autocast(world.device, precision):
                losses = network(batch.inputs, batch.plan)
            (losses["loss"] * (batch.share * batch.weight)).backward()
        for task, loss in losses.items():
            share = batch.share * (batch.weight if task == "loss" else 1) / world.size
            part = loss.detach().float() * share
            sums[task] = sums[task] + part if task in sums else part
    return sums


def step_of(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The micro-batches of the next step."""
    for batch in batches:
        yield batch
        if batch.last:
            return


def train_step(
    network: nn.Module,
    optimizer: Optimizer,
    batches: Iterator[Batch],
    *,
    lr: float,
    precision: str,
    world: World,
    gradients: Callable[..., dict[str, Tensor]] = compute_gradients,
) -> Outcome:
    """Take the micro-batches of a step and make one update, with the loss and the gradient of the global batch.

    `network` is the model, or the model in DistributedDataParallel, which averages gradients over processes.
    `gradients` is `compute_gradients`, or does the same from a CUDA graph (engine.graphs).
    """
    losses = gradients(network, batches, precision=precision, world=world)
    grad_norm, skipped = optimizer.update(lr)
    optimizer.clear_gradients()
    return Outcome(losses=losses, grad_norm=grad_norm, skipped=skipped)


def dry_step(network: nn.Module, optimizer: Optimizer, batch: Batch, *, precision: str, world: World) -> None:
    """All of a step on one micro-batch, and no trace of it.

    Kernels are compiled and memory is taken before the run counts as started. The gradient is spoilt on purpose: an
    update with a gradient that is not finite must leave everything as it was, and this proves the guard as well. The
    statistics of batch normalization are put back.
    """
    before = [buffer.clone() for buffer in network.buffers()]
    with autocast(world.device, precision):
        loss = network(batch.inputs, batch.plan)["loss"]
    loss.backward()
    optimizer.params[0].grad.fill_(torch.nan)
    _, skipped = optimizer.update(0.0)
    optimizer.clear_gradients()
    assert bool(skipped), "the optimizer took a gradient that is not finite"
    for buffer, value in zip(network.buffers(), before, strict=True):
        buffer.copy_(value)


def _gradients_stay_local(network: nn.Module, world: World, *, last: bool) -> contextlib.AbstractContextManager:
    """Only the last micro-batch of a step sends gradients to the other processes."""
    return contextlib.nullcontext() if last or world.size == 1 else network.no_sync()
