"""Tables of text for a terminal. Tables of pictures are `pictures.py`, how numbers are written is `numbers.py`."""

from __future__ import annotations

import shutil
import textwrap
import unicodedata
from collections.abc import Sequence

_WIDE = ("W", "F")
"""East Asian widths of letters that take two columns of a terminal."""


def aligned(rows: Sequence[Sequence[str]], *, align: str = "<>") -> str:
    """Lay out cells in columns, two blanks apart.

    Args:
        rows: Cells of every row, the heading included; rows may be shorter than others, and end where their text does.
        align: A "<" (left) or ">" (right) per column; the last one holds for all columns behind it.

    Returns:
        Lines, without a line break at the end.
    """
    widths = [max(columns(row[place]) for row in rows if place < len(row)) for place in range(max(map(len, rows)))]
    sides = align + align[-1] * len(widths)
    return "\n".join(
        "  ".join(_padded(cell, side, width) for cell, side, width in zip(row, sides, widths, strict=False)).rstrip()
        for row in rows
    )


def folded(text: str, *, indent: str = "") -> str:
    """Break a text between words into lines of the terminal, or of 80 columns in a pipe; never of more than 110.

    Args:
        text: One paragraph.
        indent: Before all lines but the first.
    """
    width = max(40, min(110, shutil.get_terminal_size().columns))
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def columns(text: str) -> int:
    """Return how many columns of a terminal a text takes: two for Chinese, Japanese and Korean, none for accents."""
    return sum(_letter_columns(letter) for letter in text)


def shortened(text: str, most: int) -> str:
    """Cut a text in its middle to at most `most` columns of a terminal: names differ at their beginning or end."""
    if columns(text) <= most:
        return text
    last = ""
    for letter in reversed(text):
        if columns(letter + last) > (most - 3) // 2:
            break
        last = letter + last
    first = ""
    for letter in text:
        if columns(first + letter) > most - 3 - columns(last):
            break
        first += letter
    return f"{first}...{last}"


def _letter_columns(letter: str) -> int:
    if unicodedata.combining(letter) or unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in _WIDE else 1


def _padded(cell: str, side: str, width: int) -> str:
    blanks = " " * (width - columns(cell))
    return cell + blanks if side == "<" else blanks + cell
