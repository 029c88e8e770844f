"""Masks put together from tiles: against the definition at full size, with a hole, and within bounds of memory."""

import numpy as np
import pytest
import torch
from PIL import Image

from beit.common.errors import BadSample
from beit.common.images.large.tiles import Tiling, shares
from beit.common.images.large.windows import WholeImage
from beit.finetune.masks.classes import IGNORED
from beit.finetune.segmentation.config import InferenceConfig
from beit.finetune.segmentation.inference import class_ids, segment
from beit.finetune.segmentation.tiled import segment_tiles
from beit.tests.unit.finetune.segmentation.test_inference import picture, segmenter

SETTINGS = InferenceConfig(mode="slide")


def whole(pixels):
    return WholeImage(Image.fromarray(pixels.transpose(1, 2, 0)))


def put_together(model, pixels, tiling, settings=SETTINGS):
    with torch.inference_mode():
        strips = list(segment_tiles(model, pixels, settings, tiling))
    height = pixels.size[1]
    assert [strip.top for strip in strips] == [0, *np.cumsum([len(strip.ids) for strip in strips])[:-1]]
    ids = np.concatenate([strip.ids for strip in strips])
    assert len(ids) == height
    return ids, [line for strip in strips for line in strip.unreadable]


def by_definition(model, pixels, tiling, settings=SETTINGS):
    height, width = pixels.shape[1:]
    total = np.zeros((model.num_classes, height, width))
    for row in shares(height, tiling):
        for column in shares(width, tiling):
            tile = pixels[:, row.start : row.start + tiling.tile, column.start : column.start + tiling.tile]
            with torch.inference_mode():
                found = torch.cat([strip.probabilities for strip in segment(model, tile, settings)], 1).numpy()
            own = found[
                :, row.begin - row.start : row.end - row.start, column.begin - column.start : column.end - column.start
            ]
            total[:, row.begin : row.end, column.begin : column.end] += own * row.weights[:, None] * column.weights
    np.testing.assert_allclose(total.sum(0), 1, atol=1e-5)
    return total


@pytest.mark.parametrize("tiling", [Tiling(48, 16), Tiling(40, 0), Tiling(64, 50), Tiling(300, 10)])
@pytest.mark.parametrize("size", [(70, 133), (40, 40), (41, 96), (7, 200)])
def test_blended_tiles_are_as_the_definition_says(tiling, size):
    model, pixels = segmenter(), picture(size)
    ids, unreadable = put_together(model, whole(pixels), tiling)
    expected = by_definition(model, pixels, tiling)
    best = np.sort(expected, 0)
    sure = best[-1] - best[-2] > 1e-5
    assert sure.mean() > 0.95 and not unreadable
    assert (ids == expected.argmax(0))[sure].all()


def test_an_image_no_larger_than_a_tile_is_segmented_as_without_tiles():
    model, pixels = segmenter(), picture((50, 60))
    ids, _ = put_together(model, whole(pixels), Tiling(64, 8))
    assert (ids == class_ids(model, pixels, SETTINGS)).mean() > 0.999


def test_a_tile_that_cannot_be_read_leaves_a_hole_and_nothing_else():
    model, pixels = segmenter(), picture((96, 96))

    class Damaged(WholeImage):
        def read(self, box):
            if box[:2] == (32, 32):
                raise BadSample("truncated", "half of it")
            return WholeImage.read(self, box)

    image = whole(pixels)
    ids, unreadable = put_together(model, Damaged(image.image), Tiling(32, 0))
    assert unreadable == ["truncated: half of it"]
    assert (ids[32:64, 32:64] == IGNORED).all()
    expected, _ = put_together(model, image, Tiling(32, 0))
    ids[32:64, 32:64] = expected[32:64, 32:64]
    assert (ids == expected).all() and IGNORED not in expected


def test_only_a_row_of_tiles_is_read_at_a_time():
    model, read = segmenter(), []

    class Noted:
        size, has_windows = (128, 4 * 32), True

        def read(self, box):
            read.append(box)
            return Image.new("RGB", box.size)

    with torch.inference_mode():
        strips = segment_tiles(model, Noted(), SETTINGS, Tiling(32, 0))
        next(strips)
    assert len(read) == 4 and {box.top for box in read} == {0}
