"""Pictures for the eye rather than the metric: tables of small pictures, and sheets with a heading and a legend.

Charts are `charts.py`. A sheet carries what it consists of with it (`cells.py`), so that a page can set it anew.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from beit.common.pages.cells import Box, Described, Grid, as_png_text, describe, described
from beit.common.pages.fonts import fitted, font, text_px, wrapped
from beit.common.storage.files import write_output

PAPER, INK, FAINT = (255, 255, 255), (33, 37, 41), (110, 117, 125)
PALETTE = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (120, 94, 240),
    (165, 150, 20),
)
"""For what is told apart by its colour: Okabe and Ito's, which colour-blind readers can tell apart, and two more."""
HIGHLIGHT, DEEP = PALETTE[0], (31, 111, 120)
HEAT = ((10, 8, 40), (80, 18, 110), (165, 45, 95), (229, 92, 48), (251, 165, 36), (252, 255, 164))
"""From little to much: dark, red, bright yellow."""

_MARGIN_PX, _GAP_PX = 24, 12
_TITLE_PX, _TITLE_TEXT_PX = 26, 14
_CAPTION_LINE_PX, _CAPTION_TEXT_PX = 17, 12
_HEADING_PX, _HEADING_TEXT_PX = 34, 22
_NOTE_LINE_PX, _NOTE_TEXT_PX = 20, 13
_LABEL_PX = 240
"""Widest text on the left of a row; arbitrary."""
_MAP_PX = 640
"""Side of a map of shares, at most, unless it has more rows; arbitrary."""
_DPI = 144
"""Sheets are drawn for screens of twice the old 72 dots per inch; a text editor then shows them at a readable size."""


