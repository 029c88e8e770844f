"""Masks for the eye: classes laid over an image, where a model errs, and what the colours stand for.

Pictures only; sheets and pages of them are their users'.

Legend: H, W = size of an image; C = classes. Masks are uint8 (H, W): class ids, and `IGNORED`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from beit.common.pages.cells import Box, Described, Grid, describe
from beit.common.pages.fonts import fitted, font, text_px
from beit.common.pages.pictures import INK, PAPER
from beit.finetune.masks.classes import IGNORED, Colour, MaskClasses

Mask = NDArray[np.uint8]

OPACITY = 0.55
"""Of classes over an image: both can be told; arbitrary."""
WRONG: Colour = (255, 176, 0)
"""What is wrong, in a dark grey image: the only bright thing, whatever colours its reader can tell apart."""
UNTOLD: Colour = (58, 74, 110)
"""Stripes of what is ignored."""
_DIM = 0.42
"""Brightness that is left to what is right."""
_LEAST = 0.7
"""Of the colour of what is wrong where the image is black; where it is white, all of it."""
_STRIPE_PX = 4
_LINE_SHARE = 400
"""The lines around regions are as wide as this part of an image's longer side, a pixel at least; arbitrary."""
_SWATCH_PX, _ROW_PX, _TEXT_PX, _GAP_PX = 16, 24, 13, 8


def overlay(image: Image.Image, ids: Mask, classes: MaskClasses, opacity: float = OPACITY) -> Image.Image:
    """Lay the colours of classes over an image, with a line of the full colour around each region.

    Args:
        image: H x W.
        ids: What is drawn; ignored pixels show the image as it is.
        classes: Their colours.
        opacity: Of the colours; 1 hides the image.
    """
    pixels, flat = _pixels(image, ids), colours_of(ids, classes)
    mixed = np.round(opacity * flat + (1.0 - opacity) * pixels).astype(np.uint8)
    drawn = np.where(edges(ids)[..., None], flat, mixed)
    return Image.fromarray(np.where((ids == IGNORED)[..., None], pixels, drawn))


def error_map(image: Image.Image, truth: Mask, predicted: Mask, classes: MaskClasses | None = None) -> Image.Image:
    """Show where a model is wrong: those pixels are bright, the others dim and grey, ignored ones striped.

    The image shines through, so that a reader sees what is taken for something else.

    Args:
        image: H x W.
        truth: What is there.
        predicted: What a model says.
        classes: Given, wrong pixels have the colour of the class that the model takes them for.
    """
    light = _pixels(image.convert("L").convert("RGB"), truth).astype(np.float64)
    colours = np.array(WRONG, np.uint8) if classes is None else colours_of(predicted, classes)
    bright = colours * (_LEAST + (1.0 - _LEAST) * light / 255)
    wrong = (predicted != truth) & (truth != IGNORED)
    shown = np.where(wrong[..., None], bright, _DIM * light).astype(np.uint8)
    return Image.fromarray(np.where(_striped(truth == IGNORED)[..., None], np.array(UNTOLD, np.uint8), shown))


