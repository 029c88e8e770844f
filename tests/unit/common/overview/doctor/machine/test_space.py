"""Disks without room or permission are told: of the current folder, for temporary files, of the cache."""

import os
from collections import namedtuple

import pytest

from beit.common.overview.doctor.machine import space
from beit.common.overview.doctor.machine.space import check_caches, check_disk, look_at_disk

Usage = namedtuple("Usage", "total used free")


def room(monkeypatch, free):
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: Usage(1e12, 1e12 - free, free))


@pytest.fixture
def refused(monkeypatch):
    """Nothing may be written; permissions alone would not stop root."""

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(space.tempfile, "NamedTemporaryFile", refuse)


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_room_is_well(monkeypatch):
    room(monkeypatch, 1e11)
    assert [finding.level for finding in check_disk()] == ["ok"]


@pytest.mark.parametrize(
    ("free", "levels"), [(5e8, ["warning", "fault"]), (5e9, ["warning"]), (5e7, ["fault", "fault"])]
)
def test_a_disk_that_is_nearly_full_is_told(monkeypatch, free, levels):
    room(monkeypatch, free)
    found = list(check_disk())
    assert [finding.level for finding in found] == levels and all(finding.mend for finding in found)


def test_what_is_needed_is_compared(monkeypatch, here):
    room(monkeypatch, 5e10)
    (finding,) = look_at_disk(here, "the disk", topic="run", needed=9e10)
    assert finding.level == "fault" and "has 50 GB free, and 90 GB are needed" in finding.what


def test_files_that_run_out_are_told(monkeypatch, here):
    room(monkeypatch, 1e11)
    Status = namedtuple("Status", "f_files f_favail")
    monkeypatch.setattr(os, "statvfs", lambda _: Status(1_000_000, 12))
    (finding,) = look_at_disk(here, "the disk", topic="run")
    assert finding.level == "fault" and "only 12 more files" in finding.what


def test_a_folder_that_may_not_be_written_to_is_told(refused, monkeypatch):
    room(monkeypatch, 1e11)
    temporary, current = check_disk()
    assert temporary.level == "fault" and current.level == "warning" and "Permission denied" in current.what


def test_a_full_disk_is_told_as_full(monkeypatch, here):
    def refuse(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(space.tempfile, "NamedTemporaryFile", refuse)
    room(monkeypatch, 0)
    (finding,) = look_at_disk(here, "the disk", topic="run")
    assert finding.level == "fault" and "No space left" in finding.what and finding.mend.startswith("df")


def test_a_folder_for_temporary_files_must_be_there(monkeypatch, here):
    monkeypatch.setenv("TMPDIR", str(here / "gone"))
    room(monkeypatch, 1e11)
    (finding,) = check_disk()
    assert finding.level == "fault" and finding.mend.startswith(f"mkdir -p {here / 'gone'}")


def test_a_cache_is_added_up(here):
    (here / "cache/shards/a").mkdir(parents=True)
    (here / "cache/shards/a/part").write_bytes(b"x" * 3_000_000)
    found = list(check_caches())
    assert found[-1].level == "ok" and "3 MB: shards 3 MB" in found[-1].what


def test_a_cache_that_is_a_file_is_a_fault(here):
    (here / "cache").write_text("")
    (finding,) = check_caches()
    assert finding.level == "fault" and "is a file" in finding.what and "BEIT_CACHE=" in finding.mend


def test_a_cache_that_may_not_be_written_to_is_a_fault(here, refused):
    (here / "cache").mkdir()
    found = list(check_caches())
    assert found[0].level == "fault" and "cannot be written to" in found[0].what


def test_a_cache_that_is_not_there_yet_is_well(here):
    found = list(check_caches())
    assert found[-1].level == "ok" and not (here / "cache").exists()
