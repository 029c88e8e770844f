"""Disks: room and permission where one works, for temporary files and in beit's cache."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from beit.common.overview.doctor.findings import Finding, Level, fault, warning, well
from beit.common.storage.files import CACHE_VARIABLE, default_cache_dir, existing

_LITTLE_DISK, _SCANT_DISK = 1.2e9, 1e10
"""Free bytes: one checkpoint of the base model has 1.04 GB and asks for 1.2 times that; a run keeps several, and its
encoder. For temporary files a tenth of each will do."""
_FEW_FILES = 1000
"""That a file system can still take; arbitrary."""
_WALK_SECONDS = 2.0
"""Spent on adding up what is in the cache."""
_MAKE_ROOM = "df -h, and remove what is not needed"


def check_disk() -> Iterator[Finding]:
    """Is there room in the current folder and for temporary files?"""
    found = [*_temporary(), *look_at_disk(Path.cwd(), "the current folder", topic="disk", unwritable="warning")]
    yield from found
    if not found:
        free = shutil.disk_usage(Path.cwd()).free
        yield well(
            "disk", f"{free / 1e9:,.3g} GB are free here, {_free_temporary() / 1e9:,.3g} in {_temporary_folder()}"
        )


def _temporary_folder() -> str:
    return os.environ.get("TMPDIR") or tempfile.gettempdir()


def _free_temporary() -> int:
    return shutil.disk_usage(_temporary_folder()).free


def _temporary() -> Iterator[Finding]:
    given = os.environ.get("TMPDIR")
    if given and not Path(given).is_dir():
        yield fault("disk", f"TMPDIR ({given}) is no folder", f"mkdir -p {given}, or unset TMPDIR")
        return
    try:
        folder = Path(given or tempfile.gettempdir())
    except FileNotFoundError:  # Python found none that it may write to
        yield fault("disk", "there is no folder for temporary files", "export TMPDIR=~/tmp and make it")
        return
    yield from look_at_disk(folder, f"{folder}, for temporary files,", topic="disk", share=0.1)


def look_at_disk(
    folder: Path, named: str, *, topic: str, unwritable: Level = "fault", share: float = 1.0, needed: float = 0.0
) -> Iterator[Finding]:
    """Yield what is wrong with the disk of a folder; nothing where nothing is.

    Args:
        folder: Exists.
        named: How to call it.
        topic: Of the findings.
        unwritable: How bad it is if nothing may be written.
        share: Of the usual room that will do.
        needed: Bytes that are needed, if that is known; more than the usual room.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".beit-doctor-") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        mend = _MAKE_ROOM if shutil.disk_usage(folder).free < 1 << 20 else f"chmod u+w {folder}, or use another folder"
        what = f"{named} cannot be written to ({error.strerror})"
        yield Finding(topic=topic, level=unwritable, what=what, mend=mend)
        return
    free = shutil.disk_usage(folder).free
    if free < max(needed, share * _LITTLE_DISK):
        asks = (
            f", and {needed / 1e9:.3g} GB are needed" if needed else ": too little for a checkpoint of the base model"
        )
        yield fault(topic, f"{named} has {free / 1e9:.3g} GB free{asks if needed or share == 1 else ''}", _MAKE_ROOM)
    elif free < share * _SCANT_DISK:
        yield warning(topic, f"{named} has {free / 1e9:.3g} GB free", _MAKE_ROOM)
    files = os.statvfs(folder)
    if files.f_files and files.f_favail < _FEW_FILES:
        yield fault(topic, f"{named} can take only {files.f_favail} more files (inodes)", f"df -i {folder}")


def check_caches() -> Iterator[Finding]:
    """May what can be fetched or made again be kept, and how much of it is there?"""
    folder = default_cache_dir()
    where = f"export {CACHE_VARIABLE}=/a/folder/with/space"
    there = existing(folder.absolute())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "may not be written to" if there.is_dir() else "is a file"
        named = str(there) if there == folder else f"{folder}: {there}"
        yield fault("caches", f"{named} {reason}, so that nothing can be kept", where)
        return
    found = list(look_at_disk(there, str(folder), topic="caches", share=0.1))
    yield from found
    if not folder.exists():
        yield well("caches", f"{folder} will be made when something is kept")
    elif not found:
        sizes, is_all = _sizes(folder)
        parts = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in sizes.items() if size >= 1e6)
        more = "" if is_all else " at least"
        yield well(
            "caches", f"{folder} has{more} {sum(sizes.values()) / 1e6:,.0f} MB" + (f": {parts}" if parts else "")
        )


def _sizes(folder: Path) -> tuple[dict[str, int], bool]:
    """Return bytes by folder in the cache, and whether there was time to look at all of it."""
    deadline, sizes = time.monotonic() + _WALK_SECONDS, {}
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir():
            continue
        sizes[entry.name] = 0
        for parent, _, names in os.walk(entry):
            for name in names:
                sizes[entry.name] += _size(Path(parent, name))
            if time.monotonic() > deadline:
                return sizes, False
    return sizes, True


def _size(file: Path) -> int:
    try:
        return file.lstat().st_size
    except OSError:  # removed a moment ago
        return 0
