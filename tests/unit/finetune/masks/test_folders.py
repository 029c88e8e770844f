import json

import pytest

from beit.common.errors import InputError
from beit.finetune.masks.folders import NothingPaired, list_pairs
from beit.finetune.masks.folders import source_of as whole_source
from beit.tests.unit.finetune.masks.trees import colours, ids, write, write_set

MASK = ids(0, 1)


def paired(root, **options):
    found = list_pairs(str(root), **options)
    return {pair.image.path: pair.mask.path for pair in found.pairs}


def parts(root, **options):
    return {pair.image.path: pair.part for pair in list_pairs(str(root), **options).pairs}


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/a.jpg", "annotations/a.png"),
        ("images/a.jpg", "masks/a.png"),
        ("images/a.JPG", "labels/a.PNG"),
        ("Images/a.jpeg", "Masks/a.png"),
        ("images/a.png", "masks/a.png"),
        ("img/a.jpg", "ann/a.png"),
        ("imgs/a b (1).jpg", "masks/a b (1)_mask.png"),
        ("images/a.jpg", "masks/a_mask.png"),
        ("images/a.jpg", "masks/a-mask.png"),
        ("images/a.jpg", "masks/a.jpg.png"),
        ("images/a.jpg", "masks/a.jpg_mask.png"),
        ("images/a.jpg", "labels/a_L.png"),
        ("images/a_image.jpg", "masks/a_mask.png"),
        ("images/a_sat.jpg", "masks/a_mask.png"),
        ("a.jpg", "masks/a.png"),
        ("photos/a.jpg", "segmentation/a.png"),
        ("input/a.jpg", "ground_truth/a.png"),
        ("whatever/a.jpg", "masks/a.png"),
        ("deep/er/images/x/y/a.jpg", "deep/er/annotations/x/y/a.png"),
        ("train_images/a.jpg", "train_masks/a.png"),
        ("images_prepped_train/a.png", "annotations_prepped_train/a.png"),
        ("train/a.png", "train_labels/a_L.png"),
        ("train/a.png", "trainannot/a.png"),
        ("a.jpg", "a_mask.png"),
        ("sub/a.jpg", "sub/a_mask.png"),
        ("a_jpg.rf.0f1e.jpg", "a_jpg.rf.0f1e_mask.png"),
        ("a_sat.jpg", "a_mask.png"),
        ("a.jpg", "a.png"),
        ("images/a.jpg", "masks/a.tif"),
        ("images/a.tif", "masks/a.tif"),
        ("images/a.ome.tif", "masks/a.ome.png"),
        ("images/a.dcm", "masks/a_mask.png"),
        ("images/a.heic", "masks/a.png"),
        ("scans/a.tif", "masks/a.png"),
        ("a.tif", "a_mask.tif"),
        ("images/a.jpg", "masks/a_mask.gif"),
        ("train/a.jpg", "train_masks/a_mask.gif"),
        ("a.jpg", "a.tiff"),
        ("a.jpg", "a_mask.bmp"),
        ("training/images/a.jpg", "training/labels/a.png"),
        ("JPEGImages/a.jpg", "SegmentationClass/a.png"),
        ("VOCdevkit/VOC2012/JPEGImages/a.jpg", "VOCdevkit/VOC2012/SegmentationClass/a.png"),
        ("JPEGImages/a.jpg", "SegmentationClassPNG/a.png"),
        ("images/training/a.jpg", "annotations/training/a.png"),
        ("701_StillsRaw_full/a.png", "LabeledApproved_full/a_L.png"),
        ("Task1-2_Training_Input/a.jpg", "Task1_Training_GroundTruth/a_segmentation.png"),
        ("original_images/a.jpg", "label_images_semantic/a.png"),
        ("train-org-img/a.jpg", "train-label-img/a_lab.png"),
        ("images/a.jpg", "annotations/trimaps/a.png"),
        (
            "leftImg8bit/train/aachen/aachen_0_19_leftImg8bit.png",
            "gtFine/train/aachen/aachen_0_19_gtFine_labelIds.png",
        ),
    ],
)
def test_an_image_finds_its_mask(tmp_path, image, mask):
    write(tmp_path, {image: None, mask: MASK})
    assert paired(tmp_path) == {image: mask}


