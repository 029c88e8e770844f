"""An evaluation of a segmenter as a whole: numbers, classes, confusions and images, as a table and as JSON.

The page is `segmentation_page.py`.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from beit.common.errors import require
from beit.common.pages.numbers import count, percent, percent_range
from beit.common.pages.tables import aligned, folded, shortened
from beit.finetune.evaluation.confusion import MaskOutcomes
from beit.finetune.evaluation.report import CLASSES_IN_MATRIX, CLASSES_IN_TABLE, CONFUSED_PAIRS
from beit.finetune.evaluation.segmentation_scores import (
    DEFINITIONS,
    ClassPixels,
    ImagePixels,
    SegmentationMetrics,
    class_pixels,
    guessing,
    image_pixels,
    miou_interval,
    segmentation_metrics,
)
from beit.finetune.masks.classes import MaskClasses
from beit.finetune.segmentation.config import InferenceConfig

_WORST_IN_TABLE = 10
_NAME_WIDTH = 28
_MOST_COUNTS = 4_000_000
"""Numbers of single images and classes that a JSON file keeps at most: a few MB, packed; arbitrary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfusedClass:
    """A class and what its pixels are taken for."""

    truth: str
    """Name of the class."""
    predicted: str
    """Name of the other class."""
    num_pixels: int
    """How many."""
    share: float
    """Of the pixels of the class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskReport:
    """One segmenter on one set of images with masks."""

    model: str
    """As the user named it."""
    data: str
    """As the user named it."""
    classes: MaskClasses
    """C classes, in the order of the logits."""
    outcomes: MaskOutcomes
    """All that was counted."""
    names: tuple[str, ...]
    """Of the images, in the order of the outcomes."""
    metrics: SegmentationMetrics
    """The main numbers."""
    scores: list[ClassPixels]
    """One per class."""
    images: list[ImagePixels]
    """One per image."""
    interval: tuple[float, float] | None
    """95 % interval of mIoU; None for a single labelled image."""
    chance: float
    """mIoU of always saying the commonest class."""
    commonest: str
    """That class."""
    inference: InferenceConfig
    """How the images were segmented."""
    crop_px: int
    """Side of the windows."""

    def confused(self) -> list[ConfusedClass]:
        """Return the confusions of most pixels, the largest first."""
        confusion = self.outcomes.confusion
        others = confusion - np.diag(np.diag(confusion))
        places = np.argsort(-others, axis=None, kind="stable")[:CONFUSED_PAIRS]
        rows, columns = np.unravel_index(places, others.shape)
        return [
            ConfusedClass(
                truth=self.classes.names[row],
                predicted=self.classes.names[column],
                num_pixels=int(others[row, column]),
                share=float(others[row, column] / confusion[row].sum()),
            )
            for row, column in zip(rows, columns, strict=True)
            if others[row, column]
        ]

    def rows(self) -> list[tuple[str, ClassPixels]]:
        """Return name and numbers of every class, the worst first and absent ones last."""
        found = zip(self.classes.names, self.scores, strict=True)
        return sorted(found, key=lambda row: 2.0 if math.isnan(row[1].iou) else row[1].iou)

    def headline(self) -> list[tuple[str, str]]:
        """Return the main numbers, named and formatted."""
        metrics = self.metrics
        return [
            ("mIoU", percent(metrics.miou)),
            ("mean accuracy", percent(metrics.mean_accuracy)),
            ("pixel accuracy", percent(metrics.pixel_accuracy)),
            ("weighted IoU", percent(metrics.weighted_iou)),
            ("images", count(metrics.num_images)),
        ]

    def doubt(self) -> str:
        """Say how far the first number is known, and what it is to be held against."""
        chance = f"chance (always saying {shortened(self.commonest, _NAME_WIDTH)}): {percent(self.chance)}"
        return chance if self.interval is None else f"mIoU, 95 % interval: {percent_range(*self.interval)}; {chance}"

    def definition(self) -> str:
        """Say what mIoU is here, and what other things of that name are."""
        occurring = sum(not math.isnan(score.iou) for score in self.scores)
        only_said = sum(score.iou == 0 and not score.num_images for score in self.scores)
        total = len(self.scores)
        which = f"all {total} classes" if occurring == total else f"the {occurring} of {total} classes that occur"
        zeros = f", {only_said} of them only in predictions, as 0" if only_said else ""
        others = "; ".join(
            f"{meaning}: {percent(getattr(self.metrics, name))}" for name, meaning in list(DEFINITIONS.items())[1:]
        )
        return (
            f"mIoU: intersections and unions summed over the whole set, then the mean over {which}{zeros}. "
            f"Other means: {others}."
        )

    def counted(self) -> str:
        """Say what was counted and what was not."""
        metrics = self.metrics
        text = f"{count(metrics.num_pixels, 'labelled pixel')} of {count(metrics.num_images, 'image')}"
        ignored = metrics.num_ignored_images
        if ignored:
            text += f"; {count(ignored, 'image')} without any, which change{'s' * (ignored == 1)} no number"
        return text

    def how(self) -> str:
        """Say how the images were segmented."""
        return inference_text(self.inference, self.crop_px)

    def as_table(self) -> str:
        """Return the main numbers and those of the classes for reading."""
        main = aligned(list(zip(*self.headline(), strict=True)), align=">")
        notes = [self.doubt(), self.definition(), f"{self.counted()}; {self.how()}"]
        return "\n".join([main, *map(folded, notes), "", self._class_table()])

    def _class_table(self) -> str:
        rows, title = self.rows(), "class"
        if len(rows) > CLASSES_IN_TABLE:
            rows = rows[:_WORST_IN_TABLE]
            title = f"worst {len(rows)} classes of {len(self.scores)}"
        cells = [
            [
                shortened(name, _NAME_WIDTH),
                *map(percent, (score.iou, score.accuracy, score.precision, score.share)),
                count(score.num_images),
            ]
            for name, score in rows
        ]
        return aligned([[title, "IoU", "accuracy", "precision", "of pixels", "images"], *cells])

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values; what is not defined is null."""
        confusion = self.outcomes.confusion if len(self.classes) <= CLASSES_IN_MATRIX else None
        per_class = [
            {"name": name, **_defined(asdict(score))}
            for name, score in zip(self.classes.names, self.scores, strict=True)
        ]
        images = [
            {"name": name, **_defined(asdict(image))} for name, image in zip(self.names, self.images, strict=True)
        ]
        return {
            "task": "segmentation",
            **asdict(self.metrics),
            "miou_interval": None if self.interval is None else list(self.interval),
            "miou_definitions": DEFINITIONS,
            "chance": self.chance,
            "model": self.model,
            "data": self.data,
            "inference": asdict(self.inference) | {"crop_px": self.crop_px},
            "per_class": per_class,
            "confusion": None if confusion is None else confusion.tolist(),
            "confused_classes": [asdict(pair) for pair in self.confused()],
            "images": images,
            "counts": packed_counts(self.outcomes),
        }


