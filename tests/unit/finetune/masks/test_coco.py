import json
import logging
import pickle

import numpy as np
import pytest
from PIL import Image

from beit.common.errors import BadSample, InputError
from beit.common.sources.config import SourceConfig
from beit.common.storage.files import default_cache_dir
from beit.finetune.masks.coco import coco_splits, looks_like_coco, open_coco
from beit.finetune.masks.settings import MaskDataConfig
from beit.tests.file_server import FileServer, serve
from beit.tests.unit.finetune.masks.paired import encoded, ids_of, pairs_of, photo

SQUARE = [2, 2, 8, 2, 8, 6, 2, 6]
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def annotation(number, image, category=3, segmentation=(SQUARE,), **more):
    return {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, **more}


def content(annotations, *, names=("0.jpg", "1.jpg"), categories=None, size=(12, 8)):
    images = [
        {"id": 10 + number, "file_name": name, "width": size[0], "height": size[1]} for number, name in enumerate(names)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": CATEGORIES if categories is None else categories,
    }


def write(
    root, document, place="annotations/instances_train.json", images=("images/train/0.jpg", "images/train/1.jpg")
):
    file = root / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document))
    for number, name in enumerate(images):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(photo(40 * number))
    return root


def opened(data, **settings):
    return open_coco(str(data), MaskDataConfig(**settings), reading=SourceConfig())


def masks_of(source):
    return [ids_of(data) for _, _, data in pairs_of(source)]


def test_polygons_are_drawn_over_a_background_in_the_order_of_category_ids(tmp_path):
    write(
        tmp_path,
        content([annotation(1, 10), annotation(2, 11, 7, [[0, 0, 4, 0, 4, 8, 0, 8], [8, 0, 12, 0, 12, 8, 8, 8]])]),
    )
    source = opened(tmp_path)
    assert source.is_ids and source.classes.names == ("background", "cat", "dog")
    assert source.classes.colours[0] == (0, 0, 0)
    first, second = masks_of(source)
    expected = np.zeros((8, 12), np.uint8)
    expected[2:6, 2:8] = 1
    assert (first == expected).all()
    expected[:] = 2
    expected[:, 4:8] = 0
    assert (second == expected).all()
    assert [path for path, _, _ in pairs_of(source)] == ["images/train/0.jpg", "images/train/1.jpg"]
    assert pairs_of(source)[1][1] == photo(40)


@pytest.mark.parametrize(
    ("place", "images", "names"),
    [
        ("annotations/instances_train2017.json", ("train2017/0.jpg", "val2017/0.jpg"), ("0.jpg",)),
        ("annotations/instances_train2017.json", ("images/train2017/0.jpg", "images/val2017/0.jpg"), ("0.jpg",)),
        ("annotations/train.json", ("images/val/0.jpg", "images/train/0.jpg"), ("0.jpg",)),
        ("train/_annotations.coco.json", ("train/0.jpg",), ("0.jpg",)),
        ("any.json", ("images/0.jpg",), ("0.jpg",)),
        ("any.json", ("images/0.jpg",), ("images/0.jpg",)),
        ("any.json", ("images/0.jpg",), ("images\\0.jpg",)),
        ("any.json", ("images/0.jpg",), ("./images/0.jpg",)),
        ("any.json", ("photos/a/0.jpg",), ("/srv/upload/0.jpg",)),
        ("annotations/any.json", ("images/0.jpg", "images/val/0.jpg"), ("../images/0.jpg",)),
        ("any.json", ("images/0.jpg",), ("C:\\\\data\\\\images\\\\0.jpg",)),
        ("annotations/a/b.json", ("annotations/a/0.jpg",), ("0.jpg",)),
    ],
)
def test_images_are_found_in_the_usual_places(tmp_path, place, images, names):
    write(tmp_path, content([annotation(1, 10)], names=names), place, images)
    source = opened(tmp_path / place)
    wanted = next(name for name in images if "val" not in name)
    ((path, data, _),) = pairs_of(source)
    assert (tmp_path / wanted).read_bytes() == data and wanted.endswith(path)


