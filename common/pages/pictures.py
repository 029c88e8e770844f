"""Pictures for the eye rather than the metric: tables of small pictures, and sheets with a heading and a legend.

Charts are `charts.py`.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from beit.common.storage.files import write_atomic

PAPER, INK, FAINT = (255, 255, 255), (33, 37, 41), (110, 117, 125)
HIGHLIGHT = (0, 114, 178)
"""Okabe and Ito's blue, which colour-blind readers can tell from the rest."""

_MARGIN_PX, _GAP_PX = 24, 12
_TITLE_PX, _TITLE_TEXT_PX = 26, 15
_CAPTION_LINE_PX, _CAPTION_TEXT_PX = 17, 13
_HEADING_PX, _HEADING_TEXT_PX = 34, 24
_NOTE_LINE_PX, _NOTE_TEXT_PX = 20, 15
_DPI = 144
"""Sheets are drawn for screens of twice the old 72 dots per inch; a text editor then shows them at a readable size."""


def contact_sheet(
    rows: Sequence[Sequence[NDArray[np.uint8]]], *, titles: Sequence[str], cell_px: int = 160
) -> Image.Image:
    """Lay out pictures in a table with one title per column, on paper of their own.

    Args:
        rows: See `picture_table`.
        titles: One per column.
        cell_px: Side of each square cell in pixels.

    Returns:
        RGB image.
    """
    return sheet([picture_table(rows, titles=titles, cell_px=cell_px)])


