"""What stands behind an image that lets something through: the setting `source.alpha`, and what it changes.

By default transparency is dropped, as most trainings do it without a word: the colours stored under it then show, which
nobody has seen so far. Drawing programs leave black there, or what was cut away. Here: laying such images on a
background, and telling which ones hide colours. Masks are never laid on anything: their colours are numbers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.common.images.decoding import Alpha
from beit.common.images.ranges import ValueRange, map_to_8_bit, to_8_bit
from beit.common.images.samples import Samples

CHECKER_PX = 8
CHECKER_LEVELS = (255, 204)
"""Of the squares that stand for transparency in drawing programs: white at the top left, light grey beside it."""
_ROWS_AT_ONCE = 256
"""So that a large image takes no more memory than its pixels."""
_OPAQUE = 255
_HIGH_BYTE = 8

_MOST_ALONG = 256
"""Pixels along each side that are looked at, spread evenly; arbitrary, as fine as most icons are."""
_LEAST_HIDDEN = 0.01
"""Share of the pixels that must be fully transparent to matter; arbitrary, an edge that was smoothed has less."""
_LEAST_DIFFERENCE = 16.0
"""Levels of 255 between what is hidden and what surrounds it; arbitrary, a step that an eye just sees."""


def has_alpha(image: Image.Image) -> bool:
    """Tell whether an image says of its pixels how transparent they are: in a channel, a palette or one colour."""
    return "A" in image.getbands() or "transparency" in image.info


def opacity_of(image: Image.Image) -> NDArray[np.uint8] | None:
    """Return how opaque the pixels of an image are, (H, W) uint8; None where it does not say, as then all are.

    A transparent colour of a 16-bit RGB image, of which Pillow keeps the high bytes, is compared by these.

    Args:
        image: Loaded, of any mode that Pillow makes of JPEG, PNG or WebP.
    """
    if not has_alpha(image):
        return None
    key = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
        return _opaque_but(np.asarray(image) == key)
    if image.mode == "RGB" and isinstance(key, tuple):
        if max(key) > _OPAQUE:
            key = tuple(level >> _HIGH_BYTE for level in key)
        return _opaque_but((np.asarray(image) == key).all(axis=-1))
    return np.asarray(image if "A" in image.getbands() else image.convert("RGBA"))[..., -1]


def _opaque_but(places: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(places, 0, _OPAQUE).astype(np.uint8)


def laid_over(pixels: NDArray[np.uint8], samples: Samples, alpha: Alpha) -> NDArray[np.uint8]:
    """Return the pixels of an image, after its values were mapped to 8 bits, laid on a background.

    Args:
        pixels: (H, W, C) uint8, made of `samples`.
        samples: As the file holds them; where these say nothing of opacity, the pixels are returned as they are.
        alpha: The background.
    """
    if samples.alpha is None or alpha == "drop":
        return pixels
    return compose_pixels(pixels, _opacity(samples), alpha)


def _opacity(samples: Samples) -> NDArray[np.uint8]:
    """Return the opacity of samples as uint8 (H, W)."""
    assert samples.alpha is not None
    if samples.alpha.dtype == np.uint8:
        return samples.alpha
    top = 1.0 if samples.alpha.dtype.kind == "f" else samples.full_range[1]
    return map_to_8_bit(samples.alpha, 0.0, top)


def compose_pixels(colours: NDArray[np.uint8], opacity: NDArray[np.uint8], alpha: Alpha) -> NDArray[np.uint8]:
    """Return colours laid on a background, rounded to the nearest level.

    Args:
        colours: (H, W, C) uint8.
        opacity: (H, W) uint8, 255 where nothing shines through.
        alpha: The background; "drop" returns the colours as they are.
    """
    if alpha == "drop":
        return colours
    laid = np.empty_like(colours)
    for top in range(0, len(colours), _ROWS_AT_ONCE):
        rows = slice(top, top + _ROWS_AT_ONCE)
        laid[rows] = _composed(colours[rows], opacity[rows], alpha, top)
    return laid


def _composed(colours: NDArray[np.uint8], opacity: NDArray[np.uint8], alpha: Alpha, top: int) -> NDArray[np.uint8]:
    share = opacity[..., None].astype(np.uint32)
    height, width = opacity.shape
    behind = _background(alpha, height, width, top).astype(np.uint32)[..., None] * (_OPAQUE - share)
    before = colours.astype(np.uint32) * share
    laid: NDArray[np.uint8] = np.minimum((before + behind + _OPAQUE // 2) // _OPAQUE, _OPAQUE).astype(np.uint8)
    return laid


def _background(alpha: Alpha, height: int, width: int, top: int) -> NDArray[np.uint8]:
    """Return grey levels uint8 (height, width) of a background, whose first row is number `top` of the image."""
    if alpha != "checker":
        return np.full((height, width), 255 if alpha == "white" else 0, np.uint8)
    rows, columns = np.arange(top, top + height) // CHECKER_PX, np.arange(width) // CHECKER_PX
    squares: NDArray[np.uint8] = np.array(CHECKER_LEVELS, np.uint8)[(rows[:, None] + columns) % 2]
    return squares


def hides_colours(samples: Samples) -> bool:
    """Tell whether dropping the transparency of an image would show colours that do not belong to what is seen of it.

    That is so where at least 1 % of its pixels are fully transparent, and the colours stored there differ by more than
    16 of 255 levels, on average over these pixels and the channels, from the mean colour of their surroundings: of the
    pixels of which at least half is seen (opacity 128 or more) and which have a fully transparent one beside, above or
    below them; of all that are seen so where none has, and of the hidden ones themselves where nothing is seen at all.
    Colours that were spread into the transparent parts so that edges stay clean do not count, black around an icon
    does, and so does what was cut away. Of large images up to 256 x 256 pixels are looked at, spread evenly.

    Args:
        samples: As the file holds them.
    """
    if samples.alpha is None:
        return False
    rows, columns = (slice(None, None, -(-side // _MOST_ALONG)) for side in samples.alpha.shape)
    few = replace(samples, array=samples.array[rows, columns], alpha=samples.alpha[rows, columns])
    opacity = _opacity(few)
    hidden = opacity == 0
    if hidden.mean() < _LEAST_HIDDEN:
        return False
    colours = laid_over(to_8_bit(few, ValueRange()), few, "drop")
    seen = opacity > _OPAQUE // 2
    around = seen & _neighbours(hidden)
    surroundings = around if around.any() else seen if seen.any() else hidden
    difference = np.abs(colours[hidden].astype(np.float64) - colours[surroundings].mean(axis=0))
    return bool(difference.mean() > _LEAST_DIFFERENCE)


def _neighbours(places: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the places beside, above and below some, bool (H, W)."""
    found = np.zeros_like(places)
    found[1:] |= places[:-1]
    found[:-1] |= places[1:]
    found[:, 1:] |= places[:, :-1]
    found[:, :-1] |= places[:, 1:]
    return found
