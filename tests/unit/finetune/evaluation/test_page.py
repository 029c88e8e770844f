"""The page of an evaluation: what a reader finds in it, for few classes and many, one, and names of any kind."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from beit.finetune.data import open_evaluation_data
from beit.finetune.evaluation.evaluate import evaluate_model
from beit.finetune.evaluation.outcomes import OutcomeLog
from beit.finetune.evaluation.page import evaluation_page
from beit.finetune.evaluation.report import build_report
from beit.tests.page_parts import PageParts
from beit.tests.unit.finetune.colours import write_images
from beit.tests.unit.finetune.evaluation.test_report import Alone

LONG = "a class with a name that is a good deal longer than anybody would type <b>"


def report_of(root, names, *, model="/mnt/disk/runs/flowers/model", data="/mnt/disk/flowers/val"):
    """A model that takes every second image for the next class."""
    index = open_evaluation_data(str(write_images(root / "val", ("blue", "red"), 60)), ("blue", "red"))
    count = len(names)
    labels = torch.arange(120) % count
    said = torch.where(torch.arange(120) % 2 == 0, labels, (labels + 1) % count)
    log = OutcomeLog()
    log.add(list(range(120)), torch.nn.functional.one_hot(said, count) * 2.0, labels)
    return build_report(log.collect(Alone()), index, class_names=names, model=model, data=data)


@pytest.mark.parametrize(
    "names", [("red",), ("red", "飛行機"), ("red", LONG, "лягушка"), tuple(f"class {n}" for n in range(100))]
)
def test_a_page_of_any_number_of_classes_is_whole(tmp_path, names):
    report = report_of(tmp_path, names)
    html = evaluation_page(report, [np.zeros((8, 8, 3), np.uint8)] * len(report.mistakes))
    page = PageParts(html)
    page.check(hidden="/mnt/disk")
    assert "Evaluation of flowers" in page.text and "flowers/val" in page.text
    assert all(name in page.text for name in names)
    cells = [values for values in page.of("th") if "title" in values]
    assert len(cells) == 2 * (len(names) if len(names) <= 24 else 16)
    assert any(values.get("class") == "map" for values in page.of("img")) == (len(names) > 24)


def test_it_says_how_far_the_first_number_is_known_and_what_chance_gives(tmp_path):
    report = report_of(tmp_path, ("red", "blue", "green"))
    low, high = report.interval
    assert low < report.metrics.top1 < high and report.chance == pytest.approx(40 / 120)
    text = " ".join(PageParts(evaluation_page(report, [np.zeros((8, 8, 3), np.uint8)] * 24)).text.split())
    assert "95 % interval: 41.2 to 58.8 %" in text and "chance 33.3 % always saying red" in text
    assert {report.as_json()["chance"], *report.as_json()["top1_interval"]} == {report.chance, low, high}


def test_images_of_one_class_are_held_against_guessing(tmp_path):
    names = ("red", "blue", "green", "grey")
    index = open_evaluation_data(str(write_images(tmp_path / "val", ("blue", "red"), 60)), ("blue", "red"))
    log = OutcomeLog()
    log.add(list(range(120)), torch.eye(4)[torch.arange(120) % 2], torch.zeros(120, dtype=torch.long))
    report = build_report(log.collect(Alone()), index, class_names=names, model="m", data="d")
    assert (report.metrics.top1, report.chance, report.only_class) == (0.5, 0.25, "red")
    assert "chance (guessing one of 4 classes): 25.0 %; all images are red" in report.as_table()
    text = " ".join(PageParts(evaluation_page(report, [np.zeros((8, 8, 3), np.uint8)] * 24)).text.split())
    assert "All images are red: this says how many of them are recognised" in text and "Not better than" not in text


def test_shares_have_one_form(tmp_path):
    report = report_of(tmp_path, ("red", "blue", "green"))
    text = PageParts(evaluation_page(report, [np.zeros((8, 8, 3), np.uint8)] * 24)).text
    assert all(re.fullmatch(r"\d+\.\d\d?", share) for share in re.findall(r"([\d.]+)\u00a0%", text) if share != "95")


def test_the_page_of_a_run_says_where_its_numbers_come_from(finished, tmp_path):
    evaluate_model(finished.run, str(finished.val), html=tmp_path / "page.html")
    page = PageParts((tmp_path / "page.html").read_text())
    page.check(hidden=str(finished.run.parent))
    facts = page.text.split("Where these numbers come from")[1]
    for name in ("model", "encoder", "trained on", "trained", "measured on", "measured", "command"):
        assert f" {name} " in facts
    assert "random weights" in facts and re.search(r"20\d\d-\d\d-\d\d \d\d:\d\d, beit \d", facts)
