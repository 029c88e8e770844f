"""Locks between processes that write one store. They vanish with the process that holds them, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from beit.common.errors import InputError
from beit.common.locks import exclusive_lock

LOCK_PREFIX = ".lock."


@contextmanager
def rank_lock(store: Path, rank: int) -> Iterator[None]:
    """Keep a second run of the same rank out of a store.

    Raises:
        InputError: another process is writing this store.
    """
    path = store / f"{LOCK_PREFIX}rank{rank}"
    with ExitStack() as stack:
        try:
            descriptor = stack.enter_context(exclusive_lock(path, wait=False))
        except BlockingIOError:
            raise InputError(
                f"store ({store}) is being written by another beit tokenize (process {_owner(path)}); wait for it or "
                "stop it"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())  # read by whoever is refused
        yield


@contextmanager
def shared_step(store: Path, name: str) -> Iterator[None]:
    """Let one rank at a time do a step that is done once for all of them; the others wait."""
    with exclusive_lock(store / f"{LOCK_PREFIX}{name}"):
        yield


def _owner(path: Path) -> str:
    return path.read_text(errors="replace").strip() or "unknown"
