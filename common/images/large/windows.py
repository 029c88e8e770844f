"""Images of which only parts are ever in memory: windows of a TIFF, and whole images that look the same to their users.

    with open_pixels(file, decoding) as pixels:
        pixels.size  # width and height
        pixels.read(Box(0, 0, 1024, 1024))  # an 8-bit image of 1024 x 1024 px

A TIFF is stored in segments, tiles or strips, each encoded by itself; those that a window touches are decoded, the
others not. What is no TIFF, or one that cannot be read so, is decoded as a whole, up to the size that is admitted.
tifffile is imported here for windows alone; whole TIFFs are read by `tiff.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.common.errors import BadSample, InputError
from beit.common.images.decode import decode_image, size_of_image, to_image
from beit.common.images.decoding import MAX_IMAGE_BYTES, USUAL, Decoding
from beit.common.images.large.tiles import Box
from beit.common.images.megapixels import too_large
from beit.common.images.samples import Samples

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffFrame, TiffPage

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEADER_BYTES = 1 << 18
"""Of a file that is no TIFF, what is read to learn its size; EXIF data and colour profiles come first. Arbitrary."""
_MINISWHITE, _MINISBLACK, _RGB, _YCBCR = 0, 1, 2, 6
_UPRIGHT = 1
_ORIENTATION_TAG = 274
_ALPHA_SAMPLES = (1, 2)  # associated, and not


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
        with _opened_tiff(file) as tiff:
            page = _page_of(tiff, decoding)
            windows = TiffWindows(page, decoding, levels=_levels_of(tiff, page))
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
            with _opened_tiff(file) as tiff:
                windows = TiffWindows(_page_of(tiff, decoding), decoding)
                return Measured(windows.upright_size, windows.refusal is None, _num_pages(tiff))
    except BadSample:
        return None
    found = size_of_image(file.read(_HEADER_BYTES))
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
    return Measured((height, width) if turns else (width, height), False)


def is_tiff(data: bytes) -> bool:
    """Tell by its first bytes whether a file is a TIFF."""
    return data.startswith(_TIFF_STARTS)


def _is_tiff(file: BinaryIO) -> bool:
    start = file.read(4)
    file.seek(0)
    return is_tiff(start)


def _all_of(file: BinaryIO) -> bytes:
    file.seek(0)
    data = file.read(MAX_IMAGE_BYTES + 1)
    if len(data) > MAX_IMAGE_BYTES:
        raise BadSample("too-large", f"more than {MAX_IMAGE_BYTES} bytes")
    return data


@contextmanager
def _opened_tiff(file: BinaryIO) -> Iterator[TiffFile]:
    try:
        import tifffile
    except ImportError:
        raise BadSample("unsupported", "a TIFF; pip install 'beit[tiff]' reads it") from None
    with _in_words():
        opened = tifffile.TiffFile(file)
    with opened:
        yield opened


@contextmanager
def _in_words() -> Iterator[None]:
    """Turn whatever is wrong with a TIFF into a `BadSample`."""
    try:
        yield
    except (BadSample, InputError, MemoryError):
        raise
    except Exception as error:  # of tifffile, and of a dozen decoders
        raise BadSample("decode-error", f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}") from None


def _num_pages(tiff: TiffFile) -> int:
    with _in_words():
        return len(_pages(tiff))


def _pages(tiff: TiffFile) -> Any:
    """Return the pages of a file that are images of their own."""
    return [page for page in tiff.pages if not page.is_reduced] or list(tiff.pages)


def _page_of(tiff: TiffFile, decoding: Decoding) -> TiffPage | TiffFrame:
    with _in_words():
        pages = _pages(tiff)
        number = len(pages) // 2 if decoding.frame == "middle" else decoding.frame
        number = number if isinstance(number, int) else 0
        if number >= len(pages):
            raise BadSample("no-frame", f"source.frame is {number}, and it has frames 0 to {len(pages) - 1}")
        return pages[number]


def _levels_of(tiff: TiffFile, page: TiffPage | TiffFrame) -> list[TiffPage | TiffFrame]:
    """Return smaller versions of a page, as pyramids of slides and maps have them."""
    with _in_words():
        for series in tiff.series:
            places = [number for number, found in enumerate(series.levels[0].pages) if found is page]
            if places:
                return [
                    found
                    for level in series.levels[1:]
                    if len(level.pages) == len(series.levels[0].pages) and (found := level.pages[places[0]]) is not None
                ]
    return []


class TiffWindows:
    """One page of a TIFF, decoded part by part.

    Args:
        page: Of an open file.
        decoding: How values become pixels.
        levels: The same image smaller and smaller, where the file has it.
    """

    def __init__(
        self, page: TiffPage | TiffFrame, decoding: Decoding, *, levels: Sequence[TiffPage | TiffFrame] = ()
    ) -> None:
        self._levels = levels
        with _in_words():
            self._page, self._decoding = page, decoding
            self._keyframe = keyframe = page.keyframe
            self._planes, self._depth, height, width, self._contiguous = keyframe.shaped
            self.size = (width, height)
            self._segment = (
                (keyframe.tilewidth, keyframe.tilelength) if keyframe.is_tiled else (width, keyframe.rowsperstrip)
            )
            # Rows of what is stored as it is can be read one by one, however many make a strip.
            self._is_plain = bool(
                keyframe.is_contiguous
                and not keyframe.is_tiled
                and keyframe.compression == 1
                and keyframe.fillorder == 1
                and keyframe.predictor == 1
                and keyframe.dtype is not None
                and keyframe.bitspersample == 8 * keyframe.dtype.itemsize
            )
            self.refusal = self._why_not()
        self._decode_arguments: dict[str, Any] = {"_fullsize": False}
        if keyframe.compression in (6, 7, 34892, 33007):
            self._decode_arguments |= {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}

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
        if keyframe.photometric not in (_MINISWHITE, _MINISBLACK, _RGB, _YCBCR):
            return "its colours are those of a palette, or ink"
        if keyframe.photometric == _YCBCR and keyframe.compression not in (6, 7, 34892, 33007):
            return "its colours are not stored as RGB"
        return None

    def read(self, box: Box) -> Image.Image:
        """Return a part of the image, of mode "RGB" or "L"."""
        width, height = box.size
        if width * height > self._decoding.max_pixels:
            raise BadSample("bomb", f"a part of it: {too_large(width, height, self._decoding.max_pixels)}")
        with _in_words():
            return to_image(self._samples(self._values(box)), self._decoding)

    def smallest_version(self, short_side: int) -> Pixels:
        """Return the smallest version that the file holds with at least `short_side` px, or all of it."""
        versions = [TiffWindows(page, self._decoding) for page in self._levels]
        fit = [version for version in versions if version.refusal is None and min(version.size) >= short_side]
        return min([self, *fit], key=lambda version: version.size[0] * version.size[1])

    def _samples(self, values: NDArray[Any]) -> Samples:
        keyframe = self._keyframe
        num_colours = {_RGB: 3, _YCBCR: 3}.get(keyframe.photometric, values.shape[2] - len(keyframe.extrasamples))
        alpha = None
        if keyframe.extrasamples and keyframe.extrasamples[0] in _ALPHA_SAMPLES and values.shape[2] > num_colours:
            alpha = values[..., num_colours]
        array = values if keyframe.photometric in (_MINISWHITE, _MINISBLACK) and alpha is None else values[..., :3]
        if alpha is not None:
            array = values[..., :num_colours]
        kind = "grey" if array.shape[2] == 1 else "rgb" if keyframe.photometric in (_RGB, _YCBCR) else "bands"
        return Samples(array=array, kind=kind, alpha=alpha, is_inverted=keyframe.photometric == _MINISWHITE)

    def _values(self, box: Box) -> NDArray[Any]:
        """Return values (h, w, C) of their own dtype."""
        width, height = box.size
        out = np.zeros((height, width, self._planes * self._contiguous), self._keyframe.dtype)
        for plane in range(self._planes):
            channels = slice(plane * self._contiguous, (plane + 1) * self._contiguous)
            if self._is_plain:
                self._copy_rows(out[..., channels], box, plane)
            else:
                self._copy_segments(out[..., channels], box, plane)
        return out

    def _copy_rows(self, out: NDArray[Any], box: Box, plane: int) -> None:
        (width, height), dtype = self.size, self._keyframe.dtype
        assert dtype is not None
        stored = dtype.newbyteorder(self._page.parent.byteorder)
        row_bytes = width * self._contiguous * dtype.itemsize
        start = self._page.dataoffsets[0] + (plane * height + box.top) * row_bytes
        count = (box.bottom - box.top) * row_bytes
        data = self._bytes(start, count)
        rows = np.frombuffer(data, stored).reshape(box.bottom - box.top, width, self._contiguous)
        out[:] = rows[:, box.left : box.right]

    def _copy_segments(self, out: NDArray[Any], box: Box, plane: int) -> None:
        wide, high = self._segment
        columns, rows = (-(-length // side) for length, side in zip(self.size, self._segment, strict=True))
        for row in range(box.top // high, -(-box.bottom // high)):
            for column in range(box.left // wide, -(-box.right // wide)):
                self._copy_segment(out, box, (plane * rows + row) * columns + column, (column * wide, row * high))

    def _copy_segment(self, out: NDArray[Any], box: Box, number: int, corner: tuple[int, int]) -> None:
        page = self._page
        if number >= len(page.dataoffsets) or not page.databytecounts[number]:
            if self._keyframe.nodata:
                self._fill(out, box, corner)
            return  # a sparse file leaves out what is empty
        data = self._bytes(page.dataoffsets[number], page.databytecounts[number])
        segment, _, _ = self._keyframe.decode(data, number, **self._decode_arguments)
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

    def _bytes(self, start: int, count: int) -> bytes:
        file = self._page.parent.filehandle
        with file.lock:
            file.seek(start)
            data: bytes = file.read(count)
        if len(data) != count:
            raise BadSample("truncated", f"{len(data)} of {count} bytes of a part of it are there")
        return data


def _orientation(page: TiffPage) -> int:
    return int(page.tags.valueof(_ORIENTATION_TAG, _UPRIGHT) or _UPRIGHT)
