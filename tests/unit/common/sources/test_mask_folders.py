import io
import logging

import numpy as np
import pytest
from PIL import Image

from beit.common.errors import InputError
from beit.common.sources.index_build import open_labelled
from beit.common.sources.opening import open_source
from beit.tests.file_server import FileServer, serve
from beit.tests.s3_server import serve_s3
from beit.tests.science_files import noise, tiff

RNG = np.random.default_rng(0)


def encoded(pixels, form="PNG"):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, form)
    return buffer.getvalue()


def picture(mode="RGB"):
    shape = (24, 24, 3) if mode == "RGB" else (24, 24)
    return RNG.integers(0, 256, shape, np.uint8)


PHOTO = encoded(picture(), "JPEG")
PNG_PHOTO = encoded(picture())
GREY_PHOTO = encoded(picture("L"))
FLAT = encoded(np.full((24, 24, 3), 9, np.uint8))
MASK = encoded(np.repeat([[0, 1, 2, 255]], 4, 0).astype(np.uint8))
PALETTE = Image.fromarray(np.repeat([[0, 1, 2, 3]], 4, 0).astype(np.uint8))
PALETTE.putpalette(list(range(12)))
KINDS = {
    "ids": MASK,
    "palette": encoded(PALETTE),
    "bits": encoded(Image.new("1", (4, 4))),
    "wide": encoded(np.array([[0, 300]], np.uint16)),
    "colours": encoded(np.array([[[9, 0, 0], [0, 9, 0]]], np.uint8)),
}


