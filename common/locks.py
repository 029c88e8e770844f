"""Locks between processes, held on a file. They vanish with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
