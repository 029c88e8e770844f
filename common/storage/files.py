"""Files that are either complete or absent: atomic writes and hashes; and faults on purpose, to test that they are.

`BEIT_FAULT=point:n` kills the process, as kill -9 does, at the n-th pass of a named point. Points stand where a crash
would hurt: before and after a file gets its final name (`rename`, `renamed`) or a checkpoint is committed (`commit`,
`committed`), before one is set aside (`aside`), and between two samples of a shard (`sample`). Without the variable a
point does nothing. JSON is `storage/documents.py`'s.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

import psutil  # type: ignore[import-untyped]  # comes with deepspeed

from beit.common.errors import LFS_ADVICE, InputError, is_lfs_pointer
from beit.common.storage.paths import require_local

CACHE_VARIABLE, FAULT_VARIABLE = "BEIT_CACHE", "BEIT_FAULT"
_HASH_BLOCK_BYTES = 1 << 20
_TEMPORARY = re.compile(r"(?P<name>.+)\.tmp\.(?P<pid>[0-9]{1,10})(\.((?P<key>[0-9a-f]{8})[0-9a-f]{8}|[0-9a-f]{8}))?")
_STALE_SECONDS = 3600
_OWN_DESCRIPTOR = re.compile(r"/dev/(?P<name>stdout|stderr)|(/dev/fd|/proc/self/fd)/(?P<number>\d+)")
_DESCRIPTOR = re.compile(rf"{_OWN_DESCRIPTOR.pattern}|/proc/\d+/fd/\d+")
_POINTER_START_BYTES = 100
"""In which a pointer of Git LFS says what it is."""


def default_cache_dir() -> Path:
    """Return the folder for what can be made or fetched again: $BEIT_CACHE, or ~/.cache/beit."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "beit")


def fsync_directory(directory: Path) -> None:
    """Make renames inside `directory` durable; without it a power cut can undo a finished replace."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path to write to; what stands there appears under `path`, complete and durable, if the block succeeds.

    On any exception, a full disk included, the temporary file is removed and an older file at `path` stays as it was.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        fault_point("rename")
        os.replace(temporary, path)
        fault_point("renamed")
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # "no space left" alone does not tell where
        raise
    fsync_directory(path.parent)


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yield a folder beside `out` that takes its place if the block succeeds, and is gone if it does not.

    Raises:
        OSError: it could not be written; the message names `out`, not what stood for it meanwhile.
    """
    target = Path(os.path.realpath(out))
    new = [parent for parent in target.parents if not parent.exists()]  # the innermost first
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(target.parent, target.name)
    folder = target.with_name(temporary_name(target.name))
    folder.mkdir()
    try:
        yield folder
        for file in folder.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        fsync_directory(folder)
        os.replace(folder, target)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = str(error.filename or out).replace(str(folder), str(out))
        elif isinstance(error, OSError):
            error.args = tuple(str(said).replace(str(folder), str(out)) for said in error.args)
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # somebody else uses them by now
            for parent in new:
                parent.rmdir()
        raise
    fsync_directory(target.parent)


def temporary_name(name: str) -> str:
    """Name a file or folder that is being written: unique, and with what tells whether its writer is still there."""
    return f"{name}.tmp.{os.getpid()}.{_machine_key()}{secrets.token_hex(4)}"


def remove_stale(folder: Path, name: str = "", *, is_ours: bool = False) -> None:
    """Remove what killed processes left where they were writing.

    A writer of this machine that is gone left it for sure; one of another machine, or of a version whose names do not
    tell, if the file has stood still for an hour.

    Args:
        folder: Where they were writing.
        name: Of the file; left out, all of the folder.
        is_ours: No other machine writes here, so that names that do not tell are of this one.
    """
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or (name and match["name"] != name):
            continue
        with suppress(OSError):  # another process was quicker, or it is not ours to remove
            if match["key"] == _machine_key() or (is_ours and match["key"] is None):
                is_stale = _is_gone(int(match["pid"]))
            else:
                is_stale = time.time() - path.stat().st_mtime > _STALE_SECONDS
            if is_stale and path.is_dir():
                shutil.rmtree(path)
            elif is_stale:
                path.unlink()


def _is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


@cache
def _machine_key() -> str:
    return hashlib.sha256(machine_id().encode()).hexdigest()[:8]