def put(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def paths_of(source):
    return sorted(ref.path for shard in source.shards for ref in shard.refs())


def tree(images, masks, *, count=4, image=PHOTO, mask=MASK, ending="jpg"):
    """Files by name; {} in the two stands for their number."""
    files = {}
    for number in range(count):
        files |= {f"{images.format(number)}.{ending}": image, f"{masks.format(number)}.png": mask}
    return files


LAYOUTS = [
    ("images/{}", "masks/{}", "masks/"),
    ("images/{}", "labels/{}", "labels/"),
    ("train/images/{}", "train/masks/{}", "train/masks/"),
    ("images/train/{}", "masks/train/{}", "masks/"),
    ("img/a/b/{}", "Ground_Truth/a/b/{}", "Ground_Truth/"),
    ("VOC2012/JPEGImages/{}", "VOC2012/SegmentationClass/{}", "VOC2012/SegmentationClass/"),
    ("train/{}", "trainannot/{}", "trainannot/"),
    ("leftImg8bit/val/ulm/{}_leftImg8bit", "gtFine/val/ulm/{}_gtFine_labelIds", "gtFine/"),
    ("701_StillsRaw_full/{}", "LabeledApproved_full/{}_L", "LabeledApproved_full/"),
    ("train/{}", "train_masks/{}_mask", "train_masks/"),
    ("photos/{}", "photos/masks/{}", "photos/masks/"),
    ("{}", "masks/{}", "masks/"),
    ("annotated/images/{}", "annotated/annotations/{}", "annotated/annotations/"),
    ("{}", "{}_mask", "*_mask.png"),
    ("data/{}_sat", "data/{}_mask", "data/*_mask.png"),
    ("{}", "{}", "*.png"),
    ("train/{}", "train/{}", "train/*.png"),
]


@pytest.mark.parametrize(("images", "masks", "place"), LAYOUTS)
def test_masks_beside_images_are_left_out_and_it_is_said(tmp_path, caplog, images, masks, place):
    put(tmp_path, tree(images, masks))
    with caplog.at_level(logging.INFO):
        source = open_source(tmp_path)
    assert paths_of(source) == [f"{images.format(number)}.jpg" for number in range(4)]
    assert source.class_names is None
    said = f"{tmp_path}: left out 4 masks in {place}; name the folder itself to take them"
    assert [line for line in caplog.messages if "masks" in line] == [said]
    if place.endswith("/"):
        assert len(paths_of(open_source(tmp_path / place))) == 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("image", [PHOTO, PNG_PHOTO], ids=["jpg", "png"])
def test_masks_of_every_kind_are_told(tmp_path, kind, image):
    put(tmp_path, tree("images/{}", "masks/{}", image=image, mask=KINDS[kind], ending="png"))
    assert paths_of(open_source(tmp_path)) == [f"images/{number}.png" for number in range(4)]


def test_grey_jpegs_beside_images_of_colour_are_masks(tmp_path):
    put(tmp_path, tree("images/{}", "masks/{}", mask=GREY_PHOTO))
    assert paths_of(open_source(tmp_path)) == [f"images/{number}.jpg" for number in range(4)]


def test_grey_images_have_masks_too(tmp_path):
    put(tmp_path, tree("images/{}", "masks/{}", image=GREY_PHOTO, ending="png"))
    assert len(paths_of(open_source(tmp_path))) == 4


@pytest.mark.parametrize(
    "files",
    [
        tree("cats/{}", "masks/{}", mask=PNG_PHOTO),  # pictures of masks
        tree("cats/{}", "masks/a{}"),  # no pairs
        tree("cats/{}", "dogs/{}"),  # not called so
        tree("sketch/{}", "labels/{}", image=MASK, ending="png"),  # both are drawings
        tree("cats/{}", "labels/{}", image=FLAT, mask=FLAT, ending="png"),
        tree("with_mask/{}", "without_mask/{}", image=PNG_PHOTO, mask=PNG_PHOTO, ending="png"),
        {f"{folder}/{n}.jpg": PHOTO for folder in ("masks", "labels") for n in range(4)},
        {f"{folder}/{n}.png": MASK for folder in ("masks", "labels") for n in range(4)},
        {f"{folder}/{folder}{n}.jpg": PHOTO for folder in ("images", "annotations") for n in range(4)},
        {f"{digit}/{n}.png": MASK for digit in range(3) for n in range(4)},
        tree("cats/{}", "masks/{}", mask=b"damaged"),
        tree("cats/{}", "masks/{}") | {"masks/9.jpg": PHOTO},
        tree("cats/{}", "masks/{}") | {f"masks/b{n}.png": MASK for n in range(4)},
    ],
    ids=lambda files: next(reversed(files)),
)
def test_classes_that_are_called_as_masks_are_stay_classes(tmp_path, files):
    put(tmp_path, files)
    source = open_source(tmp_path)
    assert paths_of(source) == sorted(files)
    assert source.class_names == tuple(sorted({name.partition("/")[0] for name in files}))


def test_pictures_whose_names_end_as_those_of_masks_are_taken(tmp_path):
    files = {f"{n}.jpg": PHOTO for n in range(3)} | {f"{n}_mask.png": PNG_PHOTO for n in range(3)} | {"a_l.png": MASK}
    put(tmp_path, files)
    assert paths_of(open_source(tmp_path)) == sorted(files)


@pytest.mark.parametrize("second", [PNG_PHOTO, GREY_PHOTO, FLAT], ids=["colour", "grey", "flat"])
def test_images_in_two_formats_are_both_taken(tmp_path, second):
    files = tree("{}", "{}", mask=second)
    put(tmp_path, files)
    assert paths_of(open_source(tmp_path)) == sorted(files)
    put(tmp_path / "some", tree("{}", "{}") | {f"b{n}.png": MASK for n in range(4)})
    assert len(paths_of(open_source(tmp_path / "some"))) == 12


def test_a_few_images_may_lack_a_mask_and_many_may(tmp_path):
    put(tmp_path, tree("images/{}", "masks/{}") | {f"images/b{n}.jpg": PHOTO for n in range(20)})
    assert len(paths_of(open_source(tmp_path))) == 24


def test_nothing_is_read_where_nothing_is_called_as_masks_are(tmp_path, monkeypatch):
    put(tmp_path, tree("cats/{}", "dogs/{}"))
    monkeypatch.setattr("beit.common.sources.mask_folders.read_files", lambda *_: pytest.fail("read"))
    assert len(paths_of(open_source(tmp_path))) == 8


def test_a_set_of_pairs_is_no_set_of_classes_and_the_way_is_shown(tmp_path):
    put(tmp_path, tree("images/{}", "masks/{}"))
    index = open_labelled(str(tmp_path), class_names=None, label_column=None)
    assert index.num_classes == 0
    with pytest.raises(InputError, match="no labels found.*masks/ holds masks, from which beit finetune segmentation"):
        index.require_labels()


def test_classes_with_images_and_masks_in_each_stay_classes(tmp_path):
    put(tmp_path, tree("COVID/images/{}", "COVID/masks/{}") | tree("Normal/images/{}", "Normal/masks/{}"))
    source = open_source(tmp_path)
    assert source.class_names == ("COVID", "Normal") and len(paths_of(source)) == 8
    put(tmp_path / "parts", tree("train/images/{}", "train/masks/{}") | tree("val/images/{}", "val/masks/{}"))
    assert open_source(tmp_path / "parts").class_names is None


def test_masks_on_a_server_are_told(tmp_path):
    files = tree("images/{}", "masks/{}")
    with serve_s3({f"d/{name}": data for name, data in files.items()}) as bucket:
        assert len(paths_of(open_source(f"{bucket}/d"))) == 4
    with serve(FileServer({f"/d/{name}": data for name, data in files.items()})) as server:
        assert len(paths_of(open_source(f"{server.url}/d"))) == 4


def test_other_files_are_counted_without_the_masks(tmp_path, caplog):
    put(tmp_path, tree("images/{}", "masks/{}") | {"classes.json": b"[]"})
    with caplog.at_level(logging.INFO):
        open_source(tmp_path)
    assert f"{tmp_path}: 4 images, 1 other files (1 .json) left out" in caplog.messages


def labels(number, count=9):
    """Objects, numbered, uint16 (48, 64)."""
    objects = np.zeros((48, 64), np.uint16)
    for object_id in range(1, count + 1):
        objects[5 * (object_id % 8) :, 7 * (object_id % 9) :] = object_id * 50 + number
    return objects


SCAN = tiff(noise() // 16)
DARK = tiff(noise() % 40)
COLOUR_TIFF = tiff(noise((48, 64, 3), np.uint8), photometric="rgb")


@pytest.mark.parametrize("image", [SCAN, DARK, COLOUR_TIFF], ids=["grey", "dark", "colour"])
@pytest.mark.parametrize(
    ("images", "masks", "place"),
    [
        ("images/{}", "masks/{}", "masks/"),
        ("{}", "{}_mask", "*_mask.tif"),
        ("images/{}", "annotations/{}", "annotations/"),
    ],
)
def test_tiffs_of_labels_beside_tiffs_are_masks(tmp_path, caplog, images, masks, place, image):
    files = {f"{masks.format(number)}.tif": tiff(labels(number), compression="zlib") for number in range(4)}
    put(tmp_path, files | {f"{images.format(number)}.tif": image for number in range(4)})
    with caplog.at_level(logging.INFO):
        source = open_source(tmp_path)
    assert paths_of(source) == [f"{images.format(number)}.tif" for number in range(4)]
    assert f"left out 4 masks in {place}" in caplog.text


def test_many_numbered_objects_are_labels_too(tmp_path):
    cells = np.kron(np.arange(192).reshape(12, 16), np.ones((40, 40))).astype(np.uint16)
    put(tmp_path, {f"masks/{number}.tif": tiff(cells) for number in range(3)})
    put(tmp_path, {f"images/{number}.tif": DARK for number in range(3)})
    assert paths_of(open_source(tmp_path)) == [f"images/{number}.tif" for number in range(3)]


def test_masks_and_images_may_be_of_two_formats(tmp_path):
    put(tmp_path, {f"a/{number}.jpg": PHOTO for number in range(3)})
    put(tmp_path, {f"a/{number}.tif": tiff(labels(number)) for number in range(3)})
    put(tmp_path, {f"b/{number}.tif": COLOUR_TIFF for number in range(3)})
    put(tmp_path, {f"b/{number}.png": MASK for number in range(3)})
    expected = sorted([f"a/{number}.jpg" for number in range(3)] + [f"b/{number}.tif" for number in range(3)])
    assert paths_of(open_source(tmp_path)) == expected


@pytest.mark.parametrize("other", [SCAN, DARK], ids=["scan", "dark"])
def test_scans_in_a_folder_called_as_masks_are_pictures(tmp_path, other):
    put(tmp_path, {f"images/{number}.tif": SCAN for number in range(3)})
    put(tmp_path, {f"masks/{number}.tif": other for number in range(3)})
    assert len(paths_of(open_source(tmp_path))) == 6
