import io
import tarfile

import pytest

from beit.common.errors import InputError
from beit.common.storage.files import sha256_file
from beit.common.storage.tar_walk import walk_tar
from beit.tokenize.shards.writer import TarAppender

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