def test_what_is_missing_or_not_listed_is_counted_and_said(tmp_path):
    document = content([annotation(1, 10), annotation(2, 99), annotation(3, 10, segmentation=[], bbox=[0, 0, 2, 2])])
    write(tmp_path, document, images=("images/train/0.jpg", "images/train/7.jpg"))
    source = opened(tmp_path)
    notes = "\n".join(source.notes)
    assert source.without_image == ("1.jpg",) and source.without_mask == ()
    assert "1 images beside them are not listed and left out (images/train/7.jpg)" in notes
    assert "1 annotation of images that are not listed left out" in notes
    assert "1 annotation without a shape (boxes, points) left out" in notes
    assert "pixels of no annotation are the class 'background' (data.coco_background)" in notes
    assert all(line.startswith(str(tmp_path)) for line in notes.splitlines())


def test_the_smaller_lies_in_front_crowds_behind_and_of_equals_the_later(tmp_path):
    big, small = [0, 0, 12, 0, 12, 8, 0, 8], [2, 2, 6, 2, 6, 6, 2, 6]
    crowd = {"size": [8, 12], "counts": [0, 8, 88]}  # the first column
    for order in ([annotation(1, 10, 7, [small]), annotation(2, 10, 3, [big])], None):
        annotations = order or [annotation(2, 10, 3, [big]), annotation(1, 10, 7, [small])]
        write(tmp_path, content([*annotations, annotation(3, 10, 7, crowd, iscrowd=1)]))
        ids = masks_of(opened(tmp_path))[0]
        assert (ids[2:6, 2:6] == 2).all() and (ids == 2).sum() == 16 and (ids == 1).sum() == 80
    write(tmp_path, content([annotation(1, 10, 7, [small]), annotation(2, 10, 3, [small])]))
    assert (masks_of(opened(tmp_path))[0] == 1).sum() == 16


def test_pixels_without_annotation_may_be_ignored_and_images_without_any_are_then_left_out(tmp_path):
    write(tmp_path, content([annotation(1, 10)]))
    source = opened(tmp_path)
    assert len(pairs_of(source)) == 2 and not masks_of(source)[1].any()
    assert any("1 of 2 images without an annotation" in note for note in source.notes)
    ignoring = opened(tmp_path, coco_background=False)
    assert ignoring.classes.names == ("cat", "dog")
    (ids,) = masks_of(ignoring)
    assert set(np.unique(ids)) == {0, 255} and (ids == 0).sum() == 24
    assert any("are left out" in note for note in ignoring.notes)
    assert source.mask_digest != ignoring.mask_digest


def test_a_category_called_background_is_the_background(tmp_path):
    categories = [{"id": 0, "name": "cat"}, {"id": 4, "name": "Background"}]
    write(tmp_path, content([annotation(1, 10, 0)], categories=categories))
    source = opened(tmp_path)
    assert source.classes.names == ("cat", "Background")
    assert (masks_of(source)[0] == 0).sum() == 24 and (masks_of(source)[1] == 1).all()


def test_the_umbrella_of_roboflow_is_no_class(tmp_path):
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        *({**category, "supercategory": "pets"} for category in CATEGORIES),
    ]
    write(tmp_path, content([annotation(1, 10)], categories=categories))
    source = opened(tmp_path)
    assert source.classes.names == ("background", "cat", "dog") and any("'pets' is left out" in n for n in source.notes)
    assert (masks_of(source)[0] == 1).sum() == 24


def test_categories_of_one_name_are_one_class(tmp_path):
    categories = [*CATEGORIES, {"id": 9, "name": "cat "}]
    write(tmp_path, content([annotation(1, 10), annotation(2, 11, 9)], categories=categories))
    source = opened(tmp_path)
    assert source.classes.names == ("background", "cat", "dog")
    assert [(ids == 1).sum() for ids in masks_of(source)] == [24, 24]


