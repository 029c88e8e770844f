"""TIFF and BigTIFF through tifffile: what a page is, is told by its tags and the file's axes, never by a shape alone.

A stack of slices is frames, of which `source.frame` chooses; channels that microscopes write as pages of their own
(axis C of OME and ImageJ files) are bands of one frame; previews, pyramid levels and transparency masks are neither.
tifffile is imported here alone.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.common.errors import BadSample, InputError
from beit.common.images.decoding import Decoding
from beit.common.images.header import BANDS, ImageFacts
from beit.common.images.readers.claims import check_picture, check_size, frame_number
from beit.common.images.samples import Samples, samples_of_8_bit, without_opacity

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _INKS, _YCBCR = 0, 1, 2, 3, 5, 6
_OTHER_COLOURS = {
    **{8: "CIELAB", 9: "ICC LAB", 10: "ITU LAB", 32844: "LogL", 32845: "LogLuv"},
    **{32803: "unfinished camera", 34892: "unfinished camera", 4: "transparency mask", 51177: "depth map"},
}
_SKIPPED_KINDS = 1 | 4
"""Bits of NewSubfileType: a smaller version of another page, or a transparency mask."""
_SUBFILE_TYPE, _ORIENTATION, _MAX_VALUE, _INK_SET, _GDAL_METADATA = 254, 274, 281, 332, 42112
_PREMULTIPLIED, _ALPHA = 1, 2
"""Kinds of ExtraSamples; 0 is of unknown meaning."""
_CODECS = (1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000)
"""Compressions whose decoders fill a buffer of given size: none, CCITT, LZW, Deflate, PackBits, LZMA, zstd."""
_PICTURE_CODECS = (7, 33003, 33005, 34712, 50001)
"""Compressions that are pictures with headers of their own: JPEG, JPEG 2000, WebP."""
_OTHER_PAGES = ("is_mmstack", "is_ndtiff", "is_svs", "is_ndpi", "is_scn", "is_bif", "is_eer")
"""Kinds of files whose further pages are other pictures (of slides), or lie in other files."""
_WITH_AXES = ("is_ome", "is_imagej", "is_shaped", "is_lsm", "is_stk")
_PLANE_AXES, _CHANNEL_AXIS = "YXS", "C"
_MOST_PAGES = 1 << 20
_MOST_METADATA = 1 << 20
_NAMES_OF_RGB = ("red", "green", "blue")


@dataclass(frozen=True, slots=True)
class Frames:
    """Which pages make which frame."""

    pages: Sequence[TiffPage]
    """One for each frame; of a series, one that stands for all."""
    series: TiffPageSeries | None = None
    """Pages of known axes."""
    order: NDArray[np.int64] | None = None
    """Of a series: the number of the page by frame and channel, (F, C)."""

    def __len__(self) -> int:
        return len(self.pages) if self.order is None else len(self.order)

    def pages_of(self, number: int) -> list[TiffPage] | None:
        """Return the pages of one frame, whose channels follow each other; None where not all are pages of the file."""
        if self.series is None or self.order is None:
            return [self.pages[number]]
        places = self.order[number].tolist()
        found = [self.series[place] if place < len(self.series) else None for place in places]
        return None if None in found else found  # type: ignore[return-value]


def read(data: bytes, decoding: Decoding) -> Samples:
    """Return a frame of a TIFF, turned as its orientation says.

    Raises:
        BadSample: as `beit.common.images.decode.decode_image` says.
    """
    with opened(io.BytesIO(data)) as file:
        frames = frames_of(file)
        number = frame_number(decoding.frame, len(frames))
        page = frames.pages[number if frames.series is None else 0]
        numbers = (0,) if frames.order is None else frames.order[number].tolist()
        check_meaning(page, num_planes=len(numbers))
        bytes_per_pixel = page.samplesperpixel * len(numbers) * page.dtype.itemsize
        check_size(page.imagewidth, page.imagelength, decoding, bytes_per_pixel=bytes_per_pixel)
        if frames.series is None:
            planes = [_decoded(page, page, data, decoding)]
        else:
            planes = [_plane_of(frames.series, place, data, decoding) for place in numbers]
        return samples_of(page, planes, num_frames=len(frames))


def facts(data: bytes) -> ImageFacts:
    """Return what tags and axes say of the first frame."""
    return facts_of_file(io.BytesIO(data))


def facts_of_file(content: BinaryIO) -> ImageFacts:
    """Return the same of a file of any size, of which the tags alone are read."""
    with opened(content) as file:
        frames = frames_of(file)
        page, num_planes = frames.pages[0], 1 if frames.order is None else frames.order.shape[1]
        check_meaning(page, num_planes=num_planes)
        (width, height), num_samples = _upright(page), page.samplesperpixel * num_planes
        has_alpha = _alpha_place(page, num_samples) is not None
        channels, colours, bits = _meaning(page, num_samples - int(has_alpha), num_planes)
        return ImageFacts(
            format="TIFF",
            width=width,
            height=height,
            bits=bits,
            channels=channels,
            colours=colours,
            has_alpha=has_alpha,
            is_float=page.dtype.kind == "f",
            has_range=page.dtype.kind != "f",
            num_frames=len(frames),
        )


def _meaning(page: TiffPage, num_bands: int, num_planes: int) -> tuple[int, str, int]:
    """Return channels, what they are called and their bits; num_bands are those besides opacity."""
    photometric = int(page.photometric)
    bits = _bits_of(page) or 8 * page.dtype.itemsize
    if photometric == _PALETTE:
        return 3, "palette", 8
    if photometric == _INKS and page.tags.valueof(_INK_SET, 1) == 1:
        return 4, "CMYK", bits
    if photometric == _YCBCR:
        return 3, "RGB", bits
    kind = _kind_of(photometric, num_bands, num_planes)
    name = {"grey": "black and white" if bits == 1 else "grey", "rgb": "RGB"}.get(kind, BANDS)
    return num_bands, name, bits


def size(data: bytes) -> tuple[int, int]:
    """Return width and height in px of the first frame, upright."""
    with opened(io.BytesIO(data)) as file:
        return _upright(frames_of(file).pages[0])


def _upright(page: TiffPage) -> tuple[int, int]:
    is_sideways = page.tags.valueof(_ORIENTATION, 1) in (5, 6, 7, 8)
    width, height = int(page.imagewidth), int(page.imagelength)
    return (height, width) if is_sideways else (width, height)


def num_frames(data: bytes) -> int:
    """Return how many frames there are."""
    with opened(io.BytesIO(data)) as file:
        return len(frames_of(file))


@contextmanager
def opened(file: BinaryIO) -> Iterator[TiffFile]:
    """Open for reading; what tifffile raises meanwhile becomes a `BadSample`."""
    with in_words(), unguarded(file) as found:
        yield found


@contextmanager
def unguarded(file: BinaryIO) -> Iterator[TiffFile]:
    """Open for longer than a call of this module: what is raised meanwhile is the caller's, unless `in_words`."""
    import tifffile

    # It logs what is odd in a file, with what stands in it, once per image.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    with in_words():
        # Without a name, and with this switched off, no other file is opened, whatever the metadata name.
        found = tifffile.TiffFile(file, _multifile=False)
    with found:
        yield found


