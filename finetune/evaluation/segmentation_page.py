"""The page of an evaluation of a segmenter: one HTML file that needs nothing but itself.

Its template is `segmentation_page.html`. Pictures are thumbnails of some images, so that it stays small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from beit.common.errors import BadSample
from beit.common.pages.html_page import render
from beit.common.pages.numbers import count, percent, percent_range, run_name, short_name, short_names
from beit.common.pages.pictures import share_map
from beit.common.storage.samples import spread_evenly
from beit.finetune.evaluation.confusion import confusion_counts
from beit.finetune.evaluation.overlays import UNTOLD, WRONG, enlarged_pixels, error_map, overlay, shrunk
from beit.finetune.evaluation.segmentation_report import MaskReport
from beit.finetune.masks.classes import IGNORED, Colour, MaskClasses

Look = Callable[[int], tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]]
"""Position of an image in the index to image (H, W, 3), truth and prediction (H, W)."""

_WORST, _BETWEEN, _BEST = 6, 6, 3
_PICTURE_PX = 360
"""Longer side of the pictures, each some 20 kB; arbitrary."""
_MOST_IN_MATRIX, _WORST_IN_MATRIX = 24, 16
"""Up to so many classes all are in the matrix, else those that are confused most; arbitrary."""
_ROWS_AT_ONCE = 30
"""Classes that are shown before the rest is folded away; arbitrary."""


def mask_page(report: MaskReport, look: Look, *, origin: Sequence[tuple[str, str]] = ()) -> str:
    """Return the whole page.

    Args:
        report: What was measured.
        look: Shows single images again.
        origin: Where model, data and numbers come from, named.
    """
    num_classes, num_images = len(report.classes), report.metrics.num_images
    confusion, shown = report.outcomes.confusion, set[int]()
    sheets = [
        (title, [_scene(report, row, look, shown) for row in rows]) for title, rows in chosen_images(report) if rows
    ]
    names = short_names(name for _, scenes in sheets for name in (scene["name"] for scene in scenes))
    return render(
        Path(__file__).with_name("segmentation_page.html"),
        title=f"Evaluation of {run_name(report.model)}",
        lead=f"{count(num_images, 'image')} of {short_name(report.data)}, "
        f"{count(num_classes, 'class', plural='classes')}",
        cards_shown=_cards(report),
        definition=report.definition(),
        counted=f"{report.counted()}. Segmented through {report.how()}.",
        doubt=_doubt(report),
        classes=_classes(report),
        at_once=_ROWS_AT_ONCE,
        sheets=sheets,
        names=names,
        key=_key(report.classes, shown),
        confusion=_matrix(report),
        whole=share_map(confusion) if num_classes > _MOST_IN_MATRIX else None,
        pairs=report.confused(),
        origin=list(origin),
    )


def chosen_images(report: MaskReport) -> list[tuple[str, list[int]]]:
    """Return which images are shown, as rows of the outcomes under titles: the worst, the best, and some between."""
    ious = np.array([image.miou for image in report.images])
    order = [int(row) for row in np.argsort(ious, kind="stable") if not math.isnan(ious[row])]
    if len(order) <= _WORST + _BETWEEN + _BEST:
        return [("Images, the worst first", order)]
    between = order[_WORST : len(order) - _BEST]
    spread = [between[place] for place in spread_evenly(len(between), _BETWEEN)]
    return [
        ("The worst images", order[:_WORST]),
        ("From worse to better, spread evenly", spread),
        ("The best images", order[: -_BEST - 1 : -1]),
    ]


def _scene(report: MaskReport, row: int, look: Look, shown: set[int]) -> dict[str, Any]:
    """Return one image as the template shows it; the ids in its pictures are added to `shown`."""
    scores = report.images[row]
    scene: dict[str, Any] = {
        "name": report.names[row],
        "scores": scores,
        "pictures": [],
        "error": "",
    }
    try:
        pixels, truth, said = look(int(report.outcomes.positions[row]))
    except BadSample:
        return scene | {"error": "cannot be read any more"}
    scene["error"] = _largest_error(truth, said, report.classes.names)
    image, (truth, said) = shrunk(Image.fromarray(pixels), [truth, said], most_px=_PICTURE_PX)
    image, (truth, said) = enlarged_pixels(image, [truth, said], most_px=_PICTURE_PX)
    shown.update(np.unique(truth).tolist(), np.unique(said).tolist())
    scene["pictures"] = [
        ("image", image),
        ("truth", overlay(image, truth, report.classes)),
        ("prediction", overlay(image, said, report.classes)),
        ("errors", error_map(image, truth, said)),
    ]
    return scene


def _largest_error(truth: NDArray[np.uint8], said: NDArray[np.uint8], names: Sequence[str]) -> str:
    """Say which class of an image is taken for which other one in most pixels; empty where nothing is wrong."""
    counts = confusion_counts(truth, said, len(names))
    np.fill_diagonal(counts, 0)
    row, column = divmod(int(counts.argmax()), len(names))
    wrong = int(counts[row, column])
    if not wrong:
        return ""
    share = wrong / np.count_nonzero(truth != IGNORED)
    return f"mostly {names[row]} taken for {names[column]}, {percent(share)} of the image"


def _cards(report: MaskReport) -> list[tuple[str, str, str]]:
    """Return the main numbers as name, value and what it is to be held against."""
    first, *others = [row for row in report.headline() if row[0] != "images"]
    interval = "" if report.interval is None else f"95 % interval: {percent_range(*report.interval)}"
    return [
        (*first, interval),
        ("chance", percent(report.chance), f"always saying {report.commonest}"),
        *((name, value, "") for name, value in others),
    ]


def _doubt(report: MaskReport) -> str:
    if report.interval is None:
        return "One image says nothing about others, so there is no interval."
    doubt = (
        "The interval says what so few images leave open about other images of their kind (bootstrap over images); it "
        "is too narrow where images are alike, as the frames of a video are."
    )
    return f"Not better than chance beyond the interval. {doubt}" if report.interval[0] <= report.chance else doubt


def _classes(report: MaskReport) -> list[dict[str, Any]]:
    colours = dict(zip(report.classes.names, report.classes.colours, strict=True))
    return [{"name": name, "colour": _css(colours[name]), "score": score} for name, score in report.rows()]


def _key(classes: MaskClasses, shown: set[int]) -> list[tuple[str, str]]:
    """Return colours and what they stand for, of what is in the pictures."""
    key = [(_css(classes.colours[number]), classes.names[number]) for number in sorted(shown - {IGNORED})]
    stripes = f"repeating-linear-gradient(135deg, {_css(UNTOLD)} 0 3px, transparent 3px 6px)"
    return [*key, (_css(WRONG), "wrong (errors)"), *([(stripes, "ignored (errors)")] if IGNORED in shown else [])]


def _css(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _matrix(report: MaskReport) -> dict[str, Any]:
    """Return the matrix as a template shows it; of many classes only those that are confused most."""
    confusion, names = report.outcomes.confusion, report.classes.names
    shown = np.flatnonzero(confusion.sum(0) + confusion.sum(1))
    caption = (
        "Rows: the true class. Columns: what the model says. Numbers: percent of the pixels of the true class; empty "
        "below 0.5."
    )
    if len(shown) < len(names):
        caption += " Classes that do not occur are left out."
    if len(shown) > _MOST_IN_MATRIX:
        wrong = confusion - np.diag(np.diag(confusion))
        worst = np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:_WORST_IN_MATRIX]
        shown = np.sort(worst)
        caption = (
            f"The {len(shown)} of {len(confusion)} classes that are confused most. {caption} What is taken for other "
            "classes is left out, so rows need not add up to 100."
        )
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    return {
        "caption": caption,
        "corner": "true class",
        "columns": [names[column] for column in shown],
        "rows": [
            (names[row], [(round(100 * float(shares[row, column])), float(shares[row, column])) for column in shown])
            for row in shown
        ],
    }
