"""JPEG XL through imagecodecs, upright; of an animation its first frame.

imagecodecs says nothing of an image before it decodes all of it, so size, depth and channels are read from the header
here. Source: ISO/IEC 18181-1, annexes D.2 (sizes), D.3 (metadata) and E (colours), as far as they are needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from beit.common.errors import BadSample
from beit.common.images.decoding import Decoding
from beit.common.images.header import ImageFacts
from beit.common.images.readers.claims import check_size, frame_number
from beit.common.images.samples import Samples

_CODESTREAM = b"\xff\x0a"
_CONTAINER = b"\x00\x00\x00\x0cJXL \r\n\x87\n"
_MOST_HEADER_BYTES = 1536  # of the fields that are read here, with room
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
_ALPHA, _GREY = 0, 1
_ENUM = ((0, 0), (1, 0), (2, 4), (18, 6))
_SIDEWAYS = 5  # orientations from here on exchange width and height


@dataclass(frozen=True, slots=True)
class _Header:
    """What is known before decoding."""

    width: int
    """Upright, px."""
    height: int
    """Upright, px."""
    bits: int
    is_float: bool
    extra_channels: int
    has_alpha: bool
    is_grey: bool
    """False, too, where extra channels stand in between that nothing here reads."""


class _Bits:
    """Reads a code stream bit by bit, the lowest first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        """Return the next bits as a number."""
        if count > self._left:
            raise BadSample("truncated", "JPEG XL: the header ends early")
        number = self._value & ((1 << count) - 1)
        self._value >>= count
        self._left -= count
        return number

    def choose(self, *choices: tuple[int, int]) -> int:
        """Return a number that two bits choose among four: an offset, and so many bits to add to it."""
        offset, count = choices[self.take(2)]
        return offset + self.take(count)


def read(data: bytes, decoding: Decoding) -> Samples:
    """Return the first frame in the values of the file: of 12 bits 0 to 4095, of floats 0 to 1.

    Raises:
        BadSample: as `beit.common.images.decode.decode_image` says.
    """
    import imagecodecs

    header = _header(data)
    frame_number(decoding.frame, 1)
    check_size(header.width, header.height, decoding, bytes_per_pixel=4 * (4 if header.is_float else 2))
    if header.extra_channels > int(header.has_alpha):
        raise BadSample("unsupported", f"JPEG XL with {header.extra_channels} channels besides colours and opacity")
    try:
        # An index stops after the frame; without one, all frames of an animation would be held.
        values = imagecodecs.jpegxl_decode(data, index=0, numthreads=1)
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise BadSample("decode-error", f"JPEG XL: {type(error).__name__}: {str(error)[:200]}") from None
    array = values[..., None] if values.ndim == 2 else values
    colours = array.shape[2] - int(header.has_alpha) if array.ndim == 3 else 0
    if array.shape[:2] != (header.height, header.width) or colours not in (1, 3):
        raise BadSample("decode-error", f"JPEG XL: decoded to shape {values.shape}, which is not what its header says")
    return Samples(
        array=array[..., :colours],
        kind="grey" if colours == 1 else "rgb",
        alpha=array[..., -1] if header.has_alpha else None,
        bits=header.bits if array.dtype.kind == "u" and header.bits < 8 * array.dtype.itemsize else None,
        limits=(0.0, 1.0) if array.dtype.kind == "f" else None,
    )


def facts(data: bytes) -> ImageFacts:
    """Return what the header says."""
    header = _header(data)
    return ImageFacts(
        format="JPEG XL",
        width=header.width,
        height=header.height,
        bits=header.bits,
        channels=1 if header.is_grey else 3,
        colours="grey" if header.is_grey else "RGB",
        has_alpha=header.has_alpha,
        is_float=header.is_float,
    )


def size(data: bytes) -> tuple[int, int]:
    """Return width and height in px, upright."""
    header = _header(data)
    return header.width, header.height


