"""The folder in which the ranks of a launch leave their reports (`rank_reports.py`); it goes when the launch ends.

A launch that was killed cannot remove its own. The next one on the machine does: whoever launches holds a lock on a
file in its folder, which vanishes with the process however that ends.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from beit.common.storage.locks import exclusive_lock

_PREFIX, _LOCK = "beit-ranks-", "launch.lock"
_OLD_SECONDS = 60.0
"""Younger folders are left alone: their launch may not hold its lock yet, or its ranks may still have last words."""


@contextmanager
def report_folder() -> Iterator[Path]:
    """Make a folder for the reports of a launch, for the duration of the block; remove those of launches killed."""
    remove_left_behind(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name, exclusive_lock(Path(name) / _LOCK):
        yield Path(name)


def remove_left_behind(parent: Path) -> None:
    """Remove the folders of this user's launches that nobody is at work in any more."""
    for folder in parent.glob(f"{_PREFIX}*"):
        lock = folder / _LOCK
        try:
            is_old = time.time() - lock.stat().st_mtime > _OLD_SECONDS
            if not is_old or folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with exclusive_lock(lock, wait=False):
                shutil.rmtree(folder, ignore_errors=True)  # another launch may be at it
        except OSError:  # no such file: another launch was quicker, or it is none of ours; or somebody holds the lock
            continue
