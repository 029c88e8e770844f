"""What the system allows too little of is a fault, with the command that allows more."""

import resource
from collections import namedtuple

import pytest

from beit.common.overview.doctor.machine import limits
from beit.common.overview.doctor.machine.limits import (
    check_open_files,
    check_processes,
    check_shared_memory,
    check_sizes,
    control_groups,
)

Usage = namedtuple("Usage", "total used free")


def limit(monkeypatch, which, value):
    real = resource.getrlimit
    monkeypatch.setattr(resource, "getrlimit", lambda asked: (value, value) if asked == which else real(asked))


@pytest.mark.parametrize(("free", "level"), [(67e6, "fault"), (1e9, "warning"), (8e9, "ok")])
def test_shared_memory_is_measured(monkeypatch, free, level):
    monkeypatch.setattr(limits.shutil, "disk_usage", lambda _: Usage(free, 0, free))
    (finding,) = check_shared_memory()
    assert finding.level == level and ("--shm-size" in finding.mend) == (level != "ok")


def test_shared_memory_must_be_there(monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "SHARED_MEMORY", tmp_path / "gone")
    (finding,) = check_shared_memory()
    assert finding.level == "fault" and "is not there" in finding.what


def test_shared_memory_must_take_files(monkeypatch):
    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(limits.tempfile, "NamedTemporaryFile", refuse)
    (finding,) = check_shared_memory()
    assert finding.level == "fault" and "Read-only file system" in finding.what


@pytest.mark.parametrize(("files", "level"), [(256, "fault"), (1024, "warning"), (1 << 20, "ok"), (-1, "ok")])
def test_open_files_are_counted(monkeypatch, files, level):
    limit(monkeypatch, resource.RLIMIT_NOFILE, files)
    (finding,) = check_open_files()
    assert finding.level == level and ("ulimit" in finding.mend) == (level != "ok")


def test_processes_left_are_counted(monkeypatch):
    limit(monkeypatch, resource.RLIMIT_NPROC, 1)
    monkeypatch.setattr(limits.os, "getuid", lambda: 4242)  # of whom nothing runs
    monkeypatch.setattr(limits, "_group_left", lambda: None)
    (finding,) = check_processes()
    assert finding.level == "fault" and "only 1 more" in finding.what and finding.mend.endswith("ulimit -u 65536")


def test_a_container_may_have_few_processes(monkeypatch, tmp_path):
    (tmp_path / "pids.max").write_text("40\n")
    (tmp_path / "pids.current").write_text("30\n")
    monkeypatch.setattr(limits, "control_groups", lambda _: [tmp_path])
    monkeypatch.setattr(limits, "_processes_left", lambda: None)
    (finding,) = check_processes()
    assert finding.level == "fault" and "only 10 more" in finding.what and "--pids-limit" in finding.mend


def test_files_that_may_not_be_large_are_a_fault(monkeypatch):
    limit(monkeypatch, resource.RLIMIT_FSIZE, 1_000_000)
    (finding,) = check_sizes()
    assert finding.level == "fault" and finding.mend == "ulimit -f unlimited"


def test_addresses_that_are_few_are_a_warning(monkeypatch):
    limit(monkeypatch, resource.RLIMIT_AS, 4 << 30)
    (finding,) = check_sizes()
    assert finding.level == "warning" and finding.mend == "ulimit -v unlimited"


def test_control_groups_begin_with_the_innermost():
    folders = list(control_groups("pids"))
    assert all(folder.is_relative_to("/sys/fs/cgroup") for folder in folders)
    assert folders == sorted(folders, key=lambda folder: len(folder.parts), reverse=True) or len(folders) > 3