def build_mask_report(
    outcomes: MaskOutcomes,
    *,
    names: Sequence[str],
    classes: MaskClasses,
    inference: InferenceConfig,
    crop_px: int,
    model: str,
    data: str,
) -> MaskReport:
    """Compute all that is reported of an evaluation; there must be a labelled pixel."""
    metrics = segmentation_metrics(outcomes)
    require(metrics is not None, f"all pixels of the masks of {data} are ignored; there is nothing to measure on")
    assert metrics is not None
    chance, commonest = guessing(outcomes)
    return MaskReport(
        model=model,
        data=data,
        classes=classes,
        outcomes=outcomes,
        names=tuple(names),
        metrics=metrics,
        scores=class_pixels(outcomes),
        images=image_pixels(outcomes),
        interval=miou_interval(outcomes),
        chance=chance,
        commonest=classes.names[commonest],
        inference=inference,
        crop_px=crop_px,
    )


def inference_text(inference: InferenceConfig, crop_px: int) -> str:
    """Say how images are segmented, in words."""
    how = "each image at once"
    if inference.mode == "slide":
        stride = "" if inference.stride is None else f" every {inference.stride} px"
        how = f"windows of {crop_px} px{stride}"
    size = "" if inference.short_side is None else f", short side {inference.short_side} px"
    factors = [f"{scale:g}" for scale in inference.scales]
    scales = "" if inference.scales == (1.0,) else f", at scale{'s' * (len(factors) > 1)} {', '.join(factors)}"
    return f"{how}{size}{scales}{', mirrored as well' if inference.flip else ''}"


def packed_counts(outcomes: MaskOutcomes) -> dict[str, Any] | None:
    """Return the counts of single images, (3, n, C), as text, so that evaluations can be compared image by image.

    None where they would be too many.
    """
    counts = np.stack([outcomes.right, outcomes.true, outcomes.said]).astype("<i4")
    if counts.size > _MOST_COUNTS:
        return None
    text = base64.b64encode(zlib.compress(counts.tobytes(), 9)).decode("ascii")
    return {"holds": "right, true, said: (3, images, classes) int32, zlib, base64", "shape": counts.shape, "data": text}


def unpacked_counts(document: Mapping[str, Any]) -> MaskOutcomes | None:
    """Return what `packed_counts` wrote into the JSON of an evaluation, without the confusion; None if it has none."""
    packed = document.get("counts")
    if packed is None:
        return None
    try:
        data = zlib.decompressobj().decompress(base64.b64decode(packed["data"]), 4 * _MOST_COUNTS)
    except zlib.error as error:
        raise ValueError(f"counts: {error}") from None
    values = np.frombuffer(data, "<i4").reshape(packed["shape"])
    right, true, said = values
    num_classes = values.shape[2]
    return MaskOutcomes(
        positions=np.arange(values.shape[1], dtype=np.int64),
        right=right,
        true=true,
        said=said,
        confusion=np.zeros((num_classes, num_classes), np.int64),
    )


def _defined(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}
