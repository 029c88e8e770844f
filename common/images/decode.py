"""Image bytes to 8-bit pixels, with every way this can fail turned into one countable `BadSample`.

Here: the only decoder of the package, so that tokenisation, training and evaluation see the same pixels. A quicker one
for those who can prove that they got them is in `jpeg.py`.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from PIL import Image, UnidentifiedImageError

from beit.common.errors import LFS_ADVICE, BadSample, is_lfs_pointer
from beit.common.images.alpha import laid_over, opacity_of
from beit.common.images.channels import image_of, pick_channels
from beit.common.images.decoding import GREY, MAX_IMAGE_BYTES, MAX_PIXELS, MAX_SIDE_PX, USUAL, Decoding, Frame
from beit.common.images.formats import OTHER_NAMES, Reader, format_of
from beit.common.images.jpeg import has_filler
from beit.common.images.orientation import transpose_of
from beit.common.images.ranges import DTYPE, to_8_bit
from beit.common.images.readers.claims import frame_number, too_large
from beit.common.images.readers.deep_png import is_deep_colour, png_bits, read_deep_colour
from beit.common.images.samples import Samples, samples_of_8_bit

_FORMATS = ("JPEG", "PNG", "WEBP")
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # none of which says anything about the pixels that are wanted
_PNG_ORIENTATION = b"XML:com.adobe.xmp\0\0"  # of an uncompressed block, which may say how to turn the image
_PNG_TEXT_LIMITS = ("MAX_TEXT_CHUNK", "MAX_TEXT_MEMORY", "text chunks")
_APP_BYTES = 1 << 16
# Pillow warns about odd EXIF blocks and palettes, once per image; what matters raises or is checked below. The filters
# are set once, for the whole process: `warnings.catch_warnings` swaps global state, and images are decoded in threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode_image(
    data: bytes, decoding: Decoding = USUAL, *, apply_exif: bool = True, reduction: int = 1
) -> Image.Image:
    """Decode an image of any format (`formats.py`) to 8-bit RGB, or grey where that is asked for.

    Of an animation that is its first frame.

    By default 16-bit grey is scaled to 8 bit and transparency is dropped. The size is checked before any pixel is
    decoded. Data that end early are an error: filling the rest with grey would teach the model grey boxes.

    Args:
        data: The encoded image.
        decoding: How its values become pixels, and up to which size.
        apply_exif: Turn and mirror the pixels as the EXIF orientation asks.
        reduction: Of a JPEG, decode it at a half (2), a quarter (4) or an eighth (8) of its size; what is admitted is
            then the reduced size, unless the file is progressive, which libjpeg holds as a whole.
    Returns:
        Image of mode "RGB", or "L" where `decoding.num_channels` is 1, loaded, both sides in [1, 65535] px.
    Raises:
        BadSample: reason is "empty", "truncated", "unsupported", "lfs-pointer", "bomb", "too-large", "decode-error",
            "channels", "no-range", "no-window", "no-frame", or "needs-" and a format whose library is not installed.
    """
    is_plain = isinstance(decoding.channels, str) and replace(decoding, channels="rgb").is_usual
    if is_plain and _reader_of(data) is None:
        image = load_image(data, max_pixels=decoding.max_pixels, reduction=reduction)
        with _in_words(data):
            return (as_grey if decoding.channels == "grey" else as_rgb)(image, apply_exif=apply_exif)
    if not decoding.value_range.is_resolved:
        raise ValueError(f"the values of {decoding.value_range} are to be found before images are decoded")
    samples = read_samples(data, decoding, apply_exif=apply_exif, reduction=reduction)
    with _in_words(data):
        return to_image(samples, decoding)


def to_image(samples: Samples, decoding: Decoding) -> Image.Image:
    """Pick channels, map values to 8 bits, lay what is transparent on its background; mode "RGB" or "L"."""
    # Bands are picked first, so that nothing depends on the others. The background comes after the range: white is 255,
    # whatever value becomes so. Colours are mixed to grey last, as Pillow mixes them.
    samples = pick_channels(samples, decoding.channels)
    image = image_of(laid_over(to_8_bit(samples, decoding.value_range), samples, decoding.alpha))
    return image.convert("L" if decoding.num_channels == GREY else "RGB")


def read_samples(data: bytes, decoding: Decoding = USUAL, *, apply_exif: bool = True, reduction: int = 1) -> Samples:
    """Decode an image, or the frame that is wanted of several, to the values that its file holds.

    Raises:
        BadSample: as `decode_image` does.
    """
    reader = _reader_of(data)
    if reader is not None:
        with _in_words(data):
            return reader.read(data, decoding)  # turned by the reader: their orientation is no afterthought of EXIF
    image = load_image(data, max_pixels=decoding.max_pixels, reduction=reduction, frame=decoding.frame)
    with _in_words(data):
        if decoding.value_range.needs_values and is_deep_colour(data):
            return _deep_samples(data, image, apply_exif=apply_exif)
        return _samples_of(_turned(image) if apply_exif else image)


def _reader_of(data: bytes) -> Reader | None:
    """Return what reads a format that Pillow does not."""
    found = format_of(data)
    if found is None or not found.module:
        return None
    if len(data) > MAX_IMAGE_BYTES:
        raise BadSample("too-large", f"{len(data)} bytes, at most {MAX_IMAGE_BYTES}")
    return found.reader()


def _deep_samples(data: bytes, image: Image.Image, *, apply_exif: bool) -> Samples:
    """Return the whole values of a PNG whose upper bytes Pillow decoded."""
    values = read_deep_colour(_without_text(data), transpose_of(image) if apply_exif else None)
    num_colours = values.shape[2] - (values.shape[2] in (2, 4))
    opacity = values[..., -1] if num_colours < values.shape[2] else None
    hidden = image.info.get("transparency")
    if isinstance(hidden, tuple):  # one colour is transparent
        opacity = np.where((values == hidden).all(axis=-1), 0, 65535).astype(np.uint16)
    return Samples(array=values[..., :num_colours], kind="grey" if num_colours == 1 else "rgb", alpha=opacity)


def _samples_of(image: Image.Image) -> Samples:
    """Return what Pillow decoded, in the values of the file: palettes as their colours, ink as what it looks like."""
    opacity = opacity_of(image)
    if image.mode.startswith("I"):
        array = np.asarray(image).clip(0, 65535).astype(np.uint16)[..., None]
        return Samples(array=array, kind="grey", alpha=None if opacity is None else opacity.astype(np.uint16) * 257)
    wanted = "L" if image.mode in ("1", "L", "LA") else "RGB"
    return samples_of_8_bit(np.asarray(image if image.mode == wanted else image.convert(wanted)), opacity)


def load_image(
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] = _FORMATS,
    reduction: int = 1,
    frame: Frame = "first",
) -> Image.Image:
    """Decode a JPEG, PNG or WebP image as it is: in its own mode, not turned.

    Args:
        data: The encoded image.
        max_pixels: Largest accepted width x height.
        formats: What it may be, as Pillow calls it.
        reduction: Of a JPEG, see `decode_image`.
        frame: Of an animation, or of a file with several pictures.
    Raises:
        BadSample: as `decode_image` does.
    """
    if not data:
        raise BadSample("empty", "no bytes")
    if len(data) > MAX_IMAGE_BYTES:
        raise BadSample("too-large", f"{len(data)} bytes, at most {MAX_IMAGE_BYTES}")
    with _in_words(data):
        try:
            return _load(data, max_pixels, (*formats, *_formats_besides(data)), reduction, frame)
        except ValueError as error:
            if not data.startswith(_PNG_START) or not any(limit in str(error) for limit in _PNG_TEXT_LIMITS):
                raise
            return _load(_without_text(data), max_pixels, formats, reduction, frame)


def _formats_besides(data: bytes) -> tuple[str, ...]:
    """Return what Pillow may read besides, where it was built with it."""
    found = format_of(data)
    if found is None or found.module:
        return ()
    found.require()
    return (found.name,)


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
        raise BadSample(
            "unsupported", f"not a JPEG, PNG or WebP image, nor {OTHER_NAMES} (starts with {data[:8]!r})"
        ) from None
    except Image.DecompressionBombError as error:
        raise BadSample("bomb", str(error)) from None
    except Exception as error:
        # Decoders answer damaged data with a dozen exception types (OSError, SyntaxError, ValueError, ...).
        reason = "truncated" if "truncated" in str(error).lower() else "decode-error"
        raise BadSample(reason, f"{type(error).__name__}: {error}") from error


def size_of_image(data: bytes) -> tuple[tuple[int, int], Image.Transpose | None] | None:
    """Return width and height of an image as stored, by its header, and how its EXIF data have it turned.

    Of a JPEG its beginning is enough. None where that cannot be read; `decode_image` says why. Formats that Pillow does
    not read are measured upright.
    """
    # To look for EXIF data, Pillow decodes a PNG that has none before its pixels.
    is_upright = data.startswith(_PNG_START) and not any(word in data for word in (b"eXIf", _PNG_ORIENTATION))
    _admit_headers(MAX_SIDE_PX**2)
    try:
        reader = _reader_of(data)
        if reader is not None:
            return reader.size(data), None
        with Image.open(io.BytesIO(data), formats=(*_FORMATS, *_formats_besides(data))) as image:
            return image.size, None if is_upright else transpose_of(image)
    except Exception:  # as many types as above
        return None


def num_frames(data: bytes) -> int:
    """Return how many pictures a file has that Pillow reads, by its headers; 1 where that cannot be read."""
    try:
        with Image.open(io.BytesIO(data), formats=(*_FORMATS, *_formats_besides(data))) as image:
            return int(getattr(image, "n_frames", 1))
    except Exception:  # as many types as above
        return 1


def _admit_headers(pixels: int) -> None:
    """Let Pillow open images of so many pixels, which decodes none of them; `_load` refuses what is not admitted."""
    if pixels > (Image.MAX_IMAGE_PIXELS or pixels):
        Image.MAX_IMAGE_PIXELS = pixels


def _load(data: bytes, max_pixels: int, formats: tuple[str, ...], reduction: int, frame: Frame) -> Image.Image:
    _admit_headers(max_pixels if reduction == 1 else MAX_SIDE_PX**2)
    image: Image.Image = Image.open(io.BytesIO(data), formats=formats)
    if frame != "first":
        image.seek(frame_number(frame, int(getattr(image, "n_frames", 1))))
    width, height = image.size
    if reduction > 1:
        image.draft(None, (width // reduction, height // reduction))  # type: ignore[arg-type]
        if not image.info.get("progressive"):
            width, height = image.size
    if width * height > max_pixels:
        is_progressive = reduction > 1 and image.info.get("progressive")
        why = "; it is progressive, and libjpeg holds such a file as a whole at any scale" if is_progressive else ""
        raise BadSample("bomb", too_large(width, height, max_pixels) + why)
    if max(width, height) > MAX_SIDE_PX:
        raise BadSample("too-large", f"{width} x {height} px, at most {MAX_SIDE_PX} px per side")
    image.load()
    _scale_transparent_grey(image, data)
    if image.format in ("JPEG", "MPO") and frame == "first" and has_filler(data, image):
        raise BadSample("truncated", "the pixel data end early; the rest would be grey")
    return image


def _scale_transparent_grey(image: Image.Image, data: bytes) -> None:
    """Scale the one transparent level of a grey PNG of 2 or 4 bits as its pixels are scaled, which Pillow forgets."""
    level = image.info.get("transparency")
    if image.mode == "L" and isinstance(level, int) and (bits := png_bits(data)) in (2, 4):
        image.info["transparency"] = level * (255 // (2**bits - 1))


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


def as_decoded(image: Image.Image, decoding: Decoding) -> Image.Image:
    """Turn an image that Pillow has opened into 8 bits, mode "RGB" or "L", as `decode_image` does with its file.

    One of more than 8 bits (modes I and F) gets the range of values of `decoding`. One of 8 bits is taken as it is:
    whoever made it has chosen a range.

    Raises:
        BadSample: reason is "no-window": the range is the one that files state, and it has none.
    """
    if decoding.value_range.kind == DTYPE or not image.mode.startswith(("I", "F")):
        return as_rgb(image)
    samples = Samples(array=np.asarray(_turned(image))[..., None], kind="grey")
    return image_of(to_8_bit(samples, decoding.value_range)).convert("L" if decoding.num_channels == GREY else "RGB")


def as_rgb(image: Image.Image, *, apply_exif: bool = True) -> Image.Image:
    """Turn an image of any mode as its EXIF data say, and make it 8-bit RGB, as `decode_image` does."""
    image = _turned(image) if apply_exif else image
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        # 16-bit grey. Pillow's own conversion clips everything above 255 to white.
        samples = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((samples.clip(0, 65535) + 128) // 257).astype(np.uint8))
    return image.convert("RGB")


def as_grey(image: Image.Image, *, apply_exif: bool = True) -> Image.Image:
    """Turn an image of any mode as its EXIF data say, and make it 8-bit grey: of colours their luma (ITU-R 601)."""
    image = _turned(image) if apply_exif else image
    if image.mode in ("1", "L", "LA"):
        return image if image.mode == "L" else image.convert("L")
    return as_rgb(image, apply_exif=False).convert("L")


def _turned(image: Image.Image) -> Image.Image:
    transpose = transpose_of(image)
    return image if transpose is None else image.transpose(transpose)
