"""The numbers of an evaluation, from the record of what a classifier said; pure functions of arrays.

Legend: n = images, C = classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beit.common.pages.numbers import percent
from beit.finetune.evaluation.outcomes import Outcomes

CALIBRATION_BINS = 15
"""Equally wide bins of confidence; Guo et al. 2017."""
THRESHOLD = 0.5
"""Probability from which a class counts as predicted where images have several."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """How well a classifier of one label per image does; shares lie in [0, 1]."""

    top1: float
    """Share of images whose class has the largest logit."""
    top5: float
    """Share of images whose class is among the five largest logits."""
    loss: float
    """Mean cross-entropy in nats, without label smoothing."""
    num_images: int
    """Images measured."""

    def describe(self) -> str:
        """Return the numbers in one line."""
        return f"top-1 {percent(self.top1)}, top-5 {percent(self.top5)}, loss {self.loss:.4f}"


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiLabelMetrics:
    """How well a classifier of several labels per image does; shares lie in [0, 1]."""

    map: float
    """Mean over the classes of the average precision; classes without an image are left out."""
    macro_f1: float
    """Mean over the classes of F1 at probability 1/2."""
    loss: float
    """Mean binary cross-entropy over images and classes, in nats."""
    num_images: int
    """Images measured."""

    def describe(self) -> str:
        """Return the numbers in one line."""
        return f"mAP {percent(self.map)}, macro-F1 {percent(self.macro_f1)}, loss {self.loss:.4f}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScore:
    """How well one class is told from the others; NaN stands for what is not defined."""

    num_images: int
    """Images of this class."""
    accuracy: float
    """Share of them that is recognised, also called recall."""
    precision: float
    """Share of those said to be of this class that are."""
    f1: float
    """Harmonic mean of the two."""
    average_precision: float
    """Area under precision over recall; with several labels per image only."""


def compute_metrics(outcomes: Outcomes) -> Metrics | MultiLabelMetrics:
    """Return the main numbers."""
    loss, num_images = float(outcomes.losses.mean()), len(outcomes)
    if not outcomes.is_multi_label:
        hits = outcomes.top_classes == outcomes.labels[:, None]
        return Metrics(top1=float(hits[:, 0].mean()), top5=float(hits.any(1).mean()), loss=loss, num_images=num_images)
    scores = class_scores(outcomes)
    precisions = [score.average_precision for score in scores if score.num_images]
    return MultiLabelMetrics(
        map=float(np.mean(precisions)) if precisions else 0.0,
        macro_f1=macro_f1(scores),
        loss=loss,
        num_images=num_images,
    )


def class_scores(outcomes: Outcomes, num_classes: int = 0) -> list[ClassScore]:
    """Return the numbers of every class; `num_classes` is not needed with several labels per image."""
    if outcomes.is_multi_label:
        targets, predicted = outcomes.targets, outcomes.probabilities >= THRESHOLD
        right, said, there = ((a & b).sum(0) for a, b in ((targets, predicted), (predicted,) * 2, (targets,) * 2))
        precisions = [average_precision(*column) for column in zip(outcomes.probabilities.T, targets.T, strict=True)]
    else:
        matrix = confusion_matrix(outcomes, num_classes)
        right, said, there = np.diag(matrix), matrix.sum(0), matrix.sum(1)
        precisions = [float("nan")] * num_classes
    return [
        ClassScore(
            num_images=int(m),
            accuracy=_ratio(r, m),
            precision=_ratio(r, s),
            f1=_ratio(2 * r, s + m),
            average_precision=precision,
        )
        for r, s, m, precision in zip(right, said, there, precisions, strict=True)
    ]


def macro_f1(scores: list[ClassScore]) -> float:
    """Return the mean F1 over the classes that occur, among the labels or the predictions; 0 if none does."""
    found = [score.f1 for score in scores if not np.isnan(score.f1)]
    return float(np.mean(found)) if found else 0.0


def confusion_matrix(outcomes: Outcomes, num_classes: int) -> NDArray[np.int64]:
    """Count images by true class (row) and predicted class (column), int64 (C, C); one label per image."""
    pairs = outcomes.labels * num_classes + outcomes.top_classes[:, 0]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def average_precision(scores: NDArray[Any], targets: NDArray[np.bool_]) -> float:
    """Return the area under the steps of precision over recall; NaN without a positive.

    Args:
        scores: (n,), larger means more certain; equal ones count as one threshold.
        targets: (n,), whether an image is of the class.
    """
    if not targets.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(targets[order])
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # last image of each threshold
    precision, gained = hits[ends] / (ends + 1), np.diff(hits[ends], prepend=0)
    return float((precision * gained).sum() / hits[-1])


def calibration_error(outcomes: Outcomes) -> float:
    """Return the expected calibration error, in [0, 1]: how far confidence and accuracy lie apart, on average.

    With several labels per image every (image, class) pair counts, with its probability as confidence.
    """
    if outcomes.is_multi_label:
        confidence, is_right = outcomes.probabilities.ravel(), outcomes.targets.ravel()
    else:
        confidence, is_right = outcomes.top_probabilities[:, 0], outcomes.top_classes[:, 0] == outcomes.labels
    bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, confidence.astype(np.float64) - is_right, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _ratio(part: int, whole: int) -> float:
    return float(part / whole) if whole else float("nan")
