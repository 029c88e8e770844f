"""Images of which only parts are ever in memory: windows of a TIFF, and whole images that look the same to their users.

    with open_pixels(file, decoding) as pixels:
        pixels.size  # width and height
        pixels.read(Box(0, 0, 1024, 1024))  # an 8-bit image of 1024 x 1024 px

A TIFF is stored in segments, tiles or strips, each encoded by itself; those that a window touches are decoded, the
others not. What is no TIFF, or one that cannot be read so, is decoded as a whole, up to the size that is admitted. What
the pages of a TIFF are, and what their values mean, is `beit.common.images.readers.tiff`'s to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.common.errors import BadSample
from beit.common.images.decode import decode_image, num_frames, size_of_image, to_image
from beit.common.images.decoding import MAX_IMAGE_BYTES, USUAL, Decoding
from beit.common.images.formats import format_of
from beit.common.images.large.tiles import CUT_PIXELS, Box
from beit.common.images.readers import tiff
from beit.common.images.readers.claims import frame_number, too_large

_HEADER_BYTES = 1 << 18
"""Of a file that is no TIFF, what is read to learn its size; EXIF data and colour profiles come first. Arbitrary."""
_UPRIGHT = 1
_ORIENTATION_TAG = 274
_JPEG = (6, 7, 34892, 33007)
"""Compressions whose tables may stand apart."""


class Pixels(Protocol):
    """An image of which parts can be had."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px, upright."""

    @property
    def has_windows(self) -> bool:
        """Whether a part is decoded without the rest."""

    @property
    def max_pixels(self) -> int:
        """The most that a part may have."""

    def read(self, box: Box) -> Image.Image:
        """Return a part, of mode "RGB" or "L".

        Raises:
            BadSample: it cannot be decoded.
        """

    def smallest_version(self, short_side: int) -> Pixels:
        """Return the smallest version that the file holds with at least `short_side` px, or all of it."""


class Measured(NamedTuple):
    """What the header of a file tells."""

    size: tuple[int, int]
    """Width and height in px, upright."""
    has_windows: bool
    """Whether parts can be decoded without the rest."""
    num_frames: int = 1
    """Pages, slices or moments."""

    @property
    def pixels_at_once(self) -> int:
        """Of the part that is decoded at a time where it is cut into tiles: all, where there are no windows."""
        whole = self.size[0] * self.size[1]
        return min(whole, CUT_PIXELS) if self.has_windows else whole