def picture_table(
    rows: Sequence[Sequence[NDArray[np.uint8] | None]],
    *,
    titles: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    cell_px: int = 160,
) -> Image.Image:
    """Lay out pictures in a table.

    Args:
        rows: Pictures, each (height, width, 3) uint8, or None for an empty cell; all rows are equally long. Small ones
            are enlarged pixel by pixel, so that what was seen by the model stays visible as it is.
        titles: One per column; left out, there are none.
        captions: One per cell, of one or more lines; left out, there are none.
        cell_px: Side of each square cell in pixels.

    Returns:
        RGB image without margins.
    """
    num_columns = len(rows[0])
    lines = max((caption.count("\n") + 1 for row in captions for caption in row if caption), default=0)
    caption_px = lines * _CAPTION_LINE_PX + (4 if lines else 0)
    top, step = (_TITLE_PX if titles else 0), cell_px + caption_px + _GAP_PX
    table = Image.new("RGB", (num_columns * (cell_px + _GAP_PX) - _GAP_PX, top + len(rows) * step - _GAP_PX), PAPER)
    draw = ImageDraw.Draw(table)
    for column, title in enumerate(titles):
        centre = column * (cell_px + _GAP_PX) + cell_px // 2
        draw.text((centre, _TITLE_PX // 2 - 2), title, fill=INK, font=font(_TITLE_TEXT_PX), anchor="mm")
    for row, pictures in enumerate(rows):
        for column, pixels in enumerate(pictures):
            place = (column * (cell_px + _GAP_PX), top + row * step)
            if pixels is not None:
                table.paste(enlarged(pixels, cell_px), place)
            if captions:
                below = (place[0], place[1] + cell_px + 4)
                draw.text(below, captions[row][column], fill=FAINT, font=font(_CAPTION_TEXT_PX), spacing=4)
    return table


def sheet(bodies: Sequence[Image.Image], *, heading: str = "", facts: str = "", legend: str = "") -> Image.Image:
    """Put pictures below each other on paper, with a heading above and a legend below.

    Args:
        bodies: Top to bottom.
        heading: What this is, one line.
        facts: The numbers it stands on; wrapped.
        legend: How to read it; wrapped.

    Returns:
        RGB image.
    """
    width = max(body.width for body in bodies)
    fact_lines, legend_lines = wrap(facts, width), wrap(legend, width)
    head = (_HEADING_PX if heading else 0) + len(fact_lines) * _NOTE_LINE_PX + (_GAP_PX if heading or facts else 0)
    body_px = sum(body.height + 2 * _GAP_PX for body in bodies) - 2 * _GAP_PX
    foot = len(legend_lines) * _NOTE_LINE_PX + (_GAP_PX if legend else 0)
    page = Image.new("RGB", (width + 2 * _MARGIN_PX, 2 * _MARGIN_PX + head + body_px + foot), PAPER)
    draw, top = ImageDraw.Draw(page), _MARGIN_PX
    if heading:
        draw.text((_MARGIN_PX, top - 6), heading, fill=INK, font=font(_HEADING_TEXT_PX))
        top += _HEADING_PX
    _write_lines(draw, fact_lines, top)
    top = _MARGIN_PX + head
    for body in bodies:
        page.paste(body, (_MARGIN_PX, top))
        top += body.height + 2 * _GAP_PX
    _write_lines(draw, legend_lines, top - _GAP_PX)
    return page


def _write_lines(draw: ImageDraw.ImageDraw, lines: Sequence[str], top: int) -> None:
    for number, line in enumerate(lines):
        draw.text((_MARGIN_PX, top + number * _NOTE_LINE_PX), line, fill=FAINT, font=font(_NOTE_TEXT_PX))


def beside(bodies: Sequence[Image.Image]) -> Image.Image:
    """Put pictures next to each other, aligned at the top; RGB without margins."""
    width = sum(body.width + 2 * _GAP_PX for body in bodies) - 2 * _GAP_PX
    row = Image.new("RGB", (width, max(body.height for body in bodies)), PAPER)
    left = 0
    for body in bodies:
        row.paste(body, (left, 0))
        left += body.width + 2 * _GAP_PX
    return row


def wrap(text: str, width_px: int, text_px: int = _NOTE_TEXT_PX) -> list[str]:
    """Break a text into lines of at most about `width_px`; none for an empty text."""
    if not text:
        return []
    per_letter = font(text_px).getlength(text) / len(text)
    return textwrap.wrap(text, max(10, int(0.95 * width_px / per_letter)))  # 0.95: lines of wide letters


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own typeface, `size` pixels high; it is the same on every machine."""
    return ImageFont.load_default(size)


def mask_patches(
    pixels: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    *,
    colour: tuple[int, int, int] = (128, 128, 128),
    opacity: float = 1.0,
) -> NDArray[np.uint8]:
    """Cover the masked patches of a picture.

    Args:
        pixels: (height, width, 3) uint8.
        mask: (rows, columns), True = masked; must divide the picture evenly.
        colour: Of the cover.
        opacity: Of the cover; below 1, what is masked shines through.

    Returns:
        A copy, same shape.
    """
    rows, columns = mask.shape
    cells = np.kron(mask, np.ones((pixels.shape[0] // rows, pixels.shape[1] // columns), dtype=bool))
    veiled = np.round(opacity * np.array(colour) + (1 - opacity) * pixels.astype(np.float64)).astype(np.uint8)
    return np.where(cells[..., None], veiled, pixels)


def heat_colours(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colour numbers from dark (0) over red to bright yellow (1); brightness alone says the order too.

    Args:
        values: In [0, 1], any shape; what lies outside is clipped.

    Returns:
        uint8 RGB, one more axis.
    """
    places, stops = np.linspace(0, 1, len(_HEAT)), np.array(_HEAT, np.float64)
    clipped = np.clip(values, 0, 1)
    channels = [np.interp(clipped, places, stops[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


_HEAT = ((10, 8, 40), (80, 18, 110), (165, 45, 95), (229, 92, 48), (251, 165, 36), (252, 255, 164))


def save_png(image: Image.Image, path: Path) -> None:
    """Write `image` to `path` as PNG, atomically, making the folder if needed."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True, dpi=(_DPI, _DPI))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def enlarged(pixels: NDArray[np.uint8], side_px: int) -> Image.Image:
    """Resize a picture (height, width, 3) to a square: small ones pixel by pixel, large ones smoothly."""
    image = Image.fromarray(pixels)
    larger = max(image.size) >= side_px
    resample = Image.Resampling.LANCZOS if larger else Image.Resampling.NEAREST
    return image.resize((side_px, side_px), resample)
