"""The words for an image that is larger than is admitted, and which setting admits it. Torch- and NumPy-free."""

from __future__ import annotations

MOST_MEGAPIXELS = 1000
"""That `source.max_megapixels` may admit."""
_ROUND = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
"""Numbers that people choose, times a power of ten."""
_CUT = "beit tokenize and beit predict cut images into tiles with --tile 1024"


def too_large(width: int, height: int, max_pixels: int) -> str:
    """Return why an image is refused that has more pixels than are admitted, and the way out.

    Example:
        >>> too_large(12000, 9000, 64_000_000)
        '12000 x 9000 px, 108 megapixels, more than 64; --set source.max_megapixels=120 admits it (evaluate, predict: \
--max-megapixels 120)'
    """
    pixels = width * height
    words = f"{width} x {height} px, {pixels / 1e6:.4g} megapixels, more than {max_pixels / 1e6:g}"
    if pixels > MOST_MEGAPIXELS * 1e6:
        return f"{words}; source.max_megapixels admits up to {MOST_MEGAPIXELS}; {_CUT}"
    number = admitting(pixels)
    return f"{words}; --set source.max_megapixels={number} admits it (evaluate, predict: --max-megapixels {number})"


def admitting(pixels: int) -> str:
    """Return the next round number of megapixels that admits an image of so many pixels.

    Example:
        >>> admitting(108_000_000), admitting(64_016_001), admitting(201_000_000)
        ('120', '80', '250')
    """
    power = 1.0
    while power * 1e6 > pixels:
        power /= 10
    while power * 1e7 < pixels:
        power *= 10
    found = next(number * power for number in _ROUND if round(number * power * 1e6) >= pixels)
    return f"{min(found, MOST_MEGAPIXELS):.6g}"
