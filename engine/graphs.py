"""Forward and backward pass of a step as one CUDA graph: recorded once, then started by the host with one call.

A step of a small model is a thousand short kernels, and Python may take longer to launch them than the GPU to run
them. A graph fixes everything but the numbers: it always reads the same memory, into which every batch is copied, and
always does the same work. So it serves steps of one shape. The masks of a single input have one: K of N tokens stay
visible in every sample. Over several inputs the K are split at random, and each has another number in every batch.

The update is not recorded. Its few launches are made while the GPU still runs the graph, the learning rate stays a
number of the host, and the tables of addresses that they read are built once, for gradients that never move.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from omnitrunk.engine.data import Batch
from omnitrunk.engine.distributed import World
from omnitrunk.engine.step import compute_gradients, step_of


class CapturedGradients:
    """`compute_gradients` from a graph, recorded by the first call, which must be preceded by an eager step.

    Every call of one object must have the same network, options and shapes of batches.
    """

    def __init__(self) -> None:
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batches: list[Batch] = []
        self._losses: dict[str, Tensor] = {}
        self._gradients: list[tuple[nn.Parameter, Tensor]] = []

    def __call__(
        self, network: nn.Module, batches: Iterator[Batch], *, precision: str, world: World
    ) -> dict[str, Tensor]:
        """Gradients in `.grad` and the losses, in memory that the next call writes over."""
        if self._graph is None:
            self._batches = [copy.deepcopy(batch) for batch in step_of(batches)]
            self._graph = self._record(network, precision=precision, world=world)
        else:
            for batch in self._batches:
                overwrite(batch, next(batches))
            for parameter, gradient in self._gradients:
                parameter.grad = gradient
        self._graph.replay()
        return self._losses

    def _record(self, network: nn.Module, **options: Any) -> torch.cuda.CUDAGraph:
        parameters = list(network.parameters())
        assert all(parameter.grad is None for parameter in parameters), "a gradient to add to would be recorded as well"
        gc.collect()  # the eager step's autograd nodes would bring its stream into the graph
        graph = torch.cuda.CUDAGraph()
        # The loader goes on in a thread of its own; what it asks of CUDA meanwhile is not part of the graph.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._losses = compute_gradients(network, iter(self._batches), **options)
        self._gradients = [(p, p.grad) for p in parameters if p.grad is not None]
        return graph


def overwrite(batch: Batch, new: Batch) -> None:
    """Copy the tensors of a batch and its plan into those of another. ValueError where shapes differ."""
    old, fresh = tensors_of([batch.inputs, batch.plan]), tensors_of([new.inputs, new.plan])
    for place, source in zip(old, fresh, strict=True):
        if place.shape != source.shape:
            raise ValueError(
                f"run.cuda_graph needs batches of one shape, not {tuple(place.shape)} and then {tuple(source.shape)}: "
                "set it to false"
            )
    torch._foreach_copy_(old, fresh)


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors inside of lists, mappings and dataclasses, in their order; one that occurs twice counts once."""
    found: dict[int, Tensor] = {}

    def visit(part: Any) -> None:
        if isinstance(part, Tensor):
            found[id(part)] = part
        elif isinstance(part, Mapping):
            visit(list(part.values()))
        elif dataclasses.is_dataclass(part):
            visit([getattr(part, field.name) for field in dataclasses.fields(part)])
        elif isinstance(part, (list, tuple)):
            for item in part:
                visit(item)

    visit(value)
    return list(found.values())
