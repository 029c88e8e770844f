"""A model in Python that was trained on the values of an instrument is given images of another kind."""

import logging

import numpy as np
import pytest
from PIL import Image

import beit
from beit.common.images.decoding import Decoding
from beit.common.images.ranges import ValueRange
from beit.tests.encoders import save_classifier, save_segmenter
from beit.tests.support import write_images

FOUND = Decoding(value_range=ValueRange.parse("percentile:0.5,99.5", (993.0, 22714.0)))


@pytest.fixture(params=[save_classifier, save_segmenter])
def save(request):
    return request.param


def test_files_that_the_range_misses_are_told_of_and_only_some_are_looked_at(tmp_path, save, caplog):
    write_images(tmp_path / "photos", 12)
    save(tmp_path / "model", class_names=("a", "b"), decoding=FOUND)
    paths = sorted((tmp_path / "photos").iterdir())
    model = beit.load_model(tmp_path / "model")
    with caplog.at_level(logging.WARNING):
        model.predict(paths)
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings and all("nearly one colour by the range 993 to 22714" in warning for warning in warnings)
    assert sum(int(warning.split()[0]) for warning in warnings) == 8  # a segmentation model takes them one by one
    caplog.clear()
    model.predict(paths)
    assert not caplog.records


def test_opened_images_and_ordinary_models_are_not_judged(tmp_path, save, caplog):
    write_images(tmp_path / "photos", 2)
    paths = sorted((tmp_path / "photos").iterdir())
    save(tmp_path / "ranged", class_names=("a", "b"), decoding=FOUND)
    save(tmp_path / "usual", class_names=("a", "b"))
    deep = Image.fromarray(np.random.default_rng(0).integers(993, 22715, (32, 32), np.uint16))
    with caplog.at_level(logging.WARNING):
        beit.load_model(tmp_path / "ranged").predict([*map(Image.open, paths), deep])
        beit.load_model(tmp_path / "usual").predict(paths)
    assert not caplog.records
