"""What every kind of image source offers: shards, and a reference to each sample in them.

The kinds themselves are in `tars.py`, `parquet.py` and `loose_files.py`; `opening.py` opens them.
"""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from beit.common.storage.paths import is_remote, join, relative_to
from beit.common.storage.place import FilePart, FileStat

SourceKind = Literal["tar", "parquet", "files"]

_MAX_BASE_NAME_CHARS = 80
"""Longest readable part of a packed key: with folder and suffix it then fits the 100 bytes of a plain tar header."""


@dataclass(frozen=True, slots=True)
class SampleRef:
    """Where one sample lies in its shard."""

    key: str
    """Name of the sample, unique in its shard; safe as a tar member name and free of dots after the last slash."""
    offset: int
    """Byte offset of the image in a tar; row in the row group of a Parquet file; 0 for a file of its own."""
    length: int
    """Image bytes; 0 where the container does not tell without reading (Parquet)."""
    label: int | str | None
    """Class id where the source names its classes, else the number itself, or its text if that says more (`007`); None
    where the source has no label for this sample."""
    path: str
    """The original name: tar member, path column, or path relative to the source's root."""


class ShardReader(Protocol):
    """An open shard."""

    @property
    def nbytes(self) -> int:
        """Memory held while the reader is open, in bytes."""

    def read(self, ref: SampleRef) -> bytes:
        """Return the encoded image as stored.

        Raises:
            BadSample: the image is missing, cut or too large.
        """


class SourceShard(Protocol):
    """A part of a source that is listed and read in one go: a tar, a row group, or a run of files. Can be pickled."""

    @property
    def name(self) -> str:
        """Stem for files derived from this shard; shards of one source may share it."""

    @property
    def kind(self) -> SourceKind:
        """Kind of container."""

    @property
    def location(self) -> str:
        """Absolute path or URL of the tar or Parquet file, or of the folder that file paths are relative to."""

    @property
    def row_group(self) -> int:
        """Row group of a Parquet file, else 0."""

    def refs(self) -> list[SampleRef]:
        """List the samples in order."""

    def open(self) -> AbstractContextManager[ShardReader]:
        """Open the shard for reading images."""


@dataclass(frozen=True, slots=True)
class Source:
    """All shards of one source."""

    kind: SourceKind
    root: str
    """Folder or URL below which everything of this source lies."""
    shards: list[SourceShard]
    class_names: tuple[str, ...] | None
    """Name of each class id, or None where the source has no labels or only numbers."""
    digest: str
    """Hash of the root and of every file's name, size, version and label: equal while nothing changed."""
    stamp: str = ""
    """Hash of every file's name below the root, size and version; empty where the place does not tell versions."""
    columns: tuple[str, ...] = ()
    """Of a table: what its columns are called and hold, for messages."""
    label_notes: tuple[str, ...] = ()
    """What whoever uses the labels should know of how they were read: a line each."""
    label_place: str = ""
    """Where the labels stand, for messages; empty where there are none."""
    is_chosen: bool = False
    """Whether a list names the images one by one, so that none of them is left out unasked."""


def place_in(shard: SourceShard, ref: SampleRef) -> FilePart | None:
    """Return where the bytes of an image lie, to be read in parts; None where the container has to be read in order."""
    if shard.kind == "files":
        return FilePart(join(shard.location, ref.path))
    if shard.kind == "tar" and not is_remote(shard.location):
        return FilePart(shard.location, ref.offset, ref.length)
    return None


def packed_key(path: str, *, scope: str = "") -> str:
    """Return the key of an image that did not come from a tar: its escaped base name and a short hash of its path.

    The base name keeps keys readable; the hash keeps apart files of the same name in different folders.

    Args:
        path: Path relative to the root of the source, with slashes.
        scope: Container that `path` is a name in, where there is one.
    Returns:
        ASCII letters, digits, `_`, `-`, `~` and `%XX`; no dots and no slashes.
    """
    base = os.path.splitext(path.rsplit("/", 1)[-1])[0]
    digest = hashlib.blake2b(f"{scope}\0{path}".encode(), digest_size=5).hexdigest()
    return f"{escape_name(base)}-{digest}"


def escape_name(name: str) -> str:
    """Percent-escape a name so that webdataset takes all of it as a key: no dot, no slash, ASCII only."""
    escaped = urllib.parse.quote(name, safe="").replace(".", "%2E")
    return escaped[:_MAX_BASE_NAME_CHARS]


def listing_digest(root: str, files: Iterable[FileStat], *, labels: Iterable[str] = ()) -> str:
    """Hash a listing, see `Source.digest`."""
    hasher = hashlib.sha256(f"beit source listing 1\0{root}\0".encode())
    for file in files:
        hasher.update(f"{file.path}\0{file.size}\0{file.version}\0".encode("utf-8", "surrogateescape"))
    for label in labels:
        hasher.update(f"\0{label}".encode())
    return hasher.hexdigest()


def listing_stamp(root: str, files: Sequence[FileStat]) -> str:
    """Hash what a listing tells of the files, wherever they lie, see `Source.stamp`."""
    if not all(file.version for file in files):
        return ""
    hasher = hashlib.sha256(b"beit source stamp 1")
    for file in files:
        name = relative_to(root, file.path) if file.path.startswith(root) else file.path
        hasher.update(f"\0{name}\0{file.size}\0{file.version}".encode("utf-8", "surrogateescape"))
    return hasher.hexdigest()
