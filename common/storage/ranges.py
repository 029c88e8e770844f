"""Byte ranges and small files of a server, many in one go.

Any fsspec URL will do. What fails is tried again one by one (`beit.common.storage.remote_file`); a fault that lasts
becomes one error that names the URL. Keeping whole shards on a local disk is `beit.common.shards.cache`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import IO, Any, NamedTuple, TypeVar

from beit.common.errors import InputError
from beit.common.storage.locations import FileInfo, remote_info
from beit.common.storage.remote_file import RemoteError, file_system_of, retry

ATTEMPT_SECONDS = 30.0
"""Longest wait for an answer, apart from the time its bytes may take. All attempts together stay below
`reader.timeout_seconds`, so that what the user reads names the URL, not a hung worker."""
SLOWEST_BYTES_PER_SECOND = 256 * 1024
"""An answer that comes more slowly than this counts as none."""

PIECE_BYTES = 4 * 2**20
_PIECES_AT_ONCE = 4
"""One connection to an object store brings 50 to 100 MB/s; a few beside each other fill a usual network card."""
_UNKNOWN_BYTES = 4 * 2**20  # allowed for where the length of a file is not known
_OUT_OF_RANGE = 416

Result = TypeVar("Result")


class MissingFile(InputError):
    """The server answers, and has no such file."""


class ByteRange(NamedTuple):
    """A part of a remote file, or all of it."""

    url: str
    start: int | None = None
    end: int | None = None
    """Behind the last byte."""

    @property
    def length(self) -> int | None:
        """Bytes wanted; None for all there are."""
        return None if self.end is None else self.end - (self.start or 0)


def fetch(url: str) -> bytes:
    """Return the content of a small remote file.

    Raises:
        MissingFile: there is none.
        InputError: it may not be read.
        RemoteError: the server is away.
    """
    return fetch_ranges([ByteRange(url)])[0]


def fetch_ranges(ranges: Sequence[ByteRange]) -> list[bytes]:
    """Return the content of several ranges, requested together; one is shorter than asked for where its file ends.

    Raises:
        MissingFile: one of the files does not exist.
        InputError: one of them may not be read, or its server does not serve ranges.
        RemoteError: a server is away.
    """
    found: list[bytes] = []
    for wanted, answer in zip(ranges, _ask(ranges), strict=True):
        data = answer if isinstance(answer, bytes) else _insist(wanted.url, partial(_ask_once, wanted))
        if wanted.length is not None and len(data) > wanted.length:
            raise InputError(f"{wanted.url} cannot be read at offsets on this server; copy it to a disk first")
        found.append(data)
    return found


def copy_file(url: str, file: IO[bytes]) -> None:
    """Write the content of a remote file of any size to an open file.

    Raises:
        MissingFile: there is none.
        InputError: it may not be read.
        RemoteError: the server is away.
        OSError: it cannot be written.
    """
    size = remote_stat(url).size
    for data in fetch_pieces(url, size):
        file.write(data)
    file.flush()


def fetch_pieces(url: str, size: int) -> Iterator[bytes]:
    """Yield a remote file of known size in pieces of some megabytes; together they are shorter where the file is.

    Raises:
        InputError: it may not be read.
        RemoteError: the server is away.
    """
    step = PIECE_BYTES * _PIECES_AT_ONCE
    for begin in range(0, size, step):
        end = min(begin + step, size)
        starts = range(begin, end, PIECE_BYTES)
        yield b"".join(fetch_ranges([ByteRange(url, start, min(start + PIECE_BYTES, end)) for start in starts]))


def remote_stat(url: str, *, is_first_contact: bool = False) -> FileInfo:
    """Return size and version of a remote file, as they are now.

    Args:
        url: Of the file.
        is_first_contact: As of `remote_file.retry`.
    Raises:
        MissingFile: there is none.
        InputError: it may not be read.
        RemoteError: the server is away.
    """
    file_system, inner = file_system_of(url)

    def ask() -> FileInfo:
        file_system.invalidate_cache(inner)  # a listing of this process may be hours old
        return remote_info(url, file_system.info(inner, **_timeout(file_system, 0)))

    return _insist(url, ask, is_first_contact=is_first_contact)


def _insist(url: str, ask: Callable[[], Result], *, is_first_contact: bool = False) -> Result:
    try:
        return retry(url, ask, is_first_contact=is_first_contact)
    except RemoteError as error:
        if not error.is_final:
            raise
        raise (MissingFile if error.is_missing else InputError)(str(error)) from None


def _ask(ranges: Sequence[ByteRange]) -> list[bytes | Exception]:
    """Request all ranges at once, file system by file system; return what came of each."""
    answers: dict[int, bytes | Exception] = {}
    groups: dict[int, tuple[Any, dict[int, str]]] = {}
    for number, wanted in enumerate(ranges):
        file_system, inner = file_system_of(wanted.url)
        groups.setdefault(id(file_system), (file_system, {}))[1][number] = inner
    for file_system, paths in groups.values():
        outcomes = _request(file_system, list(paths.values()), [ranges[number] for number in paths])
        answers.update(zip(paths, outcomes, strict=True))
    return [answers[number] for number in range(len(ranges))]


def _ask_once(wanted: ByteRange) -> bytes:
    (answer,) = _ask([wanted])
    if isinstance(answer, Exception):
        raise answer
    return answer


def _request(file_system: Any, paths: list[str], ranges: list[ByteRange]) -> list[bytes | Exception]:
    num_bytes = sum(_UNKNOWN_BYTES if wanted.length is None else wanted.length for wanted in ranges)
    starts, ends = [wanted.start for wanted in ranges], [wanted.end for wanted in ranges]
    try:
        outcomes = file_system.cat_ranges(paths, starts, ends, on_error="return", **_timeout(file_system, num_bytes))
    except Exception as error:  # of all of them: it took too long, or there is no connection
        return [error] * len(paths)
    return [_interpret(outcome) for outcome in outcomes]


def _interpret(outcome: Any) -> bytes | Exception:
    is_past_the_end = isinstance(outcome, OSError) and outcome.errno == errno.EINVAL  # as s3fs says it
    if getattr(outcome, "status", None) == _OUT_OF_RANGE or is_past_the_end:
        return b""
    return outcome if isinstance(outcome, Exception) else bytes(outcome)


def _timeout(file_system: Any, num_bytes: int) -> dict[str, float]:
    # Only asynchronous file systems can be made to give up; the others have time limits of their own.
    seconds = ATTEMPT_SECONDS + num_bytes / SLOWEST_BYTES_PER_SECOND
    return {"timeout": seconds} if getattr(file_system, "async_impl", False) else {}
