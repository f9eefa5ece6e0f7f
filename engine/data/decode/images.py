"""Decodes, crops, resizes and mirrors pictures and the maps aligned with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch

from omnitrunk.engine.data.decode.augmentation import UNCHANGED, Augmentation
from omnitrunk.engine.data.decode.crop import Crop
from omnitrunk.engine.data.decode.dali import DaliPipeline, dali, encoded
from omnitrunk.engine.data.decode.decoder import by_row, by_sample, row_positions
from omnitrunk.engine.data.decode.disparity import Disparity
from omnitrunk.engine.data.sample import EncodedSample

if TYPE_CHECKING:
    from nvidia.dali.data_node import DataNode

DEPTH_SCALE = 65536.0
"""Stored 16-bit depth is divided by 2^16, not by 2^16 - 1: the convention of MultiMAE's pseudo labels."""

Rectangle: TypeAlias = Callable[[np.ndarray, np.ndarray, np.ndarray], Crop]
"""(heights, widths, positions), each int64 (R,), to the crop of every row."""


class ImageDecoder:
    """Turns up to `batch` encoded samples, each into `copies` rows, into tensors of `size` x `size` pixels.

    `strides` maps each modality, in the order of the files, to how much coarser than the picture its map is (1 for
    pictures). All modalities of a row are cut by the one rectangle that `rectangle` gives it, and mirrored alike:
    rgb     uint8   (R, size, size, 3)          bicubic with antialiasing
    depth   float32 (R, size, size, 1)          bicubic with antialiasing, divided by 65536 or turned into `disparity`
    semseg  uint8   (R, size / s, size / s)     nearest to `size`, then nearest again: a single step would differ
    The result is on `device`: a GPU decodes JPEG itself and gets the cut-outs of PNG files, which the host decodes.
    `augment` changes pictures after that, and moves depth with them; class maps cannot be moved.
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
        copies: int = 1,
        augment: Augmentation = UNCHANGED,
        disparity: Disparity | None = None,
    ) -> None:
        self._strides = dict(strides)
        self._rectangle = rectangle
        self._size = size
        self._copies = copies
        self._augment = augment
        self._disparity = disparity
        self._pipeline = DaliPipeline(
            self._graph, list(strides), batch=batch, threads=threads, device=device, conditional=augment.conditional
        )

    def submit(self, rows: Sequence[EncodedSample]) -> None:
        """Starts decoding one batch and returns."""
        copies = self._copies
        inputs = {name: encoded([row.files[i] for row in rows]) for i, name in enumerate(self._strides)}
        heights, widths = np.array([row.facts[0] for row in rows], dtype=np.int64).repeat(copies, axis=0).T
        positions = row_positions(rows, copies)
        drawn = self._augment.draw(positions) | self._rectangle(heights, widths, positions)._asdict()
        inputs |= {name: by_sample(values, copies) for name, values in drawn.items()}
        if self._disparity:
            inputs["focal"] = self._disparity.focals(rows)
        self._pipeline.submit(inputs)

    def collect(self) -> dict[str, torch.Tensor]:
        """Waits for the tensors of the batch in flight."""
        outputs, copies = self._pipeline.collect(), self._copies
        return {name: by_row(outputs[i * copies : (i + 1) * copies]) for i, name in enumerate(self._strides)}

    def close(self) -> None:
        """Frees the pipeline."""
        self._pipeline.close()

    def _graph(self, modalities: Sequence[str], on_gpu: bool) -> list[DataNode]:
        """The one definition of the pipeline: for each modality an output for every row of a sample."""
        given = _Given(*crop_inputs(), self._augment.inputs(), on_gpu)
        outputs = {"rgb": self._pictures, "depth": self._depths}
        made = [outputs.get(name, partial(self._class_maps, name))(given) for name in modalities]
        return [node for rows in made for node in rows]

    def _pictures(self, given: _Given) -> list[DataNode]:
        images = self._cut("rgb", given, "mixed" if given.on_gpu else "cpu", output_type=dali("types").RGB)
        found = [resize(image, given.flip[row], self._size) for row, image in enumerate(images)]
        return [self._augment.change(image, given.drawn, row) for row, image in enumerate(found)]

    def _depths(self, given: _Given) -> list[DataNode]:
        types = dali("types")
        stored = self._cut("depth", given, output_type=types.ANY_DATA, dtype=types.UINT16)
        if self._disparity:
            straight = [self._disparity.straighten(steps) for steps in stored]
            steps = [resize(s, given.flip[row], self._size, dtype=types.FLOAT) for row, s in enumerate(straight)]
            focal = dali("fn").external_source(name="focal", dtype=types.FLOAT, ndim=0)
            focal, fill = focal.gpu() if given.on_gpu else focal, self._disparity.farthest
            found = [self._disparity.convert(depth, focal) for depth in steps]
        else:
            steps = [resize(s, given.flip[row], self._size, dtype=types.FLOAT) for row, s in enumerate(stored)]
            found, fill = [depth / DEPTH_SCALE for depth in steps], 0.0
        return [self._augment.move(depth, given.drawn, row, fill) for row, depth in enumerate(found)]

    def _class_maps(self, modality: str, given: _Given) -> list[DataNode]:
        fn, types = dali("fn"), dali("types")
        nearest: dict[str, Any] = {"interp_type": types.INTERP_NN}
        fine, coarse = self._size, self._size // self._strides[modality]
        stored = self._cut(modality, given, output_type=types.ANY_DATA)
        found = [fn.resize(ids, size=(fine, fine), **nearest) for ids in stored]
        found = [fn.flip(ids, horizontal=given.flip[row]) for row, ids in enumerate(found)]
        return [fn.squeeze(fn.resize(ids, size=(coarse, coarse), **nearest), axes=2) for ids in found]

    def _cut(self, modality: str, given: _Given, device: str = "cpu", **output: Any) -> list[DataNode]:
        """The rectangles of all rows; where there is one row, no more than that is decoded."""
        fn, types = dali("fn"), dali("types")
        data = fn.external_source(name=modality, dtype=types.UINT8, ndim=1)
        # Depth and class maps are made from pictures as stored, so a camera's rotation tag is not applied.
        how = {"device": device, "adjust_orientation": False, **output}
        places = [(given.anchor[row], given.shape[row]) for row in range(self._copies)]
        if len(places) == 1:
            images = [fn.decoders.image_slice(data, *places[0], axis_names="HW", **how)]
        else:
            whole = fn.decoders.image(data, **how)
            images = [fn.slice(whole, *place, axis_names="HW") for place in places]
        return [image.gpu() if given.on_gpu and device == "cpu" else image for image in images]


class _Given(NamedTuple):
    """The inputs that all modalities share, each for all rows of a sample."""

    anchor: DataNode
    shape: DataNode
    flip: DataNode
    drawn: Mapping[str, DataNode]
    on_gpu: bool


def crop_inputs() -> tuple[DataNode, DataNode, DataNode]:
    """The inputs of a graph that the fields of `Crop` feed, each for all rows of a sample: anchor, shape, flip."""
    fn, types = dali("fn"), dali("types")
    return (
        fn.external_source(name="anchor", dtype=types.INT64, ndim=2),
        fn.external_source(name="shape", dtype=types.INT64, ndim=2),
        fn.external_source(name="flip", dtype=types.INT32, ndim=1),
    )


def resize(pixels: DataNode, flip: DataNode, size: int, **how: Any) -> DataNode:
    """Bicubic with antialiasing to `size` x `size`, then mirrored where `flip` is 1; frames of a clip alike."""
    fn, types = dali("fn"), dali("types")
    resized = fn.resize(pixels, size=(size, size), interp_type=types.INTERP_CUBIC, antialias=True, **how)
    return fn.flip(resized, horizontal=flip)
