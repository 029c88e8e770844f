import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beit.common.errors import InputError
from beit.common.sources.config import SourceConfig
from beit.finetune.masks.dataset import MaskedDataset
from beit.finetune.masks.index import open_training_masks
from beit.finetune.masks.opening import open_measured, open_pairs, open_parts, open_val
from beit.finetune.masks.settings import MaskDataConfig
from beit.tests.s3_server import serve_s3
from beit.tests.support import files_of
from beit.tests.unit.finetune.masks.trees import encoded, ids, photo, write, write_set

READING = SourceConfig()


def opened(data, **settings):
    return open_parts(str(data), MaskDataConfig(**settings), reading=READING)


def size_of(source):
    return sum(len(shard.refs()) for shard in source.images.shards)


def write_tar(path, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            for ending, data in (("jpg", photo(number)), ("seg.png", encoded(ids(0, 1)))):
                info = tarfile.TarInfo(f"{number:04d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def write_table(path, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"image": {"bytes": photo(n)}, "annotation": {"bytes": encoded(ids(0, 1))}} for n in range(count)]
    pq.write_table(pa.Table.from_pylist(rows), path)


def coco(count):
    return json.dumps(
        {
            "images": [{"id": n, "file_name": f"{n}.jpg", "width": 12, "height": 8} for n in range(count)],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [
                {"id": n + 1, "image_id": n, "category_id": 1, "iscrowd": 0, "area": 16, "bbox": [0, 0, 4, 4]}
                | {"segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}
                for n in range(count)
            ],
        }
    )


def test_a_folder_without_parts_is_whole(tmp_path):
    parts = opened(write_set(tmp_path, 3))
    assert size_of(parts.train) == 3 and parts.val is None and parts.name == str(tmp_path)


def test_parts_below_one_folder_have_names_of_their_own(tmp_path):
    for part in ("train", "val"):
        write_set(tmp_path / "set" / part, 1)
    parts = opened(tmp_path)
    assert (parts.name, parts.val_name) == (f"{tmp_path} (train)", f"{tmp_path} (validation)")
    assert opened(tmp_path / "set").val_name == str(tmp_path / "set/val")


def test_a_part_alone_is_all_there_is(tmp_path):
    parts = opened(write_set(tmp_path, 3, images="images/training", masks="annotations/training"))
    assert size_of(parts.train) == 3 and parts.val is None


def test_images_of_another_part_need_no_masks(tmp_path):
    write_set(tmp_path / "train", 3)
    write(tmp_path, {"test/images/1.jpg": None, "test/images/2.jpg": None, "test/masks/readme.txt": "none"})
    parts = opened(tmp_path)
    assert size_of(parts.train) == 3 and not parts.train.without_mask
    write(tmp_path, {"valid/1_sat.jpg": None, "train/images/9.jpg": None})
    assert opened(tmp_path).train.without_mask == ("train/images/9.jpg",)


def test_a_test_part_is_measured_on_where_there_is_no_other(tmp_path):
    write_set(tmp_path / "train", 3)
    write_set(tmp_path / "test", 2)
    assert opened(tmp_path).val is None and size_of(opened(tmp_path).train) == 3
    source, name = open_measured(str(tmp_path), MaskDataConfig(), reading=READING)
    assert size_of(source) == 2 and name == str(tmp_path / "test")
    assert size_of(open_pairs(str(tmp_path), MaskDataConfig(), reading=READING)) == 2


@pytest.mark.parametrize("names", [("train-000.tar", "val-000.tar"), ("train/0.tar", "val/0.tar")])
def test_tars_of_parts_are_told_apart(tmp_path, names):
    for name, count in zip(names, (3, 2), strict=True):
        write_tar(tmp_path / "wd[s]" / name, count)
    parts = opened(tmp_path / "wd[s]")
    assert size_of(parts.train) == 3 and size_of(parts.val) == 2
    assert size_of(open_pairs(str(tmp_path / "wd[s]"), MaskDataConfig(), reading=READING)) == 2


def test_parquet_of_parts_is_told_apart(tmp_path):
    write_table(tmp_path / "data" / "train-00000-of-00001.parquet", 3)
    write_table(tmp_path / "data" / "validation-00000-of-00001.parquet", 2)
    found = open_training_masks(str(tmp_path), MaskDataConfig(), reading=READING)
    assert len(found.train) == 3 and len(found.val) == 2 and found.classes.names == ("0", "1")
    record = MaskedDataset(found.val).fetch(0, 1, 0)
    assert record.image_bytes == photo(1)
    np.testing.assert_array_equal(found.val.decoder.decode(record.mask_bytes), ids(0, 1))


def test_tars_without_parts_are_whole(tmp_path):
    write_tar(tmp_path / "0000.tar", 3)
    write_tar(tmp_path / "0001.tar", 2)
    for data in (tmp_path, tmp_path / "*.tar", tmp_path / "{0000,0001}.tar"):
        assert size_of(opened(data).train) == 5 and opened(data).val is None
    data = open_training_masks(str(tmp_path), MaskDataConfig(), reading=READING)
    assert len(data.train) == 5 and data.classes.names == ("0", "1")


def test_folders_in_a_bucket_are_opened_as_local_ones(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        write_set(tmp_path / "streets" / part, count)
    write(tmp_path / "streets", {"classes.json": '["sky", "tree"]'})
    with serve_s3(files_of(tmp_path), bucket="my-bucket") as bucket:
        data = open_training_masks(f"{bucket}/streets", MaskDataConfig(), reading=READING)
        assert len(data.train) == 3 and len(data.val) == 2 and data.classes.names == ("sky", "tree")
        np.testing.assert_array_equal(data.train.decode(0), ids(0, 1, 255))
        assert len(MaskedDataset(data.val).fetch(0, 1, 0).mask_bytes) > 50
        part = open_training_masks(f"{bucket}/streets/train", MaskDataConfig(), reading=READING)
        assert part.classes.names == ("sky", "tree")


def test_coco_is_opened_by_file_or_by_folder(tmp_path):
    write(tmp_path, {f"{n}.jpg": None for n in range(3)} | {"_annotations.coco.json": coco(3)})
    for data in (tmp_path, tmp_path / "_annotations.coco.json"):
        assert size_of(opened(data).train) == 3
    found = open_training_masks(str(tmp_path), MaskDataConfig(), reading=READING)
    assert "cat" in found.classes.names
    with pytest.raises(InputError, match="names its classes itself; leave data.classes"):
        open_training_masks(str(tmp_path), MaskDataConfig(classes="x.json"), reading=READING)


def test_coco_of_two_parts_has_both(tmp_path):
    for part, count in (("train", 3), ("valid", 2)):
        write(tmp_path / part, {f"{n}.jpg": None for n in range(count)} | {"_annotations.coco.json": coco(count)})
    found = open_training_masks(str(tmp_path), MaskDataConfig(), reading=READING)
    assert len(found.train) == 3 and len(found.val) == 2
    assert size_of(open_pairs(str(tmp_path), MaskDataConfig(), reading=READING)) == 2


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("", "must be a folder"),
        ("nowhere", "does not exist"),
        ("a.jpg", "is a file"),
        ("nowhere.tar", "nowhere.tar"),
        ("nowhere.json", "nowhere.json"),
        ("*.png", "no folder of images and masks, nor"),
    ],
)
def test_what_is_no_data_is_refused_in_one_line(tmp_path, monkeypatch, data, words):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"a.jpg": None})
    with pytest.raises(InputError) as error:
        opened(data)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_settings_for_another_kind_of_data_are_named(tmp_path):
    write_set(tmp_path / "folders", 1)
    write_table(tmp_path / "tables/a.parquet", 1)
    write_tar(tmp_path / "tars/a.tar", 1)
    settings = {"mask_column": "annotation", "mask_member": "seg.png", "coco_background": True}
    for kind, idle in (
        ("folders", ["mask_column", "mask_member", "coco_background"]),
        ("tables", ["mask_member", "coco_background"]),
        ("tars", ["mask_column", "coco_background"]),
    ):
        notes = [note for note in opened(tmp_path / kind, **settings).train.notes if "changes nothing" in note]
        assert [note.partition(" ")[0] for note in notes] == [f"data.{name}" for name in idle]


