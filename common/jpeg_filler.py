"""Finding JPEGs whose pixel data end early although the file is closed properly.

A download that broke off and was "repaired", or one flipped bit that looks like a marker: libjpeg then fills the rest
of the picture with mid grey and says so only in a warning that Pillow does not pass on. Neither length nor structure of
the file tells. What tells is that a decoder that ran out of data uses more if there is more, and one that did not
ignores it.
"""

from __future__ import annotations

import io
import re

from PIL import Image

_EXTRA = bytes((37 * number + 11) % 251 for number in range(256))
"""Entropy-coded nonsense, without the byte 0xFF that begins a marker."""

_FILLER = (127, 128)  # a block without data is 128 in every channel; CMYK comes inverted
_SOS, _DRI, _EOI = 0xDA, 0xDD, 0xD9
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
_SCAN_END = re.compile(rb"\xff+[^\x00\xff]", re.DOTALL)
_SCAN_END_WITH_RESTARTS = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)


def has_filler(data: bytes, image: Image.Image) -> bool:
    """Tell whether the end of a decoded JPEG is grey filler instead of what was photographed.

    Costs a second decoding only where the last pixel has exactly the colour of filler.

    Args:
        data: The encoded image.
        image: What it decodes to, loaded, in the mode of the file.
    """
    last = image.getpixel((image.width - 1, image.height - 1))
    channels = last if isinstance(last, tuple) else (last,)
    if not all(value in _FILLER for value in channels):
        return False
    with Image.open(io.BytesIO(lengthen_scans(data)), formats=("JPEG",)) as longer:
        return longer.tobytes() != image.tobytes()


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
