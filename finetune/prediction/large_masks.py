"""Masks of images that are never in memory as a whole: written tile by tile, as the probabilities become known.

    OUT/masks/PATH.tif      ids in a tiled TIFF with a palette, of which viewers of slides and maps show any part

Where the image is small enough to be decoded as a whole, its mask is a PNG (`mask_files.py`). tifffile writes the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import InputError
from beit.common.images.decoding import Decoding
from beit.common.images.large.reduced import reduced
from beit.common.images.large.windows import Pixels, measure, open_pixels
from beit.common.storage.documents import canonical_json
from beit.common.storage.files import atomic_file
from beit.common.storage.place import FilePart
from beit.finetune.evaluation.overlays import overlay, shrunk
from beit.finetune.masks.classes import IGNORED, MaskClasses
from beit.finetune.prediction.mask_files import (
    MASKS,
    OVERLAY_PX,
    OVERLAYS,
    identity_in,
    overlay_jpeg,
    palette_of,
    write_file,
)

if TYPE_CHECKING:
    from beit.finetune.segmentation.tiled import IdStrip

SUFFIX = ".tif"
_SIDE = 512
"""Of the tiles of the mask's file in px; usual."""
_BIG_BYTES = 1 << 31
"""From so many ids on, the file is a BigTIFF: compressed it may be smaller, which nobody knows before."""
_IDENTITY = "beit-source "
_READ_BYTES = 8 << 20


class Writer(Protocol):
    """What is needed of `beit.finetune.prediction.masks.MaskWriter`."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of files that are wanted."""

    @property
    def legend(self) -> dict[str, object]:
        """What legend.json says."""

    @property
    def values(self) -> tuple[int, ...]:
        """What masks hold for each class."""

    @property
    def decoding(self) -> Decoding:
        """How images are decoded."""

    @property
    def classes(self) -> MaskClasses:
        """Of the model."""

    def path(self, kind: str, name: str) -> Path:
        """Return where a file lies."""

    def strips(self, pixels: Pixels, name: str) -> Iterator[IdStrip]:
        """Yield the mask of an image row by row of its tiles."""


@dataclass(frozen=True, slots=True)
class LargeJob:
    """A large image on its way to its files."""

    name: str
    """Of its files, without folder and suffix."""
    place: FilePart
    """Where it lies."""


def large_job(name: str, place: FilePart, decoding: Decoding) -> LargeJob | None:
    """Return the job of an image that is too large to be decoded as a whole and can be in parts; None for others."""
    with place.open() as file:
        found = measure(file, decoding)
    if found is None or not found.has_windows or found.size[0] * found.size[1] <= decoding.max_pixels:
        return None
    return LargeJob(name, place)


def make_large(writer: Writer, job: LargeJob) -> tuple[NDArray[np.int64], bool]:
    """Make the files of a large image that are missing.

    Returns:
        Pixels of each class (C,), and whether all was there.
    Raises:
        BadSample: the image cannot be read.
        InputError: something else has written its mask.
    """
    path = writer.path(MASKS, job.name).with_suffix(SUFFIX)
    identity = _identity(writer, job.place)
    drawn = writer.path(OVERLAYS, job.name) if OVERLAYS in writer.kinds else None
    lacks_drawing = drawn is not None and identity_in(drawn) != identity
    kept = _kept(path, identity, writer) if path.exists() else None
    if kept is not None and not lacks_drawing:
        return kept, True
    with job.place.open() as file, open_pixels(file, writer.decoding) as pixels:
        found = kept if kept is not None else _write(path, pixels, writer, job.name, identity)
        if drawn is not None and lacks_drawing:
            half = OVERLAY_PX // 2 * min(pixels.size) // max(pixels.size)
            picture, _ = shrunk(reduced(pixels, max(1, half), most=0), [], most_px=OVERLAY_PX)
            ids = _small_ids(path, picture.size, writer)
            write_file(drawn, overlay_jpeg(overlay(picture, ids, writer.classes), identity=identity))
    return found, False


def _identity(writer: Writer, place: FilePart) -> str:
    """Return what `source_identity` would of all bytes of the image."""
    hasher = hashlib.blake2b(canonical_json(writer.legend).encode() + b"\0", digest_size=16)
    with place.open() as file:
        while piece := file.read(_READ_BYTES):
            hasher.update(piece)
    return hasher.hexdigest()


