import json

import numpy as np
import pytest
from PIL import Image

from beit.common.errors import InputError
from beit.common.sources.config import SourceConfig
from beit.finetune.masks.check import survey
from beit.finetune.masks.settings import MaskDataConfig
from beit.tests.unit.finetune.masks.trees import colours, encoded, ids, palette_image, photo, write, write_set


def surveyed(data, **settings):
    return survey(str(data), MaskDataConfig(**settings), reading=SourceConfig())


def row(table, start):
    (line,) = (line for line in table.splitlines() if line.startswith(start))
    return line.split()


@pytest.fixture
def bad(tmp_path):
    write_set(tmp_path, 3)
    files = {
        "images/lacks.jpg": None,
        "annotations/alone.png": ids(0, 1),
        "images/small.jpg": None,
        "annotations/small.png": ids(0, 1, size=(5, 5)),
        "images/odd.jpg": None,
        "annotations/odd.png": ids(0, 1, 9),
        "images/void.jpg": None,
        "annotations/void.png": ids(255),
        "images/cut.jpg": None,
        "annotations/cut.png": b"no image at all",
        "classes.json": '["sky", "tree"]',
    }
    return write(tmp_path, files)


def test_a_sound_set_has_no_problem(tmp_path):
    for part, count in (("train", 3), ("val", 2)):
        write_set(tmp_path / part, count)
    write(tmp_path, {"classes.json": '["sky", "tree"]'})
    found = surveyed(tmp_path)
    assert found.problems == () and found.classes == ("sky", "tree")
    table = found.as_table()
    assert row(table, "images with a mask") == ["images", "with", "a", "mask", "3", "2"]
    assert row(table, "0 ") == ["0", "sky", "50.0", "%", "3", "50.0", "%", "2"]
    assert row(table, "255 ") == ["255", "(no", "class)", "33.3", "%", "3", "33.3", "%", "2"]


def test_all_that_is_wrong_is_counted_and_said(bad):
    found = surveyed(bad)
    (part,) = found.parts
    assert (part.images, part.without_mask, part.without_image) == (7, 1, 1)
    assert (part.unreadable, part.other_size, part.wholly_ignored, part.unknown_values) == (1, 1, 2, 1)
    assert len(found.problems) == 5 and not any("\n" in problem for problem in found.problems)
    assert row(found.as_table(), "9 ")[:2] == ["9", "(unknown)"]


def test_a_table_fits_a_terminal(tmp_path):
    names = ["a class with a name that does not end before the line does", "sky", "tree"]
    for part in ("train", "val"):
        write_set(tmp_path / part, 2, values=(0, 1, 2))
    write(tmp_path, {"classes.json": json.dumps(names)})
    lines = surveyed(tmp_path).as_table().splitlines()
    assert max(map(len, lines[3:])) <= 80


def test_shares_are_of_the_pixels_that_count(tmp_path):
    write_set(tmp_path, 2, values=(0, 0, 1, 255))
    values = {value.value: value for value in surveyed(tmp_path).parts[0].values}
    assert values["0"].share == pytest.approx(2 / 3) and values["255"].share == pytest.approx(1 / 4)
    assert values["0"].pixels == 96 and values["255"].name is None and values["255"].is_known
    assert not values["255"].is_class


def test_classes_without_a_pixel_are_listed(tmp_path):
    write_set(tmp_path, 2)
    write(tmp_path, {"classes.json": '["sky", "tree", "sea"]'})
    assert row(surveyed(tmp_path).as_table(), "2 ") == ["2", "sea", "0.0", "%", "0"]


def test_what_a_file_calls_void_is_shown_so(tmp_path):
    write_set(tmp_path, 2, values=(0, 1, 2))
    write(tmp_path, {"classes.json": '{"0": "unlabelled", "1": "sky", "2": "tree"}'})
    assert row(surveyed(tmp_path).as_table(), "0 ")[1:4] == ["unlabelled", "(no", "class)"]


def test_values_that_look_like_no_classes_are_said(tmp_path):
    ramp = np.tile(np.arange(200, dtype=np.uint8), (4, 1))
    write(tmp_path / "soft", {"images/a.jpg": photo(size=(200, 4)), "masks/a.png": ramp})
    assert "resized with interpolation" in " ".join(surveyed(tmp_path / "soft").notes)
    objects = encoded(Image.fromarray(ids(0, 24001, 24002, dtype=np.uint16)))
    write(tmp_path / "objects", {"images/a.jpg": None, "masks/a.png": objects})
    assert "numbers of objects" in " ".join(surveyed(tmp_path / "objects").notes)


