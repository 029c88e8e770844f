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

from beit.common.pages.tables import aligned
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
            first = [("top-1", _percent(self.metrics.top1)), ("top-5", _percent(self.metrics.top5))]
        else:
            first = [("mAP", _percent(self.metrics.map))]
        return [
            *first,
            ("macro-F1", _percent(self.macro_f1)),
            ("calibration error", _percent(self.calibration_error)),
            ("loss", f"{self.metrics.loss:.4f}"),
            ("images", str(self.metrics.num_images)),
        ]

    def as_table(self) -> str:
        """Return the main numbers and those of the classes for reading."""
        return f"{aligned(list(zip(*self.headline(), strict=True)), align='>')}\n\n{self._class_table()}"

    def _class_table(self) -> str:
        rows = class_rows(self)
        title = "class"
        if len(rows) > CLASSES_IN_TABLE:
            rows = sorted(rows, key=_badness)[:_WORST_IN_TABLE]
            title = f"worst {len(rows)} classes of {len(self.class_names)}"
        cells = [
            [name[:_NAME_WIDTH], str(score.num_images), *map(_percent, (score.accuracy, score.precision, score.f1))]
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
    return EvaluationReport(
        model=model,
        data=data,
        class_names=tuple(class_names),
        metrics=compute_metrics(outcomes),
        macro_f1=macro_f1(classes),
        calibration_error=calibration_error(outcomes),
        classes=classes,
        confusion=None if outcomes.is_multi_label else confusion_matrix(outcomes, len(class_names)),
        mistakes=confident_mistakes(outcomes, index, class_names),
    )


def _badness(row: tuple[str, ClassScore]) -> tuple[float, float]:
    """Sort classes without images last."""
    score = row[1]
    return (2.0 if math.isnan(score.accuracy) else score.accuracy), score.f1


def _defined(value: float) -> float | None:
    return None if isinstance(value, float) and math.isnan(value) else value


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.2f}%"
