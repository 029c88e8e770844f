import logging
import pickle
from pathlib import Path

import fsspec
import pytest

from beit.common.errors import BadSample, InputError
from beit.common.sources.opening import open_source
from beit.common.sources.types import Source, packed_key


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def paths_of(source: Source) -> list[str]:
    return [ref.path for shard in source.shards for ref in shard.refs()]


def labels_of(source: Source) -> list[int | None]:
    return [ref.label for shard in source.shards for ref in shard.refs()]


def test_class_folders_give_labels(tmp_path: Path) -> None:
    put(tmp_path, "dog/1.jpg", "cat/x/2.PNG", "cat/1.jpeg", "cat/notes.md", "dog/3.webp")
    source = open_source(tmp_path)
    assert (source.kind, source.class_names, source.root) == ("files", ("cat", "dog"), str(tmp_path))
    assert paths_of(source) == ["cat/1.jpeg", "cat/x/2.PNG", "dog/1.jpg", "dog/3.webp"]
    assert labels_of(source) == [0, 0, 1, 1]
    (shard,) = pickle.loads(pickle.dumps(source.shards))
    refs = shard.refs()
    assert (shard.kind, shard.row_group, shard.location) == ("files", 0, str(tmp_path))
    assert refs[0].length == len("cat/1.jpeg") and refs[0].offset == 0
    with shard.open() as reader:
        assert [reader.read(ref) for ref in refs] == [ref.path.encode() for ref in refs]


def test_images_beside_folders_mean_no_labels(tmp_path: Path) -> None:
    put(tmp_path, "dog/1.jpg", "0.jpg")
    source = open_source(tmp_path)
    assert source.class_names is None and labels_of(source) == [None, None]


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_segmentation_folders_give_images_only(tmp_path: Path, prefix: str) -> None:
    put(
        tmp_path,
        f"{prefix}images/a/1.jpg",
        f"{prefix}annotations/a/1.png",
        f"{prefix}images/2.jpg",
        "other/images/3.jpg",
    )
    source = open_source(tmp_path)
    assert source.class_names is None
    assert paths_of(source) == sorted([f"{prefix}images/2.jpg", f"{prefix}images/a/1.jpg", "other/images/3.jpg"])


def test_class_folder_may_be_called_annotations(tmp_path: Path) -> None:
    put(tmp_path, "annotations/1.jpg", "photos/1.jpg")
    assert open_source(tmp_path).class_names == ("annotations", "photos")


def test_pattern_over_images(tmp_path: Path) -> None:
    put(tmp_path, "dog/1.jpg", "cat/2.jpg", "owl/3.jpg")
    source = open_source(str(tmp_path / "{dog,cat}" / "*.jpg"))
    assert source.class_names == ("cat", "dog") and labels_of(source) == [1, 0]
    assert paths_of(open_source(tmp_path / "dog" / "1.jpg")) == ["1.jpg"]


def test_keys_are_readable_unique_and_free_of_dots(tmp_path: Path) -> None:
    names = ["a/x.v2.jpg", "b/x.v2.jpg", "x.v2.png", "a/été 1.jpg", "a/" + "n" * 200 + ".jpg"]
    put(tmp_path, *names)
    keys = [ref.key for shard in open_source(tmp_path).shards for ref in shard.refs()]
    assert len(set(keys)) == 5
    assert all("." not in key and "/" not in key and key.isascii() and len(key) <= 91 for key in keys)
    assert packed_key("a/x.v2.jpg") in keys and packed_key("a/x.v2.jpg").startswith("x%2Ev2-")
    # Keys name samples in stores and seed their views: they must stay what they were.
    assert packed_key("cat/1.jpeg") == "1-6988bad5e3"


def test_shards_have_a_size_and_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beit.common.sources.loose_files._FILES_PER_SHARD", 30)
    put(tmp_path, *(f"{name}/{number:03d}.jpg" for name in ("a", "b") for number in range(50)))
    plain = open_source(tmp_path)
    assert [len(shard.refs()) for shard in plain.shards] == [30, 30, 30, 10]
    assert [shard.name for shard in plain.shards] == [f"files-{number:06d}" for number in range(4)]
    assert paths_of(plain) == sorted(paths_of(plain)) and len(set(paths_of(plain))) == 100


def test_digest_sees_every_change(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "b/2.jpg")
    digests = [open_source(tmp_path).digest, open_source(tmp_path).digest]
    assert digests[0] == digests[1]
    (tmp_path / "a" / "1.jpg").write_bytes(b"longer than before")
    digests.append(open_source(tmp_path).digest)
    put(tmp_path, "b/3.jpg")
    digests.append(open_source(tmp_path).digest)
    (tmp_path / "b" / "3.jpg").rename(tmp_path / "a" / "3.jpg")
    digests.append(open_source(tmp_path).digest)
    assert len(set(digests)) == 4


def test_file_that_vanishes_is_a_bad_sample(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg")
    shard = open_source(tmp_path).shards[0]
    (tmp_path / "1.jpg").unlink()
    with shard.open() as reader, pytest.raises(BadSample, match="unreadable"):
        reader.read(shard.refs()[0])


def test_remote_folder() -> None:
    fsspec.filesystem("memory").pipe({"/pics/cat/1.jpg": b"1", "/pics/dog/2.jpg": b"22", "/pics/dog/list.md": b""})
    source = open_source("memory://pics")
    assert source.class_names == ("cat", "dog")
    (shard,) = source.shards
    with shard.open() as reader:
        assert [reader.read(ref) for ref in shard.refs()] == [b"1", b"22"]


def test_what_is_left_out_is_named_by_its_endings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    put(tmp_path, "1.jpg", "1.MP4", "2.mp4", "notes.txt", "README")
    assert paths_of(open_source(tmp_path)) == ["1.jpg"]
    assert "1 images, 4 other files (2 .mp4, 1 without ending, 1 .txt) left out" in caplog.text
    (tmp_path / "1.jpg").unlink()
    with pytest.raises(InputError, match=r"\(4 other files \(2 .mp4, 1 without ending, 1 .txt\)\); check the path"):
        open_source(tmp_path)


def test_image_files_have_no_members_to_choose(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg")
    with pytest.raises(InputError, match="source.image_member .* is for tars and Parquet"):
        open_source(tmp_path, image_member="rgb.png")
