"""A file that is fetched whole from an address, with a bar, and gone on with after an interruption."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from beit.common.errors import InputError
from beit.common.progress import Progress
from beit.common.storage.answers import FileStat, NoOffsets, RemoteError
from beit.common.storage.documents import read_json, write_json
from beit.common.storage.remote_place import RemotePlace

_MB = 1_000_000


def complete_file(location: str, unfinished: Path) -> FileStat:
    """Complete a local file from an address; what an earlier process left of the same version is gone on from.

    Args:
        location: The URL, which a user named.
        unfinished: Where the content goes, ending in .part; a record of its version lies beside it.

    Returns:
        What the server says of it.

    Raises:
        RemoteError: the server went away in the midst.
    """
    found, record = RemotePlace(location, is_first_contact=True).stat(), _record(unfinished)
    recorded = None
    with suppress(InputError):  # a damaged record: from the beginning
        recorded = read_json(record) if record.is_file() else None
    is_begun = bool(found.version) and unfinished.is_file() and recorded == asdict(found)
    with unfinished.open("r+b" if is_begun else "wb") as file:
        write_json(record, asdict(found))
        have = file.seek(0, os.SEEK_END)
        if have < found.size or not found.size:
            total, done = found.size // _MB or None, have // _MB
            with Progress(total, unit="MB", description=f"download {unfinished.stem}", initial=done) as progress:
                try:
                    for piece in _pieces_from(location, have):
                        file.write(piece)
                        have += len(piece)
                        progress.update(have // _MB - done)
                        done = have // _MB
                except RemoteError as error:
                    kept = f"{done} MB of it are kept; " if found.version and done else ""
                    raise RemoteError(f"{error}; {kept}run the same command to go on") from None
        os.fsync(file.fileno())
    return found


def discard_begun(unfinished: Path) -> None:
    """Remove what `complete_file` has begun, and its record."""
    unfinished.unlink(missing_ok=True)
    _record(unfinished).unlink(missing_ok=True)


def _record(unfinished: Path) -> Path:
    return unfinished.with_name(f"{unfinished.name}.json")


def _pieces_from(location: str, start: int) -> Iterator[bytes]:
    try:
        yield from RemotePlace(location).pieces(start)
    except NoOffsets:
        yield RemotePlace(location).read()[start:]
