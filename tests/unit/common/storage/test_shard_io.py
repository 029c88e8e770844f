import io
import os
import pickle
import tarfile

import pytest

from beit.common.errors import InputError
from beit.common.storage.file_pool import FilePool
from beit.common.storage.files import sha256_file
from beit.common.storage.paths import resolve_location
from beit.common.storage.place import place_of
from beit.common.storage.tar_walk import walk_tar
from beit.common.storage.tar_writer import TarAppender

MEMBERS = {"a.npy": b"x" * 700, "folder/größe." + "n" * 120: b"", "b.json": b"{}", "c": b"y" * 512}


def write(path, members=MEMBERS):
    with path.open("w+b") as file:
        tar = TarAppender(file)
        offsets = {name: tar.add(name, data) for name, data in members.items()}
        return offsets, tar.finish(), tar.size


def test_a_tar_reads_back_with_standard_tools_at_the_told_offsets(tmp_path):
    offsets, sha256, size = write(tmp_path / "x.tar")
    data = (tmp_path / "x.tar").read_bytes()
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert {member.name: tar.extractfile(member).read() for member in tar} == MEMBERS
    assert all(data[offset : offset + len(MEMBERS[name])] == MEMBERS[name] for name, offset in offsets.items())
    with (tmp_path / "x.tar").open("rb") as file:
        assert {member.name: member.offset for member in walk_tar(file, label="x").members} == offsets
    assert sha256 == sha256_file(tmp_path / "x.tar") and size == len(data)


def test_bytes_depend_on_names_and_contents_only(tmp_path):
    write(tmp_path / "a.tar")
    write(tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_a_tar_that_was_given_up_reads_as_truncated(tmp_path):
    with (tmp_path / "x.tar").open("w+b") as file:
        TarAppender(file).add("a", b"x")
    with (tmp_path / "x.tar").open("rb") as file, pytest.raises(InputError, match="truncated"):
        walk_tar(file, label="x")


def test_a_disk_that_keeps_other_bytes_is_found(tmp_path):
    class Lying(io.FileIO):
        def write(self, data):
            return super().write(bytes(len(data)) if len(data) == 700 else data)

    with Lying(tmp_path / "x.tar", "w+b") as file:
        tar = TarAppender(file)
        tar.add("a", b"x" * 700)
        with pytest.raises(OSError, match="read back other bytes"):
            tar.finish()


def test_a_pool_reads_ranges_and_keeps_few_files_open(tmp_path):
    paths = [tmp_path / f"{number}" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 100 + b"end")
    pool = FilePool(max_open=2)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for number, path in enumerate(paths):
            assert pool.read(str(path), 99, 4) == bytes([number]) + b"end"
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    pool.close()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert pickle.loads(pickle.dumps(pool)).read(str(paths[1]), 0, 1) == b"\1"


def test_a_range_beyond_the_end_is_an_error(tmp_path):
    (tmp_path / "x").write_bytes(b"short")
    with pytest.raises(InputError, match=r"x ends before byte 9"):
        FilePool().read(str(tmp_path / "x"), 3, 6)
    with pytest.raises(InputError, match="missing"):
        FilePool().read(str(tmp_path / "missing"), 0, 1)
    with pytest.raises(InputError, match="missing"):
        place_of(str(tmp_path / "missing")).read()


@pytest.mark.parametrize(
    ("root", "name", "expected"),
    [
        ("/data/store", "images", "/data/store/images"),
        ("/data/store", "../photos", "/data/photos"),
        ("/data/store", "/other", "/other"),
        ("s3://bucket/store", "../photos/a.tar", "s3://bucket/photos/a.tar"),
        ("s3://bucket/store", "tokens/a.tar", "s3://bucket/store/tokens/a.tar"),
        ("/data/store", "s3://bucket/photos", "s3://bucket/photos"),
    ],
)
def test_locations_are_resolved_like_paths(root, name, expected):
    assert resolve_location(root, name) == expected