def machine_id() -> str:
    """Name the boot of this machine and the process namespace, since containers may share a host name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return f"{socket.gethostname()}/{psutil.boot_time():.0f}"


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that appears under `path` as `atomic_path` has it."""
    with atomic_path(path) as temporary, temporary.open("w+b") as file:
        yield file


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically and durably."""
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def output_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file for what a user asked to have written to `path`; it appears if the block succeeds.

    A link is followed, not replaced, and what is no regular file, such as a pipe or /dev/stdout, is written into.
    """
    if not is_special(path):
        target = Path(os.path.realpath(path))
        remove_stale(target.parent, target.name)
        with atomic_file(target) as file:
            yield file
        return
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        with _open_special(path) as special:
            shutil.copyfileobj(file, special)


def write_output(path: Path, data: bytes) -> None:
    """Write `data` to a path that a user named, as `output_file` does, making the folder if needed."""
    Path(os.path.realpath(path)).parent.mkdir(parents=True, exist_ok=True)
    with output_file(path) as file:
        file.write(data)


def check_output(path: Path, *, option: str, makes_folder: bool = False) -> None:
    """Refuse an output file that cannot be written, before the work is done.

    Args:
        path: The file.
        option: How the user named it.
        makes_folder: Whether its folder will be made if it is missing.
    """
    require_local(path, f"{option} {path}")
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; name a file")
    if path.is_block_device() or path.is_socket():
        raise InputError(f"{option} {path} is a disk or a socket; name a file")
    if is_special(path):
        return
    folder = Path(os.path.realpath(path)).parent
    require_writable(existing(folder) if makes_folder else folder, f"{option} {path}")


def existing(folder: Path) -> Path:
    """Return a folder, or the innermost one above it that is there."""
    return next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)


def require_writable(folder: Path, named: str) -> None:
    """Refuse a folder that is not there, or in which nothing may be made; `named` is what the user gave."""
    if not folder.is_dir():
        raise InputError(f"{named}: the folder {folder} does not exist; create it")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{named}: the folder {folder} may not be written to; name another")


def _open_special(path: Path) -> BinaryIO:
    """Open what is no regular file; what this process has open itself goes on where it is (`> file`)."""
    match = _OWN_DESCRIPTOR.fullmatch(str(path.absolute()))
    if match is None:
        return path.open("ab")
    sys.stdout.flush()
    number = match["number"] or {"stdout": "1", "stderr": "2"}[match["name"]]
    return os.fdopen(os.dup(int(number)), "wb")


def is_special(path: Path) -> bool:
    """Tell whether a path is to be written into: what is no regular file, or what a process has open.

    A file in /dev/shm is one like any other.
    """
    return (path.exists() and not path.is_file()) or _DESCRIPTOR.fullmatch(str(path.absolute())) is not None


def refuse_lfs_pointer(file: Path) -> None:
    """Raise an `InputError` where a file that could not be read is a pointer of Git LFS; say nothing of any other."""
    with suppress(OSError), file.open("rb") as opened:
        if is_lfs_pointer(opened.read(_POINTER_START_BYTES)):
            raise InputError(f"{file} {LFS_ADVICE}")


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of the file at `path`, read in blocks."""
    with path.open("rb") as file:
        return sha256_of(file)


def sha256_of(file: BinaryIO) -> str:
    """Return the hex sha256 of an open file from its position on."""
    hasher = hashlib.sha256()
    while block := file.read(_HASH_BLOCK_BYTES):
        hasher.update(block)
    return hasher.hexdigest()


class _Trap:
    """The point at which to die, and how many passes are left until then."""

    def __init__(self, value: str | None) -> None:
        self.point, _, count = (value or "").partition(":")
        self.value, self.is_sound = value, not self.point or count.isdecimal()
        self.passes_left = int(count or 0) if self.is_sound else 0

    def check(self) -> None:
        if not self.is_sound:
            raise InputError(f"{FAULT_VARIABLE} ({self.value}) must have the form point:n; unset it, it is for tests")


_trap = _Trap(os.environ.get(FAULT_VARIABLE))  # checked when it is used: here nobody would make a line of the error


def fault_point(name: str) -> None:
    """Die here if the environment says so."""
    _trap.check()
    if name != _trap.point:
        return
    _trap.passes_left -= 1
    if _trap.passes_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def set_trap(value: str) -> None:
    """Set the trap in this process, as the environment variable does at its start: "point:n", or "" for none."""
    global _trap
    _trap = _Trap(value)
    _trap.check()
