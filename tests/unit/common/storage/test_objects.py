"""Objects of a storage that is well behaved, loses answers, or does not know conditional requests."""

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from beit.common.storage import remote_file
from beit.common.storage.objects import (
    create_object,
    is_exclusive,
    list_objects,
    read_object,
    remove_object,
    stat_object,
    upload_file,
    write_object,
)
from beit.common.storage.remote_file import RemoteError

URL = "memory://bucket/folder/x"


@pytest.fixture(autouse=True)
def empty(monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs.clear()
    monkeypatch.setattr(remote_file, "_PAUSES_SECONDS", (0.0,) * 2)


def test_what_is_written_is_there_and_what_is_removed_is_not(tmp_path):
    assert read_object(URL) is None and stat_object(URL) is None and list_objects("memory://bucket/folder") == {}
    write_object(URL, b"one")
    write_object(URL, b"two")
    (tmp_path / "y").write_bytes(b"three")
    upload_file(tmp_path / "y", "memory://bucket/folder/y")
    write_object("memory://bucket/folder/deep/z", b"")
    assert read_object(URL) == b"two" and stat_object(URL)["size"] == 3
    listed = list_objects("memory://bucket/folder")
    assert {name: info["type"] for name, info in listed.items()} == {"x": "file", "y": "file", "deep": "directory"}
    assert stat_object("memory://bucket/folder/deep") is None
    remove_object(URL)
    remove_object(URL)
    assert read_object(URL) is None


def test_an_object_is_created_once():
    assert create_object(URL, b"first") and not create_object(URL, b"second")
    assert read_object(URL) == b"first" and is_exclusive(URL)


def test_a_creation_whose_answer_was_lost_is_the_own_one(monkeypatch):
    pipe_file = MemoryFileSystem.pipe_file

    def lose_the_answer(*arguments, **options):
        pipe_file(*arguments, **options)
        raise ConnectionResetError("broken")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lose_the_answer)
    assert create_object(URL, b"first") and not create_object(URL, b"second")


def test_a_storage_that_overwrites_is_found_out(monkeypatch):
    pipe_file = MemoryFileSystem.pipe_file
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lambda *arguments, mode="": pipe_file(*arguments))
    create_object(URL, b"first")
    assert not is_exclusive(URL)


def test_an_upload_that_arrives_cut_is_done_again_and_then_an_error(tmp_path, monkeypatch):
    (tmp_path / "y").write_bytes(b"three")
    put_file, cuts = MemoryFileSystem.put_file, []

    def cut(self, local, remote):
        put_file(self, local, remote)
        if len(cuts) < times:
            cuts.append(remote)
            self.pipe_file(remote, b"th")

    monkeypatch.setattr(MemoryFileSystem, "put_file", cut)
    times = 2
    upload_file(tmp_path / "y", URL)
    assert read_object(URL) == b"three"
    times = 9
    with pytest.raises(RemoteError, match=rf"^{URL} cannot be written \(2 of 5 bytes arrived\)$"):
        upload_file(tmp_path / "y", URL)
