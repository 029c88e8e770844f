"""What the header of an image says of it: format, size, depth, channels, transparency, frames, orientation.

Nothing is decoded. Of a JPEG, and of a PNG without odd chunks, the beginning of the file is enough: `HEAD_BYTES` nearly
always hold the header. Not here: the pixels (`decode.py`).
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from beit.common.errors import LFS_ADVICE, BadSample, is_lfs_pointer
from beit.common.images.alpha import has_alpha
from beit.common.images.formats import Format, format_of
from beit.common.images.orientation import transpose_of
from beit.common.images.readers.deep_png import png_bits

HEAD_BYTES = 1 << 17
"""Of a file, in which its header nearly always stands; arbitrary, two blocks of EXIF data."""

NOT_READ = "not read"
"""Stands for the colours of formats that Pillow does not read, which are known when they are decoded."""
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
_CHANNELS = {"1": 1, "L": 1, "I": 1, "I;16": 1, "I;16B": 1, "P": 3, "CMYK": 4}
_COLOURS = {"1": "black and white", "L": "grey", "LA": "grey", "I": "grey", "P": "palette", "PA": "palette"}
_COLOURS |= {"I;16": "grey", "I;16B": "grey", "RGB": "RGB", "RGBA": "RGB", "CMYK": "CMYK"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFacts:
    """What a header says of an image."""

    format: str
    """As people write it: "JPEG", "PNG", "WebP"."""
    width: int
    """In pixels, as stored."""
    height: int
    """In pixels, as stored."""
    bits: int | None
    """Of a sample, as stored; of a palette those of its colours. None where the header was read for its size only."""
    channels: int | None
    """Of colour, without that of transparency; 3 for a palette. None as above."""
    colours: str
    """"RGB", "grey", "black and white", "palette", "CMYK", or `NOT_READ`."""
    has_alpha: bool = False
    """Whether pixels may be transparent."""
    num_frames: int = 1
    """Of an animation, pages of a document."""
    transpose: Image.Transpose | None = None
    """How it is to be turned to stand upright."""

    @property
    def megapixels(self) -> float:
        """Width x height, in millions."""
        return self.width * self.height / 1e6


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
    if found is not None and found.module:
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


def _facts_of_other(found: Format, data: bytes) -> ImageFacts:
    """Return what the header of a format that Pillow does not read tells: sizes and frames, nothing of the values."""
    reader = found.reader()
    try:
        width, height = reader.size(data)
        num_frames = reader.num_frames(data)
    except BadSample:
        raise
    except Exception as error:  # as many types as decoders have for damaged data
        raise BadSample("decode-error", f"{type(error).__name__}: {error}") from None
    return ImageFacts(
        format=found.name, width=width, height=height, bits=None, channels=None, colours=NOT_READ, num_frames=num_frames
    )


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