@contextmanager
def in_words() -> Iterator[None]:
    """Turn whatever is wrong with a TIFF into a `BadSample`."""
    try:
        yield
    except (BadSample, InputError, MemoryError):
        raise
    except Exception as error:
        # Damaged structures end in as many types as there are (KeyError, IndexError, struct.error, ...).
        text = str(error).partition("\n")[0][:200]
        raise BadSample("decode-error", f"TIFF: {type(error).__name__}: {text}") from None


def frames_of(file: TiffFile) -> Frames:
    """Return what is one image each: slices and moments, but no previews, pyramid levels or masks."""
    if any(getattr(file, name) for name in _OTHER_PAGES):
        return Frames([file.pages.first])
    if any(getattr(file, name) for name in _WITH_AXES):
        # What tifffile writes page by page are as many series, of a page each.
        found = _frames_of_series(file.series[0]) if len(file.series) == 1 or not file.is_shaped else None
        if found is not None:
            return found
    pages = []
    for place in range(len(file.pages)):
        page = file.pages.get(place, aspage=True, cache=False) if place else file.pages.first
        if not int(page.subfiletype) & _SKIPPED_KINDS:
            pages.append(page)
    if not len(file.pages):
        raise BadSample("truncated", "TIFF: it has no pages")
    if not pages:
        raise BadSample("unsupported", "a TIFF of previews alone, as raw files of cameras are; develop it first")
    return Frames(pages)


