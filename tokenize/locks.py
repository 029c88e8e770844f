"""Locks between processes that write one store. They vanish with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beit.common.errors import InputError

LOCK_PREFIX = ".lock."


@contextmanager
def rank_lock(store: Path, rank: int) -> Iterator[None]:
    """Keep a second run of the same rank out of a store.

    Raises:
        InputError: another process is writing this store.
    """
    path = store / f"{LOCK_PREFIX}rank{rank}"
    with _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB) as descriptor:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())  # read by whoever is refused
        yield


@contextmanager
def shared_step(store: Path, name: str) -> Iterator[None]:
    """Let one rank at a time do a step that is done once for all of them; the others wait."""
    with _locked(store / f"{LOCK_PREFIX}{name}", fcntl.LOCK_EX):
        yield


@contextmanager
def _locked(path: Path, mode: int) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, mode)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode().strip()
            raise InputError(
                f"store ({path.parent}) is being written by another beit tokenize (process {owner or 'unknown'}); "
                "wait for it or stop it"
            ) from None
        yield descriptor
    finally:
        os.close(descriptor)
