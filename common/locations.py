"""Files and folders by path or URL: list, match, measure and open them alike, local or remote.

Local paths use the operating system directly; anything with a scheme (`s3://`, `gs://`, `https://`, `memory://`) goes
through fsspec. Not here: what the files contain.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec

from beit.common.errors import InputError

_BRACES = re.compile(r"\{([^{}]*)\}")
_BRACE_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_WILDCARD = re.compile(r"[*?\[]")
_VERSION_FIELDS = ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "last_modified", "updated", "created")
_WEB_SCHEMES = ("http://", "https://")
_STAT_THREADS = 16  # a remote stat is one request; arbitrary


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file as its file system lists it."""

    path: str
    """Absolute path or URL; relative to the folder, with slashes, where a folder was listed."""
    size: int
    """Length in bytes; 0 where the file system does not tell."""
    version: str
    """Modification time in ns, or the ETag; empty where the file system does not tell."""


def is_remote(path: str) -> bool:
    """Tell whether `path` has a scheme and is reached through fsspec."""
    return "://" in path and not path.startswith("file://")


def normalise(path: str) -> str:
    """Return a URL as it is, and a local path absolute, with `~` expanded and `file://` removed."""
    if is_remote(path):
        return path.rstrip("/")
    return os.path.abspath(os.path.expanduser(path.removeprefix("file://")))


def join(root: str, relative: str) -> str:
    """Join a folder or URL and a relative path with slashes; an absolute local path wins over a local root."""
    return f"{root.rstrip('/')}/{relative}" if is_remote(root) else os.path.join(root, relative)


