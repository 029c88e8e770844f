"""What a sheet says of itself."""

import numpy as np
import pytest
from PIL import Image

from beit.common.pages.cells import Box, described, read_sheet
from beit.common.pages.pictures import beside, picture_table, png_bytes, save_png, sheet


def cell(value):
    return np.full((4, 4, 3), value, np.uint8)


def drawn():
    rows = [[cell(10), cell(20)], [cell(30), None]]
    table = picture_table(
        rows, titles=["left", "right"], labels=["one", "two"], captions=[["a\nb", "c"], ["d", ""]], cell_px=16
    )
    chart = Image.new("RGB", (40, 30), (1, 2, 3))
    return sheet([table, beside([picture_table([[cell(40)]], cell_px=20), chart])], heading="H", facts="F", legend="L")


def test_a_sheet_that_is_read_again_gives_back_its_pictures_and_texts(tmp_path):
    save_png(drawn(), tmp_path / "sheet.png")
    image = read_sheet(tmp_path / "sheet.png")
    what = described(image)
    assert (what.heading, what.facts, what.legend) == ("H", "F", "L")
    table, small, chart = what.bodies
    assert (table.titles, table.labels) == (["left", "right"], ["one", "two"])
    assert table.captions == [["a\nb", "c"], ["d", ""]]
    found = [[None if box is None else np.unique(image.crop(box)).tolist() for box in row] for row in table.boxes]
    assert found == [[[10], [20]], [[30], None]]
    assert np.unique(image.crop(small.boxes[0][0])).tolist() == [40]
    assert image.crop(chart.boxes[0][0]).size == (40, 30)
    assert np.asarray(image.crop(chart.boxes[0][0]))[0, 0].tolist() == [1, 2, 3]


def test_the_note_of_a_sheet_does_not_change_its_pixels(tmp_path):
    image = drawn()
    save_png(image, tmp_path / "sheet.png")
    bare = Image.fromarray(np.asarray(image))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "sheet.png")), np.asarray(bare))
    assert len(png_bytes(image)) - len(png_bytes(bare)) < 1000


@pytest.mark.parametrize(
    "note", ["", "{", "[]", '{"heading": "H"}', '{"heading":1,"facts":"","legend":"","bodies":[1]}']
)
def test_a_damaged_note_leaves_the_picture_as_a_whole(tmp_path, note):
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_itxt("beit:sheet", note, zip=True)
    Image.new("RGB", (30, 20)).save(tmp_path / "sheet.png", pnginfo=text)
    assert described(read_sheet(tmp_path / "sheet.png")).bodies[0].boxes == [[Box(0, 0, 30, 20)]]


def test_a_box_outside_the_picture_is_no_note(tmp_path):
    image = drawn()
    save_png(image.crop((0, 0, 30, 30)), tmp_path / "cut.png")
    assert described(read_sheet(tmp_path / "cut.png")).heading == ""