def picture_table(
    rows: Sequence[Sequence[NDArray[np.uint8] | None]],
    *,
    titles: Sequence[str] = (),
    labels: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
    cell_px: int = 160,
    cell_height_px: int | None = None,
) -> Image.Image:
    """Lay out pictures in a table.

    Texts keep to the width of their cells, and those of rows to `_LABEL_PX`: what is wider is cut in its middle.

    Args:
        rows: Pictures, each (height, width, 3) uint8, or None for an empty cell; rows may end early. Small ones are
            enlarged pixel by pixel, so that what was seen by the model stays visible as it is.
        titles: One per column; left out, there are none.
        labels: One per row, of one or more lines, on its left; left out, there are none.
        captions: One per cell, of one or more lines, below it; left out, there are none.
        cell_px: Width of each cell in pixels.
        cell_height_px: Height of each cell; left out, they are square.

    Returns:
        RGB image without margins.
    """
    high_px = cell_height_px or cell_px
    below_px = [max(map(_caption_px, row)) for row in captions] or [0] * len(rows)
    tops = np.cumsum([_TITLE_PX if titles else 0, *(high_px + px + _GAP_PX for px in below_px)]).tolist()
    given_labels, labels = labels, [_fitted_lines(label, _LABEL_PX, _TITLE_TEXT_PX) for label in labels]
    lines = [line for label in labels for line in label.split("\n")]
    left = math.ceil(max(text_px(line, _TITLE_TEXT_PX) for line in lines)) + _GAP_PX if lines else 0
    lefts = [left + column * (cell_px + _GAP_PX) for column in range(max(map(len, rows)))]
    table = Image.new("RGB", (lefts[-1] + cell_px, tops[-1] - _GAP_PX), PAPER)
    boxes = [
        [
            None if cell is None else Box(left, top, left + cell_px, top + high_px)
            for cell, left in zip(row, lefts, strict=False)
        ]
        for row, top in zip(rows, tops, strict=False)
    ]
    grid = Grid(boxes=boxes, titles=list(titles), labels=list(given_labels), captions=[list(row) for row in captions])
    describe(table, Described(bodies=[grid]))
    draw = ImageDraw.Draw(table)
    for title, left in zip(titles, lefts, strict=False):
        title = fitted(title, cell_px, _TITLE_TEXT_PX)
        draw.text((left, _TITLE_PX // 2 - 2), title, fill=INK, font=font(_TITLE_TEXT_PX, title), anchor="lm")
    for label, top in zip(labels, tops, strict=False):
        typeface = font(_TITLE_TEXT_PX, label)
        draw.text((0, top + high_px // 2), label, fill=INK, font=typeface, anchor="lm", spacing=4)
    for row, (pictures, top) in enumerate(zip(rows, tops, strict=False)):
        for column, (pixels, left) in enumerate(zip(pictures, lefts, strict=False)):
            if pixels is not None:
                table.paste(enlarged(pixels, cell_px, high_px), (left, top))
            if captions:
                text = _fitted_lines(captions[row][column], cell_px, _CAPTION_TEXT_PX)
                for number, line in enumerate(text.split("\n")):
                    below = (left, top + high_px + 4 + number * _CAPTION_LINE_PX)
                    draw.text(below, line, fill=FAINT, font=font(_CAPTION_TEXT_PX, line))
    return table


def _fitted_lines(text: str, width_px: int, size: int) -> str:
    return "\n".join(fitted(line, width_px, size) for line in text.split("\n"))


def _caption_px(caption: str) -> int:
    return (caption.count("\n") + 1) * _CAPTION_LINE_PX + 4 if caption else 0


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
    width, given_heading = max(body.width for body in bodies), heading
    fact_lines, legend_lines = (wrapped(text, width, _NOTE_TEXT_PX) for text in (facts, legend))
    head = (_HEADING_PX if heading else 0) + len(fact_lines) * _NOTE_LINE_PX + (_GAP_PX if heading or facts else 0)
    body_px = sum(body.height + 2 * _GAP_PX for body in bodies) - 2 * _GAP_PX
    foot = len(legend_lines) * _NOTE_LINE_PX + (_GAP_PX if legend else 0)
    page = Image.new("RGB", (width + 2 * _MARGIN_PX, 2 * _MARGIN_PX + head + body_px + foot), PAPER)
    draw, top = ImageDraw.Draw(page), _MARGIN_PX
    if heading:
        heading = fitted(heading, width, _HEADING_TEXT_PX)
        draw.text((_MARGIN_PX, top - 6), heading, fill=INK, font=font(_HEADING_TEXT_PX, heading))
        top += _HEADING_PX
    _write_lines(draw, fact_lines, top)
    parts: list[Grid] = []
    top = _MARGIN_PX + head
    for body in bodies:
        page.paste(body, (_MARGIN_PX, top))
        parts += described(body).moved(_MARGIN_PX, top).bodies
        top += body.height + 2 * _GAP_PX
    _write_lines(draw, legend_lines, top - _GAP_PX)
    describe(page, Described(heading=given_heading, facts=facts, legend=legend, bodies=parts))
    return page


def _write_lines(draw: ImageDraw.ImageDraw, lines: Sequence[str], top: int) -> None:
    for number, line in enumerate(lines):
        draw.text((_MARGIN_PX, top + number * _NOTE_LINE_PX), line, fill=FAINT, font=font(_NOTE_TEXT_PX, line))


def beside(bodies: Sequence[Image.Image]) -> Image.Image:
    """Put pictures next to each other, aligned at the top; RGB without margins."""
    width = sum(body.width + 2 * _GAP_PX for body in bodies) - 2 * _GAP_PX
    row = Image.new("RGB", (width, max(body.height for body in bodies)), PAPER)
    parts: list[Grid] = []
    left = 0
    for body in bodies:
        row.paste(body, (left, 0))
        parts += described(body).moved(left, 0).bodies
        left += body.width + 2 * _GAP_PX
    describe(row, Described(bodies=parts))
    return row


def on_paper(pixels: NDArray[np.uint8], shape: float) -> NDArray[np.uint8]:
    """Lay a picture into the middle of paper of a shape, height to width, keeping its own.

    Args:
        pixels: (height, width, 3), or (height, width) of a grey one.
        shape: Height to width, of the paper.
    Returns:
        (H, W, 3).
    """
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    height, width, _ = pixels.shape
    wide = max(width, round(height / shape))
    high = max(height, round(width * shape))
    page = np.empty((high, wide, 3), np.uint8)
    page[:] = PAPER
    top, left = (high - height) // 2, (wide - width) // 2
    page[top : top + height, left : left + width] = pixels
    return page


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


def heat_colours(values: NDArray[np.floating], colours: Sequence[tuple[int, int, int]] = HEAT) -> NDArray[np.uint8]:
    """Colour numbers.

    Args:
        values: In [0, 1], any shape; what lies outside is clipped.
        colours: From those of 0 to those of 1, ordered by brightness, which then says the order too.

    Returns:
        uint8 RGB, one more axis.
    """
    places, stops = np.linspace(0, 1, len(colours)), np.array(colours, np.float64)
    clipped = np.clip(values, 0, 1)
    channels = [np.interp(clipped, places, stops[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def share_map(counts: NDArray[np.int64]) -> Image.Image:
    """Draw a square table of many counts without names, the darker, the larger their share of the row.

    Args:
        counts: (C, C).

    Returns:
        RGB image, square, a whole number of pixels for each count.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)  # (C, C)
    cell_px = max(1, _MAP_PX // len(counts))
    return Image.fromarray(heat_colours(np.kron(shares, np.ones((cell_px, cell_px))), (PAPER, DEEP)))


def ink_on(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the colour of letters, dark or white, that is read better on `colour`, by the contrast of WCAG 2."""
    return PAPER if contrast(PAPER, colour) >= contrast(INK, colour) else INK


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Return the contrast of two colours, 1 to 21; text wants 4.5. Source: WCAG 2.2, relative luminance."""
    levels = np.array([one, other], np.float64) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    low, high = sorted(linear @ (0.2126, 0.7152, 0.0722))
    return float((high + 0.05) / (low + 0.05))


def png_bytes(image: Image.Image, *, is_quick: bool = False) -> bytes:
    """Return `image` as a PNG file; a quick one is a few percent larger and takes an eighth of the time."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=not is_quick, dpi=(_DPI, _DPI), pnginfo=as_png_text(image))
    return buffer.getvalue()


def save_png(image: Image.Image, path: Path, *, is_quick: bool = False) -> None:
    """Write `image` to `path` as PNG, as `write_output` does; quickly while a training waits."""
    write_output(path, png_bytes(image, is_quick=is_quick))


def enlarged(pixels: NDArray[np.uint8], width_px: int, height_px: int | None = None) -> Image.Image:
    """Resize a picture (height, width, 3) to a cell, by default square; small ones pixel by pixel, others smoothly."""
    image, size = Image.fromarray(pixels), (width_px, height_px or width_px)
    larger = max(image.size) >= max(size)
    resample = Image.Resampling.LANCZOS if larger else Image.Resampling.NEAREST
    return image.resize(size, resample)
