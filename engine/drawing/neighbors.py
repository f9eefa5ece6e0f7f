"""A sheet of what retrieval finds: a row for each query, with its nearest neighbors in the other modality.

Pictures are drawn as they are, clips as three of their frames, depth in colors, pictures with depth beside their depth.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from omnitrunk.engine.drawing.colors import scale_colors
from omnitrunk.engine.drawing.sheet import TILE, Panel, compose
from omnitrunk.engine.evaluation.retrieval import Side, read_sides
from omnitrunk.engine.evaluation.samples import batches_of, find_data

if TYPE_CHECKING:
    from PIL.Image import Image

    from omnitrunk.engine.config import RunConfig

NEIGHBORS = 5
FRAMES = 3
"""Frames of a clip that are drawn side by side: the first, the last, and those in between."""
RIGHT, WRONG = (30, 160, 70), (205, 45, 45)
THIN, THICK = 3, 9
"""Width of a frame in pixels: of a neighbor, and of one that is the same sample."""
LEGEND = "frames: green of the same class, thick green the same sample, red of another class"

Pictures = dict[int, np.ndarray]
"""Place in the index of a split -> uint8 (TILE, W, 3)."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The neighbors of some queries, as rows of the two sides."""

    queries: np.ndarray
    """int64 (Q,)."""
    neighbors: np.ndarray
    """int64 (Q, n), the nearest first."""


def draw_neighbors(config: RunConfig, model: nn.Module, device: torch.device, *, samples: int) -> Image:
    """A block for each pair of evaluate.retrieval, with `samples` queries from all over the val split."""
    sides = read_sides(config, {"": model}, device)[""]
    found = {pair: search(sides[names[0]], sides[names[1]], samples) for pair, names in config.evaluate.pairs.items()}
    needed: dict[str, set[int]] = {name: set() for name in sides}
    for pair, (query, gallery) in config.evaluate.pairs.items():
        needed[query].update(sides[query].positions[found[pair].queries].tolist())
        needed[gallery].update(sides[gallery].positions[found[pair].neighbors.flatten()].tolist())
    pictures = {name: _pictures(config, name, positions, device) for name, positions in needed.items()}
    return compose(
        [
            panel(pair, found[pair], [sides[name] for name in names], [pictures[name] for name in names])
            for pair, names in config.evaluate.pairs.items()
        ]
    )


def search(query: Side, gallery: Side, samples: int) -> Found:
    """The nearest samples of a gallery to `samples` queries, which lie evenly in the order of their split."""
    queries = np.linspace(0, len(query.samples) - 1, samples).round().astype(np.int64)
    similarity = query.features[torch.from_numpy(queries).to(query.features.device)] @ gallery.features.T
    nearest = similarity.topk(min(NEIGHBORS, len(gallery.samples)), dim=1).indices
    return Found(queries=queries, neighbors=nearest.cpu().numpy())


def panel(pair: str, found: Found, sides: list[Side], pictures: list[Pictures]) -> Panel:
    """The block of one pair; the first of `sides` and `pictures` is that of the queries."""
    (query, gallery), (of_queries, of_gallery) = sides, pictures
    columns = {"query": np.stack([of_queries[place] for place in query.positions[found.queries].tolist()])}
    for rank, neighbors in enumerate(found.neighbors.T, 1):
        columns[str(rank)] = np.stack(
            [
                framed(
                    of_gallery[int(gallery.positions[there])],
                    right=bool(gallery.classes[there] == query.classes[here]),
                    same=bool(gallery.samples[there] == query.samples[here]),
                )
                for here, there in zip(found.queries, neighbors, strict=True)
            ]
        )
    return Panel(name=pair, pictures=columns, note=LEGEND)


def framed(picture: np.ndarray, *, right: bool, same: bool) -> np.ndarray:
    """A picture (H, W, 3) with a frame over its edge."""
    width = THICK if same else THIN
    drawn = np.empty_like(picture)
    drawn[:] = RIGHT if right else WRONG
    drawn[width:-width, width:-width] = picture[width:-width, width:-width]
    return drawn


def _pictures(config: RunConfig, name: str, positions: Collection[int], device: torch.device) -> Pictures:
    data, modalities = find_data(config, name)
    found = {}
    for batch in batches_of(replace(data, views=1, crops=1), data.val_split, modalities, device):
        for row, position in enumerate(batch.positions.tolist()):
            if position in positions:
                parts = [_drawn(batch.tensors[modality][row].cpu()) for modality in modalities]
                found[position] = np.concatenate(parts, axis=1)
    return found


def _drawn(values: Tensor) -> np.ndarray:
    """One sample, (H, W, 3), (T, H, W, 3) or (H, W, 1), as uint8 (TILE, W, 3)."""
    if values.dim() == 4:
        frames = np.linspace(0, len(values) - 1, min(FRAMES, len(values))).round().astype(int)
        return np.concatenate([_drawn(values[frame]) for frame in frames], axis=1)
    colors = values.numpy()
    if values.shape[-1] == 1:
        low, high = values.amin(), values.amax()
        colors = scale_colors(((values[..., 0] - low) / (high - low).clamp(min=1e-6)).numpy())
    rows, columns = (np.arange(TILE) * extent // TILE for extent in colors.shape[:2])
    return colors[rows][:, columns]
