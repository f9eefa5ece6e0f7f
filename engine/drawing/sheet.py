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
    names = _class_rows(panels, class_names, width - 2 * MARGIN)
    sheet = Image.new("RGB", (width, bottom + (_legend_lines(panels) + len(names)) * (SWATCH + 8) + MARGIN), PAPER)
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
    _legend(draw, panels, names, bottom + 8)
    return sheet


def _tile_width(pictures: np.ndarray) -> int:
    """Width of the pictures of a column on the sheet, their shape kept up to a limit."""
    _, height, width, _ = pictures.shape
    return min(WIDEST * TILE, max(TILE, round(TILE * width / height)))


def _legend_lines(panels: list[Panel]) -> int:
    """Lines of the legend, but for the classes."""
    wanted = zip(*((_masked(p), bool(p.scale)) for p in panels), strict=True)
    return sum(map(any, wanted)) + len(_notes(panels))


def _class_rows(panels: list[Panel], class_names: Sequence[str], width: int) -> list[dict[int, str]]:
    """The classes that occur with their names, in as many lines as they need."""
    rows: list[dict[int, str]] = []
    left = 0.0
    for identity in sorted(set().union(*(panel.classes for panel in panels))):
        name = class_names[identity] if identity < len(class_names) else str(identity)
        needed = 2 * SWATCH + _length(name, 13)
        if not rows or left < needed:
            rows.append({})
            left = width - _length("classes", 13) - 10
        rows[-1][identity] = name
        left -= needed
    return rows


def _notes(panels: list[Panel]) -> list[str]:
    return list(dict.fromkeys(panel.note for panel in panels if panel.note))


def _masked(panel: Panel) -> bool:
    return "masked" in panel.pictures


def _legend(draw: ImageDraw, panels: list[Panel], names: list[dict[int, str]], y: int) -> None:
    """What the panels note, what grey means, the colors of the classes that occur, the scale of maps and clouds."""
    for note in _notes(panels):
        write(draw, MARGIN, y, note, 13)
        y += SWATCH + 8
    if any(map(_masked, panels)):
        write(draw, MARGIN, y, "grey or left out: masked; the prediction shows the input where it is visible", 13)
        y += SWATCH + 8
    colors = class_colors(1 + max((identity for row in names for identity in row), default=0))
    for number, row in enumerate(names):
        x = MARGIN + round(_length("classes", 13)) + 10
        if number == 0:
            write(draw, MARGIN, y, "classes", 13)
        for identity, name in row.items():
            draw.rectangle((x, y, x + SWATCH, y + SWATCH), fill=tuple(colors[identity].tolist()))
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

    draw.text((x, y), words, fill=INK, font=ImageFont.load_default(size))
    return round(_length(words, size))


def _length(words: str, size: int) -> float:
    """Width of `words` on a picture."""
    from PIL import ImageFont

    return ImageFont.load_default(size).getlength(words)
