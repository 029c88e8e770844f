"""JPEG beside Pillow: a quick decoder for those who can prove that they got the pixels, and what Pillow leaves unsaid.

JPEGs whose pixel data end early although the file is closed properly are found here: a download that broke off and was
"repaired", or one flipped bit that looks like a marker. libjpeg then fills the rest of the picture with mid grey and
says so only in a warning that Pillow does not pass on. Neither length nor structure of the file tells. What tells is
that a decoder that ran out of data uses more if there is more, and one that did not ignores it.
"""

from __future__ import annotations

import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.common.images.decoding import MAX_PIXELS
from beit.common.images.orientation import transpose_of

try:
    import simplejpeg
except ImportError:  # built for fewer platforms than the rest; everything works without, slower
    simplejpeg = None


_JPEG_START = b"\xff\xd8\xff"
_SEQUENTIAL_FRAMES = (0xC0, 0xC1)
_ARITHMETIC_FRAMES = (0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_JPEG_BLOCK_ROWS = 16
"""Pixel rows that usual JPEGs encode together; a multiple of it is always right, if not least."""
_EXIF_START = b"Exif\0\0"
_APP_BYTES = 1 << 16
_EXTRA = bytes((37 * number + 11) % 251 for number in range(256))
"""Entropy-coded nonsense, without the byte 0xFF that begins a marker."""
_FILLER = (127, 128)  # a block without data is 128 in every channel; CMYK comes inverted
_SOS, _DRI, _EOI = 0xDA, 0xDD, 0xD9
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
_SCAN_END = re.compile(rb"\xff+[^\x00\xff]", re.DOTALL)
_SCAN_END_WITH_RESTARTS = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)


def is_jpeg(data: bytes) -> bool:
    """Tell whether bytes begin as a JPEG does."""
    return data.startswith(_JPEG_START)


def decode_jpeg_unchecked(
    data: bytes, *, width: int, height: int, keeps_grey: bool = False
) -> NDArray[np.uint8] | None:
    """Decode the top of a JPEG faster than `decode_image` does, for callers that compare the pixels with a checksum.

    The same libjpeg-turbo arithmetic, so the same pixels in all ordinary cases, straight into an array: three times as
    quick for a small image, 1.2 times for a photograph of which all is wanted. What is wrong with an image is not said.

    Args:
        data: The encoded image.
        width: Smallest width in px that is of use; narrower images are not decoded.
        height: Rows that are wanted; shorter images are not decoded.
        keeps_grey: Whether an image that is grey in the file gets one channel, not three equal ones.
    Returns:
        Pixels (>= height, W, 3) uint8, or (>= height, W, 1), writable: of what lies below, and what is damaged there,
        as little as possible is decoded. None where `decode_image` has to be asked: no JPEG, one to be turned, too
        small or larger than that function accepts by default, or damaged beyond decoding.
    """
    if simplejpeg is None or not is_jpeg(data):
        return None
    try:
        image_height, image_width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if image_width < width or image_height < height or image_width * image_height > MAX_PIXELS:
            return None
        if colours not in ("YCbCr", "RGB", "Gray"):  # ink has no one colour: decoders convert it differently
            return None
        if data.find(_EXIF_START, 0, _APP_BYTES) >= 0 and transpose_of(Image.open(io.BytesIO(data))) is not None:
            return None
        # Not strict, because to a decoder the rest of a cut image is data too many.
        wanted = "GRAY" if keeps_grey and colours == "Gray" else "RGB"
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(_cut_jpeg(data, height), wanted, strict=False)
    except (ValueError, OSError):
        return None
    return pixels


def _cut_jpeg(data: bytes, height: int) -> bytes:
    """Let a JPEG claim fewer rows, at least `height`, so that a decoder stops there.

    Only where its rows are encoded from top to bottom: in one scan of all colours, not progressive.
    """
    place = len(_JPEG_START) - 1
    height_at = num_colours = 0
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _SEQUENTIAL_FRAMES and place + 10 <= len(data):
            height_at, num_colours = place + 5, data[place + 9]
        elif marker == _SOS:
            break
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    if not height_at or place + 5 > len(data) or data[place + 1] != _SOS or data[place + 4] != num_colours:
        return data
    # A row of blocks more, because smoothing between rows of colour looks at its neighbours.
    rows = -(-height // _JPEG_BLOCK_ROWS) * _JPEG_BLOCK_ROWS + _JPEG_BLOCK_ROWS
    if rows >= int.from_bytes(data[height_at : height_at + 2], "big"):
        return data
    return b"".join((data[:height_at], rows.to_bytes(2, "big"), data[height_at + 2 :]))


def has_filler(data: bytes, image: Image.Image) -> bool:
    """Tell whether the end of a JPEG, decoded in the mode of the file, is grey filler instead of what was photographed.

    Costs a second decoding only where the last pixel has exactly the colour of filler.
    """
    last = image.getpixel((image.width - 1, image.height - 1))
    channels = last if isinstance(last, tuple) else (last,)
    if not all(value in _FILLER for value in channels):
        return False
    if _is_arithmetic(data):
        return False  # such a decoder reads on behind its data, whether they are complete or not
    with Image.open(io.BytesIO(lengthen_scans(data)), formats=("JPEG",)) as longer:
        scale = round(longer.width / image.width)
        if scale > 1:
            longer.draft(None, (longer.width // scale, longer.height // scale))  # type: ignore[arg-type]
        return longer.tobytes() != image.tobytes()


def _is_arithmetic(data: bytes) -> bool:
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != _SOS:
        if data[position + 1] in _ARITHMETIC_FRAMES:
            return True
        filled = data[position + 1] == 0xFF  # any number of them may precede a marker
        position += 1 if filled else 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return False


def lengthen_scans(data: bytes) -> bytes:
    """Return a JPEG with nonsense behind the data of every scan, which a decoder of complete scans ignores."""
    pieces, written, position, has_restarts = [], 0, 2, False
    while position + 4 <= len(data):
        marker = data[position + 1]
        if data[position] != 0xFF or marker in (0x00, 0xFF):
            position += 1
            continue
        if marker == _EOI:
            break
        if marker in _WITHOUT_LENGTH:
            position += 2
            continue
        if marker == _DRI:
            has_restarts = any(data[position + 4 : position + 6])
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == _SOS:
            end = (_SCAN_END_WITH_RESTARTS if has_restarts else _SCAN_END).search(data, position)
            position = end.start() if end else len(data)
            pieces += [data[written:position], _EXTRA]
            written = position
    return b"".join([*pieces, data[written:]])
