"""What a place answers: what it says of a file, or what went wrong, in one line that names the URL without its query.

obstore tells most failures in prose, fsspec passes on whatever the client library of a scheme raises; so errors are
told apart by what they carry: a type, a status, a few words.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from beit.common.errors import InputError

Doing = Literal["read", "written"]
"""What is being done to a remote file, for messages."""
Judge = Callable[[bytes], bool]
"""Tells from the content of a small file whether it is the one that is meant."""

_STATUS = re.compile(r"status code: (\d{3})(?: ([^:<\n]*))?")
_MESSAGE = re.compile(r"<Message>(.*?)</Message>", re.DOTALL)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)+)"')
_URL = re.compile(r"\w+://([^\s/?]*)\S*")
_URL_QUERY = re.compile(r"(\w+://[^\s?]*)\?\S*")
_NO_SUCH_BUCKET = ("NoSuchBucket", "bucket does not exist", "ContainerNotFound")
_NO_CREDENTIALS = ("169.254.169.254", "metadata.google.internal", "redential", "token file")
_NO_OFFSETS = ("Range request not supported", "Content-Length Header missing")
_TRANSIENT_STATUSES = (408, 425, 429)  # of the 4xx; all 5xx are
_PERMANENT = (PermissionError, IsADirectoryError, NotADirectoryError, ValueError, TypeError, NotImplementedError)


@dataclass(frozen=True, slots=True)
class FileStat:
    """One file as its place lists it."""

    path: str
    """Absolute path or URL; relative to the folder, with slashes, where a folder was listed."""
    size: int
    """Length in bytes; 0 where the place does not tell."""
    version: str
    """Modification time in ns, or the ETag; empty where the place does not tell."""
    modified_ns: int | None = None
    """Modification time in ns since 1970, as exact as the place knows it; None where it does not tell."""


class RemoteError(OSError):
    """A server is away, although it was tried several times; another day it may not be. The message names the URL."""


class MissingFile(InputError):
    """The place answers, and has no such file."""


class NoOffsets(InputError):
    """A web server serves this file as a whole only."""


def failure(location: str, error: BaseException, doing: Doing = "read", *, is_first_contact: bool = False) -> Exception:
    """Return what to raise in place of an error of a client library.

    Args:
        location: The URL.
        error: As caught.
        doing: What was tried.
        is_first_contact: Whether a user just named this place, so that it is the user who can mend it.
    Returns:
        `MissingFile`; `InputError` where asking again would not help; else `RemoteError`.
    """
    text = f"{location} {explain(error, doing)}"
    if _is_missing(error):
        return MissingFile(text) if doing == "read" else InputError(text)
    if any(mark in str(error) for mark in _NO_OFFSETS):
        return NoOffsets(text)
    return InputError(text) if is_first_contact or _is_permanent(error) else RemoteError(text)


def explain(error: BaseException, doing: Doing = "read") -> str:
    """Return what happened, in words that follow the name of a URL."""
    text, status, reason = str(error), *status_of(error)
    if type(error).__name__ == "PreconditionError":
        return "changed while it was read; run the command again"
    if any(mark in text for mark in _NO_SUCH_BUCKET):
        return "names a bucket that does not exist"
    if _is_missing(error):
        return "does not exist" if doing == "read" else "cannot be written: its bucket or folder does not exist"
    if any(mark in text for mark in _NO_OFFSETS):
        return "cannot be read at offsets on this server; copy it to a disk first"
    if _lacks_credentials(error):
        return (
            "needs credentials (Unable to locate credentials); set those of its storage, or for a public bucket "
            "AWS_SKIP_SIGNATURE=true (gs://: GOOGLE_SKIP_SIGNATURE=true)"
        )
    if status in (401, 403) or isinstance(error, PermissionError):
        return (
            f"may not be {doing} ({f'{status} {reason}'.strip() if status else one_line(error)}); check the credentials"
        )
    if status in (301, 307):
        return f"cannot be {doing}: it is in another region; set AWS_REGION to that of the bucket"
    if status is not None:
        return f"cannot be {doing}: the server answers {status} {reason}".rstrip()
    if _finds_nobody(error):
        found = _QUOTED.findall(text)
        detail = found[-1] if found else getattr(error, "strerror", None) or one_line(error)
        return f"cannot be reached ({detail}); check address and network"
    return f"cannot be {doing} ({one_line(error)})"


def _is_missing(error: BaseException) -> bool:
    """Tell whether the place answered that there is no such file."""
    is_file = isinstance(error, FileNotFoundError) or status_of(error)[0] == 404
    return is_file and not any(mark in str(error) for mark in _NO_SUCH_BUCKET)


def _is_permanent(error: BaseException) -> bool:
    """Tell whether asking again would give the same answer."""
    status = status_of(error)[0]
    if status is not None:
        return 300 <= status < 500 and status not in _TRANSIENT_STATUSES
    is_known = isinstance(error, _PERMANENT) or any(mark in str(error) for mark in _NO_SUCH_BUCKET)
    return is_known or _lacks_credentials(error)


def one_line(error: BaseException) -> str:
    """Return the words of an error without line breaks, queries of URLs and what obstore adds for its developers."""
    text = str(error).split("\n\nDebug source:")[0]
    return _URL_QUERY.sub(r"\1", " ".join(text.split())) or type(error).__name__


def status_of(error: BaseException) -> tuple[int | None, str]:
    """Return the status of the server's answer and what stands beside it; None where there was no answer."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(status, int):
        return status, str(getattr(error, "message", None) or getattr(error, "reason", None) or "")
    found = _STATUS.search(str(error))
    if found is None:
        return None, ""
    said = _MESSAGE.search(str(error))
    words = [found[2] or "", said[1] if said else ""]
    return int(found[1]), ": ".join(" ".join(word.split()) for word in words if word)


def _lacks_credentials(error: BaseException) -> bool:
    # An answer of the storage itself may speak of credentials, too: those were found, and are the wrong ones.
    text = _URL.sub(r"\1", str(error).split("\n", 1)[0].split("status code:")[0])
    is_told = any(mark in text for mark in _NO_CREDENTIALS) and "lacked valid authentication" not in text
    return is_told or "redential" in type(error).__name__


def _finds_nobody(error: BaseException) -> bool:
    """Tell whether no server was found at the address; one that broke off is there."""
    return isinstance(error, ConnectionRefusedError) or "kind: Connect" in str(error)
