"""Files of predicted masks give back the ids, and their names mirror the source without clashing."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from beit.common.errors import InputError
from beit.finetune.masks.class_table import read_class_table
from beit.finetune.masks.classes import MaskClasses, voc_colours
from beit.finetune.prediction.mask_files import (
    class_values,
    identity_in,
    kept_ids,
    legend_document,
    mirrored_names,
    overlay_jpeg,
    palette_of,
    palette_png,
    probability_file,
)

CLASSES = MaskClasses(names=("sky", "road", "tree"), colours=((0, 0, 0), (224, 224, 192), (1, 2, 3)))
EVERY_ID = np.arange(256, dtype=np.uint8).repeat(3).reshape(24, 32)


def test_every_id_comes_back_whatever_the_number_of_classes(tmp_path):
    for count in (2, 3, 150, 255):
        classes = MaskClasses(names=tuple(map(str, range(count))), colours=voc_colours(count))
        with Image.open(io.BytesIO(palette_png(EVERY_ID, classes))) as image:
            assert image.mode == "P" and len(image.getpalette()) == 768
            assert np.array_equal(np.asarray(image), EVERY_ID)


@pytest.mark.parametrize("only", [0, 1, 2, 255])
def test_a_mask_of_one_id_or_few_keeps_eight_bits(only):
    data = palette_png(np.full((1, 1), only, np.uint8), CLASSES)
    assert data[24] == 8 and data[25] == 3  # IHDR: bits, colour type "palette"
    with Image.open(io.BytesIO(data)) as image:
        assert np.asarray(image).tolist() == [[only]]


def test_all_256_colours_differ_and_the_first_are_the_classes():
    found = palette_of(CLASSES)
    assert len(set(found)) == len(found) == 256 and tuple(found[:3]) == CLASSES.colours
    many = MaskClasses(names=tuple(map(str, range(255))), colours=voc_colours(255))
    assert palette_of(many)[255] == voc_colours(256)[255]


def test_ids_can_be_told_by_colour_where_an_optimiser_renumbered_them():
    with Image.open(io.BytesIO(palette_png(EVERY_ID % 3, CLASSES))) as image:
        renumbered = image.convert("RGB").quantize(8)
    table = {colour: number for number, colour in enumerate(CLASSES.colours)}
    found = [table[colour] for colour in map(tuple, np.asarray(renumbered.convert("RGB")).reshape(-1, 3).tolist())]
    assert found == (EVERY_ID % 3).ravel().tolist()


def test_the_legend_is_a_class_table_for_training(tmp_path):
    file = tmp_path / "legend.json"
    file.write_text(json.dumps(legend_document(CLASSES, range(3), {"weights_sha256": "0"})))
    table = read_class_table(str(file))
    assert table.names == CLASSES.names and tuple(entry.colour for entry in table.entries) == CLASSES.colours


def test_files_say_what_they_were_made_from(tmp_path):
    (tmp_path / "a.png").write_bytes(palette_png(EVERY_ID, CLASSES, identity="1f"))
    (tmp_path / "a.jpg").write_bytes(overlay_jpeg(Image.new("RGB", (9, 9)), identity="2f"))
    with probability_file(tmp_path / "a.npz", (4, 2), CLASSES.names, identity="3f") as rows:
        rows.write(np.full((3, 2, 3), 0.25, np.float16).tobytes())
        rows.write(np.full((1, 2, 3), 0.5, np.float16).tobytes())
    assert [identity_in(tmp_path / name) for name in ("a.png", "a.jpg", "a.npz", "b.png")] == ["1f", "2f", "3f", None]
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert found["probabilities"].shape == (4, 2, 3) and found["probabilities"].dtype == np.float16
        assert found["probabilities"][3].min() == 0.5 and found["class_names"].tolist() == list(CLASSES.names)
    no_class = np.where(EVERY_ID < len(CLASSES), EVERY_ID, 255)
    assert np.array_equal(kept_ids(tmp_path / "a.png", CLASSES, range(3)), no_class)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\xff\xd8\xff"])
def test_a_damaged_file_says_nothing(tmp_path, content):
    for suffix in (".png", ".jpg", ".npz"):
        (tmp_path / f"x{suffix}").write_bytes(content)
        assert identity_in(tmp_path / f"x{suffix}") is None


def test_probabilities_that_were_interrupted_leave_no_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), probability_file(tmp_path / "a.npz", (4, 2), ("a", "b")) as rows:
        rows.write(b"\0" * 8)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["a.jpg", "sub/a.jpg", "b.tar.gz.png"], ["a", "sub/a", "b.tar.gz"]),
        (["a.jpg", "a.png", "b.jpg"], ["a.jpg", "a.png", "b"]),
        (["a.jpg", "A.png"], ["a.jpg", "A.png"]),
        (["a.jpg", "a.png", "a.jpg.png"], ["a.jpg", "a.png", "a.jpg-2"]),
        (["a.jpg", "a.jpg"], ["a.jpg", "a.jpg-2"]),
        (["../../etc/a.jpg", "/b.jpg", "./c.jpg", ".jpg"], ["etc/a", "b", "c", ".jpg"]),
        (["line\nbreak.jpg", "back\\slash.jpg"], ["line_break", "back_slash"]),
    ],
)
def test_names_mirror_the_source_and_never_clash(given, wanted):
    assert mirrored_names(given) == wanted


def test_names_that_are_too_long_are_cut_and_stay_apart():
    found = mirrored_names(["ä" * 120 + f"{number}.jpg" for number in range(3)])
    assert len(set(found)) == 3 and all(len(name.encode()) <= 200 for name in found)


def test_other_values_keep_their_colours_and_come_back():
    values = (7, 0, 254)
    held = np.array(values, np.uint8)[EVERY_ID % 3]
    with Image.open(io.BytesIO(palette_png(held, CLASSES, values))) as image:
        assert np.array_equal(np.asarray(image), held)
        first = EVERY_ID[0, 0] % 3
        assert image.convert("RGB").getpixel((0, 0)) == CLASSES.colours[first]
    assert len(set(palette_of(CLASSES, values))) == 256


@pytest.mark.parametrize(
    ("table", "wanted"),
    [
        ('{"7": "sky", "8": "road"}', "lacks tree"),
        ('["sky", "road", "tree"]', "gives no values"),
        ('{"7": "sky", "8": "road", "255": "tree"}', "gives tree a value of 255 or more"),
        ('{"7": "sky", "8": "road", "11": "tree", "3": "void"}', None),
    ],
)
def test_a_table_of_values_names_every_class(tmp_path, table, wanted):
    (tmp_path / "values.json").write_text(table)
    if wanted is None:
        assert class_values(str(tmp_path / "values.json"), CLASSES) == (7, 8, 11)
        return
    with pytest.raises(InputError, match=wanted):
        class_values(str(tmp_path / "values.json"), CLASSES)
