"""One file from the web: resumed where it broke off, tried from several addresses, under its name only when complete.

The bytes collect in `NAME.part`, and `NAME.part.json` remembers what they are a part of. The standard library's client
is used because it is enough: it honours http_proxy, https_proxy and no_proxy. Not here: what the file should contain;
the caller's `check` says whether it does.
"""

from __future__ import annotations

import http.client
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from beit import __version__
from beit.common.errors import InputError
from beit.common.progress import Progress
from beit.common.storage.documents import read_json, write_json
from beit.common.storage.files import fsync_directory

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 30.0
"""Without a byte, when connecting as well as later."""
BACK_OFF_SECONDS = (1.0, 4.0, 15.0)
"""Pauses before the attempts that follow one without progress; then the next address is tried."""
_BLOCK_BYTES = 1 << 18
_PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)
"""Answers that may be different in a minute; every other one is final."""


class DownloadError(Exception):
    """No address gave the file. The message holds one reason per address, on one line."""


@dataclass(frozen=True, slots=True)
class _Part:
    """What the bytes of a .part file are the beginning of."""

    url: str
    validator: str
    """Strong ETag or date by which the server recognises the version; empty if it names none."""
    size: int | None
    """Of the whole file; None if the server does not tell."""


class _Refused(Exception):
    """The address answered, and will not give the file."""


class _Broken(Exception):
    """The connection failed or broke off.

    Args:
        reason: For the message.
        reached: Whether there was an answer; where there was none, trying again at once has little point.
    """

    def __init__(self, reason: str, *, reached: bool) -> None:
        super().__init__(reason)
        self.reached = reached


def download(urls: Sequence[str], destination: Path, *, check: Callable[[Path], None]) -> str:
    """Fetch one file, trying the addresses in order, and return the address it came from.

    Interrupted at any point, it leaves a .part file that the next call continues if the server still has that version.

    Args:
        urls: http or https.
        destination: Where the complete file appears; its folder exists. The caller keeps other processes away.
        check: Called with the complete file before it gets its name; raises `InputError` if it is the wrong one.
    Raises:
        DownloadError: no address gave a file that passes `check`.
        OSError: it cannot be written.
    """
    part_file = destination.with_name(f"{destination.name}.part")
    reasons: list[str] = []
    for url in urls:
        if reasons:
            logger.info("%s; trying %s", reasons[-1], url)
        try:
            _fetch(url, part_file)
            check(part_file)
        except (_Refused, _Broken) as error:
            reasons.append(f"{url}: {error}")
        except InputError as error:
            _discard(part_file)
            reasons.append(f"{url}: what it gave is not the file: {error}")
        else:
            os.replace(part_file, destination)
            fsync_directory(destination.parent)
            _discard(part_file)
            return url
    raise DownloadError("; ".join(reasons))


def _fetch(url: str, part_file: Path) -> None:
    """Complete `part_file` from one address, with a few attempts.

    Raises:
        _Refused: a final answer.
        _Broken: no attempt got further.
    """
    pauses = list(BACK_OFF_SECONDS)
    progressed = False
    while True:
        before = _size(part_file)
        try:
            _attempt(url, part_file)
            return
        except _Broken as error:
            if _size(part_file) > before:
                progressed = True
                pauses = list(BACK_OFF_SECONDS)  # a connection that breaks now and then still gets there
            if not pauses or not (error.reached or progressed):
                raise
            logger.info("%s: %s; trying again in %g s", url, error, pauses[0])
            time.sleep(pauses.pop(0))


def _attempt(url: str, part_file: Path) -> None:
    have = _resumable(url, part_file)
    if have is not None and have.size == _size(part_file):
        return  # all bytes are there, only the name was not given
    headers = {"User-Agent": f"beit/{__version__}", "Accept-Encoding": "identity"}
    if have is not None:
        headers["Range"] = f"bytes={_size(part_file)}-"
        if have.validator:
            headers["If-Range"] = have.validator  # with another version there, the server sends all of it
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have is not None:
            _discard(part_file)
            raise _Broken("the server has another version now", reached=True) from None
        reason = f"HTTP {error.code} {error.reason}"
        raise (_Broken(reason, reached=True) if error.code in _PASSING_STATUS else _Refused(reason)) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Broken(_reason(error), reached=isinstance(error, http.client.HTTPException)) from None
    with response:
        offset, part = _interpret(response, url, have, part_file)
        if offset == 0:
            _discard(part_file)
            write_json(_note(part_file), asdict(part))
        try:
            with part_file.open("r+b" if offset else "wb") as file:
                file.seek(offset)
                _copy(response, file, part, name=part_file.name.removesuffix(".part"))
        except OSError as error:
            error.filename = error.filename or str(part_file)  # "no space left" alone does not tell where
            raise


def _interpret(response: http.client.HTTPResponse, url: str, have: _Part | None, part_file: Path) -> tuple[int, _Part]:
    """Return where the bytes of an answer belong, and what they are a part of.

    Raises:
        _Refused: a web page, as proxies and log-in portals send.
        _Broken: a continuation of something else; the .part file is gone, so that the next attempt starts anew.
    """
    content_type = response.headers.get_content_type()
    if content_type == "text/html":
        raise _Refused("a web page came instead of the file; a proxy or log-in page may be in between")
    etag = response.headers.get("ETag", "")
    validator = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    if response.status == 206 and have is not None:
        unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
        span, _, total = rest.partition("/")
        is_next = unit == "bytes" and span.partition("-")[0] == str(_size(part_file)) and total in ("*", str(have.size))
        if is_next and validator == have.validator:
            return _size(part_file), have
        _discard(part_file)
        raise _Broken("the server has another version now", reached=True)
    length = response.headers.get("Content-Length", "")
    return 0, _Part(url=url, validator=validator, size=int(length) if length.isdigit() else None)


def _copy(response: http.client.HTTPResponse, file: BinaryIO, part: _Part, *, name: str) -> None:
    """Append the rest of an answer to `file` and make it durable.

    Raises:
        _Broken: the connection ended early.
        OSError: the file cannot be written.
    """
    total = None if part.size is None else _megabytes(part.size)
    with Progress(total, unit="MB", description=f"download {name}", initial=_megabytes(file.tell())) as progress:
        while True:
            try:
                block = response.read1(_BLOCK_BYTES)  # what has arrived, so that a silence loses nothing
            except (OSError, http.client.HTTPException) as error:
                raise _Broken(_reason(error), reached=True) from None
            if not block:
                break
            before = _megabytes(file.tell())
            file.write(block)
            progress.update(_megabytes(file.tell()) - before)
    file.flush()
    os.fsync(file.fileno())
    if part.size is not None and file.tell() != part.size:
        raise _Broken(f"it broke off after {file.tell()} of {part.size} bytes", reached=True)


def _resumable(url: str, part_file: Path) -> _Part | None:
    """Return what the .part file is a part of, if it can be continued from `url`."""
    if not _size(part_file) or not _note(part_file).is_file():
        return None
    part = _Part(**read_json(_note(part_file)))
    return part if part.url == url and part.size is not None and part.size >= _size(part_file) else None


def _megabytes(count: int) -> int:
    return count // 1_000_000


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _note(part_file: Path) -> Path:
    return part_file.with_name(f"{part_file.name}.json")


def _discard(part_file: Path) -> None:
    part_file.unlink(missing_ok=True)
    _note(part_file).unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    """Return why a request failed, without Python's wrapping."""
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return str(inner) or type(inner).__name__
