"""Text in columns for the doctor's report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def aligned(rows: Sequence[tuple[str, ...]], indent: str = "  ") -> Iterator[str]:
    """Rows of one length as lines, every column but the last as wide as its longest text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    for *cells, last in rows:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        yield indent + "  ".join([*padded, last])
