"""What a user gets wrong about images with masks: one clear line each, and no run directory."""

import pytest

from beit.common.errors import InputError
from beit.finetune.train_segmentation import run
from beit.tests.unit.finetune.masks.trees import colours, ids, photo, write, write_set
from beit.tests.unit.finetune.segmentation.scenes import config

SOUND = {"images/a.jpg": None, "masks/a.png": ids(0, 1)}
CASES = {
    "other sizes": ({"images/a.jpg": photo(size=(40, 30)), "masks/a.png": ids(0, 1)}, [], "12 x 8 px, .* 40 x 30"),
    "an id outside": (SOUND | {"masks/a.png": ids(0, 5), "classes.json": '["x", "y"]'}, [], "no class .5 in 48 pixels"),
    "a mask alone": (SOUND | {"masks/b.png": ids(0, 1)}, [], "1 mask without an image .first: masks/b.png"),
    "an image alone": (SOUND | {"images/b.jpg": None}, [], "1 image without a mask .first: images/b.jpg"),
    "colours": ({"images/a.jpg": None, "masks/a.png": colours((1, 2, 3), (4, 5, 6))}, [], "hold colours"),
    "all ignored": ({"images/a.jpg": None, "masks/a.png": ids(255)}, [], "all pixels of all masks"),
    "one class": ({"images/a.jpg": None, "masks/a.png": ids(1)}, [], r"one class only \(1\)"),
    "no masks": ({"images/a.jpg": None}, [], "no masks that could be told"),
    "another layout": (SOUND, ["data.layout=coco"], "holds no COCO file"),
    "no file of classes": (SOUND, ["data.classes=nowhere.json"], "nowhere.json"),
    "all left out": (SOUND, ["data.ignore=[0,1]"], "all pixels of all masks"),
    "too many wanted": (SOUND, ["data.num_labels=7"], "must not exceed the 1 image with masks"),
    "no val": (SOUND, ["data.val=nowhere"], "nowhere does not exist"),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_input_is_one_clear_line_and_leaves_nothing(tmp_path, name):
    files, overrides, message = CASES[name]
    data = write(tmp_path / "data", files)
    with pytest.raises(InputError, match=message) as caught:
        run(config(*overrides), data=str(data), run_dir=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_val_of_other_classes_is_refused(tmp_path):
    train, val = write_set(tmp_path / "train", 2), write_set(tmp_path / "val", 2)
    write(train, {"classes.json": '["sky", "tree"]'})
    write(val, {"classes.json": '["sky", "sea"]'})
    with pytest.raises(InputError, match=r"does not know \(sea\)"):
        run(config(f"data.val={val}"), data=str(train), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