def test_names_cannot_control_a_terminal(tmp_path):
    write_set(tmp_path / "a\x1b[31mb", 2)
    assert "\x1b" not in surveyed(tmp_path / "a\x1b[31mb").as_table()


def test_masks_that_cannot_be_read_are_one_problem(tmp_path):
    write(tmp_path, {"images/a.jpg": None, "masks/a.jpg": None})
    (problem,) = surveyed(tmp_path).problems
    assert "JPEG" in problem


def test_hints_are_said(tmp_path):
    write(tmp_path, {"images/a.jpg": photo(size=(8, 12), orientation=6), "masks/a.png": ids(0, 1, 150)})
    notes = " ".join(surveyed(tmp_path).notes)
    assert "1 image turned" in notes and "data.reduce_zero_label=true" in notes


def test_it_is_json(bad):
    found = json.loads(json.dumps(surveyed(bad).as_dict()))
    assert found["parts"][0]["values"][0]["name"] == "sky" and len(found["problems"]) == 5


def test_colours_without_a_table_are_shown_with_the_problem(tmp_path):
    write(tmp_path, {"images/a.jpg": None, "masks/a.png": colours((1, 2, 3), (0, 0, 9))})
    found = surveyed(tmp_path)
    assert "hold colours" in found.problems[0] and found.classes == ()
    assert row(found.as_table(), "(0, 0, 9)")[3] == "(unknown)"


def test_classes_that_only_the_val_part_has_are_a_problem(tmp_path):
    write_set(tmp_path / "train", 2)
    write_set(tmp_path / "val", 2, values=(0, 1, 7))
    (problem,) = surveyed(tmp_path).problems
    assert "val hold 7, which is no class" in problem


def test_val_of_the_user_is_looked_at(tmp_path):
    write_set(tmp_path / "a", 2)
    found = surveyed(tmp_path / "a", val=str(write_set(tmp_path / "b", 5)))
    assert [part.images for part in found.parts] == [2, 5]


def test_data_without_pairs_are_refused(tmp_path):
    with pytest.raises(InputError, match="no images"):
        surveyed(write(tmp_path, {"readme.md": "nothing"}))
    with pytest.raises(InputError, match="does not exist"):
        surveyed(tmp_path / "nowhere")
    with pytest.raises(InputError, match="must be a folder"):
        surveyed("")


def test_images_that_cannot_be_read_are_counted_and_named(tmp_path):
    write_set(tmp_path, 3)
    write(tmp_path, {"images/1.jpg": b"no image at all"})
    found = surveyed(tmp_path)
    assert found.parts[0].unread == 1 and not found.problems
    assert any("1 image cannot be read (first: images/1.jpg)" in note for note in found.notes)


def test_255_cut_to_the_bits_of_a_short_palette_is_no_class(tmp_path):
    write_set(tmp_path, 2)
    cut = encoded(palette_image(ids(0, 1, 2, 255), [(0, 0, 0), (9, 9, 9), (200, 0, 0)]))  # Pillow writes 2 bits
    write(tmp_path, {f"annotations/{number}.png": cut for number in range(2)})
    (problem,) = surveyed(tmp_path).problems
    assert "the value 3, for which their palette has no colour (first: annotations/0.png)" in problem
    assert surveyed(tmp_path, ignore=(3, 255)).problems == ()
    write(tmp_path, {"classes.txt": "a\nb\nc\nd\n"})
    assert surveyed(tmp_path).problems == ()


def test_it_is_said_where_a_list_of_values_makes_255_a_class(tmp_path):
    write_set(tmp_path, 2, values=(0, 1, 2, 255))
    assert any("the value 255 is a class" in note for note in surveyed(tmp_path, ignore=(0,)).notes)
    assert surveyed(tmp_path, ignore=()).notes == surveyed(tmp_path).notes == ()


@pytest.mark.parametrize("masks", [ids(1), encoded(ids(0, 1), "JPEG")], ids=["one class", "none that can be read"])
def test_what_is_wrong_with_one_part_is_said_beside_the_other(tmp_path, masks):
    for part in ("train", "val"):
        write_set(tmp_path / part, 1)
    write(tmp_path, {"train/annotations/0.png": masks})
    found = surveyed(tmp_path)
    assert len(found.parts) == 2 and len(found.problems) == 1
