"""Files that are either complete or absent: atomic writes and hashes; and faults on purpose, to test that they are.

`BEIT_FAULT=point:n` kills the process, as kill -9 does, at the n-th pass of a named point. Points stand where a crash
would hurt: before and after a file gets its final name (`rename`, `renamed`) or a checkpoint is committed (`commit`,
`committed`), and between two samples of a shard (`sample`). Without the variable a point does nothing. JSON is
`storage/documents.py`'s.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from beit.common.errors import InputError

FAULT_VARIABLE = "BEIT_FAULT"
_HASH_BLOCK_BYTES = 1 << 20


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


def check_output(path: Path | None, *, option: str = "--out") -> None:
    """Refuse an output file that cannot be written, before the work is done.

    Args:
        path: The file; None, where none is wanted, is fine.
        option: How the user named it.
    """
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; name a file")
    if not path.parent.is_dir():
        raise InputError(f"{option} {path}: the folder {path.parent} does not exist; create it")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{option} {path}: the folder {path.parent} may not be written to; name another")


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
