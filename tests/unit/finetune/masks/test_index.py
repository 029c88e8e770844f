import json
import logging
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from beit.common.errors import InputError
from beit.common.sources.config import SourceConfig
from beit.finetune.masks.classes import MaskClasses, voc_colours
from beit.finetune.masks.dataset import MaskedDataset
from beit.finetune.masks.index import draw_order, open_evaluation_masks, open_training_masks
from beit.finetune.masks.settings import MaskDataConfig
from beit.tests.unit.finetune.masks.trees import colours, encoded, ids, palette_image, photo, write, write_set

READING = SourceConfig()


def opened(data, **settings):
    return open_training_masks(str(data), MaskDataConfig(**settings), reading=READING)


def measured(data, names, **settings):
    classes = MaskClasses(names=names, colours=voc_colours(len(names)))
    return open_evaluation_masks(str(data), classes, MaskDataConfig(**settings), reading=READING)


def refused(data, **settings):
    with pytest.raises(InputError) as error:
        opened(data, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folders_of_images_and_masks_are_opened_with_their_classes(tmp_path):
    write_set(tmp_path, 3)
    write(tmp_path, {"classes.json": '["sky", "tree"]'})
    data = opened(tmp_path)
    assert len(data.train) == 3 and data.val is None and data.train is data.source
    assert data.classes.names == ("sky", "tree")
    assert data.train.class_pixels().tolist() == [96, 96]
    np.testing.assert_array_equal(data.train.decode(0), ids(0, 1, 255))


def test_records_hold_the_mask_of_their_image(tmp_path):
    files = {f"images/{n}.jpg": photo(n) for n in range(4)} | {f"masks/{n}.png": ids(n, n + 1) for n in range(4)}
    data = opened(write(tmp_path, files))
    dataset = pickle.loads(pickle.dumps(MaskedDataset(data.train)))
    for n in range(4):
        record = dataset.fetch(0, n, 0)
        assert record.image_bytes == photo(n)
        mask = data.train.decoder.decode(record.mask_bytes, size=record.decode_image().size)
        np.testing.assert_array_equal(mask, ids(n, n + 1))
    assert dataset.index_sha256 == data.train.index_sha256
    dataset.close()


def test_a_subset_reads_its_own_masks(tmp_path):
    files = {f"images/{n}.jpg": photo(n) for n in range(9)} | {f"masks/{n}.png": ids(n, 9) for n in range(9)}
    data = opened(write(tmp_path, files))
    train = data.source.subset(num_labels=4, seed=2)
    dataset = MaskedDataset(train)
    for rank in range(4):
        record = dataset.fetch(0, rank, 0)
        number = int(train.images.ref_at(rank).path.split("/")[-1].split(".")[0])
        np.testing.assert_array_equal(train.decoder.decode(record.mask_bytes), ids(number, 9))
        assert train.pixel_counts[rank, number] == 48


def test_without_names_the_values_that_occur_are_the_classes(tmp_path):
    data = opened(write_set(tmp_path, 2, values=(0, 4, 9, 255)))
    assert data.classes.names == ("0", "4", "9")
    np.testing.assert_array_equal(data.train.decode(0), ids(0, 1, 2, 255))


def test_values_to_ignore_are_a_setting(tmp_path):
    data = opened(write_set(tmp_path, 2, values=(0, 4, 9, 255)), ignore=(0, 255))
    assert data.classes.names == ("4", "9")
    assert data.train.class_pixels().tolist() == [48, 48]


def test_zero_can_mean_no_class(tmp_path):
    write_set(tmp_path, 2, values=(0, 1, 2))
    assert opened(tmp_path, reduce_zero_label=True).classes.names == ("1", "2")
    write(tmp_path, {"classes.json": '["wall", "sky"]'})
    data = opened(tmp_path, reduce_zero_label=True)
    assert data.classes.names == ("wall", "sky")
    np.testing.assert_array_equal(data.train.decode(0), ids(255, 0, 1))


@pytest.mark.parametrize("names", [{"0": "wall", "1": "sky"}, {"1": "wall", "2": "sky"}])
def test_files_may_count_with_or_without_the_zero(tmp_path, names):
    write_set(tmp_path, 2, values=(0, 1, 2))
    write(tmp_path, {"classes.json": json.dumps(names)})
    data = opened(tmp_path, reduce_zero_label=True)
    assert data.classes.names == ("wall", "sky")
    np.testing.assert_array_equal(data.train.decode(0), ids(255, 0, 1))


def test_cityscapes_label_ids_become_19_classes(tmp_path):
    name = "train/aachen/aachen_000000_000019"
    files = {f"leftImg8bit/{name}_leftImg8bit.png": None, f"gtFine/{name}_gtFine_labelIds.png": ids(0, 7, 26, 33)}
    data = opened(write(tmp_path, files))
    assert len(data.classes) == 19
    np.testing.assert_array_equal(data.train.decode(0), ids(255, 0, 13, 18))


def test_masks_of_colours_are_read_by_their_table(tmp_path):
    write(tmp_path, {"images/a.jpg": None, "masks/a.png": colours((0, 0, 0), (64, 128, 64), (192, 0, 128))})
    write(tmp_path, {"label_colors.txt": "64 128 64\tAnimal\n192 0 128\tArchway\n0 0 0\tVoid\n1 1 1\tOther\n"})
    data = opened(tmp_path)
    assert data.classes.names == ("Animal", "Archway", "Other")
    assert data.classes.colours[0] == (64, 128, 64)
    np.testing.assert_array_equal(data.train.decode(0), ids(255, 0, 1))


def test_a_table_of_colours_also_names_numbers(tmp_path):
    write_set(tmp_path, 2, values=(0, 1, 255))
    write(tmp_path, {"class_dict.csv": "name,r,g,b\nsky,1,2,3\ntree,4,5,6\n"})
    data = opened(tmp_path)
    assert data.classes.names == ("sky", "tree") and data.classes.colours == ((1, 2, 3), (4, 5, 6))


def test_numbers_written_into_rgb_are_numbers(tmp_path):
    data = opened(
        write(tmp_path, {"images/a.jpg": None, "masks/a.png": colours((0, 0, 0), (2, 2, 2), (255, 255, 255))})
    )
    assert data.classes.names == ("0", "2")
    np.testing.assert_array_equal(data.train.decode(0), ids(0, 1, 255))


def test_palettes_give_numbers_and_colours_of_classes(tmp_path):
    palette = [(9, 9, 9), (200, 0, 0), (0, 200, 0)]
    mask = encoded(palette_image(ids(0, 1, 2), palette))
    data = opened(write(tmp_path, {"images/a.jpg": None, "masks/a.png": mask}))
    assert data.classes.names == ("0", "1", "2") and data.classes.colours == tuple(palette)


def test_train_and_val_folders_are_used_for_what_they_are(tmp_path, caplog):
    for part, count in (("train", 3), ("val", 2), ("test", 4)):
        write_set(tmp_path / part, count)
    with caplog.at_level(logging.INFO):
        data = opened(tmp_path)
    assert len(data.train) == 3 and len(data.val) == 2
    assert data.train.location == str(tmp_path / "train") and data.val.location == str(tmp_path / "val")
    assert "training on" in caplog.text and "4 images of its part test" in caplog.text


def test_val_of_the_user_wins(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        write_set(tmp_path / "a" / part, count)
    data = opened(tmp_path / "a", val=str(write_set(tmp_path / "b", 1)))
    assert len(data.train) == 3 and len(data.val) == 1 and data.val.name == str(tmp_path / "b")


def test_val_without_names_takes_those_of_the_training(tmp_path, caplog):
    write_set(tmp_path / "a", 3)
    write(tmp_path / "a", {"classes.json": '["sky", "tree"]'})
    val = write_set(tmp_path / "b", 2, values=(1, 255))
    with caplog.at_level(logging.INFO):
        data = opened(tmp_path / "a", val=str(val))
    assert data.val.class_pixels().tolist() == [0, 96] and "its values are taken to mean what" in caplog.text
    write(val, {"classes.json": '["tree", "sky"]'})
    assert opened(tmp_path / "a", val=str(val)).val.class_pixels().tolist() == [96, 0]


def test_a_set_with_parts_is_measured_on_its_val(tmp_path, caplog):
    for part, count in (("train", 3), ("val", 2)):
        write_set(tmp_path / part, count)
    with caplog.at_level(logging.INFO):
        assert len(measured(tmp_path, ("0", "1"))) == 2
    assert "measured on its part validation" in caplog.text


def test_classes_of_other_data_are_matched_by_name(tmp_path):
    write_set(tmp_path, 2, values=(0, 1, 255))
    write(tmp_path, {"classes.json": '["tree", "sky", "never seen"]'})
    index = measured(tmp_path, ("sky", "road", "tree"))
    assert index.class_pixels().tolist() == [64, 0, 64]
    np.testing.assert_array_equal(index.decode(0), ids(2, 0, 255))


def test_classes_that_a_model_lacks_are_refused(tmp_path):
    write_set(tmp_path, 2, values=(0, 1))
    write(tmp_path, {"classes.json": '["tree", "sky"]'})
    with pytest.raises(InputError, match=r"does not know \(sky\)"):
        measured(tmp_path, ("tree", "road"))
    (tmp_path / "classes.json").unlink()
    with pytest.raises(
        InputError, match="are numbers .0, 1., the model's names .tree, sky.; say which.*data.classes=FILE"
    ):
        measured(tmp_path, ("tree", "sky"))


def test_one_class_only_may_be_measured_on(tmp_path):
    write_set(tmp_path, 2, values=(1,))
    assert measured(tmp_path, ("0", "1")).class_pixels().tolist() == [0, 192]


def test_wholly_ignored_masks_are_left_out_of_the_training_and_said(tmp_path, caplog):
    write_set(tmp_path, 3)
    write(tmp_path, {"images/x.jpg": None, "annotations/x.png": ids(255)})
    data = opened(tmp_path)
    assert len(data.train) == 3 and "1 of 4 images are left out" in caplog.text
    assert len(measured(tmp_path, ("0", "1"))) == 4


def test_every_class_is_in_a_subset_that_has_room_for_it(tmp_path):
    files = {}
    for n in range(40):
        files |= {f"images/{n:02d}.jpg": None, f"masks/{n:02d}.png": ids(0, 5) if n == 17 else ids(0, 1)}
    data = opened(write(tmp_path, files), num_labels=2)
    assert (data.train.class_pixels() > 0).all() and len(data.source) == 40
    chosen = [{*index.images.keys()} for index in (data.source.subset(num_labels=count) for count in (2, 5, 20))]
    assert chosen[0] < chosen[1] < chosen[2]
    other = data.source.subset(num_labels=20, seed=1)
    assert {*other.images.keys()} != chosen[2]
    assert other.index_sha256 != data.source.index_sha256


def test_classes_that_a_subset_lacks_are_named(tmp_path, caplog):
    files = {f"images/{n}.jpg": None for n in range(4)} | {f"masks/{n}.png": ids(n, n + 1) for n in range(4)}
    data = opened(write(tmp_path, files), label_fraction=0.25)
    assert len(data.train) == 1 and "without any pixel of 3 classes" in caplog.text


def test_a_draw_begins_with_the_rarest_class():
    has_class = np.ones((30, 3), np.bool_)
    has_class[:, 1] = False
    has_class[:, 2] = False
    has_class[11, 2] = True
    order = draw_order(has_class, 0)
    assert order[0] == 11 and sorted(order.tolist()) == list(range(30))


def test_a_part_is_spread_evenly(tmp_path):
    data = opened(write_set(tmp_path, 8))
    assert [data.train.part(2).images.ref_at(n).path for n in range(2)] == ["images/0.jpg", "images/4.jpg"]
    assert data.train.part(100) is data.train


def test_images_to_measure_on_can_be_fewer(tmp_path):
    train, val = write_set(tmp_path / "a", 2), write_set(tmp_path / "b", 5)
    assert len(opened(train, val=str(val), num_val_images=2).val) == 2
    assert "must not exceed the 5 images" in refused(train, val=str(val), num_val_images=9)
    assert "needs validation images" in refused(train, num_val_images=9)
    assert "must not exceed the 2 images" in refused(train, num_labels=3)


def test_identity_follows_masks_and_what_they_mean(tmp_path):
    write_set(tmp_path, 3)
    first = opened(tmp_path).train.index_sha256
    assert opened(tmp_path).train.index_sha256 == first
    assert opened(tmp_path, ignore=(7, 255)).train.index_sha256 != first
    write(tmp_path, {"annotations/1.png": ids(1, 0, 255)})
    assert opened(tmp_path).train.index_sha256 != first


def test_a_copy_elsewhere_has_the_same_identity(tmp_path):
    first, second = (opened(write_set(tmp_path / name, 3)).train.index_sha256 for name in "ab")
    assert first == second


SIZES = {"images/a.jpg": photo(size=(12, 8)), "masks/a.png": ids(0, 1, size=(6, 4))}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (SIZES, "1 mask of another size than the image .*masks/a.png has 6 x 4 px, images/a.jpg 12 x 8"),
        ({"images/a.jpg": None, "images/b.jpg": None, "masks/a.png": ids(0, 1)}, "has 1 image without a mask .*b.jpg"),
        (
            {"images/a.jpg": None, "masks/b.png": ids(0, 1), "masks/a.png": ids(0, 1)},
            "has 1 mask without an image .*b.png",
        ),
        (
            {"images/a.jpg": None, "masks/a.png": colours((0, 0, 9), (1, 2, 3), (1, 2, 3))},
            r"hold colours, most often \(1, 2, 3\)",
        ),
        ({"images/a.jpg": None, "masks/a.png": ids(255)}, "all pixels of all masks"),
        ({"images/a.jpg": None, "masks/a.png": ids(3)}, r"one class only \(3\)"),
        (
            {"images/a.jpg": None, "masks/a.png": ids(0, 255)},
            "one class only .*255 is one, too, set data.ignore=.. and data.classes",
        ),
        (
            {"images/a.jpg": None, "masks/a.jpg": photo()},
            "has 1 mask that cannot be used .first: masks/a.jpg: a JPEG, whose compression",
        ),
        ({"images/a.jpg": None, "masks/a.png": encoded(ids(0, 1))[:40]}, "1 mask that cannot be used"),
        (
            {"images/a.jpg": None, "masks/a.png": ids(0, 1), "images/b.jpg": None, "masks/b.png": colours((1, 2, 3))},
            "1 mask of numbers and 1 of colours",
        ),
        (
            {"images/a.jpg": None, "masks/a.png": ids(0, 1, 7, 9), "classes.json": '["sky", "tree"]'},
            r"values that are no class \(7 in 24 pixels, 9 in 24 pixels\), first in masks/a.png; .*classes.json lacks",
        ),
        (
            {
                "images/a.jpg": None,
                "masks/a.png": colours((1, 2, 3), (4, 5, 6), (9, 9, 8)),
                "class_dict.csv": "name,r,g,b\nsky,1,2,3\ntree,4,5,6\n",
            },
            r"hold colours that are no class \(\(9, 9, 8\) in 32 pixels\), first in masks/a.png; .*under the name void",
        ),
        (
            {
                "images/a.jpg": photo(size=(60, 4)),
                "masks/a.png": ids(*range(0, 60), size=(60, 4)),
                "classes.json": '["sky", "tree"]',
            },
            "values that are no class .2 in 4 pixels, .* and 55 more.*so many come from interpolation",
        ),
        (
            {
                "images/a.jpg": None,
                "masks/a.png": colours((0, 0, 0), (1, 1, 1), (7, 7, 7)),
                "classes.txt": "sky\ntree\n",
            },
            r"values that are no class \(7 in 32 pixels\), first in masks/a.png",
        ),
        (
            {"images/a.jpg": None, "masks/a.png": ids(0, 85, 170, 255)},
            r"hold shades \(0, 85, 170, 255\), as programs make them of numbers of 2 or 4 bits",
        ),
        (
            {"images/a.jpg": None, "masks/a.png": ids(0, 17, 51), "classes.txt": "sky\ntree\nsea\nroad\n"},
            "no class .17 in 32 pixels, 51 in 32 pixels.*made shades of numbers of 2 or 4 bits",
        ),
        (
            {"images/a.jpg": None, "masks/a.png": ids(0, 1, 15), "classes.json": '["sky", "tree"]'},
            "15 may be what a PNG of few bits made of 255",
        ),
        (
            {"images/a.jpg": None, "masks/a.png": ids(0, 1), "classes.json": '{"0": "sky", "1": "tree", "255": "sea"}'},
            r"value 255 sea, and data.ignore \(255\)",
        ),
        ({"images/a.jpg": None, "masks/a.png": ids(0, 1), "classes.json": '["sky"]'}, r"names 1 classes \(sky\)"),
        (
            {
                "images/a.jpg": photo(size=(32, 16)),
                "masks/a.png": encoded(Image.fromarray(np.arange(512, dtype=np.uint16).reshape(16, 32))),
            },
            "hold 511 different values",
        ),
        (
            {
                "images/a.jpg": photo(size=(100, 100)),
                "masks/a.png": encoded(Image.fromarray(np.arange(10000, dtype=np.uint16).reshape(100, 100))),
            },
            "10000 different values: that is a picture",
        ),
    ],
)
def test_wrong_masks_are_refused_in_one_line(tmp_path, files, words):
    message = refused(write(tmp_path, files))
    assert re.search(words, message), message


