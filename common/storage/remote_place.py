"""A file or folder behind a URL, with the calls of every `Place`.

Whatever goes wrong becomes one error with the URL in its line: `MissingFile`, `InputError` where asking again would not
help, `RemoteError` where a server is away. How stores are opened and asked is in `object_store.py` and
`fsspec_store.py`.
"""

from __future__ import annotations

import functools
import io
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import IO, Any, BinaryIO, TypeVar, cast

from beit.common.errors import InputError
from beit.common.storage import fsspec_store, object_store
from beit.common.storage.answers import Doing, FileStat, Judge, MissingFile, RemoteError, failure
from beit.common.storage.files import default_cache_dir, fault_point
from beit.common.storage.paths import join, query_of
from beit.common.storage.threads import threads

PIECE_BYTES = 8 << 20
_PIECES_AHEAD = 4
"""One connection to an object store brings 50 to 100 MB/s; a few beside each other fill a usual network card."""
_READ_AHEAD_BYTES = 4 << 20

Result = TypeVar("Result")

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
        if not _is_known(location):
            fsspec_store.FsspecStore(location)  # raises if it does not know it either

    def __repr__(self) -> str:
        return f"RemotePlace({self.location!r})"

    def __str__(self) -> str:
        return self.location

    def __truediv__(self, name: str) -> RemotePlace:
        return RemotePlace(join(self.location, name), is_first_contact=self._is_first_contact)

    def stat(self, *, at_offsets: bool = False) -> FileStat:
        """Return size and version of a file as they are now.

        Args:
            at_offsets: Whether it is an error that it cannot be read at offsets.
        """
        return replace(self._ask(lambda store, key: store.head(key, at_offsets=at_offsets)), path=self.location)

    def exists(self) -> bool:
        """Tell whether there is a file now."""
        try:
            self.stat()
        except MissingFile:
            return False
        return True

    def is_folder(self) -> bool:
        """Tell whether something lies below."""
        return any(self._ask(lambda store, key: store.level(key)))

    def files(self) -> list[FileStat]:
        """Return the files that lie directly in a folder, by name; none where there is no folder."""
        files = self._ask(lambda store, key: [_relative(file, key) for file in store.level(key)[0]])
        return sorted(files, key=lambda file: file.path)

    def folders(self) -> list[str]:
        """Return the names of the folders that lie directly in a folder."""
        return sorted(_base_name(folder) for folder in self._ask(lambda store, key: store.level(key)[1]))

    def names(self) -> list[str]:
        """Return the names that lie directly in a folder."""
        files, folders = self._ask(lambda store, key: store.level(key))
        return sorted(map(_base_name, [*(file.path for file in files), *folders]))

    def walk(self) -> list[FileStat]:
        """Return every file below, at any depth, by relative path; hidden ones are left out."""
        files = self._ask(lambda store, key: [_relative(file, key) for file in store.walk(key)])
        return [file for file in files if not any(part.startswith(".") for part in file.path.split("/"))]

    def read(self, *, limit: int | None = None) -> bytes:
        """Return the content of a file, or its first `limit` bytes."""
        return self._ask(lambda store, key: store.get(key, limit=limit)[0])

    def read_range(self, start: int, end: int, *, e_tag: str = "") -> bytes:
        """Return the bytes from `start` to `end`; fewer only where the file ends."""
        data, found = self._ask(lambda store, key: store.get(key, start, end, e_tag=e_tag))
        if e_tag and found.version not in ("", e_tag):
            raise self._changed()
        return data

    def pieces(self, start: int = 0) -> Iterator[bytes]:
        """Yield the content of a file of any size, some megabytes each time, several fetched at once.

        Args:
            start: First byte that is wanted.
        """
        first, found = self._ask(lambda store, key: store.begin(key, start, start + PIECE_BYTES))
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

    def open(self, *, read_ahead: bool = True, stat: FileStat | None = None) -> BinaryIO:
        """Open a file for reading at any position.

        Args:
            read_ahead: Fetch more than is asked for, because what follows is wanted next.
            stat: What is known of the file, so that it need not be asked for; of no use without size and version.
        """
        is_known = stat is not None and stat.size and stat.version
        file = RemoteFile(self, stat if stat is not None and is_known else self.stat(at_offsets=True))
        return cast(BinaryIO, io.BufferedReader(file, _READ_AHEAD_BYTES) if read_ahead else file)

    def write(self, data: bytes) -> None:
        """Write a small file as a whole, over an older one."""
        fault_point("rename")
        self._ask(lambda store, key: store.put(key, data), "written")
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

        def upload(store: Store, key: str) -> int:
            file.seek(0)
            store.put(key, file)
            return store.head(key).size

        if self._ask(upload, "written") != size and (found := self._ask(upload, "written")) != size:
            raise RemoteError(f"{self.location} cannot be written ({found} of {size} bytes arrived)")

    def create(self, data: bytes) -> bool:
        """Write a small file unless there is one; return whether `data` stands there now.

        Object stores decide in one step, by a conditional request, so of several processes one succeeds. Where a
        storage has no such request, several may: two that look at the same moment both see nothing.
        """

        def create(store: Store, key: str) -> bool:
            try:
                return store.create(key, data)
            except FileNotFoundError:
                raise  # no bucket
            except Exception:
                if self._content() != data:  # else done by an attempt whose answer was lost
                    raise
                return True

        return self._ask(create, "written") or self._content() == data

    def replace(self, data: bytes, is_old: Judge) -> bool:
        """Write a small file over another if `is_old` says that it is the one; return whether `data` stands there now.

        Object stores decide in one step; elsewhere, what came between the look and the writing is lost.
        """
        is_done = self._ask(lambda store, key: store.swap(key, data, is_old), "written")
        return is_done or self._content() == data

    take = replace
    """The same: of several processes that judge the same content, one is told True."""

    def remove_temporaries(self, *starts: str) -> None:
        """Do nothing: there are none behind a URL."""

    def remove(self) -> None:
        """Remove a file, if it is there."""
        self._ask(lambda store, key: store.delete(key), "written")

    def _content(self) -> bytes | None:
        try:
            return self.read()
        except InputError:
            return None

    def _read_all(self, start: int, end: int, e_tag: str) -> bytes:
        data = self.read_range(start, end, e_tag=e_tag)
        if len(data) != end - start:
            raise self._changed()
        return data

    def _changed(self) -> InputError:
        return InputError(f"{self.location} changed while it was read; run the command again")

    def _ask(self, action: Callable[[Store, str], Result], doing: Doing = "read") -> Result:
        """Return what `action` makes of the store and the key; whatever goes wrong becomes one line with the URL."""
        try:
            store, key = _store_of(self.location, query_of(self.location), self._is_first_contact)
            if threading.current_thread() is threading.main_thread():
                # A request cannot be interrupted; waiting for another thread can, so that Ctrl-C is heard.
                return threads().submit(action, store, key).result()
            return action(store, key)
        except InputError:
            raise
        except Exception as error:
            raise failure(self.location, error, doing, is_first_contact=self._is_first_contact) from None


