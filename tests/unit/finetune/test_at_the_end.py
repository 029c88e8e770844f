"""What a fine-tuning draws for its report, and the report of each kind of fine-tuning."""

import json

import numpy as np
import pytest

from beit.common.pages.cells import described, read_sheet
from beit.finetune.at_the_end import Measured, mistakes_of
from beit.finetune.data import open_evaluation_data
from beit.finetune.evaluation.outcomes import Outcomes
from beit.finetune.train import run
from beit.tests.unit.finetune.colours import finetune_config, write_images


def outcomes(said, right, sure):
    top = np.array([[one, 1 - one] for one in said])
    return Outcomes(
        positions=np.arange(len(said)),
        losses=np.zeros(len(said)),
        top_classes=top,
        top_probabilities=np.array([[p, 1 - p] for p in sure], np.float32),
        labels=np.array(right),
        targets=np.zeros((len(said), 0), np.bool_),
        probabilities=np.zeros((len(said), 0), np.float32),
    )


@pytest.fixture
def measured(tmp_path):
    images = write_images(tmp_path / "val", ("blue", "red"), 2)
    index = open_evaluation_data(str(images), ("blue", "red"))

    def of(said, sure):
        found = outcomes(said, [0, 0, 1, 1], sure)
        return Measured(step=7, outcomes=found, images=index, class_names=("blue", "red"), img_size=16, crop_pct=1.0)

    (tmp_path / "run").mkdir()
    return of


def test_the_mistakes_stand_in_the_order_of_their_confidence(tmp_path, measured):
    image = mistakes_of(tmp_path / "run", measured([1, 0, 0, 1], [0.7, 0.9, 0.8, 0.6]))()
    captions = described(image).bodies[0].captions[0]
    lines = [caption.splitlines()[:2] for caption in captions]
    assert lines == [["blue, 80.0 %", "is red"], ["red, 70.0 %", "is blue"]]
    assert described(image).facts == "Validation images, 2 of 4 wrong; the model after 7 steps"
    table = json.loads((tmp_path / "run/pictures/confusion.json").read_text())
    assert [name for name, _ in table["rows"]] == ["blue", "red"]
    assert [[number for number, _ in cells] for _, cells in table["rows"]] == [[1, 1], [1, 1]]


def test_without_mistakes_there_is_no_picture_of_them(tmp_path, measured):
    assert mistakes_of(tmp_path / "run", measured([0, 0, 1, 1], [0.9] * 4))() is None


def test_a_classification_ends_with_a_report_of_the_model_that_it_keeps(tmp_path, with_reports):
    train = write_images(tmp_path / "train", ("blue", "red"), 4)
    val = write_images(tmp_path / "val", ("blue", "red"), 3, start=50)
    config = finetune_config(f"data.val={val}", "train.steps=2", "train.eval_interval_steps=1")
    run(config, data=str(train), run_dir=tmp_path / "run")
    page = (tmp_path / "run/report.html").read_text()
    assert "Attention of block" in page
    assert "What is taken for what" in page
    assert described(read_sheet(tmp_path / "run/pictures/attention.png")).bodies[0].titles[:2] == ["image", "from CLS"]
