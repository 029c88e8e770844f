"""What stands behind an image that lets something through: the setting `source.alpha`, and what it changes.

By default transparency is dropped, as most trainings do it without a word: the colours stored under it then show, which
nobody has seen so far. Drawing programs leave black there, or what was cut away. Here: laying such images on a
background, and telling which ones hide colours. Masks are never laid on anything: their colours are numbers.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Alpha = Literal["drop", "white", "black", "checker"]
"""What shows where an image is transparent: the colours stored there, or one of these backgrounds."""

_CHECKER_PX = 8
_CHECKER_LEVELS = (255, 204)
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
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def on_background(image: Image.Image, alpha: Alpha) -> Image.Image:
    """Lay a transparent image on a background.

    The samples of 16-bit grey are scaled to 8 bits; a transparent colour of a 16-bit RGB image, of which Pillow keeps
    the high bytes, is compared by these.

    Args:
        image: Loaded, of any mode in which `has_alpha` holds; others are returned as they are.
        alpha: The background; with "drop" an image is returned as it is.
    Returns:
        Image of mode "RGB".
    """
    if alpha == "drop" or not has_alpha(image):
        return image
    colours, opacity, is_premultiplied = _parts(image)
    return Image.fromarray(compose_pixels(colours, opacity, alpha, is_premultiplied=is_premultiplied))


def compose_pixels(
    colours: NDArray[np.uint8], opacity: NDArray[np.uint8], alpha: Alpha, *, is_premultiplied: bool = False
) -> NDArray[np.uint8]:
    """Return colours laid on a background, rounded to the nearest level.

    Args:
        colours: (H, W, C) or (H, W) uint8.
        opacity: (H, W) uint8, 255 where nothing shines through.
        alpha: The background. "drop" returns the colours as they are; of premultiplied ones the colours meant, black
            where nothing is seen of them.
        is_premultiplied: Whether the colours were multiplied with their opacity before they were stored, as formats say
            it that call such a channel associated.
    """
    pixels = colours if colours.ndim == 3 else colours[..., None]
    out = np.empty_like(pixels)
    for top in range(0, len(pixels), _ROWS_AT_ONCE):
        rows = slice(top, top + _ROWS_AT_ONCE)
        out[rows] = _composed(pixels[rows], opacity[rows], alpha, is_premultiplied, top)
    return out.reshape(colours.shape)


def _composed(
    colours: NDArray[np.uint8], opacity: NDArray[np.uint8], alpha: Alpha, is_premultiplied: bool, top: int
) -> NDArray[np.uint8]:
    share = opacity[..., None].astype(np.uint32)
    if alpha == "drop":
        if not is_premultiplied:
            return colours
        meant = (colours.astype(np.uint32) * _OPAQUE + share // 2) // np.maximum(share, 1)
        return np.where(share > 0, np.minimum(meant, _OPAQUE), 0).astype(np.uint8)
    height, width = opacity.shape
    behind = _background(alpha, height, width, top).astype(np.uint32)[..., None] * (_OPAQUE - share)
    before = colours.astype(np.uint32) * (_OPAQUE if is_premultiplied else share)
    laid: NDArray[np.uint8] = np.minimum((before + behind + _OPAQUE // 2) // _OPAQUE, _OPAQUE).astype(np.uint8)
    return laid


def _background(alpha: Alpha, height: int, width: int, top: int) -> NDArray[np.uint8]:
    """Return grey levels uint8 (height, width) of a background, whose first row is number `top` of the image."""
    if alpha != "checker":
        return np.full((height, width), 255 if alpha == "white" else 0, np.uint8)
    rows, columns = np.arange(top, top + height) // _CHECKER_PX, np.arange(width) // _CHECKER_PX
    squares: NDArray[np.uint8] = np.array(_CHECKER_LEVELS, np.uint8)[(rows[:, None] + columns) % 2]
    return squares


def _parts(image: Image.Image) -> tuple[NDArray[np.uint8], NDArray[np.uint8], bool]:
    """Return colours uint8 (H, W, 3), opacity uint8 (H, W), and whether the former are premultiplied."""
    if image.mode in ("RGBa", "La"):
        *bands, opacity = (np.asarray(band) for band in image.split())
        return np.stack(bands * (3 // len(bands)), axis=-1), opacity, True
    key = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip
        samples = np.asarray(image).astype(np.int64)
        grey = ((samples.clip(0, 65535) + 128) // 257).astype(np.uint8)
        return np.stack([grey] * 3, axis=-1), np.where(samples == key, 0, _OPAQUE).astype(np.uint8), False
    if image.mode == "RGB" and isinstance(key, tuple):
        if max(key) > _OPAQUE:
            key = tuple(level >> _HIGH_BYTE for level in key)
        pixels = np.asarray(image)
        return pixels, np.where((pixels == key).all(axis=-1), 0, _OPAQUE).astype(np.uint8), False
    parts = np.asarray(image.convert("RGBA"))
    return parts[..., :3], parts[..., 3], False


def hides_colours(image: Image.Image) -> bool:
    """Tell whether dropping the transparency of an image would show colours that do not belong to what is seen of it.

    That is so where at least 1 % of its pixels are fully transparent, and the colours stored there differ by more than
    16 of 255 levels, on average over these pixels and the channels, from the mean colour of their surroundings: of the
    pixels of which at least half is seen (opacity 128 or more) and which have a fully transparent one beside, above or
    below them; of all that are seen so where none has, and of the hidden ones themselves where nothing is seen at all.
    Colours that were spread into the transparent parts so that edges stay clean do not count, black around an icon
    does, and so does what was cut away. Of large images up to 256 x 256 pixels are looked at, spread evenly.

    Args:
        image: Loaded, of any mode.
    """
    if not has_alpha(image):
        return False
    colours, opacity, is_premultiplied = _parts(image)
    steps = tuple(-(-side // _MOST_ALONG) for side in opacity.shape)
    opacity = opacity[:: steps[0], :: steps[1]]
    colours = compose_pixels(colours[:: steps[0], :: steps[1]], opacity, "drop", is_premultiplied=is_premultiplied)
    hidden = opacity == 0
    if hidden.mean() < _LEAST_HIDDEN:
        return False
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
