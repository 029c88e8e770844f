import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from beit.common.errors import BadSample, InputError
from beit.common.sources.opening import open_source


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ([], "is empty"),
        (["notes.md"], "holds no images"),
        (["a.jpg", "b.tar"], "mixes 1 images, 1 tars and 0 Parquet files"),
        (["a.tar", "b.parquet"], "mixes 0 images, 1 tars and 1 Parquet"),
        (["a.tar.gz"], "compressed"),
        (["store.json", "images/0.tar"], "is a token store"),
    ],
)
def test_unusable_folders(tmp_path: Path, files: list[str], complaint: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=complaint) as caught:
        open_source(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["none", "none.tar", "none.parquet", "none.txt", "none.csv", "none.jpg", "no*.tar"])
def test_missing_paths(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"no.*(does not exist|cannot be read|matches no file)"):
        open_source(tmp_path / name)


def test_empty_and_unknown_names(tmp_path: Path) -> None:
    (tmp_path / "x.gif").write_bytes(b"")
    with pytest.raises(InputError, match=r"x\.gif"):
        open_source(tmp_path / "x.gif")
    with pytest.raises(InputError, match="must be a folder"):
        open_source("")


def test_folders_open_without_loading_torch_or_pyarrow() -> None:
    names = "beit.common.sources.opening, beit.common.views"
    code = f"import sys, {names}; print(sorted({{'torch', 'pyarrow'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_what_is_no_regular_file_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.jpg").touch()
    os.mkfifo(tmp_path / "a/pipe.jpg")
    (tmp_path / "a/link.jpg").symlink_to("pipe.jpg")
    (tmp_path / "a/device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "a/socket.webp"))
    for spec in (tmp_path, f"{tmp_path}/a/*"):
        caplog.clear()
        (shard,) = open_source(spec).shards
        assert [ref.path.rpartition("/")[2] for ref in shard.refs()] == ["1.jpg"]
        assert "4 left out that are no regular files" in caplog.text and len(caplog.messages) == 1


@pytest.mark.parametrize(
    "name", ["pipe.jpg", "pipe.tar", "pipe.parquet", "pipe.csv", "pipe.txt", "list.csv", "list.txt"]
)
def test_what_is_no_regular_file_is_refused_where_it_was_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.startswith("list"):
        os.mkfifo(tmp_path / "pipe.jpg")
        path.write_text("path\npipe.jpg\n" if name.endswith("csv") else "pipe.jpg\n")
    else:
        os.mkfifo(path)
    with pytest.raises(InputError, match=r"pipe\.\w+ is no regular file but a pipe, a socket or a device; name a file"):
        open_source(path)


def test_a_file_that_became_a_pipe_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "1.jpg"
    path.touch()
    (shard,) = open_source(tmp_path).shards
    path.unlink()
    os.mkfifo(path)
    with shard.open() as reader, pytest.raises(BadSample, match="unreadable"):
        reader.read(shard.refs()[0])