def test_masks_mirror_sub_folders_with_equal_names_in_them(tmp_path):
    files = {f"images/{folder}/1.jpg": None for folder in "ab"} | {f"masks/{folder}/1.png": MASK for folder in "ab"}
    write(tmp_path, files)
    assert paired(tmp_path) == {"images/a/1.jpg": "masks/a/1.png", "images/b/1.jpg": "masks/b/1.png"}


def test_masks_of_another_folder_are_found_by_a_name_that_is_unique(tmp_path):
    write(tmp_path, {"images/a/1.jpg": None, "images/b/2.jpg": None, "masks/1.png": MASK, "masks/2_mask.png": MASK})
    assert paired(tmp_path) == {"images/a/1.jpg": "masks/1.png", "images/b/2.jpg": "masks/2_mask.png"}


def test_folders_of_two_parts_are_matched_by_part(tmp_path):
    for part in ("Training", "Validation"):
        write_set(tmp_path, 2, images=f"T1-2_{part}_Input", masks=f"T1_{part}_GroundTruth")
    found = list_pairs(str(tmp_path))
    assert sorted(pair.part for pair in found.pairs) == ["train", "train", "validation", "validation"]
    assert all(pair.image.path.split("_")[1] == pair.mask.path.split("_")[1] for pair in found.pairs)


def test_names_that_are_not_unique_are_refused(tmp_path):
    write(tmp_path, {"images/a/1.jpg": None, "images/b/1.jpg": None, "masks/1.png": MASK})
    with pytest.raises(InputError, match="masks/1.png may be of images/a/1.jpg or of images/b/1.jpg"):
        paired(tmp_path)


def test_two_masks_of_an_image_are_refused(tmp_path):
    write(tmp_path, {"images/1.jpg": None, "masks/1.png": MASK, "masks/1_mask.png": MASK})
    with pytest.raises(InputError, match=r"images/1.jpg has two masks, masks/1.png and masks/1_mask.png"):
        paired(tmp_path)


def test_two_images_of_one_name_are_refused(tmp_path):
    write(tmp_path, {"images/1.jpg": None, "images/1.png": None, "masks/1.png": MASK})
    with pytest.raises(InputError, match="differ in their endings only"):
        paired(tmp_path)


def test_an_image_whose_name_ends_like_a_mask_is_still_an_image(tmp_path):
    write(
        tmp_path, {"images/my_mask.jpg": None, "masks/my_mask.png": MASK, "images/my.jpg": None, "masks/my.png": MASK}
    )
    assert paired(tmp_path) == {"images/my_mask.jpg": "masks/my_mask.png", "images/my.jpg": "masks/my.png"}


def test_what_is_left_over_is_kept_for_the_message(tmp_path):
    write(tmp_path, {"images/1.jpg": None, "images/2.jpg": None, "masks/1.png": MASK, "masks/3.png": MASK})
    found = list_pairs(str(tmp_path))
    assert found.without_mask == [("images/2.jpg", "")] and found.without_image == [("masks/3.png", "")]


