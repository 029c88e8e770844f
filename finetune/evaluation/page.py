"""The page of an evaluation: one HTML file that needs nothing but itself; its template is `page.html`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beit.common.pages.html_page import render
from beit.common.pages.numbers import count, percent, percent_range, run_name, short_name, short_names
from beit.common.pages.pictures import enlarged, share_map
from beit.finetune.evaluation.report import CLASSES_IN_TABLE, EvaluationReport, badness, class_rows
from beit.finetune.evaluation.scores import Metrics

_SHOWN_PX = 112
_MOST_IN_MATRIX, _WORST_IN_MATRIX = 24, 16
"""Up to so many classes all are in the matrix, else those that are confused most; arbitrary."""


def evaluation_page(
    report: EvaluationReport, pictures: Sequence[NDArray[np.uint8]], *, origin: Sequence[tuple[str, str]] = ()
) -> str:
    """Return the whole page.

    Args:
        report: What was measured.
        pictures: Of `report.mistakes`, uint8 (H, W, 3) each.
        origin: Where model, data and numbers come from, named.
    """
    num_classes, num_images = len(report.class_names), report.metrics.num_images
    names = short_names(mistake.name for mistake in report.mistakes)
    classes = class_rows(report)
    is_long = num_classes > CLASSES_IN_TABLE
    confusion = report.confusion
    return render(
        Path(__file__).with_name("page.html"),
        title=f"Evaluation of {run_name(report.model)}",
        lead=f"{count(num_images, 'image')} of {short_name(report.data)}, "
        f"{count(num_classes, 'class', plural='classes')}",
        cards_shown=_cards(report),
        reading=_reading(report),
        mistakes=[
            (mistake, enlarged(pixels, _SHOWN_PX), names[mistake.name])
            for mistake, pixels in zip(report.mistakes, pictures, strict=True)
        ],
        confusion=None if confusion is None else confusion_table(report, confusion),
        whole=None if confusion is None or num_classes <= _MOST_IN_MATRIX else share_map(confusion),
        pairs=_pairs(report),
        classes=sorted(classes, key=badness) if is_long else classes,
        order="The least accurate first." if is_long else "In the order of their names.",
        shares={"accuracy": "accuracy", "precision": "precision", "F1": "f1"}
        | ({"average precision": "average_precision"} if confusion is None else {}),
        origin=list(origin),
    )


def _cards(report: EvaluationReport) -> list[tuple[str, str, str]]:
    """Return the main numbers as name, value and what it is to be held against."""
    low, high = report.interval or (0.0, 0.0)
    notes = {"top-1": f"95 % interval: {percent_range(low, high)}" if report.interval else "", "images": ""}
    first, *others = report.headline()
    return [
        (*first, notes.get(first[0], "")),
        ("chance", percent(report.chance), report.chance_meaning),
        *((name, value, notes.get(name, "")) for name, value in others),
    ]


def _reading(report: EvaluationReport) -> str:
    if not isinstance(report.metrics, Metrics):
        return "Chance: the mean average precision of guesses, which is the mean share of the classes."
    doubt = "The interval (Wilson) says how far so few images let the share of the whole be known."
    if report.only_class:
        doubt = f"All images are {report.only_class}: this says how many of them are recognised, no more. {doubt}"
    if report.interval is not None and report.interval[0] <= report.chance:
        return f"Not better than chance beyond the interval. {doubt}"
    return doubt


def _pairs(report: EvaluationReport) -> list[tuple[Any, float]]:
    images = {name: score.num_images for name, score in class_rows(report)}
    return [(pair, pair.num_images / max(1, images[pair.truth])) for pair in report.confused_pairs()]


def confusion_table(report: EvaluationReport, confusion: NDArray[np.int64]) -> dict[str, Any]:
    """Return the matrix as a template shows it; of many classes only those that are confused most."""
    shown = np.arange(len(confusion))
    caption = (
        "Rows: the true class. Columns: what the model says. The stronger the colour, the larger its share of the row."
    )
    if len(confusion) > _MOST_IN_MATRIX:
        wrong = confusion - np.diag(np.diag(confusion))
        worst = np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:_WORST_IN_MATRIX]
        shown = np.sort(worst)
        caption = (
            f"The {len(shown)} of {len(confusion)} classes that are confused most. {caption} What is taken for other "
            "classes is left out."
        )
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    return {
        "caption": caption,
        "corner": "true class",
        "columns": [report.class_names[column] for column in shown],
        "rows": [
            (report.class_names[row], [(int(confusion[row, column]), float(shares[row, column])) for column in shown])
            for row in shown
        ],
    }