def file_system_of(path: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL and the path inside it.

    Raises:
        InputError: the scheme is unknown, or the package that serves it is not installed.
    """
    try:
        file_system, inner = fsspec.core.url_to_fs(path)
        return file_system, inner
    except ImportError as error:
        raise InputError(f"{path} needs a package that is not installed ({error})") from None
    except ValueError as error:
        raise InputError(f"{path} cannot be opened ({error}); check the scheme") from None


def open_binary(path: str) -> BinaryIO:
    """Open a file for reading, seekable; local files are unbuffered.

    Raises:
        InputError: the file cannot be opened, or the server cannot serve byte ranges.
    """
    try:
        if not is_remote(path):
            return cast(BinaryIO, open(path, "rb", buffering=0))
        file_system, inner = file_system_of(path)
        if path.startswith(_WEB_SCHEMES):
            # Some servers ignore byte ranges, and fsspec learns it from a read off the start: better now than midway.
            with file_system.open(inner, "rb", cache_type="none") as probe:
                probe.seek(1)
                probe.read(1)
        return cast(BinaryIO, file_system.open(inner, "rb"))
    except InputError:
        raise
    except ValueError:
        raise InputError(f"{path} cannot be read at offsets on this server; copy it to a disk first") from None
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror or error})") from None


def read_file(path: str, *, max_bytes: int) -> bytes:
    """Read a whole file, or at most `max_bytes` + 1 bytes of it, so that the caller can tell that it is too long.

    Raises:
        OSError: the file cannot be read.
    """
    if not is_remote(path):
        with open(path, "rb") as file:
            return file.read(max_bytes + 1)
    file_system, inner = file_system_of(path)
    with file_system.open(inner, "rb") as remote_file:
        return cast(bytes, remote_file.read(max_bytes + 1))


def is_folder(path: str) -> bool:
    """Tell whether a normalised path or URL is a folder that can be listed."""
    if not is_remote(path):
        return os.path.isdir(path)
    if _WILDCARD.search(path) or _BRACES.search(path):
        return False
    file_system, inner = file_system_of(path)
    return bool(file_system.isdir(inner))


def match_files(pattern: str) -> list[FileInfo]:
    """Expand brace lists, brace ranges and wildcards, and stat what they name.

    Args:
        pattern: Such as `a/b.tar`, `a/*.tar`, `s3://bucket/train-{0000..1023}.tar` or `a/{train,val}.csv`.
    Returns:
        The files, absolute, in the order of the braces, sorted within each wildcard, without repetition.
    Raises:
        InputError: one of the alternatives names no file.
    """
    path = normalise(pattern)
    if not is_remote(path) and os.path.exists(path):
        return [_stat(path)]  # the characters of a pattern may also stand in a name
    matches: dict[str, None] = {}
    for alternative in expand_braces(path):
        found = _match_wildcards(alternative) if _WILDCARD.search(alternative) else [alternative]
        if not found:
            raise InputError(f"{alternative} matches no file; check the path")
        matches.update(dict.fromkeys(found))
    if len(matches) < 2 or not is_remote(path):
        return [_stat(match) for match in matches]
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        return list(pool.map(_stat, matches))


def expand_braces(text: str) -> list[str]:
    """Expand every `{a,b}` and `{000..012}` of a text; a range keeps the zero padding of its start."""
    pieces = _BRACES.split(text)  # text, content, text, content, ..., text
    options = [[piece] if index % 2 == 0 else _brace_options(piece) for index, piece in enumerate(pieces)]
    return ["".join(choice) for choice in itertools.product(*options)]


def _brace_options(content: str) -> list[str]:
    match = _BRACE_RANGE.fullmatch(content)
    if match is None:
        return content.split(",") if "," in content else [f"{{{content}}}"]
    start, stop = match.groups()
    numbers = range(int(start), int(stop) + 1) if int(start) <= int(stop) else range(int(start), int(stop) - 1, -1)
    return [f"{number:0{len(start)}d}" for number in numbers]


def _match_wildcards(pattern: str) -> list[str]:
    if not is_remote(pattern):
        return sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    file_system, inner = file_system_of(pattern)
    return sorted(str(file_system.unstrip_protocol(path)) for path in file_system.glob(inner))


def _stat(path: str) -> FileInfo:
    try:
        if not is_remote(path):
            status = os.stat(path)
            return FileInfo(path, status.st_size, str(status.st_mtime_ns))
        file_system, inner = file_system_of(path)
        return remote_info(path, file_system.info(inner))
    except OSError as error:
        raise InputError(f"{path} does not exist or cannot be read ({error.strerror or error})") from None


def remote_info(path: str, info: dict[str, Any]) -> FileInfo:
    """Translate what a fsspec file system says about one file."""
    version = next((str(info[field]) for field in _VERSION_FIELDS if info.get(field)), "")
    return FileInfo(path, int(info.get("size") or 0), version)


def list_folder(root: str) -> list[FileInfo]:
    """List every file below a folder, at any depth, sorted by relative path.

    Hidden files and folders (a leading dot) are left out. Links are followed; a link to nothing is listed with size 0.

    Args:
        root: Normalised path or URL.
    Raises:
        InputError: the folder cannot be listed.
    """
    try:
        if is_remote(root):
            files = list(_walk_remote(root))
        else:
            files = list(_walk_local(root, "", frozenset()))
    except (OSError, NotImplementedError) as error:
        raise InputError(f"{root} cannot be listed ({error})") from None
    return sorted(files, key=lambda file: file.path)


def _walk_local(folder: str, prefix: str, ancestors: frozenset[tuple[int, int]]) -> Iterator[FileInfo]:
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        return  # a link back to a parent folder
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _walk_local(entry.path, f"{prefix}{entry.name}/", ancestors | {identity})
            elif os.path.exists(entry.path):
                status = entry.stat()
                yield FileInfo(prefix + entry.name, status.st_size, str(status.st_mtime_ns))
            else:
                yield FileInfo(prefix + entry.name, 0, "broken link")


def _walk_remote(root: str) -> Iterator[FileInfo]:
    file_system, inner = file_system_of(root)
    for path, info in file_system.find(inner, detail=True).items():
        relative = path[len(inner.rstrip("/")) :].lstrip("/")
        if not any(part.startswith(".") for part in relative.split("/")):
            yield remote_info(relative, info)
