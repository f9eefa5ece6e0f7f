"""Runs graphs of NVIDIA DALI over batches of encoded files, on the CPU or on a GPU.

DALI draws nothing here: whatever is random comes in as an input, so a batch is a function of its inputs alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from omnitrunk.engine.data.decode.decoder import UndecodableRows

if TYPE_CHECKING:
    from nvidia.dali import Pipeline
    from nvidia.dali.data_node import DataNode

Graph: TypeAlias = "Callable[[Sequence[str], bool], list[DataNode]]"
"""(modalities, on a GPU?) to the outputs of a pipeline whose inputs are external sources named like the arrays fed."""
Inputs: TypeAlias = Mapping[str, Sequence[np.ndarray] | np.ndarray]
"""Per input, an array for each sample of the batch."""


class DaliPipeline:
    """One graph over batches of up to `batch` samples, the next submitted as soon as the last is collected.

    Inputs named like a modality hold encoded files, uint8 (bytes,); all others are arguments such as rectangles.
    """

    def __init__(
        self,
        graph: Graph,
        modalities: Sequence[str],
        *,
        batch: int,
        threads: int,
        device: torch.device | str,
        conditional: bool = False,
    ) -> None:
        """`conditional` graphs choose operations for every sample of a batch; they take seconds to build."""
        self._graph = graph
        self._modalities = tuple(modalities)
        self._batch = batch
        self._threads = threads
        self._device = torch.device(device)
        self._conditional = conditional
        self._pipeline: Pipeline | None = self._build(self._modalities, batch)
        self._in_flight: Inputs | None = None

    def submit(self, inputs: Inputs) -> None:
        """Starts one batch and returns, so that the caller can read the next one meanwhile."""
        assert self._in_flight is None, "collect the batch in flight before the next is submitted"
        self._in_flight = inputs
        _start(self._pipeline, inputs)

    def collect(self) -> list[torch.Tensor]:
        """Waits for the outputs of the batch in flight; UndecodableRows names the samples that are to blame."""
        assert self._in_flight is not None, "submit a batch before it is collected"
        inputs, self._in_flight = self._in_flight, None
        try:
            return _finish(self._pipeline)
        except RuntimeError as error:
            # DALI fails a batch as a whole and leaves the pipeline unusable.
            self._pipeline = self._build(self._modalities, self._batch)
            rows = self._find_undecodable(inputs)
            if not rows:
                raise
            raise UndecodableRows(rows) from error

    def close(self) -> None:
        """Frees the pipeline."""
        self._pipeline = None

    def _find_undecodable(self, inputs: Inputs) -> dict[int, tuple[str, str]]:
        """Decodes every file of a failed batch alone: DALI's message does not always name the sample."""
        rows: dict[int, tuple[str, str]] = {}
        for modality in self._modalities:
            others = set(self._modalities) - {modality}
            pipeline = self._build((modality,), 1)
            for row in range(len(inputs[modality])):
                alone = {name: values[row : row + 1] for name, values in inputs.items() if name not in others}
                if reason := _refusal(pipeline, alone):
                    rows[row] = modality, f"passes the checks but does not decode: {reason}"
                    pipeline = self._build((modality,), 1)
        return rows

    def _build(self, modalities: Sequence[str], batch: int) -> Pipeline:
        on_gpu = self._device.type == "cuda"
        gpu = torch.cuda.current_device() if on_gpu and self._device.index is None else self._device.index

        @dali().pipeline_def(enable_conditionals=self._conditional)
        def define() -> tuple[DataNode, ...]:
            return tuple(self._graph(modalities, on_gpu))

        pipeline = define(
            batch_size=batch,
            num_threads=self._threads,
            device_id=gpu if on_gpu else None,
            prefetch_queue_depth=1,  # one batch in flight; reading ahead is the caller's
        )
        pipeline.build()
        return pipeline


def encoded(files: Sequence[bytes]) -> list[np.ndarray]:
    """Files as DALI takes them, without a copy."""
    return [np.frombuffer(data, dtype=np.uint8) for data in files]


def dali(module: str = "") -> Any:
    """nvidia.dali or one of its modules, imported when the first pipeline is built."""
    try:
        return importlib.import_module(f"nvidia.dali.{module}".rstrip("."))
    except ImportError as error:
        raise ValueError(
            f'decoding pictures, video and audio needs NVIDIA DALI ({error}): pip install "omnitrunk[data]", '
            "or run without files: --data.source random"
        ) from error


def _start(pipeline: Pipeline, inputs: Inputs) -> None:
    for name, values in inputs.items():
        # DALI drops inputs that no output needs, as those of another modality are; it reports one that it lacks itself.
        with suppress(KeyError):
            pipeline.feed_input(name, values)
    pipeline.schedule_run()


def _finish(pipeline: Pipeline) -> list[torch.Tensor]:
    tensors = [torch.from_dlpack(output.as_tensor()) for output in pipeline.share_outputs()]
    pipeline.release_outputs()
    if not tensors[0].is_cuda:
        return tensors  # each owns its memory: DALI allocates anew for every batch
    # Memory of DALI is returned on DALI's streams, which know nothing of ours: copy, and be done before it is freed.
    copies = [tensor.clone() for tensor in tensors]
    torch.cuda.current_stream(copies[0].device).synchronize()
    return copies


def _refusal(pipeline: Pipeline, inputs: Inputs) -> str:
    """Why these inputs cannot be decoded; nothing where they can."""
    try:
        _start(pipeline, inputs)
        _finish(pipeline)
    except RuntimeError as error:
        # DALI tells where in the graph, then what happened.
        said = str(error).rpartition("encountered:")[2].strip()
        return said.splitlines()[0] if said else type(error).__name__
    return ""
