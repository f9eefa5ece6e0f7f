"""Decodes, crops, resizes and mirrors encoded pictures with NVIDIA DALI, on the CPU or on a GPU.

DALI draws nothing here: rectangles and flips come in as inputs, so a batch is a function of bytes and `Crop` alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from omnitrunk.engine.data.crop import Crop

if TYPE_CHECKING:
    from nvidia.dali import Pipeline
    from nvidia.dali.data_node import DataNode

DEPTH_SCALE = 65536.0
"""Stored 16-bit depth is divided by 2^16, not by 2^16 - 1: the convention of MultiMAE's pseudo labels."""

Files = Sequence[Sequence[bytes]]  # per sample, per modality


class UndecodableRows(Exception):
    """Samples that passed verification and still do not decode. `rows` is row -> (modality, reason)."""

    def __init__(self, rows: dict[int, tuple[str, str]]) -> None:
        super().__init__(f"{len(rows)} samples do not decode")
        self.rows = rows


class ImageDecoder:
    """Turns up to `batch` encoded samples into tensors of `size` x `size` pixels.

    `strides` maps each modality, in the order of the files, to how much coarser than the picture its map is (1 for
    pictures). All modalities of a sample are cut by one rectangle and mirrored alike:
    rgb     uint8   (B, size, size, 3)          bicubic with antialiasing
    depth   float32 (B, size, size, 1)          bicubic with antialiasing, divided by 65536
    semseg  uint8   (B, size / s, size / s)     nearest to `size`, then nearest again: a single step would differ
    The result is on `device`: a GPU decodes JPEG itself and gets the cut-outs of PNG files, which the host decodes.
    """

    def __init__(
        self, strides: Mapping[str, int], *, size: int, batch: int, threads: int, device: torch.device | str
    ) -> None:
        self.strides = dict(strides)
        self.size = size
        self.batch = batch
        self.threads = threads
        self.device = torch.device(device)
        self._pipeline = self._build(self.strides, batch)
        self._in_flight: tuple[Files, Crop] | None = None

    def submit(self, files: Files, crop: Crop) -> None:
        """Starts decoding one batch and returns, so that the caller can read the next one meanwhile."""
        assert self._in_flight is None, "collect the batch in flight before the next is submitted"
        self._in_flight = files, crop
        _start(self._pipeline, list(self.strides), files, crop)

    def collect(self) -> dict[str, torch.Tensor]:
        """Waits for the tensors of the batch in flight. After UndecodableRows the caller submits a repaired batch."""
        assert self._in_flight is not None, "submit a batch before it is collected"
        files, crop = self._in_flight
        self._in_flight = None
        try:
            return dict(zip(self.strides, _finish(self._pipeline), strict=True))
        except RuntimeError as error:
            # DALI fails a batch as a whole and leaves the pipeline unusable.
            self._pipeline = self._build(self.strides, self.batch)
            rows = self._find_undecodable(files, crop)
            if not rows:
                raise
            raise UndecodableRows(rows) from error

    def _find_undecodable(self, files: Files, crop: Crop) -> dict[int, tuple[str, str]]:
        """Decodes every file of a failed batch alone: DALI's message does not always name the sample."""
        rows: dict[int, tuple[str, str]] = {}
        for column, (modality, stride) in enumerate(self.strides.items()):
            pipeline = self._build({modality: stride}, 1)
            for row, sample in enumerate(files):
                if not _decodes(pipeline, modality, sample[column], Crop(*(part[row : row + 1] for part in crop))):
                    rows[row] = modality, "passes the checks but does not decode"
                    pipeline = self._build({modality: stride}, 1)
        return rows

    def _build(self, strides: Mapping[str, int], batch: int) -> Pipeline:
        on_gpu = self.device.type == "cuda"
        gpu = torch.cuda.current_device() if on_gpu and self.device.index is None else self.device.index
        pipeline = _dali().Pipeline(
            batch_size=batch,
            num_threads=self.threads,
            device_id=gpu if on_gpu else None,
            prefetch_queue_depth=1,  # one batch in flight; reading ahead is the caller's
        )
        with pipeline:
            pipeline.set_outputs(*_graph(strides, self.size, on_gpu=on_gpu))
        pipeline.build()
        return pipeline


def _graph(strides: Mapping[str, int], size: int, *, on_gpu: bool) -> list[DataNode]:
    """The one definition of the pipeline: an output per modality."""
    fn, types = _dali("fn"), _dali("types")
    anchor = fn.external_source(name="anchor", dtype=types.INT64, ndim=1)
    shape = fn.external_source(name="shape", dtype=types.INT64, ndim=1)
    flip = fn.external_source(name="flip", dtype=types.INT32, ndim=0)
    bicubic: dict[str, Any] = {"interp_type": types.INTERP_CUBIC, "antialias": True}
    nearest: dict[str, Any] = {"interp_type": types.INTERP_NN}

    def cut(modality: str, device: str = "cpu", **output: Any) -> DataNode:
        encoded = fn.external_source(name=modality, dtype=types.UINT8, ndim=1)
        # Depth and class maps are made from pictures as stored, so a camera's rotation tag is not applied.
        image = fn.decoders.image_slice(
            encoded, anchor, shape, axis_names="HW", device=device, adjust_orientation=False, **output
        )
        return image.gpu() if on_gpu and device == "cpu" else image

    def resize(image: DataNode, **how: Any) -> DataNode:
        return fn.flip(fn.resize(image, size=(size, size), **how), horizontal=flip)

    def output(modality: str, stride: int) -> DataNode:
        if modality == "rgb":
            return resize(cut(modality, "mixed" if on_gpu else "cpu", output_type=types.RGB), **bicubic)
        if modality == "depth":
            stored = cut(modality, output_type=types.ANY_DATA, dtype=types.UINT16)
            return resize(stored, dtype=types.FLOAT, **bicubic) / DEPTH_SCALE
        classes = resize(cut(modality, output_type=types.ANY_DATA), **nearest)
        coarse = fn.resize(classes, size=(size // stride, size // stride), **nearest)
        return fn.squeeze(coarse, axes=2)

    return [output(modality, stride) for modality, stride in strides.items()]


def _start(pipeline: Pipeline, modalities: list[str], files: Files, crop: Crop) -> None:
    for name, values in crop._asdict().items():
        pipeline.feed_input(name, values)
    for modality, column in zip(modalities, zip(*files, strict=True), strict=True):
        pipeline.feed_input(modality, [np.frombuffer(data, dtype=np.uint8) for data in column])
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


def _decodes(pipeline: Pipeline, modality: str, data: bytes, crop: Crop) -> bool:
    try:
        _start(pipeline, [modality], [[data]], crop)
        _finish(pipeline)
    except RuntimeError:
        return False
    return True


def _dali(module: str = "") -> Any:
    """nvidia.dali or one of its modules, imported when the first pipeline is built."""
    try:
        return importlib.import_module(f"nvidia.dali.{module}".rstrip("."))
    except ImportError as error:
        raise ValueError(
            f'reading pictures needs NVIDIA DALI ({error}): pip install "omnitrunk[data]", '
            "or run without files: --data.source random"
        ) from error
