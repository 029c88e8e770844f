"""A file or folder behind a URL, with the calls of every `Place`.

Whatever goes wrong becomes one error with the URL in its line: `MissingFile`, `InputError` where asking again would not
help, `RemoteError` where a server is away. How stores are opened and asked is in `object_store.py` and
`fsspec_store.py`.
"""

from __future__ import annotations

import functools
import io
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import IO, BinaryIO, cast

from beit.common.errors import InputError
from beit.common.faults import fault_point
from beit.common.storage import fsspec_store, object_store
from beit.common.storage.answers import Doing, FileStat, Judge, MissingFile, failure
from beit.common.storage.files import default_cache_dir
from beit.common.storage.paths import join, query_of

PIECE_BYTES = 8 << 20
_PIECES_AHEAD = 4
"""One connection to an object store brings 50 to 100 MB/s; a few beside each other fill a usual network card."""
_READ_AHEAD_BYTES = 4 << 20
_THREADS = 32
"""Requests at once; nearly all of their time is waiting."""

Store = object_store.ObjectStore | fsspec_store.FsspecStore


class RemotePlace:
    """A file or folder behind a URL.

    Args:
        location: The URL.
        is_first_contact: Whether a user just named it, so that a server that cannot be reached is a wrong address
            rather than one that restarts, and ends it soon, as a bad input.
    """

    __slots__ = ("_is_first_contact", "location")

    def __init__(self, location: str, *, is_first_contact: bool = False) -> None:
        self.location = location
        self._is_first_contact = is_first_contact

    def __repr__(self) -> str:
        """Show the URL."""
        return f"RemotePlace({self.location!r})"

    def __str__(self) -> str:
        """Return the URL."""
        return self.location

    def __truediv__(self, name: str) -> RemotePlace:
        """Return what lies below under a relative name."""
        return RemotePlace(join(self.location, name), is_first_contact=self._is_first_contact)

    def require_known(self) -> None:
        """See to it that the scheme is known and what serves it is installed.

        Raises:
            InputError: it is not.
        """
        with self._asked():
            return

    def stat(self) -> FileStat:
        """Return size and version of a file as they are now."""
        return self._head()

    def exists(self) -> bool:
        """Tell whether there is a file now."""
        try:
            self._head()
        except MissingFile:
            return False
        return True

    def is_folder(self) -> bool:
        """Tell whether something lies below."""
        with self._asked() as (store, key):
            return any(store.level(key))

    def files(self) -> list[FileStat]:
        """Return the files that lie directly in a folder, by name; none where there is no folder."""
        with self._asked() as (store, key):
            files = [self._relative(key, file) for file in store.level(key)[0]]
        return sorted(files, key=lambda file: file.path)

    def folders(self) -> list[str]:
        """Return the names of the folders that lie directly in a folder."""
        with self._asked() as (store, key):
            return sorted(folder.rstrip("/").rsplit("/", 1)[-1] for folder in store.level(key)[1])

    def names(self) -> list[str]:
        """Return the names that lie directly in a folder."""
        with self._asked() as (store, key):
            files, folders = store.level(key)
        paths = [file.path for file in files] + folders
        return sorted(path.rstrip("/").rsplit("/", 1)[-1] for path in paths)

    def walk(self) -> list[FileStat]:
        """Return every file below, at any depth, by relative path; hidden ones are left out."""
        with self._asked() as (store, key):
            files = [self._relative(key, file) for file in store.walk(key)]
        return [file for file in files if not any(part.startswith(".") for part in file.path.split("/"))]

    def read(self, *, limit: int | None = None) -> bytes:
        """Return the content of a file, or its first `limit` bytes."""
        with self._asked() as (store, key):
            return store.get(key, limit=limit)[0]

    def read_range(self, start: int, end: int, *, e_tag: str = "") -> bytes:
        """Return the bytes from `start` to `end`; fewer only where the file ends.

        Raises:
            InputError: another version than that of `e_tag` is there now.
        """
        with self._asked() as (store, key):
            try:
                data, found = store.get(key, start, end, e_tag=e_tag)
            except Exception as error:
                if type(error).__name__ != "PreconditionError":
                    raise
                raise self._changed() from None
        if e_tag and found.version not in ("", e_tag):
            raise self._changed()
        return data

    def pieces(self, start: int = 0) -> Iterator[bytes]:
        """Yield the content of a file of any size, some megabytes each time, several fetched at once.

        Args:
            start: First byte that is wanted.
        Raises:
            InputError: it changed meanwhile.
        """
        with self._asked() as (store, key):
            first, found = store.begin(key, start, start + PIECE_BYTES)
        if len(first) != min(max(0, found.size - start), PIECE_BYTES):
            raise self._changed()
        yield first
        pending: deque[Future[bytes]] = deque()
        starts = iter(range(start + PIECE_BYTES, found.size, PIECE_BYTES))
        try:
            while True:
                while len(pending) < _PIECES_AHEAD and (begin := next(starts, None)) is not None:
                    end = min(begin + PIECE_BYTES, found.size)
                    pending.append(threads().submit(self._read_all, begin, end, found.version))
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def open(self, *, read_ahead: bool = True) -> BinaryIO:
        """Open a file for reading at any position.

        Args:
            read_ahead: Fetch more than is asked for, because what follows is wanted next.
        """
        if not read_ahead:
            return cast(BinaryIO, RemoteFile(self, self._head(at_offsets=True)))
        with self._asked() as (store, key):
            begin, found = store.begin(key, 0, _READ_AHEAD_BYTES)
        return cast(BinaryIO, RemoteFile(self, found, begin=begin, read_ahead=_READ_AHEAD_BYTES))

    def write(self, data: bytes) -> None:
        """Write a small file as a whole, over an older one."""
        fault_point("rename")
        with self._asked("written") as (store, key):
            store.put(key, data)
        fault_point("renamed")

    @contextmanager
    def new_file(self) -> Iterator[BinaryIO]:
        """Open a nameless file of this machine that is uploaded here, over an older one, only if the block succeeds."""
        folder = default_cache_dir() / "spool"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                yield cast(BinaryIO, file)
                file.flush()
                fault_point("rename")
                self.write_file(cast(BinaryIO, file))
                fault_point("renamed")
        except OSError as error:
            if error.errno is not None and error.filename is None:
                error.filename = str(folder)  # "no space left" alone does not tell where
            raise

    def write_file(self, file: IO[bytes]) -> None:
        """Write the content of an open file of any size, over an older one, and look whether all of it arrived."""
        size = file.seek(0, io.SEEK_END)
        for is_last in (False, True):
            file.seek(0)
            with self._asked("written") as (store, key):
                store.put(key, file)
                found = store.head(key).size
                if found == size:
                    return
                if is_last:
                    raise OSError(f"{found} of {size} bytes arrived")

    def create(self, data: bytes) -> bool:
        """Write a small file unless there is one; return whether `data` stands there now.

        Object stores decide in one step, by a conditional request, so of several processes one succeeds. Where a
        storage has no such request, several may: two that look at the same moment both see nothing.
        """
        with self._asked("written") as (store, key):
            try:
                is_done = store.put(key, data, create=True)
            except FileNotFoundError:
                raise  # no bucket
            except Exception:
                # Or done by an attempt whose answer was lost.
                if self._content() != data:
                    raise
                return True
        return is_done or self._content() == data

    def replace(self, data: bytes, is_old: Judge) -> bool:
        """Write a small file over another if `is_old` says that it is the one; return whether `data` stands there now.

        Object stores decide in one step; elsewhere, what came between the look and the writing is lost.
        """
        with self._asked("written") as (store, key):
            try:
                found, stat = store.get(key)
            except FileNotFoundError:
                return False
            if not is_old(found):
                return False
            is_done = store.put(key, data, e_tag=stat.version)
        return is_done or self._content() == data

    take = replace
    """The same: of several processes that judge the same content, one is told True."""

    def remove_temporaries(self, *starts: str) -> None:
        """Do nothing: there are none behind a URL."""

    def remove(self) -> None:
        """Remove a file, if it is there."""
        with self._asked("written") as (store, key):
            store.delete(key)

    def _content(self) -> bytes | None:
        try:
            return self.read()
        except InputError:
            return None

    def _head(self, *, at_offsets: bool = False) -> FileStat:
        with self._asked() as (store, key):
            return replace(store.head(key, at_offsets=at_offsets), path=self.location)

    def _read_all(self, start: int, end: int, e_tag: str) -> bytes:
        data = self.read_range(start, end, e_tag=e_tag)
        if len(data) != end - start:
            raise self._changed()
        return data

    def _relative(self, key: str, file: FileStat) -> FileStat:
        return replace(file, path=file.path[len(key) :].lstrip("/"))

    def _changed(self) -> InputError:
        return InputError(f"{self.location} changed while it was read; run the command again")

    @contextmanager
    def _asked(self, doing: Doing = "read") -> Iterator[tuple[Store, str]]:
        """Give the store and the key; turn whatever goes wrong into one line that names the URL."""
        try:
            yield _store_of(self.location, query_of(self.location), self._is_first_contact)
        except InputError:
            raise
        except Exception as error:
            raise failure(self.location, error, doing, is_first_contact=self._is_first_contact) from None


