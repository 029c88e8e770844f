"""Colour jitter that is exact on every machine, equal to Pillow's `ImageEnhance` bit for bit.

Factors are whole multiples of 1/2**14 and at most 2. With 8-bit pixels every product and sum then fits the 24 bits of a
float32, so what Pillow computes in floating point has one exact answer.
"""

from __future__ import annotations

import itertools
import operator

from PIL import Image

FACTOR_ONE = 1 << 14
"""The fixed-point factor that changes nothing."""
MAX_FACTOR = 2 * FACTOR_ONE

JITTER_ORDERS: tuple[tuple[str, ...], ...] = tuple(itertools.permutations(("bright", "contrast", "sat")))
"""The six orders of the three operations, lexicographic; a view stores the position in this list."""


def jitter_image(
    image: Image.Image, factors: dict[str, int], order: int, *, mean_from: Image.Image | None = None
) -> Image.Image:
    """Apply brightness, contrast and saturation to an image in the given order.

    Args:
        image: RGB or grey image, mode "RGB" or "L"; left unchanged. Grey has no saturation: nothing is done for it, and
            the others do what they do to the same grey in three channels.
        factors: Fixed-point factor in [0, 2 * 2**14] for each of "bright", "contrast" and "sat"; 2**14 skips the
            operation.
        order: Position in `JITTER_ORDERS`.
        mean_from: Take the contrast's mean grey from this image, jittered alike, instead of from `image`: jittering a
            crop then equals cropping the jittered image.
    Returns:
        Image of the same mode and size.
    Source: torchvision's ColorJitter as BEiT uses it (`beit/datasets.py`), hue 0. Differs: factors are fixed point.
    """
    remaining = [name for name in JITTER_ORDERS[order] if factors[name] != FACTOR_ONE]
    while remaining:
        name = remaining.pop(0)
        mean_grey = _mean_grey(image if mean_from is None else mean_from) if name == "contrast" else 0
        image = _apply(image, name, factors[name], mean_grey)
        if mean_from is not None and "contrast" in remaining:
            mean_from = _apply(mean_from, name, factors[name], mean_grey)
    return image


def _apply(image: Image.Image, name: str, factor: int, mean_grey: int) -> Image.Image:
    # Each operation blends with a picture without what it strengthens. `Image.point` with a table would do for two of
    # them, but handles its 768 entries one by one, ten times the work of a small image.
    if name == "sat":
        if image.mode == "L":
            return image
        luma = image.convert("L")
        plain = Image.merge("RGB", (luma, luma, luma))
    else:
        plain = Image.new(image.mode, image.size, mean_grey if image.mode == "L" else (mean_grey,) * 3)
    return Image.blend(plain, image, factor / FACTOR_ONE)


def _mean_grey(image: Image.Image) -> int:
    histogram = image.convert("L").histogram()
    total: int = sum(map(operator.mul, range(256), histogram))
    num_pixels = image.width * image.height
    return (2 * total + num_pixels) // (2 * num_pixels)  # rounded half up, as ImageEnhance.Contrast does
