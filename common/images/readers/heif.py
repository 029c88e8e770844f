"""HEIC and other HEIF files, as phones write them, through pillow-heif; upright, for orientation is part of the format.

pillow-heif is imported here alone, and not as a plug-in of Pillow: that would change how others open their images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from beit.common.errors import BadSample
from beit.common.images.decoding import Decoding
from beit.common.images.header import ImageFacts
from beit.common.images.readers.claims import check_size, frame_number
from beit.common.images.samples import Samples, without_opacity

if TYPE_CHECKING:
    from pillow_heif import HeifFile


def read(data: bytes, decoding: Decoding) -> Samples:
    """Return the image that the file calls its primary one, or a frame by number, 8 or 10 to 16 bits deep.

    Deeper values than 8 bits are those of the file: 0 to 1023 of 10 bits.

    Raises:
        BadSample: as `beit.common.images.decode.decode_image` says.
    """
    file = _opened(data)
    count = len(file)
    number = file.primary_index if decoding.frame in ("first", "each") else frame_number(decoding.frame, count)
    image = file[number]
    width, height = image.size
    check_size(width, height, decoding, bytes_per_pixel=8)
    try:
        values = np.asarray(image)
    except (OSError, ValueError, EOFError, RuntimeError, SyntaxError) as error:
        raise BadSample("decode-error", f"HEIF: {type(error).__name__}: {_first_line(error)}") from None
    mode = image.mode.partition(";")[0]  # such as RGB;10
    array = values[..., None] if values.ndim == 2 else values
    if array.shape[:2] != (height, width) or array.shape[2] != len(mode):
        raise BadSample("decode-error", f"HEIF: {array.shape[1]} x {array.shape[0]} px, not {width} x {height}")
    return _samples(array, mode, int(image.info["bit_depth"]), count)


def facts(data: bytes) -> ImageFacts:
    """Return what the file says of its primary image."""
    file = _opened(data)
    image = file[file.primary_index]
    (width, height), mode = image.size, image.mode.partition(";")[0]
    has_alpha = mode[-1] in "Aa"
    channels = len(mode) - int(has_alpha)
    return ImageFacts(
        format="HEIC",
        width=width,
        height=height,
        bits=int(image.info["bit_depth"]),
        channels=channels,
        colours="grey" if channels == 1 else "RGB",
        has_alpha=has_alpha,
        num_frames=len(file),
    )


def size(data: bytes) -> tuple[int, int]:
    """Return width and height in px, upright."""
    width, height = _opened(data).size
    return width, height


def num_frames(data: bytes) -> int:
    """Return how many images the file has, previews not counted."""
    return len(_opened(data))


def _samples(array: Any, mode: str, bits: int, count: int) -> Samples:
    alpha = array[..., -1] if mode[-1] in "Aa" else None
    colours = array if alpha is None else array[..., :-1]
    if alpha is not None and mode[-1] == "a":
        colours = without_opacity(colours, alpha, (1 << bits) - 1)
    return Samples(
        array=colours,
        kind="grey" if colours.shape[2] == 1 else "rgb",
        alpha=alpha,
        bits=bits if array.dtype.itemsize > 1 else None,
        num_frames=count,
    )


def _opened(data: bytes) -> HeifFile:
    import pillow_heif

    try:
        file = pillow_heif.open_heif(data, convert_hdr_to_8bit=False, hdr_to_16bit=False)
    except (OSError, ValueError, EOFError, RuntimeError, SyntaxError) as error:
        raise BadSample("decode-error", f"HEIF: {type(error).__name__}: {_first_line(error)}") from None
    if not len(file):
        raise BadSample("decode-error", "HEIF: it holds no image")
    return file


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
