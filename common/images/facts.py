"""What the header of an image says of it: format, size, depth, channels, transparency, frames, orientation.

Nothing is decoded. Of a JPEG, and of a PNG without odd chunks, the beginning of the file is enough: `HEAD_BYTES` nearly
always hold the header. Not here: the pixels (`decode.py`).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import BinaryIO

from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from beit.common.errors import LFS_ADVICE, BadSample, is_lfs_pointer
from beit.common.images.alpha import has_alpha
from beit.common.images.formats import Format, format_of
from beit.common.images.header import ImageFacts
from beit.common.images.orientation import transpose_of
from beit.common.images.readers.deep_png import png_bits

HEAD_BYTES = 1 << 17
"""Of a file, in which its header nearly always stands; arbitrary, two blocks of EXIF data."""

_NAMES = {"WEBP": "WebP", "MPO": "JPEG"}
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_ORIENTATION = (b"eXIf", b"XML:com.adobe.xmp\0\0", b"Raw profile type exif")
_JPEG_START = b"\xff\xd8\xff"
_WEBP_START, _WEBP_NAME = b"RIFF", b"WEBP"
"""Four bytes of length stand between them."""
_READERS: dict[bytes, Callable[[io.BytesIO], Image.Image]] = {
    _JPEG_START: JpegImagePlugin.jpeg_factory,
    _PNG_START: PngImagePlugin.PngImageFile,
    _WEBP_START: WebPImagePlugin.WebPImageFile,
}
"""By what a file begins with. Not `Image.open`, which refuses to look at too many pixels."""
_AVIF_CONFIG = b"av1C"
"""The box that says how it is encoded; two bytes further on stand the flags of its depth."""
_AVIF_DEEP, _AVIF_DEEPEST = 1 << 6, 1 << 5
_CHANNELS = {"1": 1, "L": 1, "I": 1, "I;16": 1, "I;16B": 1, "P": 3, "CMYK": 4}
_COLOURS = {"1": "black and white", "L": "grey", "LA": "grey", "I": "grey", "P": "palette", "PA": "palette"}
_COLOURS |= {"I;16": "grey", "I;16B": "grey", "RGB": "RGB", "RGBA": "RGB", "CMYK": "CMYK"}


def facts_of_image(data: bytes) -> ImageFacts:
    """Return what the header of an image says.

    Args:
        data: The encoded image, or, of a JPEG or PNG, its beginning.
    Raises:
        BadSample: "empty", "lfs-pointer", "unsupported" or "decode-error", where there is no header to read; also where
            the beginning is too short.
    """
    if not data:
        raise BadSample("empty", "no bytes")
    found = format_of(data)
    if found is not None:
        return _facts_of_other(found, data)
    reader = next((reader for start, reader in _READERS.items() if data.startswith(start)), None)
    if reader is None or (data.startswith(_WEBP_START) and data[8:12] != _WEBP_NAME):
        if is_lfs_pointer(data):
            raise BadSample("lfs-pointer", f"it {LFS_ADVICE}")
        raise BadSample("unsupported", f"not an image of a known format (starts with {data[:8]!r})")
    try:
        with reader(io.BytesIO(data)) as image:
            return _pillow_facts(image, data)
    except Exception as error:  # as many types as decoders have for damaged data
        raise BadSample("decode-error", f"{type(error).__name__}: {error}") from None


def facts_in_parts(head: bytes, file: BinaryIO) -> ImageFacts | None:
    """Return what the header of a file says whose tags may stand anywhere; None of other formats, which begin with it.

    Args:
        head: Its beginning.
        file: Of any size, at its start.
    Raises:
        BadSample: as of `facts_of_image`.
    """
    found = format_of(head)
    if found is None or found.name != "TIFF":
        return None
    found.require()
    from beit.common.images.readers import tiff  # which needs a library

    return tiff.facts_of_file(file)


def _facts_of_other(found: Format, data: bytes) -> ImageFacts:
    """Return what the header of a format says that has a reader of its own."""
    try:
        return found.reader().facts(data) if found.module else _avif_facts(found, data)
    except BadSample:
        raise
    except Exception as error:  # as many types as decoders have for damaged data
        raise BadSample("decode-error", f"{type(error).__name__}: {error}") from None


def _avif_facts(found: Format, data: bytes) -> ImageFacts:
    found.require()
    with Image.open(io.BytesIO(data), formats=("AVIF",)) as image:
        facts = _pillow_facts(image, data)
    start = data.find(_AVIF_CONFIG)
    flags = data[start + len(_AVIF_CONFIG) + 2] if start >= 0 else 0
    bits = {0: 8, _AVIF_DEEP: 10, _AVIF_DEEP | _AVIF_DEEPEST: 12}.get(flags & (_AVIF_DEEP | _AVIF_DEEPEST), 8)
    return replace(facts, bits=bits)


def _pillow_facts(image: Image.Image, data: bytes) -> ImageFacts:
    is_png = data.startswith(_PNG_START)
    # To look for EXIF data, Pillow decodes a PNG that has none before its pixels.
    is_upright = is_png and not any(word in data for word in _PNG_ORIENTATION)
    bits = 1 if image.mode == "1" else 8
    if is_png and image.mode not in ("P", "PA"):
        bits = png_bits(data) or bits
    return ImageFacts(
        format=_NAMES.get(image.format or "", image.format or ""),
        width=image.width,
        height=image.height,
        bits=bits,
        channels=_CHANNELS.get(image.mode, len([band for band in image.getbands() if band != "A"])),
        colours=_COLOURS.get(image.mode, image.mode),
        has_alpha=has_alpha(image),
        num_frames=getattr(image, "n_frames", 1),
        transpose=None if is_upright else transpose_of(image),
    )