@dataclass(frozen=True, slots=True)
class WholeImage:
    """An image that was decoded as a whole."""

    image: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px."""
        return self.image.size

    @property
    def has_windows(self) -> bool:
        """False."""
        return False

    @property
    def max_pixels(self) -> int:
        """All of it."""
        return self.image.width * self.image.height

    def read(self, box: Box) -> Image.Image:
        """Return a part."""
        return self.image.crop(box)

    def smallest_version(self, short_side: int) -> Pixels:
        """Return itself: there is no other."""
        return self


@contextmanager
def open_pixels(file: BinaryIO, decoding: Decoding = USUAL) -> Iterator[Pixels]:
    """Open an image for reading parts of it.

    Args:
        file: Of the encoded image, at its start; read while the image is open.
        decoding: How values become pixels; `max_pixels` is a limit for what is decoded at once.
    Raises:
        BadSample: it cannot be decoded.
    """
    if _is_tiff(file):
        with tiff.unguarded(file) as opened:
            with tiff.in_words():
                windows = _windows(opened, decoding)
            if windows.refusal is None:
                yield windows
                return
            if windows.is_too_large:
                raise BadSample("bomb", windows.refusal)
    yield WholeImage(decode_image(_all_of(file), decoding))


def measure(file: BinaryIO, decoding: Decoding = USUAL) -> Measured | None:
    """Return what the header of an image tells; None where it cannot be read, and `open_pixels` says why."""
    try:
        if _is_tiff(file):
            with tiff.opened(file) as opened:
                windows = _windows(opened, decoding)
                return Measured(windows.upright_size, windows.refusal is None, len(tiff.frames_of(opened)))
        start = file.read(_HEADER_BYTES)
        form = format_of(start)
        if form is not None and form.module:
            data = _all_of(file)
            reader = form.reader()
            return Measured(reader.size(data), False, reader.num_frames(data))
    except BadSample:
        return None
    found = size_of_image(start)
    if found is None:
        file.seek(0)
        found = size_of_image(_all_of(file))
    if found is None:
        return None
    (width, height), transpose = found
    turns = transpose in (
        Image.Transpose.TRANSPOSE,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
        Image.Transpose.ROTATE_270,
    )
    count = num_frames(_all_of(file)) if decoding.frame == "each" else 1
    return Measured((height, width) if turns else (width, height), False, count)


def is_tiff(data: bytes) -> bool:
    """Tell by its first bytes whether a file is a TIFF."""
    form = format_of(data)
    return form is not None and form.module == "tiff"


def _is_tiff(file: BinaryIO) -> bool:
    start = file.read(_HEADER_BYTES)
    file.seek(0)
    return is_tiff(start)


def _all_of(file: BinaryIO) -> bytes:
    file.seek(0)
    data = file.read(MAX_IMAGE_BYTES + 1)
    if len(data) > MAX_IMAGE_BYTES:
        raise BadSample("too-large", f"more than {MAX_IMAGE_BYTES} bytes")
    return data


def _windows(opened: Any, decoding: Decoding) -> TiffWindows:
    """Return the wanted frame of an open TIFF."""
    frames = tiff.frames_of(opened)
    pages = frames.pages_of(frame_number(decoding.frame, len(frames)))
    if pages is None:
        return TiffWindows([frames.pages[0]], decoding, is_whole=False)
    return TiffWindows(pages, decoding, levels=_levels_of(opened, pages))


def _levels_of(opened: Any, pages: Sequence[Any]) -> list[list[Any]]:
    """Return smaller versions of a frame, as pyramids of slides and maps have them."""
    for series in opened.series:
        full = list(series.levels[0].pages)
        places = [number for page in pages for number, found in enumerate(full) if found is page or _same(found, page)]
        if len(places) == len(pages):
            levels = [level.pages for level in series.levels[1:] if len(level.pages) == len(full)]
            found = [[level[place] for place in places] for level in levels]
            return [level for level in found if None not in level]
    return []


def _same(one: Any, other: Any) -> bool:
    return one is not None and one.offset == other.offset


class TiffWindows:
    """One page of a TIFF, decoded part by part.

    Args:
        pages: Of an open file; their channels follow each other.
        decoding: How values become pixels.
        levels: The same image smaller and smaller, where the file has it.
        is_whole: Whether the pages are all there is of the frame; else parts of it cannot be had.
    """

    def __init__(
        self,
        pages: Sequence[Any],
        decoding: Decoding,
        *,
        levels: Sequence[Sequence[Any]] = (),
        is_whole: bool = True,
    ) -> None:
        self._pages, self._levels, self._decoding = pages, levels, decoding
        self._keyframe = keyframe = pages[0].keyframe
        self._planes, self._depth, height, width, self._contiguous = keyframe.shaped
        self.size = (width, height)
        self._segment = (
            (keyframe.tilewidth, keyframe.tilelength)
            if keyframe.is_tiled
            else (width, min(height, keyframe.rowsperstrip))
        )
        # Rows of what is stored as it is can be read one by one, however many make a strip.
        self._is_plain = bool(
            all(page.is_contiguous for page in pages)
            and not keyframe.is_tiled
            and keyframe.compression == 1
            and keyframe.fillorder == 1
            and keyframe.predictor == 1
            and keyframe.dtype is not None
            and keyframe.bitspersample == 8 * keyframe.dtype.itemsize
        )
        self.refusal = self._why_not() if is_whole else "its pages lie in one piece"

    @property
    def has_windows(self) -> bool:
        """True."""
        return True

    @property
    def max_pixels(self) -> int:
        """The most that a part may have."""
        return self._decoding.max_pixels

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height in px, turned as the file asks."""
        width, height = self.size
        return (height, width) if _orientation(self._keyframe) >= 5 else (width, height)

    @property
    def is_too_large(self) -> bool:
        """Whether one segment has more pixels than may be decoded at once, so that all of it has, too."""
        return not self._is_plain and self._segment[0] * self._segment[1] > self._decoding.max_pixels

    def _why_not(self) -> str | None:
        """Return why parts cannot be decoded, None where they can."""
        keyframe = self._keyframe
        if self.is_too_large:
            what = "tiles" if keyframe.is_tiled else "strips"
            width, height = self._segment
            return f"each of its {what}: {too_large(width, height, self._decoding.max_pixels)}"
        if self._depth != 1 or min(self.size) < 1 or _orientation(keyframe) != _UPRIGHT:
            return "it has to be turned, or is a volume"
        tiff.check_meaning(keyframe, num_planes=len(self._pages))
        tiff.check_codec(keyframe)
        return None

    def read(self, box: Box) -> Image.Image:
        """Return a part of the image, of mode "RGB" or "L"."""
        width, height = box.size
        if width * height > self._decoding.max_pixels:
            raise BadSample("bomb", f"a part of it: {too_large(width, height, self._decoding.max_pixels)}")
        with tiff.in_words():
            planes = [self._values(page, box) for page in self._pages]
            return to_image(tiff.samples_of(self._keyframe, planes, num_frames=1), self._decoding)

    def smallest_version(self, short_side: int) -> Pixels:
        """Return the smallest version that the file holds with at least `short_side` px, or all of it."""
        versions = [TiffWindows(pages, self._decoding) for pages in self._levels]
        fit = [version for version in versions if version.refusal is None and min(version.size) >= short_side]
        return min([self, *fit], key=lambda version: version.size[0] * version.size[1])

    def _values(self, page: Any, box: Box) -> NDArray[Any]:
        """Return values (h, w, C) of their own dtype."""
        width, height = box.size
        out = np.zeros((height, width, self._planes * self._contiguous), self._keyframe.dtype)
        for plane in range(self._planes):
            channels = slice(plane * self._contiguous, (plane + 1) * self._contiguous)
            copy = self._copy_rows if self._is_plain else self._copy_segments
            copy(page, out[..., channels], box, plane)
        return out

    def _copy_rows(self, page: Any, out: NDArray[Any], box: Box, plane: int) -> None:
        (width, height), dtype = self.size, self._keyframe.dtype
        assert dtype is not None
        stored = dtype.newbyteorder(page.parent.byteorder)
        row_bytes = width * self._contiguous * dtype.itemsize
        start = page.dataoffsets[0] + (plane * height + box.top) * row_bytes
        count = (box.bottom - box.top) * row_bytes
        data = _bytes(page, start, count)
        rows = np.frombuffer(data, stored).reshape(box.bottom - box.top, width, self._contiguous)
        out[:] = rows[:, box.left : box.right]

    def _copy_segments(self, page: Any, out: NDArray[Any], box: Box, plane: int) -> None:
        wide, high = self._segment
        columns, rows = (-(-length // side) for length, side in zip(self.size, self._segment, strict=True))
        for row in range(box.top // high, -(-box.bottom // high)):
            for column in range(box.left // wide, -(-box.right // wide)):
                self._copy_segment(page, out, box, (plane * rows + row) * columns + column, (column * wide, row * high))

    def _copy_segment(self, page: Any, out: NDArray[Any], box: Box, number: int, corner: tuple[int, int]) -> None:
        if number >= len(page.dataoffsets) or not page.databytecounts[number]:
            if self._keyframe.nodata:
                self._fill(out, box, corner)
            return  # a sparse file leaves out what is empty
        data = _bytes(page, page.dataoffsets[number], page.databytecounts[number])
        tiff.check_segment(self._keyframe, data, self._segment)
        arguments: dict[str, Any] = {"_fullsize": False}
        if int(self._keyframe.compression) in _JPEG:
            arguments |= {"jpegtables": page.jpegtables, "jpegheader": self._keyframe.jpegheader}
        segment, _, _ = self._keyframe.decode(data, number, **arguments)
        if segment is None:
            return
        pixels = segment[0]
        left, top = max(corner[0], box.left), max(corner[1], box.top)
        right = min(corner[0] + pixels.shape[1], box.right)
        bottom = min(corner[1] + pixels.shape[0], box.bottom)
        found = pixels[top - corner[1] : bottom - corner[1], left - corner[0] : right - corner[0]]
        out[top - box.top : bottom - box.top, left - box.left : right - box.left] = found

    def _fill(self, out: NDArray[Any], box: Box, corner: tuple[int, int]) -> None:
        left, top = max(corner[0] - box.left, 0), max(corner[1] - box.top, 0)
        right, bottom = corner[0] + self._segment[0] - box.left, corner[1] + self._segment[1] - box.top
        out[top:bottom, left:right] = self._keyframe.nodata


def _bytes(page: Any, start: int, count: int) -> bytes:
    file = page.parent.filehandle
    with file.lock:
        file.seek(start)
        data: bytes = file.read(count)
    if len(data) != count:
        raise BadSample("truncated", f"{len(data)} of {count} bytes of a part of it are there")
    return data


def _orientation(page: Any) -> int:
    return int(page.tags.valueof(_ORIENTATION_TAG, _UPRIGHT) or _UPRIGHT)
