"""Image bytes to RGB pixels, with every way this can fail turned into one countable `BadSample`.

Here: the only decoder of the package, so that tokenisation, training and evaluation see the same pixels, and a quicker
one for those who can prove that they got them. Not here: where the bytes come from (`common/sources/`, `store.py`) and
what is cut from the pixels (`views.py`).

JPEGs whose pixel data end early although the file is closed properly are found here, too: a download that broke off and
was "repaired", or one flipped bit that looks like a marker. libjpeg then fills the rest of the picture with mid grey
and says so only in a warning that Pillow does not pass on. Neither length nor structure of the file tells. What tells
is that a decoder that ran out of data uses more if there is more, and one that did not ignores it.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from beit.common.errors import LFS_ADVICE, BadSample, is_lfs_pointer

try:
    import simplejpeg
except ImportError:  # built for fewer platforms than the rest; everything works without, slower
    simplejpeg = None


IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "jfif", "jpe", "mpo", "apng")
"""File endings and tar suffixes that mean "an image", in order of preference where a sample has several."""
MAX_IMAGE_BYTES = 256 << 20
"""Largest encoded image that is read into memory. Arbitrary; a 64-megapixel 16-bit PNG stays below it."""
MAX_PIXELS = 64_000_000
"""Largest width x height that is decoded by default."""
MAX_SIDE_PX = 65535
"""View records hold box coordinates as unsigned 16-bit integers."""
_FORMATS = ("JPEG", "PNG", "WEBP")
_JPEG_START = b"\xff\xd8\xff"
_SEQUENTIAL_FRAMES = (0xC0, 0xC1)
_ARITHMETIC_FRAMES = (0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # none of which says anything about the pixels that are wanted
_PNG_ORIENTATION = b"XML:com.adobe.xmp\0\0"  # of an uncompressed block, which may say how to turn the image
_PNG_TEXT_LIMITS = ("MAX_TEXT_CHUNK", "MAX_TEXT_MEMORY", "text chunks")
_JPEG_BLOCK_ROWS = 16
"""Pixel rows that usual JPEGs encode together; a multiple of it is always right, if not least."""
_EXIF_START = b"Exif\0\0"
_APP_BYTES = 1 << 16
_EXIF_ORIENTATION = 0x0112

_TRANSPOSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


# Pillow warns about odd EXIF blocks and palettes, once per image; what matters raises or is checked below. The filters
# are set once, for the whole process: `warnings.catch_warnings` swaps global state, and images are decoded in threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


_EXTRA = bytes((37 * number + 11) % 251 for number in range(256))
"""Entropy-coded nonsense, without the byte 0xFF that begins a marker."""
_FILLER = (127, 128)  # a block without data is 128 in every channel; CMYK comes inverted
_SOS, _DRI, _EOI = 0xDA, 0xDD, 0xD9
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
_SCAN_END = re.compile(rb"\xff+[^\x00\xff]", re.DOTALL)
_SCAN_END_WITH_RESTARTS = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]", re.DOTALL)


def is_image_path(path: str) -> bool:
    """Tell by its ending whether a path names an image."""
    return os.path.splitext(path)[1].lower().lstrip(".") in IMAGE_SUFFIXES


def decode_image(data: bytes, *, apply_exif: bool = True, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a JPEG, PNG or WebP image to 8-bit RGB; of an animation, its first frame.

    16-bit grey is scaled to 8 bit, transparency is dropped. The size is checked before any pixel is decoded. Data that
    end early are an error: filling the rest with grey would teach the model grey boxes.

    Args:
        data: The encoded image.
        apply_exif: Turn and mirror the pixels as the EXIF orientation asks.
        max_pixels: Largest accepted width x height.
    Returns:
        Image of mode "RGB", loaded, both sides in [1, 65535] px.
    Raises:
        BadSample: reason is "empty", "truncated", "unsupported", "lfs-pointer", "bomb", "too-large" or "decode-error".
    """
    image = load_image(data, max_pixels=max_pixels)
    with _in_words(data):
        return as_rgb(image, apply_exif=apply_exif)


def load_image(data: bytes, *, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] = _FORMATS) -> Image.Image:
    """Decode a JPEG, PNG or WebP image as it is: in its own mode, not turned.

    Args:
        data: The encoded image.
        max_pixels: Largest accepted width x height.
        formats: What it may be, as Pillow calls it.
    Raises:
        BadSample: as `decode_image` does.
    """
    if not data:
        raise BadSample("empty", "no bytes")
    if len(data) > MAX_IMAGE_BYTES:
        raise BadSample("too-large", f"{len(data)} bytes, at most {MAX_IMAGE_BYTES}")
    with _in_words(data):
        try:
            return _load(data, max_pixels, formats)
        except ValueError as error:
            if not data.startswith(_PNG_START) or not any(limit in str(error) for limit in _PNG_TEXT_LIMITS):
                raise
            return _load(_without_text(data), max_pixels, formats)