class RemoteFile(io.RawIOBase):
    """A remote file, read at any position, always of the same version. Each read is a request.

    Args:
        place: Where it is.
        stat: Of it.
    """

    def __init__(self, place: RemotePlace, stat: FileStat) -> None:
        self._place, self._stat, self._position = place, stat, 0

    def __repr__(self) -> str:
        return f"RemoteFile({self._place.location!r}, size={self._stat.size})"

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position; nothing is fetched yet."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._stat.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readall(self) -> bytes:
        """Return all up to the end, in one request."""
        return self.read(max(0, self._stat.size - self._position)) or b""

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer; less only where the file ends.

        Raises:
            InputError, RemoteError: the bytes cannot be had, or the file changed.
        """
        wanted = min(len(buffer), max(0, self._stat.size - self._position))
        if wanted:
            end = self._position + wanted
            buffer[:wanted] = self._place._read_all(self._position, end, self._stat.version)
            self._position = end
        return wanted


def _relative(file: FileStat, folder: str) -> FileStat:
    return replace(file, path=file.path[len(folder) :].lstrip("/"))


def _base_name(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def forget_stores() -> None:
    """Open stores anew, because the environment variables that describe them have changed."""
    _open_store.cache_clear()


def _store_of(location: str, query: str, is_first_contact: bool) -> tuple[Store, str]:
    if _is_known(location):
        root, key = object_store.split_url(location)
        return _open_store(root, query, is_first_contact), key
    store = fsspec_store.FsspecStore(location)
    return store, store.key


def _is_known(location: str) -> bool:
    return location.split("://", 1)[0] in object_store.SCHEMES


@functools.lru_cache(maxsize=256)
def _open_store(root: str, query: str, is_first_contact: bool) -> object_store.ObjectStore:
    return object_store.ObjectStore(root, query, is_first_contact=is_first_contact)
