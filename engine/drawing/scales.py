"""The scales of pathways as a picture: how much every layer uses of every auxiliary model (models.pathway)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from omnitrunk.engine.drawing.colors import oklch_to_srgb
from omnitrunk.engine.drawing.sheet import GAP, MARGIN, NARROWEST, PAPER, TITLE, write

if TYPE_CHECKING:
    from PIL.Image import Image

CELL = (84, 26)
"""Width and height of the field of one scale."""
LAYER = 96
"""Width of the names of layers."""


def draw_scales(scales: Mapping[str, Sequence[float]], auxiliaries: Sequence[str]) -> Image:
    """A table for each auxiliary model: layers as rows, blocks as columns; blue below zero, red above.

    `scales` are named like "blocks.0.attn.qkv". ValueError if there are none.
    """
    from PIL import Image, ImageDraw

    if not scales:
        raise ValueError("the model has no pathways and reconstructs nothing; show the run that it starts from")
    places = list(dict.fromkeys(name.split(".", 2)[2] for name in scales))
    depth = 1 + max(int(name.split(".")[1]) for name in scales)
    strongest = max(abs(value) for row in scales.values() for value in row) or 1.0
    table = TITLE + (1 + len(places)) * (CELL[1] + GAP) + MARGIN
    width = max(NARROWEST, 2 * MARGIN + LAYER + depth * (CELL[0] + GAP))
    picture = Image.new("RGB", (width, MARGIN + len(auxiliaries) * table), PAPER)
    draw = ImageDraw.Draw(picture)
    for number, auxiliary in enumerate(auxiliaries):
        top = MARGIN + number * table
        write(draw, MARGIN, top, f"scales of {auxiliary} (largest of all {strongest:.2g})", 17)
        for block in range(depth):
            write(draw, MARGIN + LAYER + block * (CELL[0] + GAP), top + TITLE + 8, f"block {block}", 13)
        for row, place in enumerate(places, start=1):
            y = top + TITLE + row * (CELL[1] + GAP)
            write(draw, MARGIN, y + 6, place, 13)
            for block in range(depth):
                x, value = MARGIN + LAYER + block * (CELL[0] + GAP), scales[f"blocks.{block}.{place}"][number]
                draw.rectangle((x, y, x + CELL[0], y + CELL[1]), fill=signed_color(value / strongest))
                write(draw, x + 8, y + 6, f"{value:+.4f}", 13)
    return picture


def signed_color(value: float) -> tuple[int, int, int]:
    """White at 0, deeper blue towards -1, deeper red towards 1; dark ink stays readable on all of them."""
    strength, hue = min(1.0, abs(value)), np.deg2rad(25 if value > 0 else 255)
    red, green, blue = oklch_to_srgb(np.array([1 - 0.35 * strength]), np.array([0.15 * strength]), np.array([hue]))[0]
    return int(red), int(green), int(blue)
