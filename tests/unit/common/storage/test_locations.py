import os
from pathlib import Path

import fsspec
import pytest

from beit.common.errors import InputError
from beit.common.storage.locations import (
    expand_braces,
    is_remote,
    join,
    list_folder,
    match_files,
    normalise,
    open_binary,
    read_file,
)


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
     ("{x,y}/{0..1}", ["x/0", "x/1", "y/0", "y/1"]),
     ("plain", ["plain"]), ("a{b}c", ["a{b}c"]), ("{2..0}", ["2", "1", "0"]), ("p{,q}", ["p", "pq"])],
)  # fmt: skip
def test_braces(text: str, expected: list[str]) -> None:
    assert expand_braces(text) == expected


def test_remote_local_and_file_urls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert is_remote("s3://b/x") and not is_remote("/x") and not is_remote("file:///x")
    assert normalise("a/../b") == str(tmp_path / "b")
    assert normalise("file:///x/y") == "/x/y" and normalise("~/x") == "/home/me/x"
    assert normalise("s3://b/x/") == "s3://b/x"
    assert join("s3://b/x", "y") == "s3://b/x/y" and join("/a", "b/c") == "/a/b/c" and join("/a", "/b") == "/b"


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
        with open_binary(found[1].path) as file:
            assert file.read() == b"train-1.tar"
    assert read_file(f"{memory}/sub/x.jpg", max_bytes=3) == b"sub/"
    with pytest.raises(InputError, match="does not exist"):
        match_files(f"{memory}/train-2.tar")


def test_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="check the scheme"):
        open_binary("nosuch://x/y")
    with pytest.raises(InputError, match="cannot be opened"):
        open_binary(str(tmp_path / "none"))
    with pytest.raises(InputError, match="cannot be listed"):
        list_folder(str(tmp_path / "none"))
