"""A file or folder of this machine, with the calls of every `Place`."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import IO, BinaryIO, cast

from beit.common.errors import InputError
from beit.common.storage.answers import FileStat, Judge, MissingFile
from beit.common.storage.files import atomic_file, write_atomic

logger = logging.getLogger(__name__)

_PIECE_BYTES = 8 << 20


class LocalPlace:
    """A file or folder.

    Args:
        location: Its path; nothing need be there.
    """

    __slots__ = ("location", "path")

    def __init__(self, location: str) -> None:
        self.location = location
        self.path = Path(location)

    def __repr__(self) -> str:
        return f"LocalPlace({self.location!r})"

    def __str__(self) -> str:
        return self.location

    def __truediv__(self, name: str) -> LocalPlace:
        return LocalPlace(os.path.join(self.location, name))

    def stat(self) -> FileStat:
        """Return size and version of a file as they are now."""
        try:
            status = os.stat(self.location)
        except (FileNotFoundError, NotADirectoryError):
            raise MissingFile(f"{self.location} does not exist") from None
        except OSError as error:
            raise InputError(f"{self.location} cannot be read ({error.strerror or error})") from None
        except ValueError as error:  # a zero byte, or half a surrogate pair
            raise InputError(f"{self.location!a} is no path ({error})") from None
        self._require_no_special(status)
        return _stat(self.location, status)

    def exists(self) -> bool:
        """Tell whether there is a file or folder now."""
        return os.path.exists(self.location)

    def is_folder(self) -> bool:
        """Tell whether this is a folder."""
        return os.path.isdir(self.location)

    def files(self) -> list[FileStat]:
        """Return the files that lie directly in a folder, by name; none where there is no folder."""
        found = []
        with suppress(FileNotFoundError), os.scandir(self.location) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # a temporary file, renamed meanwhile
                    if entry.is_file():
                        found.append(_stat(entry.name, entry.stat()))
        return sorted(found, key=lambda file: file.path)

    def names(self) -> list[str]:
        """Return the names that lie directly in a folder."""
        return sorted(os.listdir(self.location)) if os.path.isdir(self.location) else []

    def walk(self) -> list[FileStat]:
        """Return every file below, at any depth, by relative path; hidden ones are left out.

        Links are followed; a link to nothing is listed with size 0. Pipes, sockets and devices, at which a reader would
        wait for ever, are left out, and the log says so.
        """
        special: list[str] = []
        try:
            found = list(_walk(self.location, "", frozenset(), special))
        except OSError as error:
            what = error.filename or self.location
            raise InputError(
                f"{self.location} cannot be listed ({what}: {error.strerror or error}); make it readable, or name "
                "what is to be read with a pattern"
            ) from None
        report_special(self.location, special)
        return found

    def read(self, *, limit: int | None = None) -> bytes:
        """Return the content of a file, or its first `limit` bytes."""
        with self.open() as file:
            return file.read() if limit is None else file.read(limit)

    def read_range(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to `end`; fewer only where the file ends."""
        with self.open() as file:
            file.seek(start)
            return file.read(end - start)

    def pieces(self) -> Iterator[bytes]:
        """Yield the content of a file of any size, some megabytes each time."""
        with self.open() as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece

    def open(self, *, read_ahead: bool = True) -> BinaryIO:
        """Open a file for reading at any position; unbuffered."""
        try:
            # Without blocking: of a pipe, opening alone would wait for somebody who writes.
            file = open(self.location, "rb", buffering=0, opener=_open_without_blocking)
            try:
                self._require_no_special(os.fstat(file.fileno()))
            except InputError:
                file.close()
                raise
            return cast(BinaryIO, file)
        except (FileNotFoundError, NotADirectoryError):
            raise MissingFile(f"{self.location} does not exist") from None
        except OSError as error:
            raise InputError(f"{self.location} cannot be opened ({error.strerror or error})") from None

    def _require_no_special(self, status: os.stat_result) -> None:
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise InputError(f"{self.location} is no regular file but a pipe, a socket or a device; name a file")

    def write(self, data: bytes) -> None:
        """Write a small file as a whole, over an older one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, data)

    def new_file(self) -> AbstractContextManager[BinaryIO]:
        """Open a file that appears here, over an older one, only if the block succeeds."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return atomic_file(self.path)

    def write_file(self, file: IO[bytes]) -> None:
        """Write the content of an open file of any size, over an older one."""
        file.seek(0)
        with self.new_file() as target:
            shutil.copyfileobj(file, target)

    def create(self, data: bytes) -> bool:
        """Write a small file unless there is one; return whether `data` stands there now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(descriptor, data)
        except OSError as error:  # a full disk
            error.filename = self.location
            self.path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return True

    def replace(self, data: bytes, is_old: Judge) -> bool:
        """Write a small file over another of equal length if `is_old` says that it is the one; return whether it was.

        In place: the file is never absent, so that nobody else can create it meanwhile.
        """
        with suppress(FileNotFoundError), self.path.open("r+b", buffering=0) as file:
            if is_old(file.read()):
                file.seek(0)
                file.write(data)
                return True
        return False

    def take(self, data: bytes, is_old: Judge) -> bool:
        """Write a small file over another if `is_old` says that it is the one; of several processes, one gets True."""
        # Renamed first: of several processes that judge the same file, one gets it.
        taken = self.path.with_name(f"{self.path.name}.dead.{secrets.token_hex(8)}")
        try:
            os.rename(self.path, taken)
        except FileNotFoundError:
            return False
        is_taken = is_old(taken.read_bytes())
        if not is_taken:  # between judging and renaming, another process replaced it by its own
            with suppress(OSError):
                os.link(taken, self.path)
        taken.unlink(missing_ok=True)
        return is_taken and self.create(data)

    def remove_temporaries(self, *starts: str) -> None:
        """Remove what killed processes left of files of this folder whose names start so; nobody is writing them."""
        for path in self.path.glob("*.tmp.*"):
            if path.name.startswith(starts):
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove a file, if it is there."""
        self.path.unlink(missing_ok=True)


def report_special(location: str, paths: Sequence[str]) -> None:
    """Say that something below `location` was left out because it is no regular file."""
    if paths:
        logger.warning(
            "%s: %d left out that are no regular files but pipes, sockets or devices, such as %s",
            location,
            len(paths),
            min(paths),
        )


def _open_without_blocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _stat(path: str, status: os.stat_result) -> FileStat:
    return FileStat(path, status.st_size, str(status.st_mtime_ns), status.st_mtime_ns)


def _leads_in_circles(entry: os.DirEntry[str]) -> bool:
    """Tell whether a link leads to itself, or to a link back to it: to nothing, as a link to what is gone."""
    if not entry.is_symlink():
        return False
    try:
        entry.stat()
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:
            return True
        raise
    return False


def _walk(folder: str, prefix: str, ancestors: frozenset[tuple[int, int]], special: list[str]) -> Iterator[FileStat]:
    """Yield what lies below a folder; names of what is no regular file are added to `special`."""
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in ancestors:
        return  # a link back to a parent folder
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _leads_in_circles(entry):
                yield FileStat(prefix + entry.name, 0, "broken link")
            elif entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/", ancestors | {identity}, special)
            elif entry.is_file():
                yield _stat(prefix + entry.name, entry.stat())
            elif os.path.exists(entry.path):
                special.append(prefix + entry.name)
            else:
                yield FileStat(prefix + entry.name, 0, "broken link")
