"""Loose image files as a source: folders with or without class sub-folders, or files that a list names (`lists.py`)."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import ClassVar

from beit.common.errors import LFS_ADVICE, BadSample, InputError, is_lfs_pointer
from beit.common.images.decoding import MAX_IMAGE_BYTES
from beit.common.images.formats import (
    IMAGE_SUFFIXES,
    is_array_path,
    is_image_path,
    is_readable,
    left_out,
    suffix_of,
)
from beit.common.sources.labels import listed
from beit.common.sources.mask_folders import MasksBeside, masks_beside
from beit.common.sources.splits import split_kind
from beit.common.sources.types import (
    SampleRef,
    Source,
    SourceKind,
    SourceShard,
    listing_digest,
    listing_stamp,
    packed_key,
)
from beit.common.storage.paths import is_remote, join
from beit.common.storage.place import FileStat, MissingFile, place_of

logger = logging.getLogger(__name__)

_FILES_PER_SHARD = 1000
_ENDINGS_IN_MESSAGE = 5
_MOST_POINTER_BYTES = 1024
"""Of a pointer of Git LFS, as its specification says."""
_ORDER = "path"
"""Stands in the digest of a listing."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One listed image file."""

    path: str
    """Relative to the shard's location, or absolute."""
    size: int
    label: int | str | None


class FilesReader:
    """Reads single files below a root."""

    nbytes: ClassVar[int] = 0

    def __init__(self, root: str) -> None:
        self._root = root

    def read(self, ref: SampleRef) -> bytes:
        """Return the bytes of one file.

        Raises:
            BadSample: the file is gone, unreadable or larger than any image may be.
            InputError, RemoteError: the server refuses or is away: that is no fault of the image, which must not be
                given up.
        """
        data = self.head(ref, MAX_IMAGE_BYTES + 1)
        if len(data) > MAX_IMAGE_BYTES:
            raise BadSample("too-large", f"{ref.path} has more than {MAX_IMAGE_BYTES} bytes")
        return data

    def head(self, ref: SampleRef, num_bytes: int) -> bytes:
        """Return the first bytes of one file, fewer where it ends before; raises what `read` does."""
        try:
            return place_of(join(self._root, ref.path)).read(limit=num_bytes)
        except (InputError, OSError) as error:
            if is_remote(self._root) and not isinstance(error, MissingFile):
                raise
            raise BadSample("unreadable", f"{ref.path}: {error}") from None


@dataclass(frozen=True, slots=True)
class FilesShard:
    """A run of image files."""

    name: str
    location: str
    entries: tuple[FileEntry, ...]

    kind: ClassVar[SourceKind] = "files"
    row_group: ClassVar[int] = 0

    def refs(self) -> list[SampleRef]:
        """List the files of this shard in order."""
        return [SampleRef(packed_key(entry.path), 0, entry.size, entry.label, entry.path) for entry in self.entries]

    @contextmanager
    def open(self) -> Iterator[FilesReader]:
        """Open for reading; every file is opened when it is read."""
        yield FilesReader(self.location)


@dataclass(frozen=True, slots=True)
class FileList:
    """Image files and, where known, the class of each."""

    root: str
    files: list[FileStat]
    labels: list[int | str | None]
    """Names, where `class_names` lists them; else numbers, as `SampleRef.label` has them."""
    class_names: tuple[str, ...] | None = None
    """All names, in the order of their class ids."""
    columns: tuple[str, ...] = ()
    """As in `Source`."""
    label_notes: tuple[str, ...] = ()
    """As in `Source`."""
    label_place: str = ""
    """As in `Source`."""
    is_chosen: bool = False
    """As in `Source`."""


def open_files(listing: FileList) -> Source:
    """Return a source over loose image files, in the order of the listing; those that cannot be read here left out."""
    listing = _readable(listing)
    labels = listing.labels
    if listing.class_names is not None:
        ids: dict[int | str | None, int] = {name: class_id for class_id, name in enumerate(listing.class_names)}
        labels = [ids.get(name) for name in labels]
    _require_unicode(listing)
    entries = [FileEntry(file.path, file.size, label) for file, label in zip(listing.files, labels, strict=True)]
    shards: list[SourceShard] = [
        FilesShard(f"files-{number:06d}", listing.root, tuple(entries[start : start + _FILES_PER_SHARD]))
        for number, start in enumerate(range(0, len(entries), _FILES_PER_SHARD))
    ]
    digest = listing_digest(listing.root, listing.files, labels=[_ORDER, *(str(label) for label in listing.labels)])
    return Source(
        kind="files",
        root=listing.root,
        shards=shards,
        class_names=listing.class_names,
        digest=digest,
        stamp=listing_stamp(listing.root, listing.files),
        columns=listing.columns,
        label_notes=listing.label_notes,
        label_place=listing.label_place,
        is_chosen=listing.is_chosen,
    )


