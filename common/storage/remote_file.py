"""Remote files on a bad network: retries with back-off, and every failure in one line with the URL.

fsspec passes on whatever the client library of a scheme raises (aiohttp, botocore, ...), so errors are told apart by
what they carry, not by their classes. Not here: which paths are remote, listing and matching (`locations.py`).
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Literal, TypeVar

import fsspec

from beit.common.errors import InputError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
Doing = Literal["read", "written"]
"""What is being done to a remote file, for messages."""
_PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Before each further attempt. Arbitrary; rides out the restart of a server, not an outage."""
_EXTRAS = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3"}
_S3_SCHEMES = ("s3", "s3a")
_S3_OPTIONS = {"config_kwargs": {"retries": {"max_attempts": 1}}}
"""botocore would try five times by itself, 20 s for an address that refuses connections, before `retry` hears of it."""
_S3_OWN_RETRIES = ("AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE")
_TRANSIENT_STATUSES = (408, 425, 429)  # of the 4xx; all 5xx are
_PERMANENT = (PermissionError, IsADirectoryError, NotADirectoryError, ValueError, TypeError, NotImplementedError)
_QUERY = re.compile(r"\?[^/?=]*=")  # other question marks are wildcards
_WEB = re.compile(r"https?://", re.IGNORECASE)
_VARIABLE = "BEIT_URL_QUERIES"
"""JSON of address -> query; in the environment, because worker processes inherit that."""


class RemoteError(OSError):
    """A remote file could not be read or written, although it was tried several times. The message names the URL.

    Args:
        location: The URL.
        reason: What went wrong.
        is_missing: The server answered, and says that there is no such file.
        is_final: Asking again would not help; False where a server is away, which another day it may not be.
    """

    def __init__(self, location: str, reason: str, *, is_missing: bool = False, is_final: bool = False) -> None:
        super().__init__(f"{location} {reason}")
        self.is_missing, self.is_final = is_missing, is_final