@contextmanager
def _in_words(data: bytes) -> Iterator[None]:
    """Turn whatever is wrong with an image into a `BadSample`."""
    try:
        yield
    except (BadSample, MemoryError):
        raise
    except UnidentifiedImageError:
        if is_lfs_pointer(data):
            raise BadSample("lfs-pointer", f"it {LFS_ADVICE}") from None
        raise BadSample("unsupported", f"not a JPEG, PNG or WebP image (starts with {data[:8]!r})") from None
    except Image.DecompressionBombError as error:
        raise BadSample("bomb", str(error)) from None
    except Exception as error:
        # Decoders answer damaged data with a dozen exception types (OSError, SyntaxError, ValueError, ...).
        reason = "truncated" if "truncated" in str(error).lower() else "decode-error"
        raise BadSample(reason, f"{type(error).__name__}: {error}") from error


def size_of_image(data: bytes) -> tuple[tuple[int, int], Image.Transpose | None] | None:
    """Return width and height of an image as stored, by its header, and how its EXIF data have it turned.

    Of a JPEG its beginning is enough. None where that cannot be read; `decode_image` says why.
    """
    # To look for EXIF data, Pillow decodes a PNG that has none before its pixels.
    is_upright = data.startswith(_PNG_START) and not any(word in data for word in (b"eXIf", _PNG_ORIENTATION))
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return image.size, None if is_upright else _transpose_of(image)
    except Exception:  # as many types as above
        return None


def _load(data: bytes, max_pixels: int, formats: tuple[str, ...]) -> Image.Image:
    if max_pixels > (Image.MAX_IMAGE_PIXELS or max_pixels):
        Image.MAX_IMAGE_PIXELS = max_pixels  # the check below is the stricter one
    image: Image.Image = Image.open(io.BytesIO(data), formats=formats)
    width, height = image.size
    if width * height > max_pixels:
        raise BadSample(
            "bomb",
            f"{width} x {height} px, more than {max_pixels / 1e6:g} megapixels; if you trust the source, "
            "source.max_megapixels admits more",
        )
    if max(width, height) > MAX_SIDE_PX:
        raise BadSample("too-large", f"{width} x {height} px, at most {MAX_SIDE_PX} px per side")
    image.load()
    if image.format in ("JPEG", "MPO") and has_filler(data, image):
        raise BadSample("truncated", "the pixel data end early; the rest would be grey")
    return image


def _without_text(data: bytes) -> bytes:
    """Return a PNG without its texts and colour profile, of which Pillow reads no more than some megabytes."""
    kept, position = [_PNG_START], len(_PNG_START)
    while position < len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        chunk = data[position:end]
        tells_orientation = chunk[8:].startswith(_PNG_ORIENTATION) and len(chunk) <= _APP_BYTES
        if chunk[4:8] not in _PNG_TEXT or tells_orientation:
            kept.append(chunk)
        position = end
    return b"".join(kept)


def decode_jpeg_unchecked(data: bytes, *, width: int, height: int) -> NDArray[np.uint8] | None:
    """Decode the top of a JPEG faster than `decode_image`, for callers that compare the pixels with a checksum.

    The same libjpeg-turbo arithmetic, so the same pixels in all ordinary cases, straight into an array: three times as
    quick for a small image, 1.2 times for a photograph of which all is wanted. What is wrong with an image is not said.

    Args:
        data: The encoded image.
        width: Smallest width in px that is of use; narrower images are not decoded.
        height: Rows that are wanted; shorter images are not decoded.
    Returns:
        Pixels (>= height, W, 3) uint8, writable: of what lies below, and what is damaged there, as little as possible
        is decoded. None where `decode_image` has to be asked: no JPEG, one to be turned, too small or larger than that
        function accepts by default, or damaged beyond decoding.
    """
    if simplejpeg is None or not data.startswith(_JPEG_START):
        return None
    try:
        image_height, image_width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if image_width < width or image_height < height or image_width * image_height > MAX_PIXELS:
            return None
        if colours not in ("YCbCr", "RGB", "Gray"):  # ink has no one colour: decoders convert it differently
            return None
        if data.find(_EXIF_START, 0, _APP_BYTES) >= 0 and _transpose_of(Image.open(io.BytesIO(data))) is not None:
            return None
        # Not strict, because to a decoder the rest of a cut image is data too many.
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(_cut_jpeg(data, height), "RGB", strict=False)
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


def _transpose_of(image: Image.Image) -> Image.Transpose | None:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a broken EXIF block, and cameras write many, says nothing about the pixels
        orientation = 1
    return _TRANSPOSE_OF_ORIENTATION.get(orientation) if isinstance(orientation, int) else None


def as_rgb(image: Image.Image, *, apply_exif: bool = True) -> Image.Image:
    """Turn an image of any mode as its EXIF data say, and make it 8-bit RGB, as `decode_image` does."""
    if apply_exif and (transpose := _transpose_of(image)) is not None:
        image = image.transpose(transpose)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # 16-bit grey. Pillow's own conversion clips everything above 255 to white.
        samples = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((samples.clip(0, 65535) + 128) // 257).astype(np.uint8))
    return image.convert("RGB")


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
