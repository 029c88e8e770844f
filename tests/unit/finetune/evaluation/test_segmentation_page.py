"""The page of a segmenter's evaluation: what a reader finds in it, for few images and many, few classes and many."""

import re
from dataclasses import replace

import numpy as np
import pytest

from beit.common.errors import BadSample
from beit.finetune.evaluation.segmentation_page import chosen_images, mask_page
from beit.tests.page_parts import PageParts
from beit.tests.unit.finetune.evaluation.scenes import mask_report

LONG = "a class with a name that is a good deal longer than anybody would type <b>"


def page_of(report, look, **options):
    page = PageParts(html := mask_page(report, look, **options))
    page.check(hidden="/mnt/disk")
    shown = re.sub('data:[^"]*|http-equiv', "", html)
    assert "http" not in shown and "url(" not in shown, "nothing outside the page"
    return page, " ".join(page.text.split())


@pytest.mark.parametrize(
    "names",
    [("road", "sky"), ("red", LONG, "飛行機"), *(tuple(f"class {n}" for n in range(many)) for many in (11, 150))],
)
@pytest.mark.parametrize("num_images", [1, 15, 40])
def test_a_page_of_any_number_of_classes_and_images_is_whole(names, num_images):
    report, look = mask_report(num_images, names)
    page, text = page_of(report, look, origin=[("model", "runs/streets/model")])
    assert "Evaluation of streets" in text and all(name in text for name in names)
    pictures = [values for values in page.of("img") if values.get("class") != "map"]
    assert len(pictures) == 4 * min(num_images, 15)
    assert all(values["src"].startswith("data:image/jpeg;base64,") for values in pictures)
    assert any(values.get("class") == "map" for values in page.of("img")) == (len(names) > 24)
    assert ("The other 120 classes" in text) == (len(names) == 150)
    assert "Where these numbers come from" in text


def test_worst_images_come_first_and_no_image_twice():
    report, look = mask_report(40)
    sheets = chosen_images(report)
    assert [len(rows) for _, rows in sheets] == [6, 6, 3]
    ious = [[report.images[row].miou for row in rows] for _, rows in sheets]
    assert ious[0] == sorted(ious[0]) and ious[1] == sorted(ious[1]) and ious[2] == sorted(ious[2])[::-1]
    assert max(ious[0]) <= min(ious[1]) and max(ious[1]) <= min(ious[2])
    rows = [row for _, found in sheets for row in found]
    assert len(set(rows)) == 15


def test_images_without_a_label_are_not_shown_and_are_counted():
    report, look = mask_report(6, blank=(1, 4))
    assert chosen_images(report) == [("Images, the worst first", [5, 3, 2, 0])]
    assert "2 images without any, which change no number" in page_of(report, look)[1]


def test_it_says_what_is_mostly_wrong_and_what_colours_mean():
    report, look = mask_report(3)
    _, text = page_of(report, look)
    assert "taken for tree" in text and "wrong (errors)" in text and "ignored (errors)" in text
    assert "95 % interval:" in text.replace("\u00a0", " ") and "always saying" in text


def test_an_image_that_cannot_be_read_again_is_said():
    report, look = mask_report(3)

    def gone(position):
        if position == 2:
            raise BadSample("truncated", "the file ends early")
        return look(position)

    page, text = page_of(report, gone)
    assert "cannot be read any more" in text and len(page.of("img")) == 8


def test_how_far_the_number_is_known_is_said():
    report, look = mask_report(1)
    assert "there is no interval" in page_of(report, look)[1]
    report, look = mask_report(4)
    assert "Not better than chance" not in page_of(report, look)[1]
    assert "Not better than chance" in page_of(replace(report, chance=0.99), look)[1]


def test_pictures_are_thumbnails():
    report, _ = mask_report(2)
    large = np.zeros((3000, 2000, 3), np.uint8), np.zeros((3000, 2000), np.uint8), np.ones((3000, 2000), np.uint8)
    assert len(mask_page(report, lambda _: large)) < 200_000
