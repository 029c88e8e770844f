"""Files and folders by path or URL: list, match, measure and open them alike, local or remote.

Local paths use the operating system directly; anything with a scheme (`s3://`, `gs://`, `https://`, `memory://`) goes
through fsspec. Not here: what the files contain.
"""

from __future__ import annotations

import glob
import io
import itertools
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from beit.common.errors import InputError
from beit.common.storage.remote_file import RemoteFile, file_system_of, one_clear_line, retry

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
    """Join a folder or URL and a relative path with slashes; an absolute local path wins over a local root.

    The relative path is a file's name as people write it; in a web address it is percent-escaped.
    """
    if root.startswith(_WEB_SCHEMES):
        relative = urllib.parse.quote(relative)
    return f"{root.rstrip('/')}/{relative}" if is_remote(root) else os.path.join(root, relative)


def relative_to(root: str, path: str) -> str:
    """Return a path or URL below `root` as the relative path that `join` takes."""
    relative = path[len(root.rstrip("/")) :].lstrip("/")
    return urllib.parse.unquote(relative) if root.startswith(_WEB_SCHEMES) else relative


def open_binary(path: str, *, read_ahead: bool = True, insist: bool = False) -> BinaryIO:
    """Open a file for reading, seekable; local files are unbuffered.

    Args:
        path: Normalised path or URL.
        read_ahead: Of a remote file, fetch more than is asked for, because what follows is wanted next.
        insist: Try again where a server does not answer, because the file was found before.
    Raises:
        InputError: the file cannot be opened, or the server cannot serve byte ranges.
        RemoteError: it cannot be had although we insisted.
    """
    if not is_remote(path):
        try:
            return cast(BinaryIO, open(path, "rb", buffering=0))
        except OSError as error:
            raise InputError(f"{path} cannot be opened ({error.strerror or error})") from None
    if insist:
        return cast(BinaryIO, retry(path, lambda: _open_remote(path, read_ahead)))
    with one_clear_line(path):
        return cast(BinaryIO, _open_remote(path, read_ahead))


def _open_remote(path: str, read_ahead: bool) -> RemoteFile:
    file_system, inner = file_system_of(path)
    options = {"cache_type": "readahead" if read_ahead else "none"}
    if path.startswith(_WEB_SCHEMES):
        info = file_system.info(inner)
        if info["size"] == 0:
            return RemoteFile(path, io.BytesIO())  # fsspec would open it as a stream, which cannot seek
        options["size"] = info["size"]
        _require_ranges(path, file_system, inner, info)
    return RemoteFile(path, file_system.open(inner, "rb", **options))


def _require_ranges(path: str, file_system: Any, inner: str, info: dict[str, Any]) -> None:
    """Find out whether a web server serves byte ranges: some do not, and fsspec learns it from a read off the start."""
    try:
        if info["size"] is None or info.get("partial") is False:
            raise ValueError
        with file_system.open(inner, "rb", cache_type="none", size=info["size"]) as probe:
            probe.seek(1)
            probe.read(1)
    except ValueError:
        raise InputError(f"{path} cannot be read at offsets on this server; copy it to a disk first") from None


def read_range(path: str, start: int, end: int) -> bytes:
    """Return the bytes [start, end) of a remote file in one request; several threads may do so at once.

    The file must have been opened by `open_binary` before, which finds out whether the server knows ranges.

    Raises:
        RemoteError: they cannot be had.
    """

    def fetch() -> bytes:
        file_system, inner = file_system_of(path)
        data = bytes(file_system.cat_file(inner, start=start, end=end))
        if len(data) != end - start:
            raise OSError(f"{len(data)} of {end - start} bytes came from byte {start}")
        return data

    return retry(path, fetch)


def read_file(path: str, *, max_bytes: int) -> bytes:
    """Read a whole file, or at most `max_bytes` + 1 bytes of it, so that the caller can tell that it is too long.

    Raises:
        OSError: the file cannot be read; of a remote one, `RemoteError`.
    """
    if is_remote(path):
        return retry(path, lambda: _read_remote(path, max_bytes + 1))
    with open(path, "rb") as file:
        return file.read(max_bytes + 1)


def _read_remote(path: str, limit: int) -> bytes:
    file_system, inner = file_system_of(path)
    # A web address is not asked for its size first, and need not serve ranges: one request for each small file.
    options = {"block_size": 0, "size": 1} if path.startswith(_WEB_SCHEMES) else {"cache_type": "none"}
    parts: list[bytes] = []
    with file_system.open(inner, "rb", **options) as file:
        while limit > 0 and (part := file.read(limit)):
            parts.append(bytes(part))
            limit -= len(part)
    return b"".join(parts)


def is_folder(path: str) -> bool:
    """Tell whether a normalised path or URL is a folder that can be listed."""
    if not is_remote(path):
        return os.path.isdir(path)
    if _WILDCARD.search(path) or _BRACES.search(path):
        return False
    file_system, inner = file_system_of(path)
    with one_clear_line(path):
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
    matches: dict[str, FileInfo | None] = {}
    for alternative in expand_braces(path):
        is_pattern = _WILDCARD.search(alternative)
        found = _match_wildcards(alternative) if is_pattern else {alternative: None}
        if not found:
            raise InputError(f"{alternative} matches no file; check the path")
        matches |= {path: info for path, info in found.items() if path not in matches}
    return measure_files(matches)


def measure_files(listed: Mapping[str, FileInfo | None]) -> list[FileInfo]:
    """Stat the files of which size or version is not known yet, remote ones at the same time.

    Args:
        listed: What a listing said of each path, in order; None for nothing.
    Raises:
        InputError: one is missing or cannot be read.
    """
    unknown = [path for path, info in listed.items() if info is None or (is_remote(path) and not info.size)]
    if len(unknown) < 2 or not is_remote(unknown[0]):
        found = dict(zip(unknown, map(_stat, unknown), strict=True))
    else:
        with ThreadPoolExecutor(_STAT_THREADS) as pool:
            found = dict(zip(unknown, pool.map(_stat, unknown), strict=True))
    return [found.get(path) or cast(FileInfo, info) for path, info in listed.items()]


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


def _match_wildcards(pattern: str) -> dict[str, FileInfo | None]:
    if not is_remote(pattern):
        return {path: None for path in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(path)}
    file_system, inner = file_system_of(pattern)
    with one_clear_line(pattern):
        found = file_system.glob(inner, detail=True)
        files = {str(file_system.unstrip_protocol(path)): info for path, info in found.items() if _is_file(info)}
    return {path: remote_info(path, files[path]) for path in sorted(files)}


def _is_file(info: dict[str, Any]) -> bool:
    return info.get("type") != "directory"


def _stat(path: str) -> FileInfo:
    if not is_remote(path):
        try:
            status = os.stat(path)
        except OSError as error:
            raise InputError(f"{path} does not exist or cannot be read ({error.strerror or error})") from None
        except ValueError as error:  # a zero byte, or half a surrogate pair
            raise InputError(f"{path!a} is no path ({error})") from None
        return FileInfo(path, status.st_size, str(status.st_mtime_ns))
    file_system, inner = file_system_of(path)
    with one_clear_line(path):
        file_system.invalidate_cache(inner)  # a listing of this process may be hours old
        return remote_info(path, file_system.info(inner))


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
            with one_clear_line(root):
                files = list(_walk_remote(root))
        else:
            files = list(_walk_local(root, "", frozenset()))
    except OSError as error:
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
        if not _is_file(info):
            continue  # a web server's link to a folder above
        relative = relative_to(inner, path)
        if not any(part.startswith(".") for part in relative.split("/")):
            yield remote_info(relative, info)
