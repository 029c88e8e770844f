"""Which pixels polygons cover, against pycocotools' answers kept in tests/golden/coco_regions.json."""

import json
from pathlib import Path

import numpy as np
import pytest

from beit.finetune.masks.annotated.regions import paint, polygon_runs, region_of

CASES = json.loads((Path(__file__).parents[1] / "golden" / "coco_regions.json").read_text())


def drawn(segmentation, height, width):
    region = region_of(segmentation, class_id=1, is_crowd=False, height=height, width=width)
    pixels = paint([region], height=height, width=width, background=0)
    assert pixels.dtype == np.uint8 and pixels.sum() == region.area
    return pixels


@pytest.mark.parametrize("number", range(len(CASES)))
def test_polygons_cover_the_pixels_that_pycocotools_says(number: int) -> None:
    case = CASES[number]
    height, width = case["size"]
    ours = drawn(case["polygons"], height, width)
    theirs = drawn({"size": case["size"], "counts": case["counts"]}, height, width)
    assert (ours == theirs).all(), f"{(ours != theirs).sum()} pixels differ"


def test_a_ring_inside_a_ring_is_filled() -> None:
    outer, inner = CASES[2]["polygons"]
    assert (drawn([outer, inner], 30, 40) == drawn([outer], 30, 40)).all()


def test_a_triangle_covers_less_than_with_its_edge() -> None:
    assert drawn(CASES[0]["polygons"], 30, 40).sum() == 200


def test_run_lengths_as_numbers_and_as_text_are_the_same() -> None:
    for text, numbers in (("04", [0, 4]), ("4", [4]), ("112O", [1, 1, 2, 0]), ("P1P3", [32, 96])):
        size = [sum(numbers), 1]
        assert (
            drawn({"size": size, "counts": text}, *size).tolist()
            == drawn({"size": size, "counts": numbers}, *size).tolist()
        )


def test_runs_are_ascending_apart_and_inside_the_image() -> None:
    for case in CASES:
        for polygon in case["polygons"]:
            starts, ends = polygon_runs(polygon, *case["size"])
            assert (starts < ends).all() and (starts[1:] >= ends[:-1]).all()
            assert not len(ends) or (starts[0] >= 0 and ends[-1] <= case["size"][0] * case["size"][1])