def test_pairs_come_in_the_order_of_their_images(tmp_path):
    source = whole_source(list_pairs(str(write_set(tmp_path, 12))))
    images, masks = (
        [ref.path for shard in shards for ref in shard.refs()] for shards in (source.images.shards, source.masks)
    )
    assert images == sorted(images)
    assert [path.split("/")[1][:-4] for path in images] == [path.split("/")[1][:-4] for path in masks]


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("train/images", "train/masks", "val/images", "val/masks"), {"train", "validation"}),
        (("images/train", "masks/train", "images/val", "masks/val"), {"train", "validation"}),
        (
            ("images/training", "annotations/training", "images/validation", "annotations/validation"),
            {"train", "validation"},
        ),
        (("train", "trainannot", "val", "valannot", "test", "testannot"), {"train", "validation", "test"}),
        (("train", "train_labels", "val", "val_labels"), {"train", "validation"}),
        (("train_images", "train_masks", "valid_images", "valid_masks"), {"train", "validation"}),
        (
            ("images_prepped_train", "annotations_prepped_train", "images_prepped_test", "annotations_prepped_test"),
            {"train", "test"},
        ),
        (("images", "masks"), {""}),
    ],
)
def test_parts_are_told_by_folders(tmp_path, folders, expected):
    for images, masks in zip(folders[::2], folders[1::2], strict=True):
        write_set(tmp_path, 2, images=images, masks=masks)
    found = list_pairs(str(tmp_path))
    assert len(found.pairs) == len(folders) and {pair.part for pair in found.pairs} == expected


def test_roboflow_lays_masks_beside_images_in_parts(tmp_path):
    files = {f"{part}/{n}.jpg": None for part in ("train", "valid") for n in range(2)}
    files |= {f"{part}/{n}_mask.png": MASK for part in ("train", "valid") for n in range(2)}
    write(tmp_path, files | {"train/_classes.csv": "Pixel Value, Class\n0, background\n1, cat\n"})
    found = list_pairs(str(tmp_path))
    assert {pair.part for pair in found.pairs} == {"train", "validation"}
    assert found.table.names == ("background", "cat")


def test_equal_names_in_two_parts_are_no_trouble(tmp_path):
    for part in ("train", "val"):
        write_set(tmp_path / part, 2)
    assert len(paired(tmp_path)) == 4


VOC = {
    "JPEGImages/a.jpg": None,
    "JPEGImages/b.jpg": None,
    "JPEGImages/c.jpg": None,
    "JPEGImages/not_labelled.jpg": None,
    "SegmentationClass/a.png": MASK,
    "SegmentationClass/b.png": MASK,
    "SegmentationClass/c.png": MASK,
    "SegmentationObject/a.png": ids(0, 7),
}


def test_voc_takes_what_its_lists_name(tmp_path):
    lists = {"ImageSets/Segmentation/train.txt": "a\n", "ImageSets/Segmentation/val.txt": "b\n"}
    write(tmp_path, VOC | lists)
    found = list_pairs(str(tmp_path))
    assert found.layout == "voc" and not found.without_mask
    assert {pair.image.path: pair.part for pair in found.pairs} == {
        "JPEGImages/a.jpg": "train",
        "JPEGImages/b.jpg": "validation",
    }
    assert "1 masks are in no list" in " ".join(found.notes)


def test_lists_may_name_files_with_blanks_and_by_path(tmp_path):
    files = {"JPEGImages/a b.jpg": None, "JPEGImages/c.jpg": None, "JPEGImages/d.v2.jpg": None}
    files |= {"SegmentationClass/a b.png": MASK, "SegmentationClass/c.png": MASK, "SegmentationClass/d.v2.png": MASK}
    lists = "a b\nJPEGImages/c.jpg\nd.v2 1\nnowhere\n"
    found = list_pairs(str(write(tmp_path, files | {"ImageSets/Segmentation/train.txt": lists})))
    assert len(found.pairs) == 3 and "1 names in ImageSets/Segmentation/ have no image" in " ".join(found.notes)


def test_voc_misses_masks_that_its_lists_name(tmp_path):
    write(tmp_path, VOC | {"ImageSets/Segmentation/train.txt": "a\nnot_labelled\n"})
    assert list_pairs(str(tmp_path)).without_mask == [("JPEGImages/not_labelled.jpg", "train")]


@pytest.mark.parametrize("lists", [{}, {"ImageSets/Segmentation/default.txt": "a\nb\nc\n"}])
def test_voc_without_lists_or_with_one_is_whole(tmp_path, lists):
    write(tmp_path, VOC | lists)
    found = list_pairs(str(tmp_path))
    assert len(found.pairs) == 3 and not found.without_mask
    assert len({pair.part for pair in found.pairs}) == 1


