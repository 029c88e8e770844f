"""What files claim before any pixel of them is decoded: their size, their frames, and the pictures inside them.

The strips of a TIFF and the frames of a DICOM file can be JPEGs. Their decoders make room for what such a picture
claims, whatever the file around it says, so it is looked at before.
"""

from __future__ import annotations

import io

from PIL import Image

from beit.common.errors import BadSample
from beit.common.images.decoding import MAX_SIDE_PX, Decoding, Frame

MAX_BYTES_PER_PIXEL = 16
"""Of decoded values, as four channels of 32 bits have them; an image of more channels may have as many pixels less."""
_NO_SIZE = (0xC4, 0xC8, 0xCC)
"""Of the markers C0 to CF, those that do not begin a frame."""
_JPEG_LS_FRAME = 0xF7
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
_SCAN = 0xDA
_J2K_START = b"\xff\x4f\xff\x51"
_MOST_BYTES_BEFORE_J2K = 1 << 16
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


def check_size(width: int, height: int, decoding: Decoding, *, bytes_per_pixel: int = 1) -> None:
    """Refuse an image that is too large to decode, by what its header says.

    Args:
        width: Of one frame, px.
        height: Of one frame, px.
        decoding: Says how many pixels are admitted.
        bytes_per_pixel: Of the decoded values, all channels together.
    Raises:
        BadSample: reason is "bomb", "too-large" or "decode-error".
    """
    if width < 1 or height < 1:
        raise BadSample("decode-error", f"{width} x {height} px by its header")
    if width * height > decoding.max_pixels:
        raise BadSample("bomb", too_large(width, height, decoding.max_pixels))
    if max(width, height) > MAX_SIDE_PX:
        raise BadSample("too-large", f"{width} x {height} px, at most {MAX_SIDE_PX} px per side")
    most_bytes = decoding.max_pixels * MAX_BYTES_PER_PIXEL
    if width * height * bytes_per_pixel > most_bytes:
        raise BadSample(
            "bomb",
            f"{width} x {height} px of {bytes_per_pixel} bytes, more than {most_bytes} bytes in all; if you trust the "
            "source, source.max_megapixels admits more",
        )


def frame_number(frame: Frame, num_frames: int) -> int:
    """Return which frame of several is meant, from 0 on.

    Raises:
        BadSample: there are none, or not so many.
    """
    if num_frames < 1:
        raise BadSample("decode-error", "it has no frames")
    if frame == "middle":
        return num_frames // 2
    number = frame if isinstance(frame, int) else 0  # who wants each frame names it by its number
    if number >= num_frames:
        raise BadSample("no-frame", f"source.frame is {number}, and it has frames 0 to {num_frames - 1}")
    return number


def check_picture(data: bytes, width: int, height: int) -> None:
    """Refuse a JPEG, JPEG-LS, JPEG 2000 or WebP picture that claims to be larger than the place it is for.

    Args:
        data: The picture.
        width: Of its place, px.
        height: Of its place, px.
    """
    claimed = _size_of(data)
    if claimed is None:
        raise BadSample("decode-error", f"a picture inside that is none (starts with {data[:4]!r})")
    if claimed[0] * claimed[1] > width * height:
        raise BadSample(
            "bomb", f"a picture of {claimed[0]} x {claimed[1]} px inside, in the place of {width} x {height} px"
        )


def _size_of(data: bytes) -> tuple[int, int] | None:
    if data.startswith(b"\xff\xd8"):
        return _jpeg_size(data)
    if data.startswith(b"RIFF"):
        try:
            with Image.open(io.BytesIO(data), formats=("WEBP",)) as image:
                return image.size
        except (OSError, SyntaxError, ValueError):
            return None
    start = data.find(_J2K_START, 0, _MOST_BYTES_BEFORE_J2K)
    if start < 0 or start + 24 > len(data):
        return None
    right, bottom, left, top = (int.from_bytes(data[start + at : start + at + 4], "big") for at in (8, 12, 16, 20))
    return (right - left, bottom - top) if left < right and top < bottom else None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    position, found = 2, None
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
        elif marker in _WITHOUT_LENGTH:
            position += 2
        elif marker == _SCAN:
            break
        else:
            if marker == _JPEG_LS_FRAME or (0xC0 <= marker <= 0xCF and marker not in _NO_SIZE):
                height, width = (int.from_bytes(data[position + at : position + at + 2], "big") for at in (5, 7))
                found = (width, height) if found is None else (max(width, found[0]), max(height, found[1]))
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return found
