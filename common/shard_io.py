"""Bytes of shards: positioned reads from local and remote files, and tars written with known offsets.

Here: the two ends of "the payload of this member stands at this offset". Not here: walking a foreign tar
(`tar_walk.py`) and what the members mean (`store.py`).
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

from beit.common.errors import InputError
from beit.common.files import sha256_file
from beit.common.locations import is_remote, open_binary
from beit.common.remote import ByteRange, MissingFile, fetch, fetch_ranges, remote_stat

_BLOCK = tarfile.BLOCKSIZE
_MAX_OPEN_FILES = 128
"""Two files for each of the 32 shards of a sampling window, twice; far below the usual limit of 1024."""


def resolve_location(root: str, name: str) -> str:
    """Return the location of `name` seen from the folder `root`; a URL or an absolute path stands for itself."""
    if is_remote(name) or os.path.isabs(name):
        return name
    scheme, separator, path = root.rpartition("://")
    return scheme + separator + posixpath.normpath(posixpath.join(path, name))


def read_whole(location: str) -> bytes:
    """Return the content of a small file.

    Raises:
        InputError: it cannot be read.
    """
    if is_remote(location):
        return fetch(location)
    with open_binary(location) as file:
        return file.read()


def location_exists(location: str, *, is_first_contact: bool = False) -> bool:
    """Tell whether there is a file or folder.

    Args:
        location: Path or URL.
        is_first_contact: As of `remote_file.retry`.
    Raises:
        InputError: its server cannot be asked.
    """
    if not is_remote(location):
        return os.path.exists(location)
    try:
        remote_stat(location, is_first_contact=is_first_contact)
    except MissingFile:
        return False
    return True


class FilePool:
    """Reads byte ranges of many files and keeps the last used ones open.

    One pool belongs to one thread. A pickled pool arrives empty.
    """

    def __init__(self, max_open: int = _MAX_OPEN_FILES) -> None:
        self._max_open = max_open
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def __repr__(self) -> str:
        """Show how many files are open."""
        return f"FilePool(open={len(self._descriptors)}, max_open={self._max_open})"

    def __reduce__(self) -> tuple[type[FilePool], tuple[int]]:
        """Leave the open files behind: descriptors mean nothing in another process."""
        return type(self), (self._max_open,)

    def read(self, location: str, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`.

        Raises:
            InputError: the file is missing or ends earlier.
        """
        if is_remote(location):
            (data,) = fetch_ranges([ByteRange(location, offset, offset + length)])
        else:
            data = pread(self._descriptor(location), offset, length)
        if len(data) != length:
            raise InputError(
                f"{location} ends before byte {offset + length}, so it changed after it was indexed; "
                "run beit verify on the store"
            )
        return data

    def advise(self, location: str) -> None:
        """Ask the operating system to read a local file into its memory, because it is wanted soon."""
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self._descriptor(location), 0, 0, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close all files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        """Close all files of a forgotten pool."""
        self.close()

    def _descriptor(self, location: str) -> int:
        if location in self._descriptors:
            self._descriptors.move_to_end(location)
            return self._descriptors[location]
        try:
            descriptor = os.open(location, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise InputError(f"{location} does not exist; was it moved or deleted?") from None
        self._descriptors[location] = descriptor
        if len(self._descriptors) > self._max_open:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor


def pread(descriptor: int, offset: int, length: int) -> bytes:
    """Return `length` bytes from `offset` of an open file, fewer only where it ends."""
    data = os.pread(descriptor, length, offset)
    while 0 < len(data) < length:  # one call returns at most 2 GiB, and less on some network file systems
        rest = os.pread(descriptor, length - len(data), offset + len(data))
        if not rest:
            break
        data += rest
    return data


class TarAppender:
    """Writes an uncompressed tar whose bytes depend on names and contents only, and tells where each payload lies.

    Time, owner and mode are fixed. The end marker is written by `finish` alone: a tar that was given up reads as
    truncated, not as a short one.

    Args:
        file: Named binary file at its start; stays open.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hasher = hashlib.sha256()
        self.size = 0
        """Bytes written so far."""

    def add(self, name: str, payload: bytes) -> int:
        """Append one member and return the offset of its payload."""
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = len(payload), 0, 0o644
        self._write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"))
        offset = self.size
        self._write(payload)
        self._write(b"\0" * (-len(payload) % _BLOCK))
        return offset

    def finish(self) -> str:
        """Write the end marker, read everything back and return the sha256 of the file.

        Raises:
            OSError: what stands in the file is not what was written.
        """
        self._write(b"\0" * (2 * _BLOCK))
        self._write(b"\0" * (-self.size % tarfile.RECORDSIZE))
        self._file.flush()
        written = self._hasher.hexdigest()
        if sha256_file(Path(self._file.name)) != written:
            raise OSError(f"{self._file.name}: read back other bytes than were written; is the disk failing?")
        return written

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hasher.update(data)
        self.size += len(data)