def test_what_holds_of_both_parts_is_said_once(tmp_path):
    for part in ("train", "val"):
        write_set(tmp_path / part, 1)
    settings = MaskDataConfig(mask_member="seg.png")
    parts = open_parts(str(tmp_path), settings, reading=READING)
    assert len(parts.train.notes) == 1
    assert open_val(parts, settings, reading=READING)[0].notes == ()


@pytest.mark.parametrize("settings", [{"ignore": (0, 255)}, {"reduce_zero_label": True}])
def test_categories_have_no_values_to_ignore(tmp_path, settings):
    write(tmp_path, {"a.json": coco(2), "images/0.jpg": photo(0), "images/1.jpg": photo(1)})
    with pytest.raises(InputError, match="data.coco_background=false ignores"):
        open_training_masks(str(tmp_path), MaskDataConfig(**settings), reading=READING)


def test_data_without_a_part_to_learn_from_say_that_all_of_it_is(tmp_path):
    for part in ("val", "test"):
        write_set(tmp_path / "folders" / part, 2)
        write_tar(tmp_path / "tars" / f"{part}-0000.tar", 2)
    for kind in ("folders", "tars"):
        parts = opened(tmp_path / kind)
        assert size_of(parts.train) == 4 and parts.val is None
        (note,) = [note for note in parts.train.notes if "has no part train: all of it is learned from" in note]
        assert "test" in note and "validation" in note
    write_set(tmp_path / "whole", 2)
    assert not opened(tmp_path / "whole").train.notes


def test_one_image_is_counted_as_one(tmp_path):
    for part, count in (("train", 2), ("val", 1), ("test", 1)):
        write_set(tmp_path / part, count)
    (note,) = opened(tmp_path).train.notes
    assert "1 image of its part test left out of the training" in note
