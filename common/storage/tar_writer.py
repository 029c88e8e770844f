"""Tars written with known offsets and bytes that depend on names and contents only.

Not here: walking a foreign tar (`tar_walk.py`).
"""

from __future__ import annotations

import hashlib
import tarfile
from typing import BinaryIO

from beit.common.storage.files import sha256_of

_BLOCK = tarfile.BLOCKSIZE


class TarAppender:
    """Writes an uncompressed tar whose bytes depend on names and contents only, and tells where each payload lies.

    Time, owner and mode are fixed. The end marker is written by `finish` alone: a tar that was given up reads as
    truncated, not as a short one.

    Args:
        file: Named binary file at its start; stays open.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        """Where the tar is being written."""
        self._hasher = hashlib.sha256()
        self.size = 0
        """Bytes written so far."""

    def add(self, name: str, payload: bytes) -> int:
        """Append one member and return the offset of its payload."""
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = len(payload), 0, 0o644
        self._write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"))
        offset = self.size
        self._write(payload)
        self._write(b"\0" * (-len(payload) % _BLOCK))
        return offset

    def finish(self) -> str:
        """Write the end marker, read everything back and return the sha256 of the file.

        Raises:
            OSError: what stands in the file is not what was written.
        """
        self._write(b"\0" * (2 * _BLOCK))
        self._write(b"\0" * (-self.size % tarfile.RECORDSIZE))
        self.file.flush()
        written = self._hasher.hexdigest()
        self.file.seek(0)
        if sha256_of(self.file) != written:
            raise OSError(f"{self.file.name}: read back other bytes than were written; is the disk failing?")
        return written

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self._hasher.update(data)
        self.size += len(data)
