"""Which files a user's words name: braces, wildcards and folders, local or remote, measured."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import replace

from beit.common.errors import InputError
from beit.common.storage.answers import FileStat, MissingFile
from beit.common.storage.local_place import report_special
from beit.common.storage.paths import WEB_SCHEMES, expand_braces, has_braces, is_remote, normalise
from beit.common.storage.place import for_each, place_of
from beit.common.storage.remote_place import RemotePlace

_WILDCARD = re.compile(r"[*?\[]")


def is_folder(path: str) -> bool:
    """Tell whether a normalised path or URL is a folder that can be listed."""
    if is_remote(path) and (_WILDCARD.search(path) or has_braces(path)):
        return False
    return place_of(path, is_first_contact=True).is_folder()


def list_folder(root: str) -> list[FileStat]:
    """List every file below a folder, at any depth, sorted by relative path; hidden ones are left out.

    Args:
        root: Normalised path or URL.
    """
    return sorted(place_of(root, is_first_contact=True).walk(), key=lambda file: file.path)


def match_files(pattern: str) -> list[FileStat]:
    """Expand brace lists, brace ranges and wildcards, and stat what they name.

    Args:
        pattern: Such as `a/b.tar`, `a/*.tar`, `s3://bucket/train-{0000..1023}.tar` or `a/{train,val}.csv`.
    Returns:
        The files, absolute, in the order of the braces, sorted within each wildcard, without repetition.
    """
    path = normalise(pattern)
    if not is_remote(path) and os.path.exists(path):
        return [_stat(path)]  # the characters of a pattern may also stand in a name
    matches: dict[str, FileStat | None] = {}
    for alternative in expand_braces(path):
        found = _match_wildcards(alternative) if _WILDCARD.search(alternative) else {alternative: None}
        if not found:
            raise InputError(f"{alternative} matches no file; check the path")
        matches |= {path: stat for path, stat in found.items() if path not in matches}
    return measure_files(matches)


def measure_files(listed: Mapping[str, FileStat | None]) -> list[FileStat]:
    """Stat the files of which size or version is not known yet, remote ones at the same time.

    Args:
        listed: What a listing said of each path, in order; None for nothing.
    """
    unknown = [path for path, stat in listed.items() if stat is None or (is_remote(path) and not stat.size)]
    found = {path: stat for path, stat in listed.items() if stat is not None}
    found |= zip(unknown, for_each(_stat, unknown), strict=True)
    return [replace(found[path], path=path) for path in listed]


def _stat(path: str) -> FileStat:
    return place_of(path, is_first_contact=True).stat()


def _match_wildcards(pattern: str) -> dict[str, FileStat | None]:
    if not is_remote(pattern):
        found = sorted(glob.glob(pattern, recursive=True))
        files = [path for path in found if os.path.isfile(path)]
        report_special(pattern, [path for path in set(found) - set(files) if _is_special(path)])
        return dict.fromkeys(files)
    scheme, nothing, root, *parts = pattern.split("/")
    top = RemotePlace("/".join((scheme, nothing, root)), is_first_contact=True)
    try:
        return dict(sorted((str(found), stat) for found, stat in _match_parts(top, parts)))
    except MissingFile:  # as web servers say it of a folder
        return {}
    except InputError as error:
        # It names the folder at which it happened, which the user did not.
        raise InputError(f"{pattern} {str(error).partition(' ')[2]}") from None


def _is_special(path: str) -> bool:
    return os.path.exists(path) and not os.path.isdir(path)


def _match_parts(folder: RemotePlace, parts: list[str]) -> Iterator[tuple[RemotePlace, FileStat]]:
    """Walk down a pattern, one level after the other, so that only folders that may match are listed."""
    name, rest = parts[0], parts[1:]
    if folder.location.startswith(WEB_SCHEMES):
        name = urllib.parse.unquote(name)
    if name == "**":
        deep = re.compile(f"(.*/)?{fnmatch.translate('/'.join(rest or ['*']))}")
        yield from ((folder / file.path, file) for file in folder.walk() if deep.match(file.path))
    elif rest:
        is_plain = not _WILDCARD.search(name)
        names = [name] if is_plain else [found for found in folder.folders() if fnmatch.fnmatchcase(found, name)]
        for found in names:
            yield from _match_parts(folder / found, rest)
    else:
        yield from ((folder / file.path, file) for file in folder.files() if fnmatch.fnmatchcase(file.path, name))
