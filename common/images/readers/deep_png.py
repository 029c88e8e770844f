"""PNG files of 16 bits per colour, of which Pillow keeps the upper eight: whole values, where a range asks for them.

Pillow has unpackers for both orders of bytes. The one for the other order keeps, of a PNG, the lower byte; so decoding
twice gives all there is, with no second PNG decoder beside the one that everything else is decoded with.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PNG_START = b"\x89PNG\r\n\x1a\n"
_DEPTH_AT, _COLOURS_AT = 24, 25
_UPPER_TO_LOWER = {2: ("RGB", "RGB;16L"), 6: ("RGBA", "RGBA;16L")}
_GREY_ALPHA = 4


def png_bits(data: bytes) -> int | None:
    """Return the bits per channel of a PNG, by its header; None of what is none."""
    return data[_DEPTH_AT] if data.startswith(PNG_START) and len(data) > _COLOURS_AT else None


def is_deep_colour(data: bytes) -> bool:
    """Tell whether an image is a PNG whose colours, or whose grey beside an opacity, have 16 bits."""
    return png_bits(data) == 16 and data[_COLOURS_AT] in (*_UPPER_TO_LOWER, _GREY_ALPHA)


def read_deep_colour(data: bytes, transpose: Image.Transpose | None) -> NDArray[np.uint16]:
    """Decode such a PNG, which Pillow can decode, to all of its channels, (H, W, C) uint16, opacity last.

    Args:
        data: The encoded image, without texts that Pillow would refuse.
        transpose: How it is to be turned.
    """
    if data[_COLOURS_AT] == _GREY_ALPHA:  # two values of two bytes are read as four of one
        pairs = _decoded(data, "RGBA", "RGBA", transpose)
        return _joined(pairs[..., 0::2], pairs[..., 1::2])
    mode, lower = _UPPER_TO_LOWER[data[_COLOURS_AT]]
    return _joined(_decoded(data, mode, f"{mode};16B", transpose), _decoded(data, mode, lower, transpose))


def _joined(upper: NDArray[np.uint8], lower: NDArray[np.uint8]) -> NDArray[np.uint16]:
    values: NDArray[np.uint16] = upper.astype(np.uint16) * np.uint16(256) + lower
    return values


def _decoded(data: bytes, mode: str, raw_mode: str, transpose: Image.Transpose | None) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        image._mode = mode
        image.tile = [tile._replace(args=raw_mode) for tile in image.tile]  # type: ignore[attr-defined]
        image.load()
        return np.asarray(image if transpose is None else image.transpose(transpose))