def _frames_of_series(series: TiffPageSeries) -> Frames | None:
    """Order the pages of a file that names its axes by frame and channel; None where axes and pages disagree."""
    keyframe = series.keyframe
    axes, shape = series.get_axes(False), series.get_shape(False)
    outer = [(axis, count) for axis, count in zip(axes, shape, strict=True) if axis not in _PLANE_AXES]
    inner = math.prod(count for axis, count in zip(axes, shape, strict=True) if axis in _PLANE_AXES)
    counts = [count for _, count in outer]
    num_pages = math.prod(counts)
    is_whole = inner == math.prod(keyframe.shape) and 1 <= num_pages <= _MOST_PAGES
    is_whole &= not int(keyframe.subfiletype) & _SKIPPED_KINDS
    if not is_whole or (num_pages != len(series) and not series.is_truncated):
        return None
    order = np.arange(num_pages).reshape(counts)
    channel_axes = [place for place, (axis, _) in enumerate(outer) if axis == _CHANNEL_AXIS]
    order = np.moveaxis(order, channel_axes, range(-len(channel_axes), 0))
    return Frames([keyframe], series, order.reshape(-1, math.prod(counts[place] for place in channel_axes)))


def _plane_of(series: TiffPageSeries, place: int, data: bytes, decoding: Decoding) -> NDArray[Any]:
    """Return a page of a series, (H, W, S)."""
    keyframe = series.keyframe
    if place < len(series):
        page = series[place]
        if page is None:
            raise BadSample("decode-error", f"TIFF: page {place} is not in the file")
        return _decoded(page, keyframe, data, decoding)
    # ImageJ and others describe one page, behind which the values of all follow.
    if series.dataoffset is None:
        raise BadSample("decode-error", f"TIFF: page {place} has no place in the file")
    start, count = series.dataoffset + place * keyframe.nbytes, math.prod(keyframe.shaped)
    if start + keyframe.nbytes > len(data):
        raise BadSample("truncated", f"TIFF: page {place} ends behind the end of the file")
    dtype = np.dtype(keyframe.dtype).newbyteorder(keyframe.parent.byteorder)
    return _channels_last(np.frombuffer(data, dtype, count, start).reshape(keyframe.shaped))


def _decoded(page: TiffPage, keyframe: TiffPage, data: bytes, decoding: Decoding) -> NDArray[Any]:
    """Decode a page, (H, W, S), if everything that it says is there."""
    check_codec(keyframe)
    height, width = keyframe.tile[-2:] if keyframe.is_tiled else (keyframe.rowsperstrip, keyframe.imagewidth)
    samples = keyframe.samplesperpixel if keyframe.planarconfig == 1 else 1
    segment_height = height if keyframe.is_tiled else min(height, keyframe.imagelength)
    check_size(width, segment_height, decoding, bytes_per_pixel=samples * keyframe.dtype.itemsize)
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    expected = math.prod(keyframe.chunked)
    # Strips and tiles without a place are allowed, and empty; an image of nothing else is not.
    if len(segments) < expected or not any(offset and count for offset, count in segments):
        raise BadSample("truncated", f"TIFF: {len(segments)} strips or tiles of {expected}, or none with pixels")
    last = max(offset + count for offset, count in segments)
    if keyframe.is_contiguous:
        last = max(last, segments[0][0] + keyframe.nbytes)
    if last > len(data):
        raise BadSample("truncated", f"TIFF: its pixels end {last - len(data)} bytes behind the end of the file")
    for offset, count in segments:
        if offset and count:
            check_segment(keyframe, data[offset : offset + count], (width, segment_height))
    return _channels_last(page.asarray(squeeze=False, maxworkers=1))


