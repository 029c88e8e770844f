"""Edited images are other data, a copy of the same ones is not; whatever they lie in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beit.common.reading import contents
from beit.common.reading.contents import contents_of, difference, fingerprint
from beit.common.sources.index_build import build_index
from beit.tests.s3_server import serve_s3

Writer = Callable[[Path, int], str]


def image(number: int) -> bytes:
    """One of equally long "images"."""
    return bytes([number]) * 100


def folder(root: Path, first: int) -> str:
    for number in range(4):
        file = root / f"class{number % 2}/{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image(first if number == 0 else number))
    return str(root)


def table(root: Path, first: int) -> str:
    folder(root, first)
    (root / "list.csv").write_text("path,label\n" + "".join(f"class{n % 2}/{n}.png,{n % 2}\n" for n in range(4)))
    return str(root / "list.csv")


def tar(root: Path, first: int) -> str:
    import tarfile

    folder(root / "unpacked", first)
    with tarfile.open(root / "images.tar", "w") as file:
        for path in sorted((root / "unpacked").rglob("*.png")):
            file.add(path, f"{path.parent.name}-{path.name}")
    shutil.rmtree(root / "unpacked")
    return str(root / "images.tar")


def parquet(root: Path, first: int) -> str:
    root.mkdir(parents=True, exist_ok=True)
    images = [image(first if number == 0 else number) for number in range(4)]
    pq.write_table(pa.table({"image": pa.array(images, pa.binary()), "label": [0, 1, 0, 1]}), root / "images.parquet")
    return str(root / "images.parquet")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def keep_times(path: Path) -> None:
    for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
        os.utime(file, ns=(10**18, 10**18))


@pytest.mark.parametrize("write", [folder, table, tar, parquet])
def test_edited_images_of_the_same_size_are_other_contents_and_a_copy_is_not(
    write: Writer, tmp_path: Path, cache: Path
) -> None:
    before = contents_of(build_index(write(tmp_path / "data", 0), cache))
    copied = contents_of(build_index(write(tmp_path / "copy", 0), cache))
    assert difference(before, copied) == ""
    edited = contents_of(build_index(write(tmp_path / "data", 9), cache))
    assert edited["index_sha256"] == before["index_sha256"]
    assert difference(before, edited) == "edited images"


@pytest.mark.parametrize("write", [folder, table, tar, parquet])
def test_of_many_images_sizes_and_times_count_and_nothing_is_read(
    write: Writer, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "MAX_BYTES", 10)
    monkeypatch.setattr(contents, "_digest", None)
    spec = write(tmp_path / "data", 0)
    keep_times(tmp_path / "data")
    before = contents_of(build_index(spec, cache))
    shutil.copytree(tmp_path / "data", tmp_path / "copy")  # as cp -p does
    copied = contents_of(build_index(spec.replace("/data", "/copy"), cache))
    assert difference(before, copied) == ""
    write(tmp_path / "data", 0)  # and without -p
    touched = contents_of(build_index(spec, cache))
    assert difference(before, touched) == "other times of files, as after edits or a copy without times"


def test_the_bytes_are_read_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = folder(tmp_path / "data", 0)
    first = fingerprint(build_index(spec, cache))
    monkeypatch.setattr(contents, "_digest", None)
    assert fingerprint(build_index(spec, cache)) == first


def test_a_damaged_note_is_made_again(tmp_path: Path, cache: Path) -> None:
    index = build_index(folder(tmp_path / "data", 0), cache)
    first = fingerprint(index)
    (note,) = index.folder.glob("contents-*.json")
    for damage in (b"", b"[]", b"{}", note.read_bytes()[:-9]):
        note.write_bytes(damage)
        assert fingerprint(index) == first


def test_only_the_images_in_use_count(tmp_path: Path, cache: Path) -> None:
    def others() -> str:
        index = build_index(tmp_path / "data", cache)
        return fingerprint(index.split(np.arange(4) > 0, change="all but the first")[0])

    folder(tmp_path / "data", 0)
    first = others()
    folder(tmp_path / "data", 9)
    assert others() == first


def test_in_an_object_store_the_versions_of_objects_count(tmp_path: Path, cache: Path) -> None:
    files = {f"data/class{number % 2}/{number}.png": image(number) for number in range(4)}
    found = []
    for content in (files, files, files | {"data/class0/0.png": image(9)}):
        with serve_s3(content) as url:
            found.append(fingerprint(build_index(f"{url}/data", cache)))
    assert found[0] == found[1] != found[2]
    assert found[0].startswith("times:")


def test_what_cannot_be_known_differs_from_nothing() -> None:
    assert difference({"index_sha256": "a", "contents": ""}, {"index_sha256": "a", "contents": "bytes:1"}) == ""
    assert difference({"index_sha256": "a", "contents": "times:1"}, {"index_sha256": "a", "contents": ""}) == ""
    for damaged in (None, [], {}, "a"):
        assert difference(damaged, {"index_sha256": "a", "contents": ""}) == "other images, names or labels"
