"""A store that is written behind a URL: files are made in a folder of this machine and uploaded whole.

An object store replaces an object in one step, which is all that `write` and `new_file` promise; nothing is renamed
there. The local folder holds what is at work only, at most one image tar and one token tar per process, and the next
tar that is fetched; after a kill, the next process of this machine removes it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from beit.common.errors import InputError, require
from beit.common.faults import fault_point
from beit.common.shards.schema import CommittedFile
from beit.common.storage.files import default_cache_dir
from beit.common.storage.locations import join, read_range
from beit.common.storage.locks import exclusive_lock
from beit.common.storage.objects import (
    create_object,
    is_exclusive,
    list_objects,
    read_object,
    remove_object,
    stat_object,
    upload_file,
    write_object,
)
from beit.common.storage.remote_file import one_clear_line
from beit.tokenize.store.lease_files import LEASE_PREFIX, ObjectLeases

logger = logging.getLogger(__name__)

_TIME_FIELDS = ("LastModified", "mtime", "updated", "last_modified", "created")
_READERS = 16
_PIECE_BYTES = 16 << 20
_WEB_SCHEMES = ("http://", "https://")


class ObjectFiles:
    """A store behind a URL.

    Args:
        location: Its URL.
        scratch: Folder on this machine; exists.
    """

    def __init__(self, location: str, scratch: Path) -> None:
        self.location = location
        self.scratch = scratch

    def __repr__(self) -> str:
        """Show the URL."""
        return f"ObjectFiles({self.location!r})"

    def entries(self) -> list[str]:
        """Return the names that lie directly in the store; nothing where there is no store yet.

        Also finds out whether anything may be written there, before any work is done.

        Raises:
            InputError: it cannot be reached, read or written.
        """
        require(
            not self.location.startswith(_WEB_SCHEMES),
            f"store ({self.location}) is a web address, which cannot be written; name a folder or an object store",
        )
        with one_clear_line(self.location, "written"):
            names = list(list_objects(self.location, is_first_contact=True))
            self._try_to_write()
            return names

    def label(self, name: str) -> str:
        """Return the URL of a file."""
        return join(self.location, name)

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file; None if there is none."""
        return read_object(self.label(name))

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """Return the contents of several small files, read at the same time.

        Raises:
            InputError: one is missing.
        """
        with ThreadPoolExecutor(_READERS) as pool:
            found = list(pool.map(self.read, names))
        for name, data in zip(names, found, strict=True):
            require(data is not None, f"{self.label(name)} does not exist")
        return [data for data in found if data is not None]

    def exists(self, name: str) -> bool:
        """Tell whether a file is there now."""
        return stat_object(self.label(name)) is not None

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of every file of a folder, by the name within it; nothing if there is no such folder."""
        return {name: int(info.get("size") or 0) for name, info in list_objects(self.label(folder)).items()}

    def write(self, name: str, data: bytes) -> None:
        """Write a small file as a whole, over an older one."""
        fault_point("rename")
        write_object(self.label(name), data)
        fault_point("renamed")

    @contextmanager
    def new_file(self, name: str) -> Iterator[BinaryIO]:
        """Open a local file that is uploaded to `name`, over an older one, only if the block succeeds."""
        path = self.scratch / f"{name.rsplit('/', 1)[-1]}.{secrets.token_hex(4)}"
        try:
            with path.open("w+b") as file:
                yield file
            fault_point("rename")
            upload_file(path, self.label(name))
            fault_point("renamed")
        except OSError as error:
            if error.errno is not None and error.filename is None:
                error.filename = str(path)  # "no space left" alone does not tell where
            raise
        finally:
            path.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.exists(name):
            remove_object(self.label(name))

    def remove_temporaries(self, folder: str, *starts: str) -> None:
        """Do nothing: there are none behind a URL."""

    def make_folder(self, name: str) -> None:
        """Do nothing: the names of objects make folders."""

    def check(self, folder: str, expected: CommittedFile) -> None:
        """Check a committed file by size and hash, which reads it.

        Raises:
            InputError: it is missing or differs; names it.
        """
        url = self.label(f"{folder}/{expected.name}")
        info = stat_object(url)
        if info is None:
            raise InputError(f"{url} is missing")
        size = int(info.get("size") or 0)
        require(size == expected.size, f"{url} has {size} bytes, its manifest says {expected.size}")
        hasher = hashlib.sha256()
        for start in range(0, size, _PIECE_BYTES):
            hasher.update(read_range(url, start, min(start + _PIECE_BYTES, size)))
        require(hasher.hexdigest() == expected.sha256, f"{url} is damaged: its sha256 is not that of its manifest")

    def stamp(self, name: str) -> str | None:
        """Return time and ETag of a file; None if there is none."""
        info = stat_object(self.label(name))
        return None if info is None else f"{_time(info)} {info.get('ETag')}"

    def is_newest(self, name: str, others: Sequence[str]) -> bool:
        """Tell whether a file is not older than any of the others, as far as is known.

        Many storages count in seconds. That a shard was tokenised again in the second in which the index was written is
        not seen then; its bytes are the same, unless the settings allow mixed executions.
        """
        folder = {other.rsplit("/", 1)[0] for other in others}
        info = stat_object(self.label(name))
        written = _time(info or {})
        if written is None or len(folder) != 1:
            return False
        listed = list_objects(self.label(folder.pop()))
        times = [_time(listed.get(other.rsplit("/", 1)[-1], {})) for other in others]
        return all(time is not None and time <= written for time in times)

    def leases(self) -> ObjectLeases:
        """Return what the leases of this store are kept in."""
        return ObjectLeases(self.location)

    def _try_to_write(self) -> None:
        """Create, fail to create again, and remove a small object: all that leases ask for."""
        url = self.label(f"{LEASE_PREFIX}probe.{secrets.token_hex(8)}")
        create_object(url, b"beit")
        # Asked twice, since a run that ends at this moment may have swept it.
        is_safe = is_exclusive(url) or is_exclusive(url)
        remove_object(url)
        if not is_safe:
            logger.warning(
                "%s does not refuse to create what is there already, so that two processes may do the same shard; the "
                "store will be right, but work may be done twice",
                self.location,
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


def _time(info: dict[str, Any]) -> Any:
    """Return when a file was written; of one type for all files of a storage."""
    return next((info[field] for field in _TIME_FIELDS if info.get(field) is not None), None)
