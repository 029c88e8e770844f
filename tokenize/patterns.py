"""The demo's images: folded cloths in ten patterns, which are the classes; nothing of anyone's is needed.

What tells the classes apart is how a pattern goes on. Its colours, size, turn and place, the folds of the cloth and the
light on it are drawn for each image and say nothing: on the pixels themselves, or on what a network of random weights
makes of them, a linear classifier is hardly better than chance. A network that learned to complete what is hidden of
such cloths has to know their patterns.

Coordinates `x` and `y` are counted in periods of the pattern; the legend of shapes: S = side in px of what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.common.errors import require
from beit.common.rng import CounterRng
from beit.tokenize.synthetic import FloatImage, generator_of, paint_all

Coordinates = NDArray[np.floating]
"""(S, S), in periods."""
Ink = NDArray[np.floating]
"""(S, S), 0 where the first colour of a palette is seen, 1 where the second is."""

_OVERSAMPLED = 2
"""Drawn so many times larger and averaged down, which smooths the edges."""
_ROOT_3 = math.sqrt(3)
_INDIGO, _LINEN = 4.65, 1.5
"""Hues of the two colours, radians in OKLCH."""
_SMALLEST_PX = 32


def _part(value: Coordinates) -> Coordinates:
    """Return the place within a period, in [0, 1)."""
    return value - np.floor(value)


def _ink(is_inked: NDArray[np.bool_]) -> Ink:
    return is_inked.astype(np.float32)


def _stripes(x: Coordinates, y: Coordinates) -> Ink:
    return _ink(_part(x) < 0.5)


def _checks(x: Coordinates, y: Coordinates) -> Ink:
    return (np.floor(2 * x) + np.floor(2 * y)) % 2


def _dots(x: Coordinates, y: Coordinates) -> Ink:
    rows = y * 2 / _ROOT_3  # every second one is shifted, so that a dot has six neighbours
    across, along = _part(x + 0.5 * (np.floor(rows) % 2)) - 0.5, (_part(rows) - 0.5) * _ROOT_3 / 2
    return _ink(across**2 + along**2 < 0.085)


def _rings(x: Coordinates, y: Coordinates) -> Ink:
    radius = np.hypot(_part(0.62 * x) - 0.5, _part(0.62 * y) - 0.5)
    return _ink((_part(4 * radius + 0.3) < 0.5) & (radius < 0.49))


def _zigzags(x: Coordinates, y: Coordinates) -> Ink:
    return _ink(_part(1.15 * y + 1.2 * np.abs(_part(x) - 0.5)) < 0.5)


def _bricks(x: Coordinates, y: Coordinates) -> Ink:
    along = _part(x + 0.5 * (np.floor(2 * y) % 2))
    return _ink((along >= 0.14) & (_part(2 * y) >= 0.24))


def _scales(x: Coordinates, y: Coordinates) -> Ink:
    """Discs in rows, each row over the one before."""
    ink = np.zeros_like(x)
    for later in (-1, 0, 1):
        row = np.floor(2 * y) + later
        radius = np.hypot(_part(x + 0.5 * (row % 2)) - 0.5, y - row / 2)
        ink = np.where(radius < 0.56, _ink(radius > 0.4), ink)
    return ink


def _honeycomb(x: Coordinates, y: Coordinates) -> Ink:
    """Two interleaved grids hold the centres of all cells; the nearer centre is the cell's own."""
    cells = [(_part(x + shift) - 0.5, (_part(y / _ROOT_3 + shift) - 0.5) * _ROOT_3) for shift in (0.0, 0.5)]
    is_first = np.hypot(*cells[0]) < np.hypot(*cells[1])
    across, along = (np.abs(np.where(is_first, one, other)) for one, other in zip(*cells, strict=True))
    return _ink(np.maximum(across, across / 2 + along * _ROOT_3 / 2) < 0.37)


def _plaid(x: Coordinates, y: Coordinates) -> Ink:
    return (_stripes(x, y) + _stripes(y, x)) / 2


def _basket(x: Coordinates, y: Coordinates) -> Ink:
    strands = np.where((np.floor(x) + np.floor(y)) % 2 == 0, x, y)
    return _ink(_part(3 * strands + 0.17) < 0.66)


_DRAW: dict[str, Callable[[Coordinates, Coordinates], Ink]] = {
    "basket": _basket,
    "bricks": _bricks,
    "checks": _checks,
    "dots": _dots,
    "honeycomb": _honeycomb,
    "plaid": _plaid,
    "rings": _rings,
    "scales": _scales,
    "stripes": _stripes,
    "zigzags": _zigzags,
}
PATTERNS = tuple(_DRAW)
"""The classes, in alphabetical order."""


