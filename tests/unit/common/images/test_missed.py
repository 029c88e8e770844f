"""Whether a range of values lies beside what images hold."""

import logging

import numpy as np
import pytest
from PIL import Image

from beit.benchmarks import science
from beit.common.images.decoding import Decoding
from beit.common.images.missed import Drawn, missed_by
from beit.common.images.ranges import ValueRange
from beit.common.rng import CounterRng
from beit.common.sources.glance.depth import warn_of_range
from beit.common.sources.index_build import build_index
from beit.tests.unit.common.images.test_ranges import colour_png, png_of
from beit.tokenize.synthetic import render_scene

FOUND = Decoding(value_range=ValueRange.parse("percentile:0.5,99.5", (993.0, 22714.0)))
CELLS = [science.field(np.random.default_rng(number), kind)[1] for number in range(2) for kind in science.CELLS]
SCENES = [colour_png(render_scene(CounterRng(number), 96)) for number in range(4)]


def drawn(images, label=None):
    return [Drawn(f"{label or 'x'}/{number}.png", lambda data=data: data, label) for number, data in enumerate(images)]


def bright(cells):
    return png_of((cells.astype(np.int64) * 16).clip(0, 65535).astype(np.uint16))


def test_8_bit_images_by_a_range_found_over_deep_ones_are_missed():
    missed = missed_by(drawn(SCENES), FOUND)
    assert len(missed.images) == missed.num_looked_at == 4 and not missed.whole_classes
    assert all(one.levels == 1 and one.own_levels > 8 for one in missed.images)
    said = missed.warning(option="--range")
    assert said.startswith("4 of 4 images looked at are nearly one colour by the range 993 to 22714: their values lie ")
    assert said.endswith("--range 0,255 shows them")
    assert "--set 'source.range=[0, 255]'" in missed.warning(option="--set")


def test_a_class_of_another_instrument_is_named():
    images = [*drawn(map(bright, CELLS), "bright"), *drawn([png_of(cells) for cells in CELLS], "dim")]
    missed = missed_by(images, FOUND)
    assert len(missed.images) == 8 and missed.num_looked_at == 16
    assert missed.whole_classes == (("dim", 8),)
    said = missed.warning(option="--set")
    assert "8 of 16 images" in said and "all that was seen of the class 'dim' (8 of 8)" in said
    assert "no one range fits all" in said


def test_images_that_a_low_range_makes_white_are_missed():
    low = Decoding(value_range=ValueRange.parse((0.0, 255.0)))
    assert len(missed_by(drawn(map(bright, CELLS)), low).images) == 8
    assert missed_by(drawn(SCENES), low) is None


@pytest.mark.parametrize(
    "values",
    [
        np.full((96, 96), 65535),
        np.full((96, 96), 3),
        np.random.default_rng(0).normal(900, 10, (96, 96)),
        np.random.default_rng(0).normal(0, 100, (96, 96)).clip(0),
        950 + 30 * science.texture(np.random.default_rng(0), 96, 30),
    ],
    ids=["saturated", "one value", "noise", "noise around black", "uneven light"],
)
def test_empty_fields_are_not_missed(values):
    assert missed_by(drawn([png_of(values.astype(np.uint16))] * 3), FOUND) is None


def test_white_of_a_slide_is_not_missed():
    white = np.random.default_rng(0).normal(240, 6, (96, 96, 3)).clip(0, 255).astype(np.uint8)
    assert missed_by(drawn([colour_png(white)]), FOUND) is None


def test_nothing_is_read_without_a_range_of_values():
    def refuse():
        raise AssertionError("read")

    assert missed_by([Drawn("a.png", refuse)], Decoding()) is None


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_it_is_said_of_a_source_once(tmp_path, caplog, suffix):
    caplog.set_level(logging.WARNING)
    (tmp_path / "scenes").mkdir()
    for number in range(5):
        Image.fromarray(render_scene(CounterRng(number), 96)).save(tmp_path / f"scenes/{number}.{suffix}")
    warn_of_range(build_index(tmp_path / "scenes", tmp_path / "cache"), FOUND, option="--range")
    [said] = caplog.messages
    assert "5 of 5 images looked at" in said and "--range 0,255" in said
