"""What the system allows a process: shared memory, open files, processes, sizes of files and of memory."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # comes with deepspeed

from beit.common.overview.doctor.findings import Finding, fault, warning, well
from beit.common.processes.shared_memory import name_file_limit

SHARED_MEMORY = Path("/dev/shm")
_LITTLE_SHARED, _SCANT_SHARED = 256e6, 2e9
"""Free bytes. Containers begin with 64 MB; a loader of 8 workers keeps 16 batches there, 128 images of 224 px are 19 MB
each. Below the first even small runs fail."""
_FEW_FILES, _SCANT_FILES = 512, 4096
"""A worker that sends tensors opens a file for each: macOS allows 256, most shells 1024 and more on request."""
_FEW_PROCESSES = 200
"""Left to start: torch's threads count, and two ranks with eight workers each have about a hundred; arbitrary."""
_SMALL_FILE = 2e9
"""A checkpoint of the base model has 0.7 GB of moments in one file; arbitrary."""


def check_shared_memory() -> Iterator[Finding]:
    """Is there room for what data workers pass on?"""
    more = "docker run --shm-size=8g (or --ipc=host), else mount -o remount,size=8g /dev/shm"
    if not SHARED_MEMORY.is_dir():
        yield fault("shared memory", f"{SHARED_MEMORY} is not there", "mount -t tmpfs tmpfs /dev/shm")
        return
    try:
        with tempfile.NamedTemporaryFile(dir=SHARED_MEMORY, prefix="beit-doctor-") as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        yield fault("shared memory", f"{SHARED_MEMORY} cannot be written to ({error.strerror})", more)
        return
    usage = shutil.disk_usage(SHARED_MEMORY)
    room = f"{usage.free / 1e6:,.0f} of {usage.total / 1e6:,.0f} MB of {SHARED_MEMORY} are free"
    if usage.free < _LITTLE_SHARED:
        yield fault("shared memory", f"{room}: too little for data workers, who pass batches there", more)
    elif usage.free < _SCANT_SHARED:
        yield warning("shared memory", f"{room}: eight workers with batches of 128 images at 224 px need more", more)
    else:
        yield well("shared memory", room)


def check_open_files() -> Iterator[Finding]:
    """May a process open enough files? The command has raised its limit to the hard one by now."""
    limits = [limit for limit in resource.getrlimit(resource.RLIMIT_NOFILE) if limit != resource.RLIM_INFINITY]
    allowed = min(limits, default=None)
    what, mend = name_file_limit().partition("; ")[0], "ulimit -Hn 65536 as root, or docker run --ulimit nofile=65536"
    if allowed is not None and allowed < _FEW_FILES:
        yield fault("open files", what, mend)
    elif allowed is not None and allowed < _SCANT_FILES:
        yield warning("open files", f"a process may have {allowed:,} open, few for many workers", mend)
    else:
        yield well("open files", "a process may have " + ("any number" if allowed is None else f"{allowed:,}"))


def check_processes() -> Iterator[Finding]:
    """May this user start more processes and threads?"""
    for left, by in ((_processes_left(), "ulimit -u"), (_group_left(), "pids.max of the control group")):
        if left is not None and left < _FEW_PROCESSES:
            mend = "end processes of yours, or ulimit -u 65536" if by == "ulimit -u" else "docker run --pids-limit=-1"
            yield fault("processes", f"only {max(0, left)} more may be started ({by})", mend)
            return
    yield well("processes", f"at least {_FEW_PROCESSES} more may be started")


def _processes_left() -> int | None:
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if limit == resource.RLIM_INFINITY or os.getuid() == 0:  # root is not held to it
        return None
    threads = 0
    for process in psutil.process_iter(["uids", "num_threads"]):
        uids = process.info["uids"]
        threads += process.info["num_threads"] or 1 if uids is not None and uids.real == os.getuid() else 0
    return int(limit) - threads


def _group_left() -> int | None:
    for folder in control_groups("pids"):
        try:
            return int((folder / "pids.max").read_text()) - int((folder / "pids.current").read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


def check_sizes() -> Iterator[Finding]:
    """May a process write large files and use all the memory there is?"""
    size = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if size != resource.RLIM_INFINITY and size < _SMALL_FILE:
        yield fault(
            "file size",
            f"a file may have {size / 1e6:,.0f} MB (ulimit -f): a checkpoint has more",
            "ulimit -f unlimited",
        )
    space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if space != resource.RLIM_INFINITY:
        yield warning(
            "memory", f"a process may have {space / 1e9:.3g} GB of addresses (ulimit -v)", "ulimit -v unlimited"
        )


def control_groups(controller: str, root: Path = Path("/sys/fs/cgroup")) -> Iterator[Path]:
    """Yield the folders of the control groups that hold this process, the innermost first, of both versions."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / controllers if controllers else root
        # Inside a container the group may be the mount itself, whatever its name outside.
        path = mount / group.strip("/")
        yield from (folder for folder in (path, *path.parents) if folder.is_relative_to(mount))
