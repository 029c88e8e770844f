"""An evaluation as a whole: numbers, classes, confusions and mistakes, and how they read as a table and as JSON.

The page is `page.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beit.common.pages.intervals import share_interval
from beit.common.pages.numbers import count, percent, percent_range
from beit.common.pages.tables import aligned, shortened
from beit.common.sources.index import LabelledIndex
from beit.finetune.evaluation.mistakes import Mistake, confident_mistakes
from beit.finetune.evaluation.outcomes import Outcomes
from beit.finetune.evaluation.scores import (
    ClassScore,
    Metrics,
    MultiLabelMetrics,
    calibration_error,
    class_scores,
    compute_metrics,
    confusion_matrix,
    macro_f1,
)

CLASSES_IN_TABLE = 30
"""Up to here every class has a row on the terminal, above it only the worst; arbitrary."""
_WORST_IN_TABLE = 10
CLASSES_IN_MATRIX = 200
"""Up to here the whole confusion matrix is in the JSON; arbitrary."""
CONFUSED_PAIRS = 20
_NAME_WIDTH = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfusedPair:
    """A class and what it is taken for."""

    truth: str
    """Name of the class."""
    predicted: str
    """Name of the other class."""
    num_images: int
    """How often."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationReport:
    """One model on one set of labelled images."""

    model: str
    """As the user named it."""
    data: str
    """As the user named it."""
    class_names: tuple[str, ...]
    """C classes, in the order of the logits."""
    metrics: Metrics | MultiLabelMetrics
    """The main numbers."""
    macro_f1: float
    """Mean F1 over the classes that occur."""
    calibration_error: float
    """Expected calibration error, in [0, 1]."""
    classes: list[ClassScore]
    """One per class."""
    confusion: NDArray[np.int64] | None
    """(C, C) images by true (row) and predicted class; None with several labels per image."""
    mistakes: list[Mistake]
    """The most confident ones, the most confident first."""
    interval: tuple[float, float] | None = None
    """95 % interval of top-1; None with several labels per image."""
    chance: float = 0.0
    """Top-1 of always saying the commonest class; with several labels per image, mean average precision of guesses.

    Where all images are of one class, of which nothing can be better than always saying it, top-1 of guessing.
    """
    commonest: str = ""
    """That class; empty with several labels per image."""

    @property
    def only_class(self) -> str:
        """The class of all images, where the model knows others; empty where there are several."""
        present = [name for name, score in class_rows(self) if score.num_images]
        is_alone = isinstance(self.metrics, Metrics) and len(present) == 1 < len(self.class_names)
        return present[0] if is_alone else ""

    @property
    def chance_meaning(self) -> str:
        """What `chance` is, in a few words."""
        if self.only_class:
            return f"guessing one of {len(self.class_names)} classes"
        return f"always saying {self.commonest}" if self.commonest else "guessing"

    def confused_pairs(self) -> list[ConfusedPair]:
        """Return the most frequent confusions, the most frequent first."""
        if self.confusion is None:
            return []
        others = self.confusion - np.diag(np.diag(self.confusion))
        places = np.argsort(-others, axis=None, kind="stable")[:CONFUSED_PAIRS]
        rows, columns = np.unravel_index(places, others.shape)
        return [
            ConfusedPair(
                truth=self.class_names[row], predicted=self.class_names[column], num_images=int(others[row, column])
            )
            for row, column in zip(rows, columns, strict=True)
            if others[row, column]
        ]

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values; what is not defined is null."""
        confusion = self.confusion if len(self.class_names) <= CLASSES_IN_MATRIX else None
        per_class = [
            {"name": name, **{key: _defined(value) for key, value in asdict(score).items()}}
            for name, score in zip(self.class_names, self.classes, strict=True)
        ]
        return {
            **asdict(self.metrics),
            "macro_f1": self.macro_f1,
            "calibration_error": self.calibration_error,
            "top1_interval": None if self.interval is None else list(self.interval),
            "chance": self.chance,
            "model": self.model,
            "data": self.data,
            "per_class": per_class,
            "confusion": None if confusion is None else confusion.tolist(),
            "confused_pairs": [asdict(pair) for pair in self.confused_pairs()],
            "mistakes": [asdict(mistake) for mistake in self.mistakes],
        }

    def headline(self) -> list[tuple[str, str]]:
        """Return the main numbers, named and formatted."""
        if isinstance(self.metrics, Metrics):
            first = [("top-1", percent(self.metrics.top1)), ("top-5", percent(self.metrics.top5))]
        else:
            first = [("mAP", percent(self.metrics.map))]
        return [
            *first,
            ("macro-F1", percent(self.macro_f1)),
            ("calibration error", percent(self.calibration_error)),
            ("loss", f"{self.metrics.loss:.4f}"),
            ("images", count(self.metrics.num_images)),
        ]

    def as_table(self) -> str:
        """Return the main numbers and those of the classes for reading."""
        main = aligned(list(zip(*self.headline(), strict=True)), align=">")
        return f"{main}\n{self._doubt()}\n\n{self._class_table()}"

    def _doubt(self) -> str:
        """Say how far the first number is known, and what it is to be held against."""
        chance = f"chance ({shortened(self.chance_meaning, _NAME_WIDTH)}): {percent(self.chance)}"
        alone = f"; all images are {shortened(self.only_class, _NAME_WIDTH)}" if self.only_class else ""
        known = "" if self.interval is None else f"top-1, 95 % interval: {percent_range(*self.interval)}; "
        return f"{known}{chance}{alone}"

    def _class_table(self) -> str:
        rows = class_rows(self)
        title = "class"
        if len(rows) > CLASSES_IN_TABLE:
            rows = sorted(rows, key=badness)[:_WORST_IN_TABLE]
            title = f"worst {len(rows)} classes of {len(self.class_names)}"
        cells = [
            [
                shortened(name, _NAME_WIDTH),
                count(score.num_images),
                *map(percent, (score.accuracy, score.precision, score.f1)),
            ]
            for name, score in rows
        ]
        return aligned([[title, "images", "accuracy", "precision", "F1"], *cells])


def class_rows(report: EvaluationReport) -> list[tuple[str, ClassScore]]:
    """Return name and numbers of every class, in the order of the logits."""
    return list(zip(report.class_names, report.classes, strict=True))


def build_report(
    outcomes: Outcomes, index: LabelledIndex, *, class_names: Sequence[str], model: str, data: str
) -> EvaluationReport:
    """Compute all that is reported of an evaluation; the index has the names of images that went wrong."""
    classes = class_scores(outcomes, len(class_names))
    metrics = compute_metrics(outcomes)
    shares = [score.num_images / len(outcomes) for score in classes]
    commonest = int(np.argmax(shares))
    if outcomes.is_multi_label:
        chance = float(np.mean([share for share in shares if share]))
    else:
        chance = shares[commonest] if shares[commonest] < 1 else 1 / len(class_names)
    return EvaluationReport(
        model=model,
        data=data,
        class_names=tuple(class_names),
        metrics=metrics,
        macro_f1=macro_f1(classes),
        calibration_error=calibration_error(outcomes),
        classes=classes,
        confusion=None if outcomes.is_multi_label else confusion_matrix(outcomes, len(class_names)),
        mistakes=confident_mistakes(outcomes, index, class_names),
        interval=share_interval(metrics.top1, len(outcomes)) if isinstance(metrics, Metrics) else None,
        chance=chance,
        commonest="" if outcomes.is_multi_label else class_names[commonest],
    )


def badness(row: tuple[str, ClassScore]) -> tuple[float, float]:
    """Sort classes without images last."""
    score = row[1]
    return (2.0 if math.isnan(score.accuracy) else score.accuracy), score.f1


def _defined(value: float) -> float | None:
    return None if isinstance(value, float) and math.isnan(value) else value