def test_voc_has_its_names_in_folders_of_its_years_only(tmp_path):
    write(tmp_path / "mine", VOC)
    write(tmp_path / "VOC2012", VOC)
    assert list_pairs(str(tmp_path / "mine")).table is None
    assert list_pairs(str(tmp_path / "VOC2012")).table.names[:2] == ("background", "aeroplane")


def cityscapes(kinds, images=2):
    stem = "{part}/aachen/aachen_00000{n}_000019"
    files = {}
    for part in ("train", "val"):
        for n in range(images):
            name = stem.format(part=part, n=n)
            files[f"leftImg8bit/{name}_leftImg8bit.png"] = None
            files |= {f"gtFine/{name}_gtFine_{kind}.png": ids(7, 8) for kind in kinds}
    return files


def test_cityscapes_uses_label_ids_and_their_table(tmp_path):
    write(tmp_path, cityscapes(["labelIds", "color", "instanceIds"]))
    found = list_pairs(str(tmp_path))
    assert found.layout == "cityscapes" and len(found.pairs) == 4
    assert all(pair.mask.path.endswith("_labelIds.png") for pair in found.pairs)
    assert found.table.names[:2] == ("road", "sidewalk") and len(found.table.names) == 19
    assert {pair.part for pair in found.pairs} == {"train", "validation"}


def test_cityscapes_prefers_train_ids_where_all_have_them(tmp_path):
    write(tmp_path, cityscapes(["labelIds", "labelTrainIds"]))
    found = list_pairs(str(tmp_path))
    assert all(pair.mask.path.endswith("_labelTrainIds.png") for pair in found.pairs)
    assert [entry.value for entry in found.table.entries] == list(range(19))


def test_ade20k_says_that_0_is_no_class(tmp_path):
    for part in ("training", "validation"):
        write_set(tmp_path, 2, images=f"images/{part}", masks=f"annotations/{part}")
    text = "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t1\t1\t1\twall\n2\t0.1\t6\t6\t1\tsky\n"
    write(tmp_path, {"objectInfo150.txt": text})
    found = list_pairs(str(tmp_path))
    assert found.reduce_zero_label and found.table.names == ("wall", "sky")
    assert not list_pairs(str(tmp_path), layout="folders").reduce_zero_label


def test_camvid_of_segnet_has_its_names(tmp_path):
    for part in ("train", "val"):
        write_set(tmp_path, 2, images=part, masks=f"{part}annot")
    assert list_pairs(str(tmp_path)).table.names[:3] == ("sky", "building", "pole")


def test_camvid_of_its_authors_has_its_table_of_colours(tmp_path):
    mask = colours((64, 128, 64), (0, 0, 0))
    files = {"701_StillsRaw_full/a.png": None, "LabeledApproved_full/a_L.png": mask}
    write(tmp_path, files | {"label_colors.txt": "64 128 64\tAnimal\n192 0 128\tArchway\n0 0 0\tVoid\n"})
    assert list_pairs(str(tmp_path)).table.names == ("Animal", "Archway")


def test_parts_that_each_have_a_file_of_classes_must_mean_the_same_by_it(tmp_path):
    for part in ("train", "val"):
        write_set(tmp_path / part, 2)
        write(tmp_path / part, {"classes.json": '["sky", "tree"]'})
    found = list_pairs(str(tmp_path)).table
    assert found.origin.endswith("train/classes.json")  # the same in every process
    write(tmp_path / "val", {"classes.json": '["tree", "sky"]'})
    with pytest.raises(InputError, match=r"train/classes\.json and \S*val/classes\.json say different things"):
        list_pairs(str(tmp_path))
    write(tmp_path, {"classes.json": '["sky", "tree"]'})  # above both
    assert list_pairs(str(tmp_path)).table.names == ("sky", "tree")


