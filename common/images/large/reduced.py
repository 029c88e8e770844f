"""Images made smaller while they are decoded, so that large ones need little memory.

libjpeg decodes a JPEG at a half, a quarter or an eighth of its size for less than the whole would take; a TIFF may hold
smaller versions of its image, and is averaged over squares band by band where it does not.

What is within `max_pixels` is decoded as a whole and then resized, as ever, so that its pixels stay what they were.
"""

from __future__ import annotations

import io

from PIL import Image

from beit.common.images.decode import decode_image, size_of_image
from beit.common.images.decoding import Decoding
from beit.common.images.jpeg import is_jpeg
from beit.common.images.large.tiles import Box
from beit.common.images.large.windows import Pixels, is_tiff, open_pixels

SPARE = 2
"""What is decoded smaller has at least this many times the pixels per side that are wanted, where that fits: the resize
to those then averages over more than one of its pixels, and hides how they were made."""
_JPEG_SCALES = (8, 4, 2)
_BAND_PIXELS = 8_000_000
"""Of what is decoded at once; arbitrary."""


def decode_reduced(data: bytes, decoding: Decoding, short_side: int) -> Image.Image:
    """Decode an image that is to be made smaller: one above `max_pixels` at a scale, where its format allows.

    Args:
        data: The encoded image.
        decoding: How its values become pixels, and up to which size.
        short_side: In px, that is wanted; the result has at least as much, unless the image has less.
    Raises:
        BadSample: as `decode_image` does.
    """
    if is_tiff(data):
        with open_pixels(io.BytesIO(data), decoding) as pixels:
            return reduced(pixels, short_side, most=decoding.max_pixels)
    return decode_image(data, decoding, reduction=jpeg_reduction(data, decoding, short_side))


def jpeg_reduction(data: bytes, decoding: Decoding, short_side: int) -> int:
    """Return by how much a JPEG is to be reduced: 8, 4 or 2, or 1 for one that is admitted as it is, or never.

    It is the most that leaves `SPARE` times the short side; where even that is more than is admitted, the least that
    is admitted and leaves the short side.
    """
    found = size_of_image(data) if is_jpeg(data) else None
    if found is None or found[0][0] * found[0][1] <= decoding.max_pixels:
        return 1
    width, height = found[0]
    admitted = [scale for scale in _JPEG_SCALES if -(-width // scale) * -(-height // scale) <= decoding.max_pixels]
    sides = {scale: -(-min(width, height) // scale) for scale in admitted}
    good = [scale for scale in admitted if sides[scale] >= SPARE * short_side]
    return max(good) if good else min((scale for scale in admitted if sides[scale] >= short_side), default=1)


def reduced(pixels: Pixels, short_side: int, *, most: int) -> Image.Image:
    """Return an image with at least `short_side` px on its short side, decoded part by part where that can be.

    Args:
        pixels: The image.
        short_side: In px, that is wanted.
        most: Pixels up to which it is taken as it is.
    """
    width, height = pixels.size
    if width * height <= most:
        return pixels.read(Box(0, 0, width, height))
    pixels = pixels.smallest_version(SPARE * short_side)
    width, height = pixels.size
    factor = max(1, min(width, height) // (SPARE * short_side))
    size = -(-width // factor), -(-height // factor)
    result: Image.Image | None = None
    band = min(_BAND_PIXELS, pixels.max_pixels)
    wide = max(1, band // factor**2) * factor if width * factor > band else width
    high = max(1, band // (min(wide, width) * factor)) * factor
    for top in range(0, height, high):
        for left in range(0, width, wide):
            box = Box(left, top, min(left + wide, width), min(top + high, height))
            part = pixels.read(box)
            part = part.reduce(factor) if factor > 1 else part
            result = result or Image.new(part.mode, size)
            result.paste(part, (left // factor, top // factor))
    assert result is not None
    return result
