"""Loose image files as a source: folders with or without class sub-folders, text lists and CSV tables."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

from beit.common.errors import BadSample, InputError
from beit.common.images import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, is_image_path
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
_ORDER = "path"
"""Stands in the digest of a listing."""
_MAX_LIST_BYTES = 1 << 30
_PATH_COLUMNS = ("path", "file", "filename", "file_name", "image")
_SEGMENTATION_FOLDERS = ("images", "annotations")
_LABEL_COLUMNS = ("label", "labels", "class", "target")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One listed image file."""

    path: str
    """Relative to the shard's location, or absolute."""
    size: int
    label: int | None


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
        try:
            data = place_of(join(self._root, ref.path)).read(limit=MAX_IMAGE_BYTES + 1)
        except (InputError, OSError) as error:
            if is_remote(self._root) and not isinstance(error, MissingFile):
                raise
            raise BadSample("unreadable", f"{ref.path}: {error}") from None
        if len(data) > MAX_IMAGE_BYTES:
            raise BadSample("too-large", f"{ref.path} has more than {MAX_IMAGE_BYTES} bytes")
        return data


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


def open_files(listing: FileList) -> Source:
    """Return a source over loose image files, in the order of the listing.

    Labels are all numbers, or names that are numbered in sorted order, or None.
    """
    class_names, class_ids = _number_labels(listing.labels)
    for file in listing.files:
        if not file.path.isprintable() and any("\ud800" <= character <= "\udfff" for character in file.path):
            raise InputError(f"{listing.root} holds a file name that is not UTF-8 ({file.path!r}); rename it")
    entries = [
        FileEntry(file.path, file.size, class_id) for file, class_id in zip(listing.files, class_ids, strict=True)
    ]
    shards: list[SourceShard] = [
        FilesShard(f"files-{number:06d}", listing.root, tuple(entries[start : start + _FILES_PER_SHARD]))
        for number, start in enumerate(range(0, len(entries), _FILES_PER_SHARD))
    ]
    digest = listing_digest(listing.root, listing.files, labels=[_ORDER, *(str(label) for label in listing.labels)])
    stamp = listing_stamp(listing.root, listing.files)
    return Source(kind="files", root=listing.root, shards=shards, class_names=class_names, digest=digest, stamp=stamp)


def _number_labels(labels: Sequence[int | str | None]) -> tuple[tuple[str, ...] | None, list[int | None]]:
    names = tuple(sorted({label for label in labels if isinstance(label, str)}))
    if not names:
        return None, [label if isinstance(label, int) else None for label in labels]
    position = {name: class_id for class_id, name in enumerate(names)}
    return names, [position[label] if isinstance(label, str) else None for label in labels]


def folder_listing(root: str, files: Sequence[FileStat]) -> FileList:
    """Pick the images of a folder; where all lie in sub-folders, the first level names their classes.

    Where `images/` and `annotations/` stand side by side, at any depth, the annotations are left out, and there are no
    classes: that is a segmentation set, and masks are no pictures.
    """
    images = [file for file in files if is_image_path(file.path)]
    mask_folders = _mask_folders(images)
    if mask_folders:
        images = [file for file in images if not file.path.startswith(mask_folders)]
    if not images:
        raise InputError(
            f"{root} holds no images ({', '.join(IMAGE_SUFFIXES)}) and no tar or Parquet files "
            f"({len(files)} other files); check the path"
        )
    if len(images) < len(files):
        logger.info("%s: %d images, %d other files left out", root, len(images), len(files) - len(images))
    is_labelled = not mask_folders and all("/" in file.path for file in images)
    labels: list[int | str | None] = [file.path.split("/", 1)[0] if is_labelled else None for file in images]
    return FileList(root, images, labels)


def _mask_folders(images: Sequence[FileStat]) -> tuple[str, ...]:
    folders: set[str] = set()
    for image in images:
        parts = image.path.split("/")[:-1]
        folders.update(
            "/".join(parts[: depth + 1]) for depth, part in enumerate(parts) if part in _SEGMENTATION_FOLDERS
        )
    images_folder, masks_folder = _SEGMENTATION_FOLDERS
    masks = [folder for folder in folders if folder.rsplit("/", 1)[-1] == masks_folder]
    return tuple(f"{folder}/" for folder in masks if folder.removesuffix(masks_folder) + images_folder in folders)


def text_listing(path: str) -> FileList:
    """Read a text list: one image path per line, relative to the list's folder or absolute; `#` starts a comment."""
    lines = (line.strip() for line in _read_text(path).splitlines())
    paths = [line for line in lines if line and not line.startswith("#")]
    return _listed_files(path, paths, [None] * len(paths))


def csv_listing(path: str) -> FileList:
    """Read a CSV table with a `path` column and, if there are labels, a `label` column of numbers or class names."""
    try:
        reader = csv.DictReader(io.StringIO(_read_text(path)))
        columns, rows = reader.fieldnames or [], list(reader)
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV table ({error}); save it again") from None
    path_column = next((name for name in _PATH_COLUMNS if name in columns), None)
    label_column = next((name for name in _LABEL_COLUMNS if name in columns), None)
    if path_column is None:
        raise InputError(
            f"{path} has no path column (columns: {', '.join(columns)}); its first line must name the columns, "
            "such as path,label"
        )
    content = [(row[path_column] or "", (row[label_column] or "").strip() if label_column else "") for row in rows]
    is_numeric = all(label.isascii() and label.isdigit() and len(label) <= 18 for _, label in content if label)
    labels: list[int | str | None] = [(int(label) if is_numeric else label) if label else None for _, label in content]
    return _listed_files(path, [name.strip() for name, _ in content], labels)


def _read_text(path: str) -> str:
    try:
        return place_of(path, is_first_contact=True).read(limit=_MAX_LIST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None


def _listed_files(list_path: str, paths: list[str], labels: list[int | str | None]) -> FileList:
    if not paths:
        raise InputError(f"{list_path} lists no images")
    root = list_path.rsplit("/", 1)[0] or "/"
    files, seen = [], set()
    for number, path in enumerate(paths, start=1):
        # A list is data: it may name files, not start downloads or other protocols.
        if "://" in path or "::" in path or (is_remote(root) and path.startswith("/")):
            raise InputError(f"{list_path} entry {number} ({path}) must be a path on the list's own storage, not a URL")
        if not is_image_path(path):
            raise InputError(f"{list_path} entry {number} ({path!r}) must end in {', '.join(IMAGE_SUFFIXES)}")
        if path in seen:
            raise InputError(f"{list_path} entry {number} ({path}) is listed twice; remove one")
        seen.add(path)
        files.append(_stat_listed(list_path, number, root, path))
    return FileList(root, files, labels)


def _stat_listed(list_path: str, number: int, root: str, path: str) -> FileStat:
    if is_remote(root):
        return FileStat(path, 0, "")  # one request per line would cost more than a missing image, counted when read
    try:
        return replace(place_of(join(root, path)).stat(), path=path)
    except MissingFile:
        raise InputError(f"{list_path} entry {number} ({path}) does not exist; paths are relative to {root}") from None
    except InputError as error:
        raise InputError(f"{list_path} entry {number}: {error}") from None