class RemoteFile(io.BufferedIOBase):
    """A remote file, read at any position, always of the same version.

    Args:
        place: Where it is.
        stat: Of it.
        begin: Its first bytes.
        read_ahead: Bytes to fetch at least, when something is asked for.
    """

    def __init__(self, place: RemotePlace, stat: FileStat, *, begin: bytes = b"", read_ahead: int = 0) -> None:
        self._place, self._stat, self._read_ahead = place, stat, read_ahead
        self._position = 0
        self._buffer, self._buffer_start = begin, 0

    def __repr__(self) -> str:
        """Show the URL."""
        return f"RemoteFile({self._place.location!r}, size={self._stat.size})"

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position; nothing is fetched yet."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._stat.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Return `size` bytes, or all up to the end; fewer only there.

        Raises:
            InputError, RemoteError: they cannot be had, or the file changed.
        """
        left = max(0, self._stat.size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        if not wanted:
            return b""
        begin = self._position - self._buffer_start
        if begin < 0 or begin + wanted > len(self._buffer):
            end = min(self._position + max(wanted, self._read_ahead), self._stat.size)
            self._buffer = self._place._read_all(self._position, end, self._stat.version)
            self._buffer_start, begin = self._position, 0
        self._position += wanted
        return self._buffer[begin : begin + wanted]


@functools.cache
def threads() -> ThreadPoolExecutor:
    """Return the threads of this process that wait for servers."""
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="beit-remote")


def forget_stores() -> None:
    """Open stores anew, because the environment variables that describe them have changed."""
    _open_store.cache_clear()


def _store_of(location: str, query: str, is_first_contact: bool) -> tuple[Store, str]:
    if location.split("://", 1)[0] in object_store.SCHEMES:
        root, key = object_store.split_url(location)
        return _open_store(root, query, is_first_contact), key
    store = fsspec_store.FsspecStore(location, is_first_contact=is_first_contact)
    return store, store.key


@functools.lru_cache(maxsize=256)
def _open_store(root: str, query: str, is_first_contact: bool) -> object_store.ObjectStore:
    return object_store.ObjectStore(root, query, is_first_contact=is_first_contact)