def test_shades_that_a_file_names_are_classes(tmp_path):
    write_set(tmp_path, 2, values=(0, 85, 170, 255))
    write(tmp_path, {"classes.json": '{"0": "a", "85": "b", "170": "c", "255": "d"}'})
    assert opened(tmp_path, ignore=()).classes.names == ("a", "b", "c", "d")


def test_unpaired_files_can_be_left_out(tmp_path, caplog):
    write_set(tmp_path, 2)
    write(tmp_path, {"images/x.jpg": None, "annotations/y.png": ids(0, 1)})
    assert len(opened(tmp_path, skip_unpaired=True).train) == 2
    assert "1 image without a mask left out" in caplog.text
    assert "1 mask without an image left out" in caplog.text


def test_further_problems_are_counted(tmp_path):
    write(tmp_path, SIZES | {"images/b.jpg": None})
    assert "(and 1 more: --check lists them)" in refused(tmp_path)


def test_renumbered_palettes_are_refused(tmp_path):
    one, two = [(0, 0, 0), (200, 0, 0)], [(200, 0, 0), (0, 0, 0)]
    files = {"images/a.jpg": None, "masks/a.png": encoded(palette_image(ids(0, 1), one))}
    files |= {"images/b.jpg": None, "masks/b.png": encoded(palette_image(ids(0, 1), two))}
    assert "palettes of" in refused(write(tmp_path, files)) and "numbered colours anew" in refused(tmp_path)


