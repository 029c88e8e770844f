import shutil

import pytest

from beit.common.sources.index_build import build_index
from beit.common.sources.overlap import warn_of_shared_images
from beit.tests.image_files import png, write_folder, write_parquet, write_tar
from beit.tests.tiny_store import write_members


@pytest.fixture
def warn(tmp_path, caplog):
    def warned(train, val):
        caplog.clear()
        warn_of_shared_images(*(build_index(path, tmp_path / "cache") for path in (train, val)))
        return [record.getMessage() for record in caplog.records]

    return warned


def test_the_same_folder_under_another_name(tmp_path, warn):
    folder = write_folder(tmp_path / "d", {"a": 3, "b": 3})
    (tmp_path / "link").symlink_to(folder)
    assert warn(folder, tmp_path / "link") == [
        f"{tmp_path}/link holds the same images as {folder}: a model is measured on what it learned; give others to "
        "measure on"
    ]
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy2)
    assert "the same images" in warn(folder, tmp_path / "copy")[0]


def test_some_of_the_images(tmp_path, warn):
    folder = write_folder(tmp_path / "d", {"a": 3, "b": 3})
    write_folder(tmp_path / "e", {"a": 1})
    (tmp_path / "v.csv").write_text("path,label\nd/a/0.png,a\nd/b/2.png,b\ne/a/0.png,a\n")
    (found,) = warn(folder, tmp_path / "v.csv")
    assert found.startswith(f"2 of the 3 images of {tmp_path}/v.csv are in {folder}, too")
    assert warn(folder, tmp_path / "e") == []
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/v.csv").write_text(f"path,label\n../d/a/0.png,a\n{folder}/b/2.png,b\n")
    assert warn(folder, tmp_path / "lists/v.csv")[0].startswith("2 of the 2 images")


def test_names_and_sizes_alone_prove_nothing(tmp_path, warn):
    folders = [write_folder(tmp_path / name, {"a": 3, "b": 3}) for name in ("d", "e")]
    for file in folders[1].rglob("*.png"):
        file.write_bytes(png(200 + int(file.stem)))
    assert warn(*folders) == []


def test_tars_and_tables(tmp_path, warn):
    for name in ("t", "v"):
        (tmp_path / name).mkdir()
    shared = write_tar(tmp_path / "t/1.tar", [0, 1, 1])
    write_tar(tmp_path / "t/2.tar", [1, 0])
    (tmp_path / "v/3.tar").symlink_to(shared)
    (found,) = warn(tmp_path / "t", tmp_path / "v")
    assert found.startswith(f"1 of the 1 files of {tmp_path}/v are in {tmp_path}/t, too")
    table = write_parquet(tmp_path / "x.parquet", [0, 1], 1)
    assert "the same images" in warn(table, table)[0]


def test_tiles_of_one_image_on_both_sides(tmp_path, warn):
    tiles = [f"slide-{number}~y000{row}x0000" for number in range(3) for row in range(2)]

    def tar_of(name, keys):
        return write_members(tmp_path / name, {f"{key}.png": png(number) for number, key in enumerate(keys)})

    train, val, other = tar_of("t.tar", tiles[:3]), tar_of("v.tar", tiles[3:]), tar_of("o.tar", tiles[4:])
    [found] = warn(train, val)
    assert found.startswith(f"tiles or pages of 1 images are in {val} and in {train}")
    assert warn(train, other) == []
