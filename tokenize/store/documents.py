"""The files of a store that is being written, by name, in a folder or behind a URL.

Both kinds promise the same: a file appears under its name when it is whole, and once `write` or `new_file` has ended it
stays. So a manifest that is written after the files it speaks of commits them, wherever the store lies. Here: folders,
and what both kinds offer. Not here: stores behind a URL (`bucket.py`), which process writes what (`leases.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from beit.common.errors import InputError, require
from beit.common.shards.schema import CommittedFile
from beit.common.storage.documents import json_bytes, parse_document, to_json
from beit.common.storage.files import atomic_file, sha256_file, write_atomic
from beit.common.storage.locations import is_remote, normalise
from beit.common.storage.remote_file import file_system_of
from beit.tokenize.store.bucket import ObjectFiles, scratch_folder
from beit.tokenize.store.lease_files import FolderLeases, LeaseFiles

_CUT_URL = re.compile(r"[a-z][a-z0-9+.-]+:/[^/]", re.IGNORECASE)
"""What is left of a URL that was taken for a path."""

Schema = TypeVar("Schema")


class StoreFiles(Protocol):
    """Where the files of a store lie. Names are relative to it, with slashes; calls may come from several threads."""

    location: str
    """Folder or URL."""
    scratch: Path
    """Folder on this machine for temporary files."""

    def entries(self) -> list[str]:
        """Return the names that lie directly in the store; nothing where there is no store yet.

        Raises:
            InputError: the place cannot become a store: it is a file, or cannot be reached or written.
        """

    def label(self, name: str) -> str:
        """Return path or URL of a file."""

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file; None if there is none."""

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """Return the contents of several small files.

        Raises:
            InputError: one is missing.
        """

    def exists(self, name: str) -> bool:
        """Tell whether a file is there now."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of every file of a folder, by the name within it; nothing if there is no such folder."""

    def write(self, name: str, data: bytes) -> None:
        """Write a small file as a whole, over an older one."""

    def new_file(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a local file that appears under `name`, over an older one, only if the block succeeds."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def remove_temporaries(self, folder: str, *starts: str) -> None:
        """Remove what killed processes left of files whose names start so; nobody else may be writing them."""

    def make_folder(self, name: str) -> None:
        """See to it that files may be written in a folder."""

    def check(self, folder: str, expected: CommittedFile) -> None:
        """Check a committed file by size and hash.

        Raises:
            InputError: it is missing or differs; names it.
        """

    def stamp(self, name: str) -> str | None:
        """Return what tells a file from one that replaces it; None if there is none."""

    def is_newest(self, name: str, others: Sequence[str]) -> bool:
        """Tell whether a file is surely not older than any of the others, by the times of the storage."""

    def leases(self) -> LeaseFiles:
        """Return what the leases of this store are kept in."""


class FolderFiles:
    """A store in a folder.

    Args:
        folder: It need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.location = str(folder)
        self.scratch = folder
        self._folder = folder

    def __repr__(self) -> str:
        """Show the folder."""
        return f"FolderFiles({self.location!r})"

    def entries(self) -> list[str]:
        """Return the names that lie directly in the store; nothing where there is no store yet.

        Raises:
            InputError: it is a file.
        """
        require(not self._folder.exists() or self._folder.is_dir(), f"store ({self.location}) is a file; name a folder")
        return [path.name for path in self._folder.iterdir()] if self._folder.exists() else []

    def label(self, name: str) -> str:
        """Return the path of a file."""
        return str(self._folder / name)

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file; None if there is none."""
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """Return the contents of several small files.

        Raises:
            InputError: one is missing.
        """
        return [read_present(self, name) for name in names]

    def exists(self, name: str) -> bool:
        """Tell whether a file is there now."""
        return (self._folder / name).exists()

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of every file of a folder, by the name within it; nothing if there is no such folder."""
        found = {}
        with suppress(FileNotFoundError), os.scandir(self._folder / folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # a temporary file, renamed meanwhile
                    if entry.is_file():
                        found[entry.name] = entry.stat().st_size
        return found

    def write(self, name: str, data: bytes) -> None:
        """Write a small file as a whole, over an older one."""
        write_atomic(self._folder / name, data)

    def new_file(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a local file that appears under `name`, over an older one, only if the block succeeds."""
        return atomic_file(self._folder / name)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self._folder / name).unlink(missing_ok=True)

    def remove_temporaries(self, folder: str, *starts: str) -> None:
        """Remove what killed processes left of files whose names start so; nobody else may be writing them."""
        for path in (self._folder / folder).glob("*.tmp.*"):
            if path.name.startswith(starts):
                path.unlink(missing_ok=True)

    def make_folder(self, name: str) -> None:
        """Make a folder, if it is missing."""
        (self._folder / name).mkdir(parents=True, exist_ok=True)

    def check(self, folder: str, expected: CommittedFile) -> None:
        """Check a committed file by size and hash.

        Raises:
            InputError: it is missing or differs; names it.
        """
        check_file(self._folder / folder, expected)

    def stamp(self, name: str) -> str | None:
        """Return inode and time of a file; None if there is none."""
        try:
            status = (self._folder / name).stat()
        except FileNotFoundError:
            return None
        return f"{status.st_ino} {status.st_mtime_ns}"

    def is_newest(self, name: str, others: Sequence[str]) -> bool:
        """Tell whether a file is not older than any of the others."""
        written = (self._folder / name).stat().st_mtime_ns
        return all((self._folder / other).stat().st_mtime_ns <= written for other in others)

    def leases(self) -> FolderLeases:
        """Return what the leases of this store are kept in."""
        return FolderLeases(self._folder)


@contextmanager
def open_store_files(store: str | Path) -> Iterator[StoreFiles]:
    """Give access to the files of a store, which need not exist yet.

    Args:
        store: Folder or URL.
    Raises:
        InputError: a URL of an unknown scheme, whose package is not installed, or with more in it than a place.
    """
    text = os.fspath(store)
    require(_CUT_URL.match(text) is None, f"store ({text}) looks like a URL with one slash; write two")
    if not is_remote(text):
        yield FolderFiles(Path(text.removeprefix("file://")))
        return
    location = normalise(text)
    is_plain = is_remote(location) and not any(mark in location for mark in ("::", "?", "*"))
    require(is_plain, f"store ({text}) must be a plain URL, such as s3://bucket/folder")
    file_system_of(location)
    with scratch_folder() as scratch:
        yield ObjectFiles(location, scratch)


def read_present(files: StoreFiles, name: str) -> bytes:
    """Return the content of a small file.

    Raises:
        InputError: it is missing.
    """
    data = files.read(name)
    if data is None:
        raise InputError(f"{files.label(name)} does not exist")
    return data


def read_document(schema: type[Schema], files: StoreFiles, name: str) -> Schema:
    """Read and check a JSON document of a store.

    Raises:
        InputError: missing, malformed, or not of this schema and version.
    """
    return parse_document(schema, read_present(files, name), label=files.label(name))


def write_document(files: StoreFiles, name: str, document: object) -> None:
    """Write a schema instance as a JSON document of a store."""
    files.write(name, json_bytes(to_json(document)))


def check_file(folder: Path, expected: CommittedFile) -> None:
    """Check a committed local file by size and hash.

    Raises:
        InputError: it is missing or differs; names it.
    """
    path = folder / expected.name
    require(path.is_file(), f"{path} is missing")
    size = path.stat().st_size
    require(size == expected.size, f"{path} has {size} bytes, its manifest says {expected.size}")
    require(sha256_file(path) == expected.sha256, f"{path} is damaged: its sha256 is not that of its manifest")