def test_indices_against_their_table_are_refused(tmp_path):
    palette = [(200, 0, 0), (0, 0, 0)]
    files = {"images/a.jpg": None, "masks/a.png": encoded(palette_image(ids(0, 1), palette))}
    write(tmp_path, files | {"class_dict.csv": "name,r,g,b\nback,0,0,0\ncat,200,0,0\n"})
    assert "the value 0 has the colour (200, 0, 0) of cat, and is back by" in refused(tmp_path)


def test_masks_of_turned_images_must_be_turned(tmp_path, caplog):
    turned = photo(size=(12, 8), orientation=6)
    write(tmp_path / "right", {"images/a.jpg": turned, "masks/a.png": ids(0, 1, size=(8, 12))})
    assert len(opened(tmp_path / "right").train) == 1
    assert "1 image turned" in caplog.text
    write(tmp_path / "wrong", {"images/a.jpg": turned, "masks/a.png": ids(0, 1, size=(12, 8))})
    assert "its EXIF data have the image turned" in refused(tmp_path / "wrong")


def test_values_of_ade20k_are_told(tmp_path, caplog):
    write(tmp_path, {"images/a.jpg": None, "masks/a.png": ids(0, 1, 150)})
    opened(tmp_path)
    assert "data.reduce_zero_label=true" in caplog.text
    caplog.clear()
    opened(tmp_path, reduce_zero_label=True)
    assert "reduce_zero_label" not in caplog.text


def test_images_above_the_limit_are_no_matter_of_masks(tmp_path):
    write_set(tmp_path, 2)
    with pytest.raises(InputError, match="source.max_megapixels=.* admits it"):
        open_training_masks(str(tmp_path), MaskDataConfig(), reading=SourceConfig(max_megapixels=5e-5))


def test_a_bad_image_is_left_to_the_reader(tmp_path):
    write_set(tmp_path, 2)
    write(tmp_path, {"images/x.jpg": b"no image", "annotations/x.png": ids(0, 1)})
    assert len(opened(tmp_path).train) == 3
