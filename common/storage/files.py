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
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from beit.common.errors import InputError

FAULT_VARIABLE = "BEIT_FAULT"
_HASH_BLOCK_BYTES = 1 << 20
_OWN_DESCRIPTOR = re.compile(r"/dev/(?P<name>stdout|stderr)|(/dev/fd|/proc/self/fd)/(?P<number>\d+)")


def default_cache_dir() -> Path:
    """Return the folder for what can be made or fetched again: $BEIT_CACHE, or ~/.cache/beit."""
    return Path(os.environ.get("BEIT_CACHE") or Path.home() / ".cache" / "beit")


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
    # Unique even among processes of several machines, which may share a process id.
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}.{secrets.token_hex(4)}")
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
        with atomic_file(Path(os.path.realpath(path))) as file:
            yield file
        return
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        with _open_special(path) as target:
            shutil.copyfileobj(file, target)


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
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; name a file")
    if path.is_block_device() or path.is_socket():
        raise InputError(f"{option} {path} is a disk or a socket; name a file")
    if is_special(path):
        return
    folder = Path(os.path.realpath(path)).parent
    while makes_folder and not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{option} {path}: the folder {folder} does not exist; create it")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{option} {path}: the folder {folder} may not be written to; name another")


def _open_special(path: Path) -> BinaryIO:
    """Open what is no regular file; what this process has open itself goes on where it is (`> file`)."""
    match = _OWN_DESCRIPTOR.fullmatch(str(path.absolute()))
    if match is None:
        return path.open("ab")
    sys.stdout.flush()
    number = match["number"] or {"stdout": "1", "stderr": "2"}[match["name"]]
    return os.fdopen(os.dup(int(number)), "wb")


def is_special(path: Path) -> bool:
    """Tell whether a path is to be written into: what is no regular file, or what the process has open."""
    return (path.exists() and not path.is_file()) or path.absolute().parts[1:2] in (("dev",), ("proc",))


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
        if self.point and not count.isdecimal():
            raise InputError(f"{FAULT_VARIABLE} ({value}) must have the form point:n")
        self.passes_left = int(count or 0)


_trap = _Trap(os.environ.get(FAULT_VARIABLE))


def fault_point(name: str) -> None:
    """Die here if the environment says so."""
    if name != _trap.point:
        return
    _trap.passes_left -= 1
    if _trap.passes_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def set_trap(value: str) -> None:
    """Set the trap in this process, as the environment variable does at its start: "point:n", or "" for none."""
    global _trap
    _trap = _Trap(value)
