"""Schemes that obstore does not know (hf://, sftp://, memory://, chains such as simplecache::), through fsspec.

fsspec and the package of the scheme are the user's to install. Fewer promises than an object store gives: creation
looks before it writes where the package knows no better, nothing is pinned while it is read, and what fails is tried
again only if the package does so.
"""

from __future__ import annotations

import io
import shutil
from datetime import datetime
from typing import IO, Any

from beit.common.errors import InputError
from beit.common.storage.answers import FileStat, Judge, one_line

_VERSION_FIELDS = ("ETag", "etag", "mtime", "LastModified", "Last-Modified", "last_modified", "updated", "created")
_TIME_FIELDS = ("LastModified", "mtime", "updated", "last_modified", "created")


class FsspecStore:
    """One fsspec file system, with the calls of `ObjectStore`; keys are its own paths.

    Args:
        url: Of something in it.
    """

    def __init__(self, url: str) -> None:
        try:
            import fsspec

            found: tuple[Any, str] = fsspec.core.url_to_fs(url)  # one object for each file system
        except ImportError as error:
            raise InputError(
                f"{url} needs a package that is not installed ({one_line(error)}); pip install it"
            ) from None
        except ValueError as error:
            raise InputError(
                f"{url} cannot be opened ({one_line(error)}); check the scheme and the credentials"
            ) from None
        self._files = found[0]
        self.key = found[1]
        """Path of what `url` names."""

    def get(
        self, key: str, start: int | None = None, end: int | None = None, *, e_tag: str = "", limit: int | None = None
    ) -> tuple[bytes, FileStat]:
        """Return the bytes from `start` to `end`, or all; fewer where the file ends. Versions are not known."""
        if limit is not None:
            start, end = 0, limit
        data = bytes(self._files.cat_file(key, start=start, end=end))
        return data, FileStat(key, len(data), "")

    def begin(self, key: str, start: int, end: int) -> tuple[bytes, FileStat]:
        """Return bytes as `get` does, with size and version of the whole file."""
        return self.get(key, start, end)[0], self.head(key)

    def head(self, key: str, *, at_offsets: bool = False) -> FileStat:
        """Return size and version of a file."""
        info = self._fresh(key).info(key)
        if info.get("type") == "directory":
            raise FileNotFoundError(key)
        return _stat(info)

    def level(self, folder: str) -> tuple[list[FileStat], list[str]]:
        """Return the files and the names of the folders that lie directly in a folder."""
        try:
            found = list(self._fresh(folder).ls(folder, detail=True))
        except FileNotFoundError:
            return [], []
        # Some programs mark a folder by an empty object of its name.
        found = [info for info in found if info["name"].strip("/") != folder.strip("/")]
        folders = [info["name"] for info in found if info.get("type") == "directory"]
        return [_stat(info) for info in found if info.get("type") != "directory"], folders

    def walk(self, folder: str) -> list[FileStat]:
        """Return all files below a folder."""
        found = self._fresh(folder).find(folder, detail=True)
        return [_stat(info | {"name": name}) for name, info in found.items()]

    def put(self, key: str, data: bytes | IO[bytes]) -> None:
        """Write a file as a whole, over an older one."""
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        source.seek(0)
        with self._files.open(key, "wb") as target:
            shutil.copyfileobj(source, target)

    def create(self, key: str, data: bytes) -> bool:
        """Write a small file unless there is one; return whether it was done."""
        try:
            self._files.pipe_file(key, data, mode="create")
        except FileExistsError:
            return False
        return True

    def swap(self, key: str, data: bytes, is_old: Judge) -> bool:
        """Write a small file over another if `is_old` says that it is the one; return whether it was done."""
        try:
            is_same = is_old(self.get(key)[0])
        except FileNotFoundError:
            return False
        if is_same:
            self.put(key, data)
        return is_same

    def delete(self, key: str) -> None:
        """Remove a file, if it is there."""
        try:
            self._files.rm_file(key)
        except FileNotFoundError:
            return
        finally:
            self._fresh(key)

    def _fresh(self, path: str) -> Any:
        self._files.invalidate_cache(path)  # a listing of this process may be hours old
        return self._files


def _stat(info: dict[str, Any]) -> FileStat:
    version = next((str(info[field]) for field in _VERSION_FIELDS if info.get(field)), "")
    modified = next((info[field] for field in _TIME_FIELDS if info.get(field) is not None), None)
    if isinstance(modified, datetime):
        modified = modified.timestamp()
    modified_ns = int(modified * 1e9) if isinstance(modified, float) else None
    return FileStat(info["name"], int(info.get("size") or 0), version, modified_ns)
