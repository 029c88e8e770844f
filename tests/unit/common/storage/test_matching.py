import os
from pathlib import Path

import fsspec
import pytest

from beit.common.errors import InputError
from beit.common.storage.matching import list_folder, match_files
from beit.common.storage.place import place_of
from beit.tests.s3_server import serve_s3


@pytest.fixture
def memory() -> str:
    """Give a folder on a remote file system that needs no network."""
    file_system = fsspec.filesystem("memory")
    file_system.store.clear()
    file_system.pseudo_dirs[:] = [""]
    return "memory://bucket"


def put(path: str, data: bytes = b"x") -> None:
    with fsspec.open(path, "wb") as file:
        file.write(data)


def test_match_files_keeps_brace_order_and_reports_what_is_missing(tmp_path: Path) -> None:
    for name in ("b1", "b0", "a1"):
        (tmp_path / f"{name}.tar").write_bytes(b"123")
    names = [Path(file.path).name for file in match_files(str(tmp_path / "{b?,a*}.tar"))]
    assert names == ["b0.tar", "b1.tar", "a1.tar"]
    assert match_files(str(tmp_path / "b1.tar"))[0].size == 3
    with pytest.raises(InputError, match="b2.tar does not exist"):
        match_files(str(tmp_path / "b{0..2}.tar"))
    with pytest.raises(InputError, match="matches no file"):
        match_files(str(tmp_path / "c*.tar"))


def test_name_with_pattern_characters_is_taken_literally_where_it_exists(tmp_path: Path) -> None:
    (tmp_path / "x[1]{a,b}.tar").write_bytes(b"")
    assert len(match_files(str(tmp_path / "x[1]{a,b}.tar"))) == 1


def test_list_folder_is_recursive_sorted_and_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "b/1.jpg", "a.jpg", ".hidden/x.jpg", "b/._1.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "b")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    files = list_folder(str(tmp_path))
    assert [file.path for file in files] == ["a.jpg", "again/1.jpg", "again/2.jpg", "b/1.jpg", "b/2.jpg", "gone.jpg"]
    assert files[0].size == 2 and files[0].version.isdigit() and files[-1].version == "broken link"
    os.utime(tmp_path / "a.jpg", ns=(1, 1))
    assert list_folder(str(tmp_path))[0].version == "1"


def test_remote_files_list_match_and_open(memory: str) -> None:
    for name in ("train-0.tar", "train-1.tar", "sub/x.jpg"):
        put(f"{memory}/{name}", name.encode())
    assert [file.path for file in list_folder(memory)] == ["sub/x.jpg", "train-0.tar", "train-1.tar"]
    for pattern in ("train-*.tar", "train-{0..1}.tar"):
        found = match_files(f"{memory}/{pattern}")
        assert [file.path.rsplit("/", 1)[1] for file in found] == ["train-0.tar", "train-1.tar"]
        assert found[0].size == 11
        with place_of(found[1].path).open() as file:
            assert file.read() == b"train-1.tar"
    with pytest.raises(InputError, match="does not exist"):
        match_files(f"{memory}/train-2.tar")


def test_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="check the scheme"):
        place_of("nosuch://x/y").open()
    with pytest.raises(InputError, match="none does not exist"):
        place_of(str(tmp_path / "none")).open()
    with pytest.raises(InputError, match="cannot be listed"):
        list_folder(str(tmp_path / "none"))


def test_wildcards_are_looked_for_level_by_level_in_a_bucket() -> None:
    names = ["run/train-0000.tar", "run/train-0001.tar", "run/old/train-0000.tar", "run/val/x.tar", "other/train-9.tar"]
    with serve_s3({name: b"x" for name in names}) as bucket:

        def matched(pattern: str) -> list[str]:
            return [file.path.removeprefix(f"{bucket}/") for file in match_files(f"{bucket}/{pattern}")]

        assert matched("run/train-*.tar") == names[:2]
        assert matched("*/train-*.tar") == [names[4], *names[:2]]
        assert matched("run/**/*.tar") == [names[2], *names[:2], names[3]]
        assert matched("run/{old,val}/*.tar") == names[2:4]
        assert matched("run/train-{0000..0001}.tar") == names[:2]
        for pattern in ("run/train", "run/train-2*.tar", "nothing/*.tar"):
            with pytest.raises(InputError, match=f"^{bucket}/.*(does not exist|matches no file)"):
                matched(pattern)