def _require_unicode(listing: FileList) -> None:
    """Refuse names whose bytes are no UTF-8: no key, and no record of a path, could hold them."""
    odd = [
        file.path
        for file in listing.files
        if not file.path.isprintable() and any("\ud800" <= character <= "\udfff" for character in file.path)
    ]
    if odd:
        are, them = ("s that are", "them") if len(odd) > 1 else (" that is", "it")
        raise InputError(
            f"{listing.root} holds {len(odd)} file name{are} not UTF-8 (first: {odd[0]!r}); rename {them}, as convmv "
            "-r -f latin1 -t utf8 --notest does"
        )


def _readable(listing: FileList) -> FileList:
    """Leave out the images whose formats need a library that is not installed, and say so."""
    suffixes = [suffix_of(file.path) for file in listing.files]
    words = left_out(suffixes)
    if not words:
        return listing
    rows = [
        (file, label)
        for file, label, suffix in zip(listing.files, listing.labels, suffixes, strict=True)
        if is_readable(suffix)
    ]
    if not rows:
        raise InputError(f"{listing.root} holds no images that can be read here: {words}")
    logger.warning("%s: %s", listing.root, words)
    return replace(listing, files=[file for file, _ in rows], labels=[label for _, label in rows])


def folder_listing(root: str, files: Sequence[FileStat]) -> FileList:
    """Pick the images of a folder; where all lie in sub-folders, the first level names their classes.

    Masks that lie beside images (`mask_folders.py`) are left out, for they are no pictures, and there are no classes
    then, unless the folders in which they do so are such.
    """
    images = [file for file in files if is_image_path(file.path)]
    if not images:  # arrays stand beside images for many reasons; alone, they are what is meant
        images = [file for file in files if is_array_path(file.path)]
    masks = masks_beside(root, images)
    if masks.paths:
        images = [file for file in images if file.path not in masks.paths]
        logger.info(
            "%s: left out %d masks in %s; name the folder itself to take them",
            root,
            len(masks.paths),
            listed(masks.places),
        )
    if not images:
        pointers = lfs_pointers(root, files)
        if pointers:
            raise InputError(f"{root} holds no images: {min(pointers)} {LFS_ADVICE}")
        raise InputError(
            f"{root} holds no images ({', '.join(IMAGE_SUFFIXES)}) and no tar or Parquet files "
            f"({_count_endings(files)}); check the path"
        )
    if len(images) + len(masks.paths) < len(files):
        taken = {file.path for file in images} | masks.paths
        others = [file for file in files if file.path not in taken]
        logger.info("%s: %d images, %s left out", root, len(images), _count_endings(others))
    folders = [file.path.partition("/")[0] for file in images]
    if not all("/" in file.path for file in images) or (masks.paths and not _are_classes(masks, folders)):
        notes = (f"{masks.places[0]} holds masks, from which beit finetune segmentation learns",) if masks.paths else ()
        return FileList(root, images, [None] * len(images), label_notes=notes)
    return FileList(
        root, images, list(folders), class_names=tuple(sorted(set(folders))), label_place="folders of the first level"
    )


def lfs_pointers(root: str, files: Sequence[FileStat]) -> set[str]:
    """Return those of some files that only say where Git LFS keeps the real ones; on a server none is read for it."""
    found = set()
    for file in files if not is_remote(root) else ():
        if 0 < file.size <= _MOST_POINTER_BYTES:
            with suppress(InputError):  # gone meanwhile, or not ours to read
                if is_lfs_pointer(place_of(join(root, file.path)).read(limit=_MOST_POINTER_BYTES)):
                    found.add(file.path)
    return found


def _are_classes(masks: MasksBeside, folders: Sequence[str]) -> bool:
    """Tell whether the folders that hold images and masks side by side are classes, and no parts of a data set."""
    tops = set(folders)
    return not masks.are_usual and len(tops) > 1 and masks.above == tops and not any(map(split_kind, tops))


def _count_endings(files: Sequence[FileStat]) -> str:
    """Say how many files there are, and of which endings: "8 other files (5 .heic, 3 .txt)"."""
    endings = Counter(os.path.splitext(file.path)[1].lower() or "without ending" for file in files)
    parts = [f"{count} {ending}" for ending, count in endings.most_common(_ENDINGS_IN_MESSAGE)]
    if len(endings) > _ENDINGS_IN_MESSAGE:
        parts.append("...")
    return f"{len(files)} other files" + (f" ({', '.join(parts)})" if parts else "")