def legend(classes: MaskClasses, ids: Sequence[int] | Mask, *, width_px: int = 640) -> Image.Image:
    """Draw what colours stand for, in as many columns as fit into `width_px`.

    Args:
        classes: Names and colours.
        ids: Which of them, as a list in the order of the legend, or a mask, whose ids are shown in theirs.
        width_px: Of the picture.
    """
    shown = np.unique(ids).tolist() if isinstance(ids, np.ndarray) else list(dict.fromkeys(ids))
    names = ["ignored" if number == IGNORED else classes.names[number] for number in shown]
    widest = max((text_px(name, _TEXT_PX) for name in names), default=0.0) + _SWATCH_PX + 3 * _GAP_PX
    columns = max(1, min(len(shown), int(width_px // widest)))
    rows = -(-len(shown) // columns)
    column_px = width_px // columns
    picture = Image.new("RGB", (width_px, max(1, rows) * _ROW_PX), PAPER)
    draw, boxes = ImageDraw.Draw(picture), []
    for place, (number, name) in enumerate(zip(shown, names, strict=True)):
        column, row = divmod(place, rows)
        left, top = column * column_px, row * _ROW_PX + (_ROW_PX - _SWATCH_PX) // 2
        picture.paste(swatch(number, classes), (left, top))
        boxes.append(Box(left, top, left + _SWATCH_PX, top + _SWATCH_PX))
        room = column_px - _SWATCH_PX - 2 * _GAP_PX
        name = fitted(name, room, _TEXT_PX)
        middle = (left + _SWATCH_PX + _GAP_PX, row * _ROW_PX + _ROW_PX // 2)
        draw.text(middle, name, fill=INK, font=font(_TEXT_PX, name), anchor="lm")
    describe(picture, Described(bodies=[Grid(boxes=[boxes], captions=[names])]))
    return picture


def swatch(number: int, classes: MaskClasses) -> Image.Image:
    """Return a small square of the colour of a class, or of the stripes of what is ignored."""
    if number != IGNORED:
        return Image.new("RGB", (_SWATCH_PX, _SWATCH_PX), classes.colours[number])
    whole = np.ones((_SWATCH_PX, _SWATCH_PX), np.bool_)
    return Image.fromarray(np.where(_striped(whole)[..., None], UNTOLD, (120, 120, 120)).astype(np.uint8))


def colours_of(ids: Mask, classes: MaskClasses) -> NDArray[np.uint8]:
    """Return the colour of every pixel, uint8 (H, W, 3); of ignored ones, that of their stripes."""
    table = np.full((256, 3), UNTOLD, np.uint8)
    table[: len(classes)] = classes.colours
    return table[ids]


def edges(ids: Mask) -> NDArray[np.bool_]:
    """Return where a region borders on another, bool (H, W): a line inside both of them."""
    width = max(1, round(max(ids.shape) / _LINE_SHARE / 2))
    found = np.zeros(ids.shape, np.bool_)
    for step in range(1, width + 1):
        below, right = ids[step:] != ids[:-step], ids[:, step:] != ids[:, :-step]
        found[:-step] |= below
        found[step:] |= below
        found[:, :-step] |= right
        found[:, step:] |= right
    return found


def shrunk(image: Image.Image, masks: Sequence[Mask], *, most_px: int) -> tuple[Image.Image, list[Mask]]:
    """Make an image and its masks smaller where its longer side has more than `most_px`; masks by nearest pixels."""
    share = most_px / max(image.size)
    if share >= 1:
        return image, list(masks)
    size = max(1, round(image.width * share)), max(1, round(image.height * share))
    return image.resize(size, Image.Resampling.LANCZOS), [_nearest(mask, size) for mask in masks]


def enlarged_pixels(image: Image.Image, masks: Sequence[Mask], *, most_px: int) -> tuple[Image.Image, list[Mask]]:
    """Make each pixel of a small image and its masks a square, as large as `most_px` for the longer side allow."""
    factor = max(1, most_px // max(image.size))
    size = image.width * factor, image.height * factor
    return image.resize(size, Image.Resampling.NEAREST), [_nearest(mask, size) for mask in masks]


def _nearest(mask: Mask, size: tuple[int, int]) -> Mask:
    # Pillow's nearest takes the pixel at the middle of each new one, as nearest-exact does elsewhere.
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


def _pixels(image: Image.Image, ids: Mask) -> NDArray[np.uint8]:
    assert image.size == ids.shape[::-1], "a mask is as large as its image"
    return np.asarray(image.convert("RGB"))


def _striped(where: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep every second diagonal stripe of a region."""
    height, width = where.shape
    stripe: NDArray[np.bool_] = np.add.outer(np.arange(height), np.arange(width)) // _STRIPE_PX % 2 == 0
    return where & stripe
