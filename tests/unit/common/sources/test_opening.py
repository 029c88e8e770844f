import subprocess
import sys
from pathlib import Path

import pytest

from beit.common.errors import InputError
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
