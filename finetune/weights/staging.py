"""A folder that is there whole or not at all: what `beit import` and `beit export` write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from beit.common.storage.files import fsync_directory, remove_stale, temporary_name


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Yield a folder beside `out` that takes its place if the block succeeds, and is gone if it does not."""
    target = Path(os.path.realpath(out))
    new = [parent for parent in target.parents if not parent.exists()]  # the innermost first
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(target.parent, target.name)
    folder = target.with_name(temporary_name(target.name))
    folder.mkdir()
    try:
        yield folder
        for file in folder.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        fsync_directory(folder)
        os.replace(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # somebody else uses them by now
            for parent in new:
                parent.rmdir()
        raise
    fsync_directory(target.parent)