def test_panoptic_masks_are_looked_up_and_void_is_ignored(tmp_path):
    colours = np.zeros((8, 12, 3), np.uint8)
    colours[:4] = (44, 1, 0)  # 300
    colours[4:, :6] = (1, 0, 2)  # 131073
    segments = [{"id": 300, "category_id": 7, "iscrowd": 0}, {"id": 131073, "category_id": 3}]
    record = {"image_id": 10, "file_name": "0.png", "segments_info": segments}
    categories = [{**CATEGORIES[0], "color": [1, 2, 3]}, CATEGORIES[1]]
    place = "annotations/panoptic_train.json"
    write(tmp_path, content([record], names=("0.jpg",), categories=categories), place, ("train/0.jpg",))
    folder = tmp_path / "annotations" / "panoptic_train"
    folder.mkdir()
    (folder / "0.png").write_bytes(encoded(colours))
    source = opened(tmp_path)
    assert source.classes.names == ("cat", "dog") and source.classes.colours[1] == (1, 2, 3)
    (ids,) = masks_of(source)
    assert (ids[:4] == 1).all() and (ids[4:, :6] == 0).all() and (ids[4:, 6:] == 255).all()
    (folder / "0.png").write_bytes(encoded(colours[:4]))
    assert opened(tmp_path).mask_digest != source.mask_digest
    with pytest.raises(BadSample, match="12 x 4 px, its image 12 x 8 px"):
        masks_of(opened(tmp_path))


def test_instances_are_preferred_and_parts_are_found(tmp_path):
    document = content([annotation(1, 10)], names=("0.jpg",))
    for name in ("captions_train", "instances_train", "panoptic_train"):
        write(tmp_path, document, f"annotations/{name}.json", ("train/0.jpg",))
    assert looks_like_coco(str(tmp_path)) and coco_splits(str(tmp_path)) is None
    assert any("taken instead of panoptic_train.json, captions_train.json" in note for note in opened(tmp_path).notes)
    write(tmp_path, document, "annotations/instances_val.json", ("val/0.jpg",))
    with pytest.raises(InputError, match="holds 2 COCO files .* name the one to use, such as .*instances_train.json"):
        opened(tmp_path)
    train, val = coco_splits(str(tmp_path))
    assert train.endswith("annotations/instances_train.json") and val.endswith("annotations/instances_val.json")
    assert [path for path, _, _ in pairs_of(opened(val))] == ["val/0.jpg"]


def test_parts_as_roboflow_writes_them(tmp_path):
    for part in ("train", "valid", "test"):
        write(
            tmp_path,
            content([annotation(1, 10)], names=("0.jpg",)),
            f"{part}/_annotations.coco.json",
            (f"{part}/0.jpg",),
        )
    assert looks_like_coco(str(tmp_path))
    train, val = coco_splits(str(tmp_path))
    assert train == str(tmp_path / "train/_annotations.coco.json")
    assert val == str(tmp_path / "valid/_annotations.coco.json")
    with pytest.raises(InputError, match="of several parts; give one of them"):
        opened(tmp_path)
    assert len(pairs_of(opened(tmp_path / "valid"))) == 1


