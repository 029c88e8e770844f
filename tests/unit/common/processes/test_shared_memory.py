"""Shortages between processes, told by torch's words or by numbers, and never taken for a full disk."""

from __future__ import annotations

import errno
import resource
from types import SimpleNamespace

import pytest

from beit.common.processes.shared_memory import name_lost_memory, name_shortage, raise_file_limit


@pytest.mark.parametrize(
    ("error", "beginning"),
    [
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"),
            "shar",
        ),
        (
            RuntimeError("unable to open shared memory object </torch_1> in read-write mode: Too many open files"),
            "this",
        ),
        (RuntimeError("received 0 items of ancdata"), "this process may have"),
        (OSError(errno.EMFILE, "Too many open files", "x.tar"), "this process may have"),
        (OSError(errno.ENOSPC, "No space left on device"), None),
        (RuntimeError("shape mismatch"), None),
    ],
)
def test_a_shortage_is_told_from_other_errors(error: Exception, beginning: str | None) -> None:
    line = name_shortage(error)
    assert line is None if beginning is None else line is not None and line.startswith(beginning) and "\n" not in line


def test_as_many_files_may_be_open_as_this_process_may_allow_itself() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] - 1, before[1]))
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("free", "begins"),
    [(60, "memory it used was gone: a file that it had mapped"), (0, "shared memory (/dev/shm) is full")],
)
def test_lost_memory_is_not_blamed_on_shared_memory_that_is_free(
    free: int, begins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(total=64 << 20, used=0, free=free << 20))
    assert name_lost_memory().startswith(begins)
