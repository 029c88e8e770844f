"""Locations and what lies there: names seen from a folder, small files as a whole, whether there is something.

Not here: which paths are remote (`locations.py`), ranges of remote files (`ranges.py`), open files (`file_pool.py`).
"""

from __future__ import annotations

import os
import posixpath

from beit.common.storage.locations import is_remote, open_binary
from beit.common.storage.ranges import MissingFile, fetch, remote_stat


def resolve_location(root: str, name: str) -> str:
    """Return the location of `name` seen from the folder `root`; a URL or an absolute path stands for itself."""
    if is_remote(name) or os.path.isabs(name):
        return name
    scheme, separator, path = root.rpartition("://")
    return scheme + separator + posixpath.normpath(posixpath.join(path, name))


def read_whole(location: str) -> bytes:
    """Return the content of a small file.

    Raises:
        InputError: it cannot be read.
    """
    if is_remote(location):
        return fetch(location)
    with open_binary(location) as file:
        return file.read()


def location_exists(location: str, *, is_first_contact: bool = False) -> bool:
    """Tell whether there is a file or folder.

    Args:
        location: Path or URL.
        is_first_contact: As of `remote_file.retry`.
    Raises:
        InputError: its server cannot be asked.
    """
    if not is_remote(location):
        return os.path.exists(location)
    try:
        remote_stat(location, is_first_contact=is_first_contact)
    except MissingFile:
        return False
    return True
