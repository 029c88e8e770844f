"""Contact sheets: rows of pictures under column titles, for the eye rather than the metric."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from beit.common.files import write_atomic

_GAP_PX, _TITLE_PX, _TEXT_PX = 8, 30, 15
_DPI = 144
"""Sheets are drawn for screens of twice the old 72 dots per inch; a text editor then shows them at a readable size."""
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


def contact_sheet(
    rows: Sequence[Sequence[NDArray[np.uint8]]], *, titles: Sequence[str], cell_px: int = 160
) -> Image.Image:
    """Lay out pictures in a table with one title per column.

    Args:
        rows: Pictures, each (height, width, 3) uint8, as many per row as there are titles. Small ones are enlarged
            pixel by pixel, so that what was seen by the model stays visible as it is.
        titles: One per column.
        cell_px: Side of each square cell in pixels.

    Returns:
        RGB image.
    """
    columns = len(titles)
    width = columns * (cell_px + _GAP_PX) + _GAP_PX
    sheet = Image.new("RGB", (width, _TITLE_PX + len(rows) * (cell_px + _GAP_PX)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_TEXT_PX)
    for column, title in enumerate(titles):
        centre = _GAP_PX + column * (cell_px + _GAP_PX) + cell_px // 2
        draw.text((centre, _TITLE_PX // 2), title, fill=_INK, font=font, anchor="mm")
    for row, pictures in enumerate(rows):
        for column, pixels in enumerate(pictures):
            left, top = _GAP_PX + column * (cell_px + _GAP_PX), _TITLE_PX + row * (cell_px + _GAP_PX)
            sheet.paste(_fit(pixels, cell_px), (left, top))
    return sheet


def mask_patches(pixels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Grey out the masked patches of a picture.

    Args:
        pixels: (height, width, 3) uint8.
        mask: (rows, columns), True = masked; must divide the picture evenly.

    Returns:
        A copy, same shape.
    """
    rows, columns = mask.shape
    cells = np.kron(mask, np.ones((pixels.shape[0] // rows, pixels.shape[1] // columns), dtype=bool))
    return np.where(cells[..., None], np.uint8(128), pixels)


def save_png(image: Image.Image, path: Path) -> None:
    """Write `image` to `path` as PNG, atomically, making the folder if needed."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True, dpi=(_DPI, _DPI))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def _fit(pixels: NDArray[np.uint8], cell_px: int) -> Image.Image:
    image = Image.fromarray(pixels)
    larger = max(image.size) >= cell_px
    resample = Image.Resampling.LANCZOS if larger else Image.Resampling.NEAREST
    return image.resize((cell_px, cell_px), resample)