def test_other_json_and_other_folders_do_not_look_like_coco(tmp_path):
    (tmp_path / "classes.json").write_text('["sky", "road"]')
    (tmp_path / "info.json").write_text('{"0": "sky"}')
    assert not looks_like_coco(str(tmp_path))
    with pytest.raises(InputError, match="holds no COCO file"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, "lists no images"),
        ({"categories": []}, "lists no categories"),
        ({"annotations": []}, "has no annotations"),
        ({"annotations": [annotation(1, 10, segmentation=[], bbox=[0, 0, 1, 1])]}, "1 annotations that are boxes only"),
        ({"annotations": [annotation(1, 10, 4)]}, r"annotations of the categories \[4\]"),
        ({"annotations": [{"id": 1, "image_id": 10, "segmentation": [SQUARE]}]}, "KeyError: 'category_id'"),
        ({"annotations": [5]}, "is damaged"),
        ({"annotations": {"a": 1}}, "has no annotations"),
        ({"images": [{"id": 10, "file_name": "0.jpg"}]}, "width None"),
        ({"images": [{"id": 10, "file_name": "0.jpg", "width": "12", "height": 8}]}, "width 12"),
        ({"images": [{"id": 10, "width": 12, "height": 8}]}, "an image without id or file_name"),
        ({"images": [{"id": 1, "file_name": n, "width": 1, "height": 1} for n in "ab"]}, "two images with the id 1"),
        ({"images": [{"id": n, "file_name": "0.jpg", "width": 1, "height": 1} for n in (1, 2)]}, "0.jpg twice"),
        ({"categories": [{"id": 3, "name": "c\ud800"}, CATEGORIES[0]]}, "rename"),
        ({"images": [{"id": 10, "file_name": "a\n.jpg", "width": 1, "height": 1}]}, "rename"),
        ({"categories": [{"id": 3}]}, "a category without id or name"),
        ({"categories": [*CATEGORIES, CATEGORIES[0]]}, "two categories with the id 7"),
        ({"categories": [{"id": n, "name": f"c{n}"} for n in range(300)]}, "has 301 classes, .* join some"),
        (
            {"images": [{"id": 10, "file_name": "z.jpg", "width": 1, "height": 1}]},
            "none of the 1 images .* such as z.jpg",
        ),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, change, message):
    write(tmp_path, content([annotation(1, 10)]) | change)
    with pytest.raises(InputError, match=message) as caught:
        opened(tmp_path / "annotations/instances_train.json")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"images": [', '{"images": [{"id": 1}], ', "no json", '{"images" 3}', "{}x"]
)
def test_what_is_no_whole_json_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match="a.json") as caught:
        opened(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        opened(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 5, float("nan"), 3, 3]], "finite"),
        ([[1, 1, 5, 1e12, 3, 3]], "far outside"),
        ([[1, 1, "x", 2, 3, 3]], "not a list of numbers"),
        ({"size": [8, 12], "counts": [5, 5]}, "add up"),
        ({"size": [12, 8], "counts": [0, 96]}, "of size"),
        ({"size": [8, 12], "counts": "\x01"}, "neither"),
        ({"size": [8, 12], "counts": [-5, 101]}, "add up"),
        ({"size": [8, 12], "counts": {"a": 1}}, "neither"),
    ],
)
def test_a_damaged_annotation_spoils_its_image_only(tmp_path, segmentation, message):
    write(tmp_path, content([annotation(1, 10, segmentation=segmentation), annotation(2, 11)]))
    source = opened(tmp_path)
    with source.masks[0].open() as reader:
        first, second = source.masks[0].refs()
        with pytest.raises(BadSample, match=message):
            reader.read(first)
        assert (ids_of(reader.read(second)) == 1).sum() == 24


def test_lists_may_stand_in_any_order_with_other_things_between(tmp_path):
    document = content([annotation(1, 10)], names=("ü日.jpg",))
    turned = {"info": {"a": [1, {"b": "]"}]}, "annotations": document["annotations"], "x": [], **document}
    (tmp_path / "ü日.jpg").write_bytes(photo(0))
    for text in (json.dumps(turned), json.dumps(turned, ensure_ascii=False, indent=1), "\ufeff" + json.dumps(turned)):
        (tmp_path / "a.json").write_text(text, encoding="utf-8")
        source = opened(tmp_path / "a.json")
        assert [(path, (ids_of(m) == 1).sum()) for path, _, m in pairs_of(source)] == [("ü日.jpg", 24)]