def num_frames(data: bytes) -> int:
    """Return 1: of an animation, the first frame is taken."""
    return 1


def _header(data: bytes) -> _Header:
    bits = _Bits(_codestream_start(data)[len(_CODESTREAM) :])
    width, height = _size(bits)
    depth, is_float, orientation, extra_channels, has_alpha, is_grey = 8, False, 1, 0, False, False
    if not bits.take(1):  # else all is as usual
        if bits.take(1):
            orientation = 1 + bits.take(3)
            if bits.take(1):
                _size(bits)  # for display
            if bits.take(1):
                _skip_preview(bits)
            if bits.take(1):
                _skip_animation(bits)
        depth, is_float = _depth(bits)
        bits.take(1)
        extra_channels = bits.choose((0, 0), (1, 0), (2, 4), (1, 12))
        if extra_channels:
            is_default = bits.take(1)
            has_alpha = bool(is_default) or _is_opacity(bits)
        if extra_channels == int(has_alpha):
            bits.take(1)
            is_grey = not bits.take(1) and not bits.take(1) and bits.choose(*_ENUM) == _GREY
    if orientation >= _SIDEWAYS:
        width, height = height, width
    return _Header(width, height, depth, is_float, extra_channels, has_alpha, is_grey)


def _depth(bits: _Bits) -> tuple[int, bool]:
    """Read how many bits a value has, and whether it is of floating point."""
    if not bits.take(1):
        return bits.choose((8, 0), (10, 0), (12, 0), (1, 6)), False
    depth = bits.choose((32, 0), (16, 0), (24, 0), (1, 6))
    bits.take(4)
    return depth, True


def _is_opacity(bits: _Bits) -> bool:
    """Read what an extra channel is, to its end if it is opacity."""
    if bits.choose(*_ENUM) != _ALPHA:
        return False
    _depth(bits)
    bits.choose((0, 0), (3, 0), (4, 0), (1, 3))
    for _ in range(bits.choose((0, 0), (0, 4), (16, 5), (48, 10))):
        bits.take(8)  # of its name
    bits.take(1)
    return True


def _size(bits: _Bits) -> tuple[int, int]:
    is_small = bits.take(1)

    def side() -> int:
        return 8 * (1 + bits.take(5)) if is_small else bits.choose((1, 9), (1, 13), (1, 18), (1, 30))

    height = side()
    ratio = bits.take(3)
    if not ratio:
        return side(), height
    numerator, denominator = _RATIOS[ratio]
    return height * numerator // denominator, height


def _skip_preview(bits: _Bits) -> None:
    is_small = bits.take(1)

    def side() -> None:
        bits.choose(*(((16, 0), (32, 0), (1, 5), (33, 9)) if is_small else ((1, 6), (65, 8), (321, 10), (1345, 12))))

    side()
    if not bits.take(3):
        side()


def _skip_animation(bits: _Bits) -> None:
    bits.choose((100, 0), (1000, 0), (1, 10), (1, 30))
    bits.choose((1, 0), (1001, 0), (1, 8), (1, 10))
    bits.choose((0, 0), (0, 3), (0, 16), (0, 32))
    bits.take(1)


def _codestream_start(data: bytes) -> bytes:
    """Return the first bytes of the code stream, which may lie in a container of boxes."""
    if data.startswith(_CODESTREAM):
        return data[:_MOST_HEADER_BYTES]
    position = len(_CONTAINER)
    while position + 8 <= len(data):
        length, name, start = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8], 8
        if length == 1:
            length, start = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        if name in (b"jxlc", b"jxlp"):
            start += 4 if name == b"jxlp" else 0  # the number of the part
            found = data[position + start : position + start + _MOST_HEADER_BYTES]
            if found.startswith(_CODESTREAM):
                return found
            break
        if length < start:
            break
        position += length
    raise BadSample("decode-error", "JPEG XL: no code stream in its container")
