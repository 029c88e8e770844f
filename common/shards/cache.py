"""A folder on a local disk that holds whole shards of remote stores, shared by all processes of a machine.

A shard appears in it complete and checked, or not at all. Processes need no agreement beyond file locks, which vanish
with the process that holds them:

- who fetches a shard holds an exclusive lock on its `.part`, so each is fetched once;
- who reads a shard holds a shared lock on it, and what is locked is never removed;
- room is made, least recently used first, under the lock of the folder, in which what is being fetched already counts.

Deciding what to fetch and when is `beit.common.shards.ahead`.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from beit.common.errors import InputError
from beit.common.storage.locks import exclusive_lock
from beit.common.storage.place import place_of
from beit.common.storage.tar_walk import walk_tar

logger = logging.getLogger(__name__)

_SPARE_BYTES = 2**30
"""Of the disk, left to others; arbitrary."""
_LOCK_FILE = ".lock"
_PART = ".part"


class DamagedShard(InputError):
    """What the server holds is not the file that the store's index names."""


class Fill(Enum):
    """What came of an attempt to have a shard in the cache."""

    DONE = "fetched"
    PRESENT = "was there"
    BUSY = "another process fetches it"
    NO_ROOM = "everything else is in use"


@dataclass(frozen=True, slots=True)
class RemoteShard:
    """One remote file that never changes."""

    url: str
    size: int
    sha256: str = ""
    """Of the content; empty where it is not known."""
    header_sha256: str = ""
    """Of the header blocks of an image tar; looked at where `sha256` is not known."""

    @property
    def cache_name(self) -> str:
        """Name in the cache: of this content at this address, so that a store that was written anew is fetched anew."""
        identity = f"{self.url}\n{self.size}\n{self.sha256 or self.header_sha256}"
        return hashlib.sha256(identity.encode()).hexdigest()[:40] + ".tar"


class ShardCache:
    """The folder; safe to use from any number of processes and threads.

    Args:
        folder: Made if missing.
        limit_bytes: Most it may hold.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with exclusive_lock(folder / _LOCK_FILE):
                pass
        except OSError as error:
            raise InputError(
                f"reader.cache_dir ({folder}) cannot be written ({error.strerror}); name another folder, or set "
                "reader.cache_bytes=0 to read without a cache"
            ) from None

    def __repr__(self) -> str:
        return f"ShardCache({str(self.folder)!r}, limit_bytes={self.limit_bytes})"

    def open(self, shard: RemoteShard) -> int | None:
        """Return a descriptor of a shard, to be closed by the caller, or None if it is not here.

        While it is open, the shard stays.
        """
        try:
            descriptor = os.open(self.folder / shard.cache_name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # held exclusively for moments only
        status = os.fstat(descriptor)
        if status.st_nlink == 0 or status.st_size != shard.size:  # removed in between, or cut by somebody else
            os.close(descriptor)
            return None
        self.touch(shard)
        return descriptor

    def touch(self, shard: RemoteShard) -> bool:
        """Count a shard as used just now; return whether it is here."""
        path = self.folder / shard.cache_name
        try:
            os.utime(path)
            return path.stat().st_size == shard.size
        except FileNotFoundError:
            return False

    def fill(self, shard: RemoteShard, *, keep: Container[str] = ()) -> Fill:
        """Fetch a shard unless it is here or on its way.

        Args:
            shard: What to fetch.
            keep: Names that are not removed to make room, although nobody reads them at this moment.
        Raises:
            DamagedShard: it is not what it should be, twice in a row.
            OSError: it cannot be written.
        """
        if self.touch(shard):
            return Fill.PRESENT
        final = self.folder / shard.cache_name
        part = final.with_suffix(_PART)
        with _claim(part) as descriptor:
            if descriptor is None:
                return Fill.BUSY
            try:
                if self.touch(shard):  # finished between the two looks
                    return Fill.PRESENT
                if not self._reserve(descriptor, shard, keep):
                    return Fill.NO_ROOM
                _fetch_checked(shard, descriptor)
                # Else a power cut could leave a file of the right size without the right content.
                os.fsync(descriptor)
                os.rename(part, final)
            finally:
                part.unlink(missing_ok=True)
        return Fill.DONE

    def _reserve(self, descriptor: int, shard: RemoteShard, keep: Container[str]) -> bool:
        """Make room for a shard and give its file the full length, by which others count it."""
        if shard.size > self.limit_bytes:
            return False
        with exclusive_lock(self.folder / _LOCK_FILE):
            os.ftruncate(descriptor, 0)
            files = self._files()
            used = sum(size for _, size, _ in files)
            free = shutil.disk_usage(self.folder).free - _SPARE_BYTES
            excess = shard.size - min(self.limit_bytes - used, free)
            for _, size, name in sorted(files, key=lambda file: (not file[2].endswith(_PART), file[0])):
                if excess <= 0:
                    break
                if name not in keep and _remove(self.folder / name):
                    excess -= size
            if excess > 0:
                return False
            os.ftruncate(descriptor, shard.size)
        return True

    def _files(self) -> list[tuple[int, int, str]]:
        """List time of use in ns, size and name of every shard here or on its way."""
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if entry.name.endswith((_PART, ".tar")):
                    found.append((status.st_mtime_ns, status.st_size, entry.name))
        return found


@contextmanager
def _claim(part: Path) -> Iterator[int | None]:
    """Hold the exclusive lock on a .part file inside the block; yield its descriptor, or None if another has it."""
    while True:
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(descriptor, part):
                yield descriptor
                return
        except BlockingIOError:
            yield None
            return
        finally:
            os.close(descriptor)
        # Its holder removed or renamed it before the lock was ours: the name stands for another file now.


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove(path: Path) -> bool:
    """Remove a file that nobody holds; return whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _fetch_checked(shard: RemoteShard, descriptor: int) -> None:
    """Fetch a shard into an open file; once more if it arrives damaged, which a bad connection can do."""
    try:
        _fetch(shard, descriptor)
    except DamagedShard as error:
        logger.warning("%s; fetching it again", error)
        _fetch(shard, descriptor)


def _fetch(shard: RemoteShard, descriptor: int) -> None:
    hasher, received = hashlib.sha256(), 0
    for data in place_of(shard.url).pieces():
        if received + len(data) > shard.size:
            raise DamagedShard(f"{shard.url} is longer than the {shard.size} bytes that the store's index says")
        hasher.update(data)
        _write_at(descriptor, data, received)
        received += len(data)
    if received != shard.size:
        raise DamagedShard(f"{shard.url} is shorter than the {shard.size} bytes that the store's index says")
    way_out = "restore it, or run beit verify on the store"
    if shard.sha256:
        if hasher.hexdigest() != shard.sha256:
            raise DamagedShard(f"{shard.url} is damaged: its sha256 is not what the store's index says; {way_out}")
    elif shard.header_sha256:
        with open(descriptor, "rb", closefd=False) as file:
            if walk_tar(file, label=shard.url).header_sha256 != shard.header_sha256:
                raise DamagedShard(f"{shard.url} changed after it was tokenised (other members); {way_out}")


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
