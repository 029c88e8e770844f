"""A place is a file or folder, local or remote, by its path or URL; both kinds have the same calls.

`stat`, `files`, `walk`, `read`, `read_range`, `pieces` and `open` look; `write`, `new_file`, `create`, `replace`,
`take` and `remove` change. What is written appears under its name when it is whole. A file that is not there raises
`MissingFile`, a server that stays away `RemoteError`; both name path or URL. A place is a name only: cheap to make,
and nothing is open. Not here: what a user's pattern matches (`matching.py`), keeping files open
(`common/shards/file_pool.py`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from typing import IO, BinaryIO, NamedTuple, TypeVar, cast

from beit.common.errors import BadSample, InputError
from beit.common.storage.answers import FileStat, MissingFile, RemoteError
from beit.common.storage.local_place import LocalPlace
from beit.common.storage.paths import is_remote
from beit.common.storage.remote_place import RemotePlace
from beit.common.storage.threads import threads

__all__ = [
    "ByteRange",
    "FilePart",
    "FileStat",
    "MissingFile",
    "Place",
    "RemoteError",
    "copy_file",
    "for_each",
    "place_of",
    "read_files",
    "read_ranges",
]

Place = LocalPlace | RemotePlace

Result = TypeVar("Result")

_GAP_BYTES = 256 * 1024
"""Ranges of one file that lie no further apart are asked for in one request: the bytes between cost less than another.
At 100 MB/s and 10 ms per request, a megabyte would; more is read in vain where requests run beside each other."""
_LONGEST_BYTES = 8 << 20


class ByteRange(NamedTuple):
    """A part of a file."""

    location: str
    start: int
    end: int
    """Behind the last byte."""


def place_of(location: str, *, is_first_contact: bool = False) -> Place:
    """Return the place of a normalised path or URL.

    Args:
        location: Nothing need be there.
        is_first_contact: Whether a user just named it: a server that is away then ends it soon, and as a bad input.
    """
    if is_remote(location):
        return RemotePlace(location, is_first_contact=is_first_contact)
    return LocalPlace(location)


def read_ranges(ranges: Sequence[ByteRange]) -> list[bytes]:
    """Return the content of several ranges, requested together; one is shorter than asked for where its file ends."""
    requests = list(_coalesce(ranges))
    blocks = [_read(requests[0])] if len(requests) == 1 else list(threads().map(_read, requests))
    found: dict[int, bytes] = {}
    for request, block in zip(requests, blocks, strict=True):
        for number in request.wanted:
            first = ranges[number].start - request.start
            found[number] = block[first : first + ranges[number].end - ranges[number].start]
    return [found[number] for number in range(len(ranges))]


def for_each(function: Callable[[str], Result], locations: Sequence[str]) -> list[Result]:
    """Return what a function makes of each path or URL; it is called for remote ones at the same time."""
    if len(locations) > 1 and is_remote(locations[0]):
        return threads().map(function, locations)
    return list(map(function, locations))


def read_files(locations: Sequence[str]) -> list[bytes]:
    """Return the content of several small files, remote ones read at the same time."""
    return for_each(lambda location: place_of(location).read(), locations)


def copy_file(source: Place, file: IO[bytes]) -> None:
    """Write the content of a file of any size to an open file."""
    for piece in source.pieces():
        file.write(piece)
    file.flush()


class _Request(NamedTuple):
    location: str
    start: int
    end: int
    wanted: list[int]
    """Positions of the ranges in it."""


def _coalesce(ranges: Sequence[ByteRange]) -> Iterator[_Request]:
    current: _Request | None = None
    for number in sorted(range(len(ranges)), key=lambda number: ranges[number]):
        location, start, end = ranges[number]
        if (
            current is not None
            and location == current.location
            and start - current.end <= _GAP_BYTES
            and end - current.start <= _LONGEST_BYTES
        ):
            current = current._replace(end=max(end, current.end), wanted=[*current.wanted, number])
            continue
        if current is not None:
            yield current
        current = _Request(location, start, end, [number])
    if current is not None:
        yield current


def _read(request: _Request) -> bytes:
    return place_of(request.location).read_range(request.start, request.end)


class FilePart(NamedTuple):
    """A file, or some of its bytes, to be opened as a file of its own."""

    location: str
    """Path or URL."""
    start: int = 0
    length: int | None = None
    """None for all of the file."""

    def open(self) -> BinaryIO:
        """Open it as a file of its own.

        Raises:
            BadSample: it is gone, or cannot be read.
        """
        try:
            file = place_of(self.location).open(read_ahead=False)
        except OSError as error:
            raise BadSample("unreadable", f"{self.location}: {error}") from None
        except InputError as error:
            if is_remote(self.location):  # no fault of the image, which must not be given up
                raise
            raise BadSample("unreadable", f"{self.location}: {error}") from None
        if self.length is None:
            return file
        return cast(BinaryIO, io.BufferedReader(_Part(file, self.start, self.length)))


class _Part(io.RawIOBase):
    """Some bytes of a file as a file of their own, which closes it."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._place = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._length}[whence]
        self._place = max(0, origin + offset)
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._length - self._place))
        self._file.seek(self._start + self._place)
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()
