"""Remote files as objects: each is written, listed and read as a whole, and appears under its name when it is whole.

Any fsspec URL that can be written. What fails is tried again (`remote_file.py`); a fault that lasts becomes one line
that names the URL. Reading ranges, and many files at once, is `ranges.py`.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from beit.common.storage.remote_file import RemoteError, file_system_of, retry


def write_object(url: str, data: bytes) -> None:
    """Write a small remote file, over an older one if there is one.

    Raises:
        RemoteError: it cannot be written.
    """
    file_system, inner = file_system_of(url)
    retry(url, lambda: file_system.pipe_file(inner, data), "written")


def upload_file(path: Path, url: str) -> None:
    """Write a local file of any size to a remote one, over an older one if there is one.

    Raises:
        RemoteError: it cannot be written, or has another size afterwards.
    """
    file_system, inner = file_system_of(url)
    size = path.stat().st_size

    def upload() -> None:
        file_system.put_file(str(path), inner)
        file_system.invalidate_cache(inner)
        found = file_system.info(inner)["size"]
        if found != size:
            raise OSError(f"{found} of {size} bytes arrived")

    retry(url, upload, "written")


def create_object(url: str, data: bytes) -> bool:
    """Write a small remote file unless there is one of that name; return whether `data` stands there now.

    S3 and Google's storage decide in one step, by a conditional request, so of several processes one succeeds. Where a
    storage has no such request, several may: two that look at the same moment both see nothing.

    Args:
        url: Of the file.
        data: Told from that of others by its content.
    Raises:
        RemoteError: it cannot be written.
    """
    file_system, inner = file_system_of(url)

    def create() -> bool:
        try:
            file_system.pipe_file(inner, data, mode="create")
        except FileNotFoundError:
            raise  # no bucket
        except Exception as refused:
            # Or done by an attempt whose answer was lost; servers say that a file is there in several ways.
            with suppress(Exception):
                return bytes(file_system.cat_file(inner)) == data
            raise refused
        return True

    return retry(url, create, "written")


def is_exclusive(url: str) -> bool:
    """Find out whether `create_object` refuses a file that is there; `url` names one."""
    return not create_object(url, b"another content")


def read_object(url: str) -> bytes | None:
    """Return the content of a small remote file; None if there is none.

    Raises:
        RemoteError: it cannot be read.
    """
    file_system, inner = file_system_of(url)
    try:
        return retry(url, lambda: bytes(file_system.cat_file(inner)))
    except RemoteError as error:
        if error.is_missing:
            return None
        raise


def stat_object(url: str) -> dict[str, Any] | None:
    """Return what the storage says of a remote file now, as fsspec has it; None if there is no such file.

    Raises:
        RemoteError: it cannot be asked.
    """
    file_system, inner = file_system_of(url)

    def ask() -> dict[str, Any]:
        file_system.invalidate_cache(inner)  # a listing of this process may be hours old
        return dict(file_system.info(inner))

    try:
        info = retry(url, ask)
    except RemoteError as error:
        if error.is_missing:
            return None
        raise
    return None if info.get("type") == "directory" else info


def list_objects(url: str, *, is_first_contact: bool = False) -> dict[str, dict[str, Any]]:
    """Return what lies directly in a remote folder now, by name; nothing if there is no such folder.

    Args:
        url: Of the folder.
        is_first_contact: As of `retry`.
    Raises:
        RemoteError: it cannot be listed.
    """
    file_system, inner = file_system_of(url)

    def ask() -> list[dict[str, Any]]:
        file_system.invalidate_cache(inner)
        return list(file_system.ls(inner, detail=True))

    try:
        found = retry(url, ask, is_first_contact=is_first_contact)
    except RemoteError as error:
        if error.is_missing:
            return {}
        raise
    named = ((info["name"].rstrip("/").rsplit("/", 1)[-1], info) for info in found)
    # Some programs mark a folder by an empty object of its name.
    return {name: info for name, info in named if info["name"].rstrip("/") != inner.rstrip("/")}


def remove_object(url: str) -> None:
    """Remove a remote file, if it is there.

    Raises:
        RemoteError: it cannot be removed.
    """
    file_system, inner = file_system_of(url)

    def remove() -> None:
        try:
            file_system.rm_file(inner)
        except FileNotFoundError:
            return
        finally:
            file_system.invalidate_cache(inner)

    retry(url, remove, "written")
