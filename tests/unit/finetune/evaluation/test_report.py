"""An evaluation as table, JSON and page: complete, self-contained, and safe against whatever names contain."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from beit.finetune.data import open_evaluation_data
from beit.finetune.evaluation.evaluate import evaluate_model
from beit.finetune.evaluation.mistakes import MAX_MISTAKES, mistake_pictures
from beit.finetune.evaluation.outcomes import OutcomeLog
from beit.finetune.evaluation.page import evaluation_page
from beit.finetune.evaluation.report import build_report
from beit.tests.unit.finetune.colours import write_images


class Alone:
    def gather(self, value):
        return [value]


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.references, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data):
        self.text += data


def report_for(root, names, wrong, count=6):
    """Evaluate `count` images per class, of which the first `wrong` of each are taken for the next class."""
    index = open_evaluation_data(str(write_images(root / "val", ("blue", "red"), count)), ("blue", "red"))
    labels = torch.from_numpy(index.labels)
    places = torch.arange(len(labels))
    said = torch.where(places % count < wrong, 1 - labels, labels)
    logits = torch.nn.functional.one_hot(said, 2) * (1.0 + 0.1 * places[:, None])
    log = OutcomeLog()
    log.add(places.tolist(), logits, labels)
    return build_report(log.collect(Alone()), index, class_names=names, model="m", data="d"), index


def test_mistakes_are_named_the_most_confident_first(tmp_path):
    report, index = report_for(tmp_path, ("sky", "fire"), wrong=2)
    assert [mistake.position for mistake in report.mistakes] == [7, 6, 1, 0]
    first = report.mistakes[0]
    assert (first.name, first.claim, first.truth) == ("red/1.png", "sky", "fire")
    assert first.confidence == pytest.approx(1 / (1 + np.exp(-1.7)))
    pictures = mistake_pictures(report.mistakes, index, img_size=16, crop_pct=1.0)
    assert [picture[..., 0].mean() > picture[..., 2].mean() for picture in pictures] == [True, True, False, False]


def test_there_are_not_more_mistakes_than_fit_a_page(tmp_path):
    assert len(report_for(tmp_path, ("a", "b"), wrong=15, count=20)[0].mistakes) == MAX_MISTAKES


def test_json_is_plain_and_complete(tmp_path):
    found = json.loads(json.dumps(report_for(tmp_path, ("a", "b"), wrong=2)[0].as_json(), allow_nan=False))
    assert found["confusion"] == [[4, 2], [2, 4]]
    assert found["confused_pairs"][0] == {"truth": "a", "predicted": "b", "num_images": 2}
    assert found["per_class"][0] == {
        "name": "a",
        "num_images": 6,
        "accuracy": pytest.approx(2 / 3),
        "precision": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
        "average_precision": None,
    }
    assert {"top1", "top5", "loss", "num_images", "macro_f1", "calibration_error", "mistakes"} <= set(found)


def test_page_needs_nothing_else_and_runs_nothing(tmp_path):
    evil = "<script>alert(1)</script>\"'&"
    report, index = report_for(tmp_path, (evil, "b"), wrong=2)
    html = evaluation_page(report, mistake_pictures(report.mistakes, index, img_size=16, crop_pct=1.0))
    page = Page(html)
    assert "script" not in page.tags
    assert len(page.references) == 4
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert evil in page.text
    assert "red/1.png" in page.text
    assert "default-src 'none'" in html


def test_page_without_a_mistake_says_so(tmp_path):
    report, _ = report_for(tmp_path, ("a", "b"), wrong=0)
    assert "There is no mistake" in evaluation_page(report, [])


def test_command_writes_json_and_page(finished, tmp_path):
    evaluate_model(finished.run, str(finished.val), out=tmp_path / "e.json", html=tmp_path / "e.html")
    assert json.loads((tmp_path / "e.json").read_text())["confusion"] == [[10, 0], [0, 10]]
    assert (tmp_path / "e.html").read_text().startswith("<!DOCTYPE html>")


def test_an_image_that_vanished_is_grey_on_the_page(tmp_path):
    report, index = report_for(tmp_path, ("a", "b"), wrong=1)
    (tmp_path / "val" / report.mistakes[0].name).unlink()
    first, second = mistake_pictures(report.mistakes, index, img_size=16, crop_pct=1.0)
    assert (first == 128).all()
    assert Image.fromarray(second).getcolors() is not None
    assert not (second == 128).all()
