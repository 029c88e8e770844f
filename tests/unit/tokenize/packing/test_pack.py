import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from beit.common.errors import BadSample
from beit.common.images.decode import decode_image
from beit.common.sources.config import SourceConfig
from beit.common.storage.local_place import LocalPlace
from beit.common.store import open_store
from beit.tests.tiny_store import (
    BlockSums,
    encoded_image,
    tokenize,
    tree_bytes,
    write_folder,
    write_members,
    write_tars,
)
from beit.tokenize.checking.verify import verify_store
from beit.tokenize.packing.members import shrink


def members(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_a_packed_tar_holds_the_bytes_and_where_they_came_from(tmp_path):
    source = write_folder(tmp_path / "images" / "cat", 2)
    write_folder(tmp_path / "images" / "dog", 1, suffix="webp")
    tokenize(tmp_path / "images", tmp_path / "store", shard_size=10)
    found = members(tmp_path / "store/images/000000-files.tar")
    assert len(found) == 6
    origins = {name: json.loads(data) for name, data in found.items() if name.endswith(".json")}
    assert sorted((origin["path"], origin["label"]) for origin in origins.values()) == [
        ("cat/000.png", 0),
        ("cat/001.png", 0),
        ("dog/000.webp", 1),
    ]
    for name, origin in origins.items():
        image = name.removesuffix("json") + origin["path"].rpartition(".")[2]
        assert found[image] == (tmp_path / "images" / origin["path"]).read_bytes()
    assert source.exists()


def test_the_suffix_follows_the_content_not_the_name(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(encoded_image(0, "png"))
    tokenize(tmp_path / "images", tmp_path / "store")
    assert any(name.endswith(".png") for name in members(tmp_path / "store/images/000000-files.tar"))


def test_an_unreadable_image_is_listed_and_counted(tmp_path):
    source = write_folder(tmp_path / "images", 4)
    (source / "gone.png").symlink_to(tmp_path / "nowhere")
    summary = tokenize(source, tmp_path / "store", shard_size=10)
    assert summary.num_samples == 4 and dict(summary.skipped) == {"unreadable": 1}
    manifest = json.loads((tmp_path / "store/images/000000-files.manifest.json").read_text())
    assert [sample["reason"] for sample in manifest["skipped"]] == ["unreadable"]
    assert tokenize(source, tmp_path / "store", shard_size=10).skipped.total() == 1


def test_why_an_image_cannot_be_packed_is_said_once_for_a_reason(tmp_path, caplog):
    source = write_folder(tmp_path / "images", 4)
    for name in ("large", "larger"):
        (source / f"{name}.png").write_bytes(encoded_image(7, "png", size=(1100, 1000)))
    settings = {"source": SourceConfig(max_megapixels=1.0), "tile": 512, "bad_sample_budget": 0.5, "shard_size": 1000}
    assert dict(tokenize(source, tmp_path / "store", **settings).skipped) == {"bomb": 2}
    said = [record.message for record in caplog.records if "cannot be packed" in record.message]
    assert len(said) == 1 and "1100 x 1000 px, 1.1 megapixels, more than 1" in said[0]
    assert "--set source.max_megapixels=1.2 admits it" in said[0]


def test_null_images_of_a_table_are_counted(tmp_path):
    cells = [{"bytes": encoded_image(0, "png"), "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    pq.write_table(pa.table({"image": cells}), tmp_path / "x.parquet")
    summary = tokenize(tmp_path / "x.parquet", tmp_path / "store")
    assert summary.num_samples == 1 and dict(summary.skipped) == {"empty": 1}


def test_packing_a_table_takes_each_row_group_once(tmp_path, monkeypatch):
    table = pa.table({"image": [{"bytes": encoded_image(n, "png"), "path": f"{n}.png"} for n in range(12)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=3)
    opened = []
    from beit.common.sources.parquet import ParquetShard

    stream = ParquetShard.stream
    monkeypatch.setattr(ParquetShard, "stream", lambda self: opened.append(self.row_group) or stream(self))
    tokenize(tmp_path / "x.parquet", tmp_path / "store", shard_size=3)
    assert opened[-4:] == [0, 1, 2, 3]  # before it, some images are looked at


def test_only_missing_tars_are_packed_again(tmp_path, monkeypatch):
    table = pa.table({"image": [{"bytes": encoded_image(n, "png"), "path": f"{n}.png"} for n in range(12)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=3)
    tokenize(tmp_path / "x.parquet", tmp_path / "store", shard_size=3)
    tars = sorted((tmp_path / "store/images").glob("*.tar"))
    before = [path.stat().st_mtime_ns for path in tars]
    content = tars[2].read_bytes()
    tars[2].unlink()
    tokenize(tmp_path / "x.parquet", tmp_path / "store", shard_size=3)
    after = [path.stat().st_mtime_ns for path in tars]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False, True]
    assert tars[2].read_bytes() == content


def test_shrinking_keeps_the_aspect_and_leaves_small_images_alone():
    large = io.BytesIO()
    Image.new("RGB", (400, 200), (200, 30, 30)).save(large, "PNG")
    image = decode_image(shrink(large.getvalue(), 50, jpeg_quality=95))
    assert image.size == (100, 50) and np.abs(np.asarray(image)[25, 50].astype(int) - [200, 30, 30]).max() < 6
    small = encoded_image(0, "png")
    assert shrink(small, 40, jpeg_quality=95) is small
    with pytest.raises(BadSample):
        shrink(b"nothing", 40, jpeg_quality=95)


def test_labels_of_tars_that_are_packed_again_become_numbers_and_what_else_came_along_stays_behind(tmp_path):
    for number, name in enumerate(("a", "b")):
        files = {
            f"{name}.jpg": encoded_image(number),
            f"{name}.txt": f"caption {name}".encode(),
            f"{name}.cls": b"cat" if number else b"dog",
            f"{name}.json": json.dumps({"url": name, "label": "owl"}).encode(),
            f"{name}.seg.png": b"a mask",
            "__meta__.json": b"{}",
        }
        write_members(tmp_path / f"{name}.tar", files)
    tokenize(tmp_path / "{a,b}.tar", tmp_path / "store", short_side=20)
    found = members(tmp_path / "store/images/000000-files.tar")
    assert sorted(found) == ["a.jpg", "a.json", "b.jpg", "b.json"]
    for number, name in enumerate(("a", "b")):
        assert json.loads(found[f"{name}.json"]) == {"path": f"{name}.jpg", "label": 1 - number}
        assert decode_image(found[f"{name}.jpg"]).size == (24, 20)
    store = open_store(tmp_path / "store")
    assert store.info.class_names == ("cat", "dog")
    assert {sample["key"]: sample["label"] for sample in store} == {"a": 1, "b": 0}


def test_the_manifest_of_a_packed_tar_is_read_once_and_not_at_all_in_the_run_that_wrote_it(tmp_path, monkeypatch):
    reads, read = Counter(), LocalPlace.read

    def counted(self, **options):
        reads.update([Path(self.location).relative_to(tmp_path).as_posix()])
        return read(self, **options)

    monkeypatch.setattr(LocalPlace, "read", counted)
    source = write_folder(tmp_path / "images", 9)
    for expected in (0, 1):
        reads.clear()
        tokenize(source, tmp_path / "store", shard_size=3)
        manifests = sorted((tmp_path / "store/images").glob("*.manifest.json"))
        assert [reads[f"store/images/{path.name}"] for path in manifests] == [expected] * 3


def write_mixed(folder):
    """A large image turned by EXIF, a large one with alpha, and a small one."""
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (60, 40), (200, 30, 30)).save(folder / "turned.jpg", exif=exif)
    Image.new("RGBA", (90, 30), (30, 200, 30, 128)).save(folder / "wide.png")
    Image.new("RGB", (18, 16), (30, 30, 200)).save(folder / "small.webp")
    return folder


def as_source(kind, folder, images):
    paths = sorted(images.iterdir())
    if kind == "folder":
        return images
    if kind == "list":
        (folder / "list.txt").write_text("\n".join(map(str, paths)))
        return folder / "list.txt"
    if kind == "parquet":
        cells = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
        pq.write_table(pa.table({"image": cells}), folder / "x.parquet")
        return folder / "x.parquet"
    return write_members(folder / "x.tar", {path.name: path.read_bytes() for path in paths})


@pytest.mark.parametrize("kind", ["folder", "list", "parquet", "tar"])
def test_short_side_shrinks_turns_and_never_enlarges_whatever_the_source(tmp_path, kind):
    images = write_mixed(tmp_path / "images")
    source = as_source(kind, tmp_path, images)
    for name in ("store", "again"):
        tokenize(source, tmp_path / name, short_side=20, shard_size=10)
    assert tree_bytes(tmp_path / "store") == tree_bytes(tmp_path / "again")
    found = members(tmp_path / "store/images/000000-files.tar")
    images_of = {json.loads(data)["path"].rpartition("/")[2]: name for name, data in found.items() if "json" in name}
    suffixes = {"small.webp": ".webp"}
    packed = {path: found[name.replace(".json", suffixes.get(path, ".jpg"))] for path, name in images_of.items()}
    assert packed["small.webp"] == (images / "small.webp").read_bytes()
    assert Image.open(io.BytesIO(packed["turned.jpg"])).size == (20, 30)
    assert not Image.open(io.BytesIO(packed["turned.jpg"])).getexif()
    assert Image.open(io.BytesIO(packed["wide.png"])).size == (60, 20)
    assert json.loads((tmp_path / "store/store.json").read_text())["packing"]["jpeg_quality"] == 95


def test_tars_with_equal_keys_are_packed_under_keys_of_their_own(tmp_path):
    for name, count in (("one", 3), ("two", 4)):
        (write_tars(tmp_path / name, (count,)) / "part-0.tar").rename(tmp_path / f"{name}.tar")
    tokenize(tmp_path / "{one,two}.tar", tmp_path / "store", short_side=20)
    keys = sorted(sample["key"] for sample in open_store(tmp_path / "store"))
    assert len(set(keys)) == 7 and [key for key in keys if len(key) == 4] == ["k003"]
    assert [key[:4] for key in keys] == ["k000", "k000", "k001", "k001", "k002", "k002", "k003"]


def test_a_store_over_the_images_of_another_references_them(tmp_path):
    """Another K or another tokenizer: the images are there once, and keys, order and held-out images agree."""
    tokenize(write_folder(tmp_path / "images", 10), tmp_path / "first")
    before = tree_bytes(tmp_path / "first")
    tokenizer = BlockSums()
    tokenizer.fingerprint = "e" * 64
    tokenize(tmp_path / "first/images", tmp_path / "second", views=2, seed=1, tokenizer=tokenizer)
    first, second = open_store(tmp_path / "first"), open_store(tmp_path / "second")
    assert not (tmp_path / "second/images").exists() and second.info.image_root == "../first/images"
    assert [sample["key"] for sample in first] == [sample["key"] for sample in second]
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(first, second, strict=True))
    assert first.info.held_out == second.info.held_out
    assert [row.num_held_out for row in first.shards] == [row.num_held_out for row in second.shards]
    assert (first.info.views, second.info.views) == (3, 2)
    assert verify_store(tmp_path / "second").problems == [] and tree_bytes(tmp_path / "first") == before