def file_system_of(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL and the path inside it.

    Raises:
        InputError: the scheme is unknown, its settings are wrong, or the package that serves it is not installed.
    """
    scheme = url.split("://", 1)[0].rsplit("::", 1)[-1]
    try:
        file_system, inner = fsspec.core.url_to_fs(with_query(url), **_options(url))
        return file_system, inner
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        way_out = f"pip install 'beit[{extra}]'" if extra else _one_line(error)
        raise InputError(f"{url} needs a package that is not installed: {way_out}") from None
    except ValueError as error:
        raise InputError(f"{url} cannot be opened ({_one_line(error)}); check the scheme and the credentials") from None
    except Exception as error:
        raise InputError(f"{url} {explain(error)}") from None


def _options(url: str) -> dict[str, Any]:
    """Return our settings of the file systems of a URL, unless the user has their own."""
    if any(name in os.environ for name in _S3_OWN_RETRIES):
        return {}
    found = (scheme for scheme in _S3_SCHEMES if f"{scheme}://" in url)
    # Copies, because botocore writes into them.
    return {
        scheme: deepcopy(_S3_OPTIONS) for scheme in found if "config_kwargs" not in fsspec.config.conf.get(scheme, {})
    }


@contextmanager
def one_clear_line(location: str, doing: Doing = "read") -> Iterator[None]:
    """Turn whatever goes wrong inside the block into an `InputError` that names the URL.

    For looking at what a user named; reading what was found before is for `retry`.

    Raises:
        InputError: anything went wrong.
    """
    try:
        yield
    except InputError:
        raise
    except RemoteError as error:  # names a URL already
        raise InputError(str(error)) from None
    except Exception as error:
        raise InputError(f"{location} {explain(error, doing)}") from None


def retry(
    location: str, action: Callable[[], Result], doing: Doing = "read", *, is_first_contact: bool = False
) -> Result:
    """Return what `action` returns, after several attempts if need be.

    Args:
        location: URL that is read or written, for messages.
        action: Reads or writes; may be called again after any failure.
        doing: Which of the two.
        is_first_contact: Whether a user just named this place: then a server that cannot be reached at all is more
            likely a wrong address than one that restarts, and ends it at once.
    Raises:
        RemoteError: it failed for good, or too often.
        InputError: as raised by `action`.
    """
    for pause in (*_PAUSES_SECONDS, None):
        try:
            return action()
        except InputError:
            raise
        except Exception as error:
            is_hopeless = _is_permanent(error) or (is_first_contact and _finds_nobody(error))
            if pause is None or is_hopeless:
                reason = explain(error, doing)
                raise RemoteError(location, reason, is_missing=_is_missing(error), is_final=is_hopeless) from None
            logger.warning("%s %s; trying again in %g s", location, explain(error, doing), pause)
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


class RemoteFile(io.BufferedIOBase):
    """A remote file, read at any position; failed reads are tried again, and a short answer counts as failed.

    Args:
        location: URL, for messages.
        file: What fsspec opened; must be seekable.
    """

    def __init__(self, location: str, file: Any) -> None:
        self._location = location
        self._file = file
        self._size = int(file.seek(0, io.SEEK_END))
        self._position = 0

    def __repr__(self) -> str:
        """Show the URL."""
        return f"RemoteFile({self._location!r}, size={self._size})"

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
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Return `size` bytes, or all up to the end; fewer only there.

        Raises:
            RemoteError: they cannot be had.
        """
        left = max(0, self._size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        if not wanted:
            return b""
        data = retry(self._location, lambda: self._fetch(wanted))
        self._position += wanted
        return data

    def close(self) -> None:
        """Close the connection."""
        if not self.closed:
            self._file.close()
        super().close()

    def _fetch(self, length: int) -> bytes:
        self._file.seek(self._position)
        data = bytes(self._file.read(length))
        if len(data) != length:
            raise OSError(f"{len(data)} of {length} bytes came from byte {self._position}")
        return data


def explain(error: BaseException, doing: Doing = "read") -> str:
    """Return what happened, in words that follow the name of a URL."""
    origin = _origin(error)
    status = getattr(origin, "status", None)
    if _is_bucket_missing(error):
        return "names a bucket that does not exist"
    if _is_missing(error):
        return "does not exist" if doing == "read" else "cannot be written: its bucket or folder does not exist"
    if "redential" in type(origin).__name__:
        return (
            f"needs credentials ({_one_line(origin)}); set those of its storage, or for s3:// a public bucket: "
            "FSSPEC_S3_ANON=true"
        )
    if status in (401, 403) or isinstance(origin, PermissionError):
        answer = f"{status} {getattr(origin, 'message', '')}" if status else _one_line(origin)
        return f"may not be {doing} ({answer}); check the credentials"
    if status is not None:
        return f"cannot be {doing}: the server answers {status} {getattr(origin, 'message', '')}".rstrip()
    if "onnect" in type(origin).__name__:
        return f"cannot be reached ({_one_line(origin)}); check address and network"
    return f"cannot be {doing} ({_one_line(origin)})"


def _is_bucket_missing(error: BaseException) -> bool:
    # s3fs turns the code into this type, and keeps the server's words only.
    return isinstance(error, FileNotFoundError) and "bucket does not exist" in str(error)


def _finds_nobody(error: BaseException) -> bool:
    """Tell whether no server was found at the address; one that broke off is there."""
    name = type(_origin(error)).__name__
    return any(part in name for part in ("ConnectionRefused", "ClientConnector", "EndpointConnection"))


def _origin(error: BaseException) -> BaseException:
    # fsspec reports every failure to measure a web address as "not found", caused by the real one.
    cause = error.__cause__
    is_real = isinstance(cause, LookupError) or hasattr(cause, "response")  # of a dictionary's key, or as S3 says it
    return error if cause is None or is_real or not isinstance(error, FileNotFoundError) else cause


def _is_missing(error: BaseException) -> bool:
    origin = _origin(error)
    is_file = isinstance(origin, FileNotFoundError) or getattr(origin, "status", None) == 404
    return is_file and not _is_bucket_missing(origin)


def _is_permanent(error: Exception) -> bool:
    origin = _origin(error)
    status = getattr(origin, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _TRANSIENT_STATUSES
    is_missing = isinstance(origin, FileNotFoundError)
    return is_missing or isinstance(origin, _PERMANENT) or "redential" in type(origin).__name__


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def split_query(url: str) -> tuple[str, str]:
    """Return a web address without its query, and the query; of anything else, all of it and nothing."""
    found = _QUERY.search(url) if _WEB.match(url) else None
    return (url[: found.start()], url[found.start() + 1 :]) if found else (url, "")


def remember_query(url: str, query: str) -> None:
    """Let `with_query` add a query to an address, in this process and those it starts."""
    queries = json.loads(os.environ.get(_VARIABLE, "{}"))
    os.environ[_VARIABLE] = json.dumps(queries | {_canonical(url): query})


def query_of(url: str) -> str:
    """Return the query that was remembered of an address, or nothing."""
    if _VARIABLE not in os.environ or not _WEB.match(url):
        return ""
    return str(json.loads(os.environ[_VARIABLE]).get(_canonical(url), ""))


def with_query(url: str) -> str:
    """Return an address as it is opened."""
    query = query_of(url)
    return f"{url}?{query}" if query else url


def _canonical(url: str) -> str:
    # Names are unescaped and escaped again on their way, which may change how they are escaped.
    return urllib.parse.unquote(url)