def check_codec(page: TiffPage) -> None:
    """Refuse a compression that nothing here decodes, or only a decoder that trusts what it reads."""
    if int(page.compression) not in _CODECS + _PICTURE_CODECS:
        raise BadSample("unsupported", f"a TIFF with the compression {page.compression!s:.40}")


def check_segment(page: TiffPage, data: bytes, size: tuple[int, int]) -> None:
    """Refuse a strip or tile that is a picture of its own and claims to be larger than its width and height."""
    if int(page.compression) in _PICTURE_CODECS:
        check_picture(data, *size)


def _channels_last(values: NDArray[Any]) -> NDArray[Any]:
    """Turn tifffile's (planes, 1, H, W, S), where planes or S is 1, into (H, W, S)."""
    return np.moveaxis(values[:, 0, :, :, 0], 0, -1) if values.shape[0] > 1 else values[0, 0]


def check_meaning(page: TiffPage, *, num_planes: int) -> None:
    """Refuse what is no brightness, colour or band."""
    photometric = int(page.photometric)
    if photometric in _OTHER_COLOURS:
        raise BadSample("unsupported", f"a TIFF of {_OTHER_COLOURS[photometric]} values; convert it to grey or RGB")
    if page.dtype is None or page.dtype.kind not in "biuf":
        raise BadSample("unsupported", f"a TIFF of {page.bitspersample}-bit values of type {page.dtype}")
    if page.imagedepth != 1:
        raise BadSample("unsupported", f"a TIFF with a volume of {page.imagedepth} slices in one page")
    if photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _INKS, _YCBCR):
        raise BadSample("unsupported", f"a TIFF of unknown colours ({photometric})")
    if photometric in (_PALETTE, _INKS, _YCBCR) and num_planes > 1:
        raise BadSample("unsupported", f"a TIFF of {num_planes} channels with colours each")
    needed = {_RGB: 3, _YCBCR: 3, _INKS: 4}.get(photometric, 1)
    if page.samplesperpixel < needed:
        raise BadSample("decode-error", f"TIFF: {page.samplesperpixel} samples per pixel, where colours need {needed}")


def samples_of(page: TiffPage, planes: Sequence[NDArray[Any]], *, num_frames: int) -> Samples:
    """Say what the values of a frame are."""
    photometric = int(page.photometric)
    values = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
    values = _turned(values, page.tags.valueof(_ORIENTATION, 1))
    values = values.astype(np.uint8 if values.dtype.kind == "b" else values.dtype.newbyteorder("="), copy=False)
    if photometric == _PALETTE:
        return samples_of_8_bit(_colours_of_palette(values[..., 0], page.colormap), num_frames=num_frames)
    if photometric == _INKS and page.tags.valueof(_INK_SET, 1) == 1:
        return samples_of_8_bit(_rgb_of_inks(values[..., :4]), num_frames=num_frames)
    if photometric == _YCBCR and int(page.compression) not in _PICTURE_CODECS:  # those come as RGB
        if values.dtype != np.uint8:
            raise BadSample("unsupported", f"a TIFF of YCbCr values of type {values.dtype}")
        image = Image.fromarray(np.ascontiguousarray(values[..., :3]), "YCbCr")
        return samples_of_8_bit(np.asarray(image.convert("RGB")), num_frames=num_frames)
    values, alpha = _without_alpha(values, page)
    num_bands = values.shape[2]
    return Samples(
        array=values,
        kind=_kind_of(photometric, num_bands, len(planes)),
        alpha=alpha,
        bits=_bits_of(page),
        is_inverted=photometric == _WHITE_IS_ZERO,
        num_frames=num_frames,
        band_names=_names_of(page, num_bands, is_rgb=_is_rgb(photometric, len(planes))),
    )


def _is_rgb(photometric: int, num_planes: int) -> bool:
    return photometric in (_RGB, _YCBCR) and num_planes == 1


