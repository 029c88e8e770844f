"""Bytes from a server: byte ranges and small files, many in one go, tried again where a fault may pass.

Any fsspec URL will do. A fault that lasts becomes one error that names the URL. Which files are listed where is
`beit.common.locations`; keeping whole shards on a local disk is `beit.common.shard_cache`.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from beit.common.errors import InputError
from beit.common.locations import FileInfo, file_system_of, remote_info

logger = logging.getLogger(__name__)

ATTEMPT_SECONDS = 30.0
"""Longest wait for an answer, apart from the time its bytes may take."""
SLOWEST_BYTES_PER_SECOND = 256 * 1024
"""An answer that comes more slowly than this counts as none."""
BACK_OFF_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses between attempts. With `ATTEMPT_SECONDS` they stay below `reader.timeout_seconds`, so that what the user reads
names the URL, not a hung worker."""

_UNKNOWN_BYTES = 16 * 2**20  # allowed for where the length of a file is not known
_PASSING_STATUS = (408, 425, 429)  # of those that blame the client
_FINAL_ERRNO = (errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
_BUGS = (TypeError, AttributeError, LookupError, AssertionError, ImportError)
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


def fetch(url: str) -> bytes:
    """Return the content of a small remote file.

    Raises:
        MissingFile: there is none.
        InputError: it cannot be had.
    """
    return fetch_ranges([ByteRange(url)])[0]


def fetch_ranges(ranges: Sequence[ByteRange]) -> list[bytes]:
    """Return the content of several ranges, requested together; one is shorter than asked for where its file ends.

    Raises:
        MissingFile: one of the files does not exist.
        InputError: one of them cannot be had, or its server does not serve ranges.
    """
    found: dict[int, bytes] = {}
    for pause in (*BACK_OFF_SECONDS, None):
        errors = _attempt(ranges, found)
        if not errors:
            break
        number, error = next(iter(errors.items()))
        _judge(ranges[number].url, error, pause)
    return [found[number] for number in range(len(ranges))]


def remote_stat(url: str) -> FileInfo:
    """Return size and version of a remote file.

    Raises:
        MissingFile: there is none.
        InputError: the server cannot be asked.
    """
    file_system, inner = file_system_of(url)
    return retry(url, lambda: remote_info(url, file_system.info(inner, **_timeout(file_system, 0))))


def retry(url: str, call: Callable[[], Result]) -> Result:
    """Return the result of `call`, which asks a server about `url`, after several attempts if need be.

    Raises:
        MissingFile: the server has no such file.
        InputError: the last attempt failed, too, or trying again is of no use.
    """
    for pause in (*BACK_OFF_SECONDS, None):
        try:
            return call()
        except Exception as error:
            _judge(url, error, pause)
    raise AssertionError("the last attempt raises")


def _attempt(ranges: Sequence[ByteRange], found: dict[int, bytes]) -> dict[int, Exception]:
    """Ask once for all ranges that are still missing; return the errors by number."""
    groups: dict[int, tuple[Any, list[int], list[str]]] = {}
    for number, wanted in enumerate(ranges):
        if number not in found:
            file_system, inner = file_system_of(wanted.url)
            _, numbers, paths = groups.setdefault(id(file_system), (file_system, [], []))
            numbers.append(number)
            paths.append(inner)
    errors: dict[int, Exception] = {}
    for file_system, numbers, paths in groups.values():
        for number, outcome in zip(numbers, _ask(file_system, paths, [ranges[n] for n in numbers]), strict=True):
            wanted = ranges[number]
            if getattr(outcome, "status", None) == _OUT_OF_RANGE:
                outcome = b""  # the file ends before the range begins
            if isinstance(outcome, Exception):
                errors[number] = outcome
                continue
            if wanted.end is not None and len(outcome) > wanted.end - (wanted.start or 0):
                raise InputError(f"{wanted.url} cannot be read at offsets on this server; copy it to a disk first")
            found[number] = bytes(outcome)
    return errors


def _ask(file_system: Any, paths: list[str], ranges: list[ByteRange]) -> list[Any]:
    """Return bytes or an exception for each range."""
    num_bytes = sum(_UNKNOWN_BYTES if r.end is None else r.end - (r.start or 0) for r in ranges)
    starts, ends = [wanted.start for wanted in ranges], [wanted.end for wanted in ranges]
    try:
        answers = file_system.cat_ranges(paths, starts, ends, on_error="return", **_timeout(file_system, num_bytes))
    except Exception as error:  # of all of them: a timeout, or no connection
        return [error] * len(paths)
    return list(answers)


def _timeout(file_system: Any, num_bytes: int) -> dict[str, float]:
    # Only asynchronous file systems can be made to give up; the others have time limits of their own.
    seconds = ATTEMPT_SECONDS + num_bytes / SLOWEST_BYTES_PER_SECOND
    return {"timeout": seconds} if getattr(file_system, "async_impl", False) else {}


def _judge(url: str, error: Exception, pause: float | None) -> None:
    """Wait, if the fault may pass; else raise what the user should read."""
    if isinstance(error, (InputError, *_BUGS)):
        raise error
    if isinstance(error, FileNotFoundError):
        raise MissingFile(f"{url} does not exist") from None
    reason = str(error) or type(error).__name__
    if _is_final(error):
        raise InputError(f"{url} cannot be read ({reason})") from error
    if pause is None:
        attempts = len(BACK_OFF_SECONDS) + 1
        raise InputError(f"{url} cannot be read after {attempts} attempts ({reason}); is the server up?") from error
    logger.info("%s: %s; trying again in %g s", url, reason, pause)
    time.sleep(pause)


def _is_final(error: Exception) -> bool:
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in _PASSING_STATUS
    if isinstance(error, OSError) and not isinstance(error, TimeoutError):
        return isinstance(error, PermissionError | IsADirectoryError) or error.errno in _FINAL_ERRNO
    return isinstance(error, ValueError | NotImplementedError)
