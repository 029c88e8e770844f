"""Positioned reads from many files of this machine."""

from __future__ import annotations

import os
from collections import OrderedDict

from beit.common.errors import InputError

_MAX_OPEN_FILES = 128
"""Two files for each of the 32 shards of a sampling window, twice; far below the usual limit of 1024."""


class FilePool:
    """Reads byte ranges of many files and keeps the last used ones open; one pool belongs to one thread."""

    def __init__(self, max_open: int = _MAX_OPEN_FILES) -> None:
        self._max_open = max_open
        self._descriptors: OrderedDict[str, int] = OrderedDict()

    def __repr__(self) -> str:
        return f"FilePool(open={len(self._descriptors)}, max_open={self._max_open})"

    def read(self, location: str, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`."""
        data = pread(self._descriptor(location), offset, length)
        if len(data) != length:
            raise InputError(
                f"{location} ends before byte {offset + length}, so it changed after it was indexed; "
                "run beit verify on the store"
            )
        return data

    def advise(self, location: str) -> None:
        """Ask the operating system to read a local file into its memory, because it is wanted soon."""
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self._descriptor(location), 0, 0, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close all files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        """Close all files of a forgotten pool."""
        self.close()

    def _descriptor(self, location: str) -> int:
        if location in self._descriptors:
            self._descriptors.move_to_end(location)
            return self._descriptors[location]
        try:
            descriptor = os.open(location, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise InputError(f"{location} does not exist; was it moved or deleted?") from None
        self._descriptors[location] = descriptor
        if len(self._descriptors) > self._max_open:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor


def pread(descriptor: int, offset: int, length: int) -> bytes:
    """Return `length` bytes from `offset` of an open file, fewer only where it ends."""
    data = os.pread(descriptor, length, offset)
    while 0 < len(data) < length:  # one call returns at most 2 GiB, and less on some network file systems
        rest = os.pread(descriptor, length - len(data), offset + len(data))
        if not rest:
            break
        data += rest
    return data