def _kind_of(photometric: int, num_bands: int, num_planes: int) -> Literal["grey", "rgb", "bands"]:
    if num_bands == 1:
        return "grey"
    return "rgb" if num_bands == 3 and _is_rgb(photometric, num_planes) else "bands"


def _alpha_place(page: TiffPage, num_samples: int) -> int | None:
    """Return which of the samples of a pixel is its opacity; None where none is."""
    extra = tuple(int(kind) for kind in page.extrasamples)
    first = num_samples - len(extra)
    places = [first + place for place, kind in enumerate(extra) if kind in (_PREMULTIPLIED, _ALPHA)]
    return places[0] if places and first >= 1 and num_samples == page.samplesperpixel else None


def _without_alpha(values: NDArray[Any], page: TiffPage) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Split opacity off; colours that are multiplied by it are divided."""
    place = _alpha_place(page, values.shape[2])
    if place is None:
        return values, None
    alpha, colours = values[..., place], np.delete(values, place, axis=2)
    if int(page.extrasamples[place - values.shape[2]]) == _PREMULTIPLIED:
        bits = page.bitspersample - (values.dtype.kind == "i")
        colours = without_opacity(colours, alpha, 1 if values.dtype.kind == "f" else (1 << bits) - 1)
    return colours, alpha


def _bits_of(page: TiffPage) -> int | None:
    """Return how many bits are used: by the tag that says how many there are, or one that names their largest value."""
    bits = int(page.bitspersample)
    limit = page.tags.valueof(_MAX_VALUE)
    limit = max(limit, default=0) if isinstance(limit, tuple) else limit
    # Mostly it holds the largest value of this image, which says nothing; 1023 or 4095 is what a camera can give.
    if page.dtype.kind == "u" and isinstance(limit, int) and 255 < limit < (1 << bits) - 1 and not limit & (limit + 1):
        return limit.bit_length()
    return bits if bits < 8 * page.dtype.itemsize and page.dtype.kind in "bu" else None


def _colours_of_palette(places: NDArray[Any], palette: NDArray[Any] | None) -> NDArray[np.uint8]:
    """Look colours of 16 bits up, (H, W, 3) uint8; some writers fill palettes with 8 bits."""
    if palette is None or palette.ndim != 2 or palette.shape[0] != 3 or places.max(initial=0) >= palette.shape[1]:
        raise BadSample("decode-error", "TIFF: colours that are not in its palette")
    colours = palette.astype(np.uint32)
    small = colours if colours.max(initial=0) < 256 else (colours + 128) // 257
    return np.ascontiguousarray(small.astype(np.uint8).T[places])


def _rgb_of_inks(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert cyan, magenta, yellow and black as Pillow does for JPEGs, (H, W, 3) uint8."""
    if values.dtype == np.uint16:
        values = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if values.dtype != np.uint8:
        raise BadSample("unsupported", f"a TIFF of inks of type {values.dtype}")
    return np.asarray(Image.fromarray(np.ascontiguousarray(values), "CMYK").convert("RGB"))


def _turned(values: NDArray[Any], orientation: Any) -> NDArray[Any]:
    """Turn and mirror (H, W, C) as the orientation of TIFF, the same as that of EXIF, says."""
    if orientation in (5, 6, 7, 8):
        values = values.transpose(1, 0, 2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(values[::rows, ::columns])


def _names_of(page: TiffPage, num_bands: int, *, is_rgb: bool) -> tuple[str, ...]:
    """Return what GDAL wrote of the bands, or else the colours; nothing unless there is a name for each."""
    text = page.tags.valueof(_GDAL_METADATA, "")
    found: dict[str, str] = {}
    if isinstance(text, str) and "DESCRIPTION" in text and len(text) <= _MOST_METADATA:
        try:
            items = list(ElementTree.fromstring(text).iter("Item"))
        except ElementTree.ParseError:
            items = []
        found = {item.get("sample", ""): item.text or "" for item in items if item.get("name") == "DESCRIPTION"}
    names = tuple(found.get(str(band), "") for band in range(num_bands))
    if all(names):
        return names
    return (*_NAMES_OF_RGB, *(f"band {band}" for band in range(4, num_bands + 1))) if is_rgb and num_bands > 3 else ()
