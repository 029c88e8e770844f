"""Tables of text for a terminal. Tables of pictures are `pictures.py`."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, align: str = "<>") -> str:
    """Lay out cells in columns, two blanks apart.

    Args:
        rows: Cells of every row, the heading included; rows may be shorter than others, and end where their text does.
        align: A "<" (left) or ">" (right) per column; the last one holds for all columns behind it.

    Returns:
        Lines, without a line break at the end.
    """
    widths = [max(len(row[column]) for row in rows if column < len(row)) for column in range(max(map(len, rows)))]
    sides = align + align[-1] * len(widths)
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=False)).rstrip()
        for row in rows
    )
