"""Lays pictures out on one sheet: a row per sample, a block of captioned columns per output, a legend below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from omnitrunk.engine.drawing.colors import class_colors, scale_colors

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

TILE, WIDEST = 112, 3
"""Height of a picture on the sheet, and its greatest width as a multiple of that."""
GAP, BLOCK_GAP, MARGIN = 4, 20, 14
TITLE, CAPTION = 22, 18
SWATCH = 16
NARROWEST = 600
"""Pixels that the legend needs."""
INK, PAPER = (25, 25, 25), (255, 255, 255)
SCALE_WIDTH = 160


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The columns of one output."""

    name: str
    pictures: dict[str, np.ndarray]
    """Caption -> uint8 (B, H, W, 3)."""
    classes: tuple[int, ...] = ()
    """Class ids that occur in the pictures; empty for pixels."""
    scale: str = ""
    """What the color scale from dark to bright says in the pictures; empty where there is none."""
    note: str = ""
    """A line of the legend."""


def compose(panels: list[Panel], class_names: Sequence[str] = ()) -> Image:
    """All panels side by side; the samples are their rows. Classes without a name are called by their id."""
    from PIL import Image, ImageDraw

    rows = len(next(iter(panels[0].pictures.values())))
    tiles = [[_tile_width(pictures) for pictures in panel.pictures.values()] for panel in panels]
    widths = [sum(columns) + GAP * (len(columns) - 1) for columns in tiles]
    width = max(NARROWEST, 2 * MARGIN + sum(widths) + BLOCK_GAP * (len(panels) - 1))
    top = MARGIN + TITLE + CAPTION
    bottom = top + rows * (TILE + GAP)
    sheet = Image.new("RGB", (width, bottom + _legend_lines(panels) * (SWATCH + 8) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    left = MARGIN
    for panel, columns in zip(panels, tiles, strict=True):
        write(draw, left, MARGIN, panel.name, 17)
        for (caption, pictures), tile in zip(panel.pictures.items(), columns, strict=True):
            write(draw, left, MARGIN + TITLE, caption, 13)
            for row, picture in enumerate(pictures):
                shown = Image.fromarray(picture).resize((tile, TILE), Image.Resampling.NEAREST)
                sheet.paste(shown, (left, top + row * (TILE + GAP)))
            left += tile + GAP
        left += BLOCK_GAP - GAP
    _legend(draw, panels, class_names, bottom + 8)
    return sheet


def _tile_width(pictures: np.ndarray) -> int:
    """Width of the pictures of a column on the sheet, their shape kept up to a limit."""
    _, height, width, _ = pictures.shape
    return min(WIDEST * TILE, max(TILE, round(TILE * width / height)))


def _legend_lines(panels: list[Panel]) -> int:
    wanted = zip(*((_masked(p), bool(p.classes), bool(p.scale)) for p in panels), strict=True)
    return sum(map(any, wanted)) + len(_notes(panels))


def _notes(panels: list[Panel]) -> list[str]:
    return list(dict.fromkeys(panel.note for panel in panels if panel.note))


def _masked(panel: Panel) -> bool:
    return "masked" in panel.pictures


def _legend(draw: ImageDraw, panels: list[Panel], class_names: Sequence[str], y: int) -> None:
    """What the panels note, what grey means, the colors of the classes that occur, the scale of maps and clouds."""
    for note in _notes(panels):
        write(draw, MARGIN, y, note, 13)
        y += SWATCH + 8
    if any(map(_masked, panels)):
        write(draw, MARGIN, y, "grey or left out: masked; the prediction shows the input where it is visible", 13)
        y += SWATCH + 8
    classes = sorted(set().union(*(panel.classes for panel in panels)))
    if classes:
        x = MARGIN + write(draw, MARGIN, y, "classes", 13) + 10
        for identity, color in zip(classes, class_colors(classes[-1] + 1)[classes], strict=True):
            draw.rectangle((x, y, x + SWATCH, y + SWATCH), fill=tuple(color.tolist()))
            name = class_names[identity] if identity < len(class_names) else str(identity)
            x += SWATCH + 4 + write(draw, x + SWATCH + 4, y, name, 13) + 12
        y += SWATCH + 8
    if scales := dict.fromkeys(panel.scale for panel in panels if panel.scale):
        start = MARGIN + write(draw, MARGIN, y, f"{', '.join(scales)}: least", 13) + 8
        for step, color in enumerate(scale_colors(np.linspace(0, 1, SCALE_WIDTH))):
            draw.line((start + step, y, start + step, y + SWATCH), fill=tuple(color.tolist()))
        write(draw, start + SCALE_WIDTH + 8, y, "greatest of the target", 13)


def write(draw: ImageDraw, x: int, y: int, words: str, size: int) -> int:
    """Put `words` on a picture, their top left at (x, y), and return their width."""
    from PIL import ImageFont

    font = ImageFont.load_default(size)
    draw.text((x, y), words, fill=INK, font=font)
    return round(draw.textlength(words, font=font))
