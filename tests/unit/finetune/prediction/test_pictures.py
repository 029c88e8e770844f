"""Sheets of predictions: with the truth where there are masks, else the images alone."""

import logging

import numpy as np
import pytest
from PIL import Image

from beit.common.errors import InputError
from beit.finetune.prediction.pictures import _CELL_PX, prediction_sheet
from beit.tests.encoders import save_classifier, save_segmenter
from beit.tests.unit.finetune.probe.test_segmentation import write_scenes


@pytest.fixture
def model(tmp_path):
    save_segmenter(tmp_path / "model", class_names=("0", "1"))
    return tmp_path / "model"


def test_masks_beside_the_images_add_truth_and_errors(tmp_path, model, caplog):
    caplog.set_level(logging.INFO)
    scenes = write_scenes(tmp_path / "scenes", 3, ignored=2)
    with_truth = prediction_sheet(model, str(scenes), num_rows=2)
    assert "no truth" not in caplog.text
    without = prediction_sheet(model, str(scenes / "images"), num_rows=2)
    assert "no truth beside the predictions" in caplog.text
    assert with_truth.width > 1.8 * without.width
    assert np.asarray(with_truth).std() > 10


def test_rows_are_as_high_as_the_tallest_image_needs(tmp_path, model):
    heights = {}
    for name, sizes in {"low": [(40, 20), (40, 10)], "high": [(40, 20), (20, 40)]}.items():
        (tmp_path / name).mkdir()
        for number, size in enumerate(sizes):
            Image.new("RGB", size, (255, 0, 0)).save(tmp_path / name / f"{number}.png")
        heights[name] = prediction_sheet(model, str(tmp_path / name), num_rows=2).height
    assert heights["low"] == heights["high"] - 2 * _CELL_PX // 2


def test_images_that_cannot_be_read_are_named(tmp_path, model, caplog):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 30), (255, 0, 0)).save(tmp_path / "photos/a.png")
    (tmp_path / "photos/b.png").write_bytes(b"no image")
    prediction_sheet(model, str(tmp_path / "photos"), num_rows=4)
    assert "b.png cannot be used" in caplog.text
    (tmp_path / "photos/a.png").unlink()
    with pytest.raises(InputError, match="none of the images of .* can be read"):
        prediction_sheet(model, str(tmp_path / "photos"), num_rows=4)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_classifier_writes_labels_below_each_image(tmp_path, count):
    save_classifier(tmp_path / "model", class_names=("rose", "tulip"))
    (tmp_path / "photos").mkdir()
    for number in range(count):
        Image.new("RGB", (40, 30), (30 * number, 0, 0)).save(tmp_path / f"photos/{number}.png")
    drawn = prediction_sheet(tmp_path / "model", str(tmp_path / "photos"), num_rows=2)
    assert drawn.width > min(4, count) * 200