def two_colours(generator: np.random.Generator) -> FloatImage:
    """Draw dye and linen, in either order, shape (2, 3), sRGB in [0, 1].

    Hues are always the same: where every cloth had its own, a network went by them (docs/results.md).
    """
    dark = _srgb(generator.uniform(0.28, 0.48), 0.09, _INDIGO)
    light = _srgb(generator.uniform(0.78, 0.95), 0.025, _LINEN)
    return np.stack([dark, light] if generator.random() < 0.5 else [light, dark])


def _srgb(lightness: float, chroma: float, hue: float) -> FloatImage:
    """Convert a colour of OKLCH, where equal steps look equal, to sRGB.

    Source: B. Ottosson, "A perceptual color space for image processing", 2020; the two matrices are from there.
    """
    lab = np.array([lightness, chroma * math.cos(hue), chroma * math.sin(hue)])
    to_cones = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.291485548]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.707614701],
        ]
    )
    linear = np.clip(to_rgb @ (to_cones @ lab) ** 3, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(encoded, dtype=np.float32)


def paint_cloth(rng: CounterRng, pattern: str, img_size: int) -> NDArray[np.uint8]:
    """Paint a cloth, shape (img_size, img_size, 3), uint8 RGB.

    Args:
        rng: Owns all randomness; same state, same picture under the same NumPy.
        pattern: One of `PATTERNS`.
        img_size: Side in px; a period of the pattern is a quarter to two fifths of it.
    """
    generator = generator_of(rng)
    side = img_size * _OVERSAMPLED
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32) / side
    period, turn = generator.uniform(0.26, 0.4), generator.uniform(0, 2 * math.pi)
    # A slow wave across the cloth: it bends the pattern, and where it rises there is light.
    across, width = generator.uniform(0, 2 * math.pi), generator.uniform(0.5, 1.1)
    wave = (columns * math.cos(across) + rows * math.sin(across)) * (2 * math.pi / width) + generator.uniform(0, 6.3)
    bend = 0.25 * period * np.sin(wave)
    columns, rows = columns + bend * math.cos(across), rows + bend * math.sin(across)
    x = (columns * math.cos(turn) + rows * math.sin(turn)) / period + generator.uniform(0, 9)
    y = (rows * math.cos(turn) - columns * math.sin(turn)) / period + generator.uniform(0, 9)
    first, second = two_colours(generator)
    ink = _DRAW[pattern](x, y)[..., None]
    cloth = (first + ink * (second - first)) * (1 + 0.1 * np.cos(wave))[..., None]
    cloth = cloth.reshape(img_size, _OVERSAMPLED, img_size, _OVERSAMPLED, 3).mean(axis=(1, 3))
    cloth = cloth + generator.standard_normal(cloth.shape, dtype=np.float32) * 0.012
    return np.asarray(np.clip(cloth, 0, 1) * 255 + 0.5, dtype=np.uint8)


def write_cloths(
    folder: Path, num_images: int, *, img_size: int = 96, seed: int = 0, has_classes: bool = True
) -> list[Path]:
    """Write cloths as PNG files `folder/<pattern>/<number>.png`, or `folder/<number>.png`, and return their paths.

    Patterns take turns, so any number of images is as balanced as it can be.

    Args:
        folder: Created if missing; files of the same name are overwritten.
        num_images: Over all patterns.
        img_size: Side in px.
        seed: Another seed gives other images, a test set for instance.
        has_classes: Whether there is a sub-folder for each pattern.
    """
    require(num_images >= 1, f"num_images ({num_images}) must be at least 1")
    require(
        img_size >= _SMALLEST_PX,
        f"img_size ({img_size}) must be at least {_SMALLEST_PX} px, or the patterns cannot be told apart",
    )
    for pattern in PATTERNS if has_classes else ("",):
        (folder / pattern).mkdir(parents=True, exist_ok=True)
    return paint_all(partial(_write_cloth, folder, img_size, seed, has_classes), num_images)


def _write_cloth(folder: Path, img_size: int, seed: int, has_classes: bool, number: int) -> Path:
    pattern = PATTERNS[number % len(PATTERNS)]
    path = folder / (pattern if has_classes else "") / f"{number:06d}.png"
    Image.fromarray(paint_cloth(CounterRng(seed, "cloth", number), pattern, img_size)).save(path, compress_level=1)
    return path