def test_names_of_classes_are_found_beside_the_parts(tmp_path):
    write_set(tmp_path / "train", 2)
    write(tmp_path, {"classes.json": '["sky", "tree"]'})
    assert list_pairs(str(tmp_path)).table.names == ("sky", "tree")
    assert list_pairs(str(tmp_path / "train")).table.names == ("sky", "tree")
    write_set(tmp_path / "other", 2)
    assert list_pairs(str(tmp_path / "other")).table is None


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.jpg": None, "b.jpg": None}, "holds 2 images and no masks"),
        ({"images/a.jpg": None, "labels/a.txt": "0 0.1 0.2"}, r"1 .txt are no masks here"),
        ({"images/a.jpg": None, "masks/a.npy": b"x"}, r"1 .npy are no masks here"),
        (
            {"images/a.gif": b"II", "masks/a.png": MASK},
            r"images/a.gif and the like are read as masks only; .*WebP, DICOM",
        ),
        ({"notes.md": "nothing"}, "holds no images"),
        (
            {"images/a.jpg": None, "masks/b.png": MASK},
            "no mask in .* has the name of an image: .*images/a.jpg and masks/b.png",
        ),
    ],
)
def test_trees_without_pairs_say_what_is_there(tmp_path, files, words):
    write(tmp_path, files)
    with pytest.raises(NothingPaired, match=words) as error:
        list_pairs(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_layout_that_is_not_there_is_refused(tmp_path):
    write_set(tmp_path)
    with pytest.raises(InputError, match="does not look like cityscapes: leftImg8bit/ beside gtFine/"):
        list_pairs(str(tmp_path), layout="cityscapes")


def test_images_in_other_folders_are_left_out_and_said(tmp_path):
    write_set(tmp_path, 2)
    write(tmp_path, {"extra/x.jpg": None})
    found = list_pairs(str(tmp_path))
    assert len(found.pairs) == 2 and "1 images (first: extra/x.jpg)" in " ".join(found.notes)


MAPILLARY = json.dumps(
    {
        "labels": [
            {"name": "object--car", "color": [0, 0, 142], "evaluate": True, "instances": True, "readable": "Car"},
            {"name": "void--ground", "color": [1, 2, 3], "evaluate": False, "instances": False, "readable": "Ground"},
            {"name": "nature--sky", "color": [70, 130, 180], "evaluate": True, "instances": False, "readable": "Sky"},
        ]
    }
)


def vistas(root, *places, config):
    files = {f"{part}/images/{part}.jpg": None for part in ("training", "validation")} | {config: MAPILLARY}
    for part in ("training", "validation"):
        files |= {f"{part}/{place}/{part}.png": MASK for place in places}
    return write(root, files)


@pytest.mark.parametrize(
    ("places", "config", "used"),
    [
        (("labels", "instances"), "config.json", "labels"),
        (("v1.2/labels", "v1.2/instances", "v1.2/panoptic"), "config_v1.2.json", "v1.2/labels"),
        (
            ("v1.2/labels", "v1.2/instances", "v2.0/labels", "v2.0/instances", "v2.0/panoptic"),
            "config_v2.0.json",
            "v2.0/labels",
        ),
    ],
)
def test_mapillary_vistas_of_either_version(tmp_path, places, config, used):
    root = vistas(tmp_path, *places, config=config)
    found = list_pairs(str(root))
    assert found.layout == "mapillary" and not found.without_image and not found.without_mask
    assert {pair.image.path: (pair.mask.path, pair.part) for pair in found.pairs} == {
        f"{part}/images/{part}.jpg": (f"{part}/{used}/{part}.png", kind)
        for part, kind in (("training", "train"), ("validation", "validation"))
    }
    assert found.table.names == ("object--car", "nature--sky")
    assert [entry.is_class for entry in found.table.entries] == [True, False, True]
    part = list_pairs(str(root / "validation"))
    assert len(part.pairs) == 1 and part.table.names == found.table.names
