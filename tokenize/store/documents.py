"""The files of a store that is being written: where they lie, its JSON documents, and whether a file is what it was.

A folder and a URL promise the same: a file appears under its name when it is whole, and stays. So a manifest that is
written after the files it speaks of commits them, wherever the store lies. Not here: which process writes what
(`leases.py`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from beit.common.errors import InputError, require
from beit.common.shards.schema import LEASE_PREFIX, CommittedFile
from beit.common.storage.files import default_cache_dir
from beit.common.storage.locks import exclusive_lock
from beit.common.storage.paths import WEB_SCHEMES, is_remote, normalise
from beit.common.storage.place import FileStat, MissingFile, Place, place_of

logger = logging.getLogger(__name__)

_CUT_URL = re.compile(r"[a-z][a-z0-9+.-]+:/[^/]", re.IGNORECASE)
"""What is left of a URL that was taken for a path."""


class StoreFiles(NamedTuple):
    """Where the files of a store lie."""

    place: Place
    """Of the store."""
    scratch: Path
    """Folder on this machine for temporary files: the store itself, if it is one."""

    @property
    def location(self) -> str:
        """Path or URL of the store."""
        return self.place.location

    def __truediv__(self, name: str) -> Place:
        return self.place / name


@contextmanager
def open_store_files(store: str | Path) -> Iterator[StoreFiles]:
    """Give access to the files of a store, which need not exist yet.

    Args:
        store: Folder or URL.
    """
    text = os.fspath(store)
    require(_CUT_URL.match(text) is None, f"store ({text}) looks like a URL with one slash; write two")
    if not is_remote(text):
        folder = text.removeprefix("file://")
        yield StoreFiles(place_of(folder), Path(folder))
        return
    location = normalise(text)
    is_plain = is_remote(location) and not any(mark in location for mark in ("::", "?", "*"))
    require(is_plain, f"store ({text}) must be a plain URL, such as s3://bucket/folder")
    place = place_of(location)
    with scratch_folder() as scratch:
        yield StoreFiles(place, scratch)


def list_entries(files: StoreFiles) -> list[str]:
    """Return the names that lie directly in a store; nothing where there is no store yet.

    Also finds out whether anything may be written behind a URL, before any work is done.
    """
    store = files.location
    if not is_remote(store):
        require(not files.place.exists() or files.place.is_folder(), f"store ({store}) is a file; name a folder")
        return files.place.names()
    require(
        not store.startswith(WEB_SCHEMES),
        f"store ({store}) is a web address, which cannot be written; name a folder or an object store",
    )
    place = place_of(store, is_first_contact=True)
    names = place.names()
    _try_to_write(place)
    return names


def _try_to_write(store: Place) -> None:
    """Create, fail to create again, and remove a small object: all that leases ask for."""
    probe = store / f"{LEASE_PREFIX}probe.{secrets.token_hex(8)}"
    probe.create(b"beit")
    # Asked twice, since a run that ends at this moment may have swept it.
    is_careless = all(probe.create(other) for other in (b"another", b"a third"))
    probe.remove()
    if is_careless:
        logger.warning(
            "%s does not refuse to create what is there already, so that two processes may do the same shard; the "
            "store will be right, but work may be done twice",
            store,
        )


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder on this machine, removed at the end; those of killed processes are removed first.

    Raises:
        OSError: it cannot be made.
    """
    root = default_cache_dir() / "spool"
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    folder = root / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    lock = root / f"{folder.name}.lock"
    with exclusive_lock(lock):
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _sweep(root: Path) -> None:
    for lock in root.glob("*.lock"):
        with suppress(BlockingIOError, FileNotFoundError), exclusive_lock(lock, wait=False):
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)


def stat_if_there(place: Place) -> FileStat | None:
    """Return what the storage says of a file, which tells it from one that replaces it; None if there is none."""
    try:
        return place.stat()
    except MissingFile:
        return None


def check_file(place: Place, expected: CommittedFile) -> None:
    """Check a committed file by size and hash, which reads it."""
    found = stat_if_there(place)
    if found is None:
        raise InputError(f"{place} is missing")
    require(found.size == expected.size, f"{place} has {found.size} bytes, its manifest says {expected.size}")
    hasher = hashlib.sha256()
    for piece in place.pieces():
        hasher.update(piece)
    require(hasher.hexdigest() == expected.sha256, f"{place} is damaged: its sha256 is not that of its manifest")
