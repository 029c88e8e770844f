"""What processes share besides pipes, where it runs out: /dev/shm, which containers keep at 64 MB, and open files."""

from __future__ import annotations

import errno
import resource
import shutil
from contextlib import suppress
from pathlib import Path

_FOLDER = Path("/dev/shm")
_PLENTY = 0.5
"""Share of it that is free where it was not what ran out; arbitrary."""


def name_shortage(error: BaseException) -> str | None:
    """Return the line that explains an error of passing data between processes; None for an error of another kind."""
    text = str(error)
    if getattr(error, "errno", None) == errno.EMFILE or "Too many open files" in text or "ancdata" in text:
        return name_file_limit()
    # torch's words; a disk that is full has others.
    return name_full_memory() if "No space left" in text and "shared memory" in text else None


def name_full_memory() -> str:
    """Return the line that says how much shared memory there is, and the way out."""
    return (
        f"shared memory ({_FOLDER}) is full: {_room()}; give it more (docker run --shm-size=8g, or --ipc=host), or "
        "need less of it: lower reader.num_workers, reader.prefetch_batches or train.micro_batch_size"
    )


def name_lost_memory() -> str:
    """Return the line that says why memory a process used was not there (SIGBUS), as far as that can be told."""
    with suppress(OSError):
        usage = shutil.disk_usage(_FOLDER)
        if usage.free > _PLENTY * usage.total:
            return (
                "memory it used was gone: a file that it had mapped was cut short meanwhile, such as the kept index of "
                f"the images, or shared memory ({_FOLDER}) was full for a moment ({_room()} now); run the same command "
                "again"
            )
    return name_full_memory()


def name_file_limit() -> str:
    """Return the line that says how many files may be open, and the way out."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"this process may have {soft} files open (ulimit -n), too few for its workers, who share data as files; allow "
        f"more (ulimit -n 4096; the hard limit is {hard}), or lower reader.num_workers and reader.prefetch_batches"
    )


def raise_file_limit() -> None:
    """Allow this process and those it starts as many open files as it may allow itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # some systems have a hard limit that nobody may reach
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _room() -> str:
    try:
        usage = shutil.disk_usage(_FOLDER)
    except OSError:
        return "it is not there"
    return f"{usage.total / 1e6:.3g} MB in all, {usage.free / 1e6:.3g} MB of them free"
