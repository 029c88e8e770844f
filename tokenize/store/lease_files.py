"""What leases are kept in: small files in the folder of a store, or small objects behind its URL.

Both create a lease only where there is none. A folder decides by O_EXCL, an object store by a conditional request where
it has them; what a lease means, and what happens where two processes hold one after all, is in `leases.py`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from beit.common.storage.paths import join

LEASE_PREFIX = ".lease."

Judge = Callable[[bytes | None], bool]
"""Tells from the content of a lease, None if there is none, whether it is the one that is meant."""


class LeaseFiles(Protocol):
    """The leases of one store, by the name of a shard or step."""

    def create(self, name: str, content: bytes) -> bool:
        """Write a lease unless there is one; return whether this one stands there now."""

    def read(self, name: str) -> bytes | None:
        """Return the content of a lease; None if there is none."""

    def update(self, name: str, content: bytes, is_own: Judge) -> None:
        """Replace the content of a lease, if it is still the own one, by content of the same length."""

    def remove(self, name: str) -> None:
        """Remove a lease, if it is there."""

    def take(self, name: str, is_judged: Judge) -> bool:
        """Remove a lease that was judged dead; of several processes that do so, at most one is told True."""

    def names(self) -> list[str]:
        """Return the leases there are, and what remained of removing some."""


class FolderLeases:
    """Leases as files in a folder.

    Args:
        folder: Of the store; exists when one is created.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self, name: str, content: bytes) -> bool:
        """Write a lease unless there is one; return whether this one stands there now."""
        path = self._path(name)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(descriptor, content)
        except OSError as error:  # a full disk
            error.filename = str(path)
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        return True

    def read(self, name: str) -> bytes | None:
        """Return the content of a lease; None if there is none."""
        return _read(self._path(name))

    def update(self, name: str, content: bytes, is_own: Judge) -> None:
        """Replace the content of a lease in place, if it is still the own one."""
        with self._path(name).open("r+b", buffering=0) as file:
            if is_own(file.read(len(content))):
                file.seek(0)
                file.write(content)

    def remove(self, name: str) -> None:
        """Remove a lease, if it is there."""
        self._path(name).unlink(missing_ok=True)

    def take(self, name: str, is_judged: Judge) -> bool:
        """Remove a lease that was judged dead; of several processes that do so, one is told True."""
        path = self._path(name)
        # Renamed first: of several processes that judge the same lease, one gets it.
        taken = path.with_name(f"{path.name}.dead.{secrets.token_hex(8)}")
        try:
            os.rename(path, taken)
        except FileNotFoundError:
            return False
        is_taken = is_judged(_read(taken))
        if not is_taken:  # between judging and renaming, another process replaced the dead lease by its own
            with suppress(OSError):
                os.link(taken, path)
        taken.unlink(missing_ok=True)
        return is_taken

    def names(self) -> list[str]:
        """Return the leases there are, and what remained of removing some."""
        return [path.name.removeprefix(LEASE_PREFIX) for path in self._folder.glob(f"{LEASE_PREFIX}*")]

    def _path(self, name: str) -> Path:
        return self._folder / f"{LEASE_PREFIX}{name}"


class ObjectLeases:
    """Leases as objects behind a URL.

    Nothing can be renamed there, so a dead lease is looked at again and removed. A process that does so just after
    another took over removes the lease of that one, which notices before it commits.

    Args:
        url: Of the store.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def create(self, name: str, content: bytes) -> bool:
        """Write a lease unless there is one; return whether this one stands there now."""
        # A storage without conditional requests: at least what was there before is seen, and who came last.
        if self.read(name) is not None:
            return False
        return create_object(self._path(name), content) and self.read(name) == content

    def read(self, name: str) -> bytes | None:
        """Return the content of a lease; None if there is none."""
        return read_object(self._path(name))

    def update(self, name: str, content: bytes, is_own: Judge) -> None:
        """Replace a lease, if it is still the own one."""
        if is_own(self.read(name)):
            write_object(self._path(name), content)

    def remove(self, name: str) -> None:
        """Remove a lease, if it is there."""
        remove_object(self._path(name))

    def take(self, name: str, is_judged: Judge) -> bool:
        """Remove a lease that was judged dead, unless another stands there by now."""
        if not is_judged(self.read(name)):
            return False
        self.remove(name)
        return True

    def names(self) -> list[str]:
        """Return the leases there are."""
        return [name.removeprefix(LEASE_PREFIX) for name in list_objects(self._url) if name.startswith(LEASE_PREFIX)]

    def _path(self, name: str) -> str:
        return join(self._url, f"{LEASE_PREFIX}{name}")


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