def test_what_a_file_holds_is_kept_and_made_again_where_it_changed_or_is_damaged(tmp_path, monkeypatch, caplog):
    write(tmp_path, content([annotation(1, 10)]))
    first = opened(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("beit.finetune.masks.annotated.document._scan", lambda *_: pytest.fail("read again"))
        again = opened(tmp_path)
    assert again.notes == first.notes and again.mask_digest == first.mask_digest
    assert pairs_of(again) == pairs_of(first)
    for kept in default_cache_dir().rglob("*.arrow"):
        kept.write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        assert pairs_of(opened(tmp_path)) == pairs_of(first)
    assert "is damaged" in caplog.text
    write(tmp_path, content([annotation(1, 11), annotation(2, 10, 7)]))
    assert opened(tmp_path).mask_digest != first.mask_digest
    assert [(ids == 2).sum() for ids in masks_of(opened(tmp_path))] == [24, 0]


def test_shards_travel_to_other_processes(tmp_path):
    write(tmp_path, content([annotation(1, 10)]))
    source = pickle.loads(pickle.dumps(opened(tmp_path)))
    assert (masks_of(source)[0] == 1).sum() == 24


def test_images_of_several_shards_keep_their_masks(tmp_path, monkeypatch):
    monkeypatch.setattr("beit.common.sources.loose_files._FILES_PER_SHARD", 2)
    names = [f"{number}.jpg" for number in range(5)]
    document = content(
        [annotation(n, 10 + n, segmentation=[[0, 0, n + 1, 0, n + 1, 8, 0, 8]]) for n in range(5)], names=names
    )
    write(tmp_path, document, "a.json", names)
    source = opened(tmp_path / "a.json")
    assert len(source.masks) == 3 and [(ids == 1).sum() for ids in masks_of(source)] == [8, 16, 24, 32, 40]


def test_a_remote_file_is_copied_and_its_images_are_read_there(tmp_path):
    document = content([annotation(1, 10)], names=("0.jpg",))
    files = {"/coco/annotations/instances_val.json": json.dumps(document).encode(), "/coco/images/val/0.jpg": photo(9)}
    with serve(FileServer(files)) as server:
        url = f"{server.url}/coco/annotations/instances_val.json"
        assert looks_like_coco(url)
        source = opened(url)
        ((path, data, own),) = pairs_of(source)
    assert (path, data) == ("images/val/0.jpg", photo(9)) and (ids_of(own) == 1).sum() == 24


def test_source_image_member_is_refused(tmp_path):
    write(tmp_path, content([annotation(1, 10)]))
    with pytest.raises(InputError, match="source.image_member"):
        open_coco(str(tmp_path), MaskDataConfig(), reading=SourceConfig(image_member="jpg"))


def test_a_mask_is_of_the_size_the_json_states(tmp_path):
    write(tmp_path, content([annotation(1, 10)], size=(5, 7)))
    assert Image.fromarray(masks_of(opened(tmp_path))[0]).size == (5, 7)


def test_one_category_alone_is_too_few_and_the_way_out_is_named(tmp_path):
    document = content([annotation(1, 10), annotation(2, 11)], categories=[{"id": 3, "name": "cat"}])
    with pytest.raises(InputError, match=r"instances_train.json has 1 class, .* without data.coco_background=false"):
        opened(write(tmp_path, document), coco_background=False)
    assert len(opened(tmp_path).classes) == 2


def as_text(document, *keys):
    """Write ids of annotations as text, as tables that were exported do."""
    for one in document["annotations"]:
        one.update({key: str(one[key]) for key in keys})
    return document


@pytest.mark.parametrize("keys", [("image_id",), ("category_id",), ("image_id", "category_id")])
def test_ids_written_as_text_are_the_numbers_of_the_lists(tmp_path, keys):
    annotations = [annotation(1, 10), annotation(2, 11, category=7)]
    expected = masks_of(opened(write(tmp_path / "a", content(annotations))))
    found = opened(write(tmp_path / "b", as_text(content(annotations), *keys)))
    assert not any("left out" in note for note in found.notes)
    assert all(np.array_equal(*pair) for pair in zip(masks_of(found), expected, strict=True))


def test_text_and_number_of_two_images_stay_apart(tmp_path):
    document = content([annotation(1, 10), annotation(2, "10", category=7)])
    document["images"][1]["id"] = "10"
    first, second = masks_of(opened(write(tmp_path, document)))
    assert (np.unique(first).tolist(), np.unique(second).tolist()) == ([0, 1], [0, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"file_name": None}, "damaged"), ({"image_id": 99}, "annotates none of the images")],
)
def test_panoptic_annotations_that_name_no_mask_or_no_image_are_one_line(tmp_path, change, message):
    record = {"image_id": 10, "file_name": "0.png", "segments_info": [{"id": 5, "category_id": 3}]} | change
    document = content([{key: value for key, value in record.items() if value is not None}])
    with pytest.raises(InputError, match=message):
        opened(write(tmp_path, document))


def test_panoptic_annotations_of_other_images_are_one_line_where_the_rest_is_a_class(tmp_path):
    record = {"image_id": 99, "file_name": "0.png", "segments_info": [{"id": 5, "category_id": 3}]}
    with pytest.raises(InputError, match="annotates none of the images that it lists"):
        opened(write(tmp_path, content([record])), coco_background=True)
