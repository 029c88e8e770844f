"""Locks between processes, held on a file. They vanish with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beit.common.errors import InputError

_POLL_SECONDS = 0.2


@contextmanager
def exclusive_lock(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold the lock on `path`, which is created if missing and never removed, inside the block.

    Args:
        path: The lock file; its content is the caller's business.
        wait: Whether to wait for another holder.
    Yields:
        The open file's descriptor.
    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def sole_use(folder: Path, *, patience_seconds: float = 10.0) -> Iterator[None]:
    """Keep other processes that ask the same out of a folder, inside the block.

    The folder itself is locked, nothing is written into it. Some network file systems know no locks; there, nobody is
    kept out.

    Args:
        folder: Exists.
        patience_seconds: How long to wait for another holder, which may be about to end.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + patience_seconds
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise InputError(f"another process is at work in {folder}; wait for its end, or name another directory")
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def is_in_use(folder: Path) -> bool:
    """Tell whether a process has a folder to itself by `sole_use`; never, where the file system knows no locks."""
    try:
        with sole_use(folder, patience_seconds=0.0):
            return False
    except InputError:
        return True


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks there
        return True
    return True
