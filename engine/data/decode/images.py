"""Decodes, crops, resizes and mirrors pictures and the maps aligned with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from omnitrunk.engine.data.decode.augment import RandAugment
from omnitrunk.engine.data.decode.crop import Crop
from omnitrunk.engine.data.decode.dali import DaliPipeline, dali, encoded
from omnitrunk.engine.data.sample import EncodedSample

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

DEPTH_SCALE = 65536.0
"""Stored 16-bit depth is divided by 2^16, not by 2^16 - 1: the convention of MultiMAE's pseudo labels."""

Rectangle: TypeAlias = Callable[[np.ndarray, np.ndarray, np.ndarray], Crop]
"""(heights, widths, positions), each int64 (B,), to the crop of every sample."""


class ImageDecoder:
    """Turns up to `batch` encoded samples into tensors of `size` x `size` pixels.

    `strides` maps each modality, in the order of the files, to how much coarser than the picture its map is (1 for
    pictures). All modalities of a sample are cut by the one rectangle that `rectangle` gives it, and mirrored alike:
    rgb     uint8   (B, size, size, 3)          bicubic with antialiasing
    depth   float32 (B, size, size, 1)          bicubic with antialiasing, divided by 65536
    semseg  uint8   (B, size / s, size / s)     nearest to `size`, then nearest again: a single step would differ
    The result is on `device`: a GPU decodes JPEG itself and gets the cut-outs of PNG files, which the host decodes.
    `augment` changes pictures after that, and would tear them from their maps: it is for pictures alone.
    """

    def __init__(
        self,
        strides: Mapping[str, int],
        rectangle: Rectangle,
        *,
        size: int,
        batch: int,
        threads: int,
        device: torch.device | str,
        augment: RandAugment | None = None,
    ) -> None:
        self._strides = dict(strides)
        self._rectangle = rectangle
        self._size = size
        self._augment = augment
        self._pipeline = DaliPipeline(
            self._graph, list(strides), batch=batch, threads=threads, device=device, conditional=augment is not None
        )

    def submit(self, rows: Sequence[EncodedSample]) -> None:
        """Starts decoding one batch and returns."""
        heights, widths = np.array([row.facts[0] for row in rows], dtype=np.int64).T
        positions = np.array([row.position for row in rows], dtype=np.int64)
        files = zip(*(row.files for row in rows), strict=True)
        inputs = {name: encoded(column) for name, column in zip(self._strides, files, strict=True)}
        if self._augment:
            inputs |= self._augment.draw(positions)
        self._pipeline.submit(inputs | self._rectangle(heights, widths, positions)._asdict())

    def collect(self) -> dict[str, torch.Tensor]:
        """Waits for the tensors of the batch in flight."""
        return dict(zip(self._strides, self._pipeline.collect(), strict=True))

    def close(self) -> None:
        """Frees the pipeline."""
        self._pipeline.close()

    def _graph(self, modalities: Sequence[str], on_gpu: bool) -> list[DataNode]:
        """The one definition of the pipeline: an output per modality."""
        fn, types = dali("fn"), dali("types")
        anchor, shape, flip = crop_inputs()
        size = self._size
        nearest: dict[str, Any] = {"interp_type": types.INTERP_NN}

        def cut(modality: str, device: str = "cpu", **output: Any) -> DataNode:
            data = fn.external_source(name=modality, dtype=types.UINT8, ndim=1)
            # Depth and class maps are made from pictures as stored, so a camera's rotation tag is not applied.
            image = fn.decoders.image_slice(
                data, anchor, shape, axis_names="HW", device=device, adjust_orientation=False, **output
            )
            return image.gpu() if on_gpu and device == "cpu" else image

        def output(modality: str) -> DataNode:
            if modality == "rgb":
                picture = resize(cut(modality, "mixed" if on_gpu else "cpu", output_type=types.RGB), flip, size)
                return self._augment.apply(picture, size) if self._augment else picture
            if modality == "depth":
                stored = cut(modality, output_type=types.ANY_DATA, dtype=types.UINT16)
                return resize(stored, flip, size, dtype=types.FLOAT) / DEPTH_SCALE
            stored = cut(modality, output_type=types.ANY_DATA)
            classes = fn.flip(fn.resize(stored, size=(size, size), **nearest), horizontal=flip)
            coarse = size // self._strides[modality]
            return fn.squeeze(fn.resize(classes, size=(coarse, coarse), **nearest), axes=2)

        return [output(modality) for modality in modalities]


def crop_inputs() -> tuple[DataNode, DataNode, DataNode]:
    """The inputs of a graph that the fields of `Crop` feed: anchor, shape, flip."""
    fn, types = dali("fn"), dali("types")
    return (
        fn.external_source(name="anchor", dtype=types.INT64, ndim=1),
        fn.external_source(name="shape", dtype=types.INT64, ndim=1),
        fn.external_source(name="flip", dtype=types.INT32, ndim=0),
    )


def resize(pixels: DataNode, flip: DataNode, size: int, **how: Any) -> DataNode:
    """Bicubic with antialiasing to `size` x `size`, then mirrored where `flip` is 1; frames of a clip alike."""
    fn, types = dali("fn"), dali("types")
    resized = fn.resize(pixels, size=(size, size), interp_type=types.INTERP_CUBIC, antialias=True, **how)
    return fn.flip(resized, horizontal=flip)
