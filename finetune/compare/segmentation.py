"""What `beit compare` knows of segmenters beside what all runs have: intervals and pairs over the images measured.

An evaluation keeps the counts of every image, so two models can be held against each other image by image, which tells
them apart much better than their own intervals do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from beit.finetune.evaluation.confusion import MaskOutcomes
from beit.finetune.evaluation.segmentation_report import unpacked_counts
from beit.finetune.evaluation.segmentation_scores import miou_difference_interval

MAIN = "miou"
"""The number that counts unless another is asked for."""
NAMES = {
    "miou": "mIoU",
    "miou_true_classes": "mIoU of the classes in the truth",
    "miou_all_classes": "mIoU of all classes",
    "miou_per_image": "mIoU of each image",
    "weighted_iou": "weighted IoU",
    "mean_accuracy": "mean accuracy",
    "pixel_accuracy": "pixel accuracy",
}
"""Numbers of segmenters as readers call them; all are shares."""
ALSO_CALLED = {
    **dict.fromkeys(("iou", "mean_iou", "m_iou", "jaccard"), "miou"),
    **dict.fromkeys(("aacc", "overall_accuracy", "pixacc"), "pixel_accuracy"),
    **dict.fromkeys(("macc", "mean_acc"), "mean_accuracy"),
    **dict.fromkeys(("fwiou", "fw_iou"), "weighted_iou"),
}
"""The same by what they are called elsewhere."""


@dataclass(frozen=True, slots=True)
class MeasuredImages:
    """What `beit evaluate` kept of a segmenter's images."""

    classes: tuple[str, ...]
    """In the order of the counts."""
    interval: tuple[float, float] | None
    """95 % interval of mIoU; None where the evaluation gave none."""
    counts: MaskOutcomes | None
    """Of every image; None where they were too many to be kept."""


def measured_images(document: Mapping[str, Any]) -> MeasuredImages:
    """Read it from the JSON of an evaluation."""
    limits = document.get("miou_interval")
    return MeasuredImages(
        classes=tuple(row["name"] for row in document["per_class"]),
        interval=None if limits is None else (float(limits[0]), float(limits[1])),
        counts=unpacked_counts(document),
    )


def evaluated_settings(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the run that an evaluation was told otherwise: how images were segmented.

    What is None was left out there, whatever the run has.
    """
    inference = dict(document.get("inference") or {})
    inference.pop("crop_px", None)
    return {f"evaluation.{name}": value for name, value in inference.items()}


def difference_over_images(first: MeasuredImages | None, second: MeasuredImages | None) -> tuple[float, float] | None:
    """Return the 95 % interval of second minus first in mIoU over their images; None where these are not the same."""
    if first is None or second is None or first.counts is None or second.counts is None:
        return None
    if first.classes != second.classes or not np.array_equal(first.counts.true, second.counts.true):
        return None
    return miou_difference_interval(first.counts, second.counts)