def _write(path: Path, pixels: Pixels, writer: Writer, name: str, identity: str) -> NDArray[np.int64]:
    import tifffile

    counts, (width, height) = np.zeros(256, np.int64), pixels.size
    held = np.full(256, IGNORED, np.uint8)
    held[: len(writer.values)] = writer.values

    def bands() -> Iterator[NDArray[np.uint8]]:
        for strip in writer.strips(pixels, name):
            counts[:] += np.bincount(strip.ids.ravel(), minlength=256)
            yield held[strip.ids]

    path.parent.mkdir(parents=True, exist_ok=True)
    palette = np.array(palette_of(writer.classes, writer.values), np.uint16).T * 257
    with atomic_file(path) as file:
        tifffile.imwrite(
            file,
            _tiles(bands(), width),
            shape=(height, width),
            dtype=np.uint8,
            tile=(_SIDE, _SIDE),
            photometric="palette",
            colormap=palette,
            compression="zlib",
            description=_IDENTITY + identity,
            metadata=None,
            bigtiff=width * height >= _BIG_BYTES,
            maxworkers=1,
        )
    return counts


def _tiles(bands: Iterator[NDArray[np.uint8]], width: int) -> Iterator[NDArray[np.uint8]]:
    """Yield squares of a mask that comes in bands of rows, row by row; at the edges they are filled up with 0."""
    columns = -(-width // _SIDE)
    waiting = np.empty((0, width), np.uint8)
    for band in bands:
        waiting = np.concatenate([waiting, band])
        while len(waiting) >= _SIDE:
            yield from _squares(waiting[:_SIDE], columns)
            waiting = waiting[_SIDE:]
    if len(waiting):
        yield from _squares(waiting, columns)


def _squares(rows: NDArray[np.uint8], columns: int) -> Iterator[NDArray[np.uint8]]:
    filled = np.zeros((_SIDE, columns * _SIDE), np.uint8)
    filled[: rows.shape[0], : rows.shape[1]] = rows
    for column in range(columns):
        yield np.ascontiguousarray(filled[:, column * _SIDE : (column + 1) * _SIDE])


def _kept(path: Path, identity: str, writer: Writer) -> NDArray[np.int64] | None:
    """Return the pixels of each class of a mask that is there; None where it is of something else of ours, or damaged.

    Raises:
        InputError: it was not written by us.
    """
    import tifffile

    held = np.zeros(256, np.int64)
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            said = str(page.description or "")
            if not said.startswith(_IDENTITY):
                raise InputError(
                    f"{path} was not written by beit predict, or was changed since, and is not replaced; move it, or "
                    "name another --out"
                )
            if said != _IDENTITY + identity:
                return None
            for segment, (_, _, top, left, _), _ in page.segments():
                rows, columns = page.imagelength - top, page.imagewidth - left
                held += np.bincount(segment[0, :rows, :columns].ravel(), minlength=256)
    except InputError:
        raise
    except Exception:  # of tifffile and its decoders
        return None
    own = list(writer.values)
    counts = np.zeros(256, np.int64)
    counts[: len(own)] = held[own]
    return counts


def _small_ids(path: Path, size: tuple[int, int], writer: Writer) -> NDArray[np.uint8]:
    """Return the ids of a mask that was written, made smaller by taking the pixel at the middle of each new one."""
    import tifffile

    width, height = size
    ids = np.full(256, IGNORED, np.uint8)
    ids[list(writer.values)] = np.arange(len(writer.values))
    found = np.empty((height, width), np.uint8)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        rows = ((np.arange(height) + 0.5) * page.imagelength / height).astype(np.int64)
        columns = ((np.arange(width) + 0.5) * page.imagewidth / width).astype(np.int64)
        for segment, (_, _, top, left, _), _ in page.segments():
            at_rows = np.flatnonzero((rows >= top) & (rows < top + _SIDE))
            at_columns = np.flatnonzero((columns >= left) & (columns < left + _SIDE))
            if len(at_rows) and len(at_columns):
                part = segment[0][np.ix_(rows[at_rows] - top, columns[at_columns] - left)]
                found[np.ix_(at_rows, at_columns)] = ids[part.reshape(len(at_rows), len(at_columns))]
    return found
