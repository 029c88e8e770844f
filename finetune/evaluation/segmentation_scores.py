"""The numbers of a segmenter, from the counts of its pixels; pure functions of arrays.

Mean IoU is several numbers, so each has a name of its own here. The main one is the field's (that of mmsegmentation):
intersections and unions are summed over the whole set, and the mean goes over the classes with a union, those that
occur in the truth or in a prediction. A class that is only predicted counts as 0. Ignored pixels never count.

Legend: n = images, C = classes, R = resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from beit.common.pages.numbers import percent
from beit.finetune.evaluation.confusion import MaskOutcomes

DEFINITIONS = {
    "miou": "classes that occur, in the truth or in a prediction",
    "miou_true_classes": "classes that occur in the truth",
    "miou_all_classes": "all classes, absent ones as 0",
    "miou_per_image": "of each image by itself, then over images",
}
"""What each kind of mean IoU is the mean over; the first is the main one."""
_RESAMPLES, _AT_ONCE = 1000, 50
"""Sets drawn for an interval, and how many of them are added up at a time; arbitrary, enough for one digit."""
_NORMAL, _CERTAIN = NormalDist(), 0.975
"""What a 95 % interval is made with."""

Floats = NDArray[np.float64]
Limits = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentationMetrics:
    """How well a segmenter does on a set of images; shares lie in [0, 1]."""

    miou: float
    """Mean IoU over the classes that occur in the truth or in a prediction, over the whole set."""
    miou_true_classes: float
    """The same over the classes that occur in the truth."""
    miou_all_classes: float
    """The same over all classes; absent ones count as 0."""
    miou_per_image: float
    """Mean over the images of their own mean IoU, each over the classes that occur in it."""
    weighted_iou: float
    """IoU of the classes, weighted by their pixels."""
    mean_accuracy: float
    """Share of its pixels that is recognised, mean over the classes in the truth."""
    pixel_accuracy: float
    """Share of all pixels whose class is recognised."""
    num_images: int
    """Images measured, those without a labelled pixel included."""
    num_ignored_images: int
    """Of these, images without a labelled pixel, which change no number."""
    num_pixels: int
    """Labelled pixels."""

    def describe(self) -> str:
        """Return the numbers in one line."""
        return (
            f"mIoU {percent(self.miou)}, mean accuracy {percent(self.mean_accuracy)}, pixel accuracy "
            f"{percent(self.pixel_accuracy)}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassPixels:
    """How well one class is found; NaN stands for what is not defined."""

    iou: float
    """Intersection of truth and prediction over their union."""
    accuracy: float
    """Share of its pixels that is recognised, also called recall."""
    precision: float
    """Share of the pixels said to be of this class that are."""
    share: float
    """Of the labelled pixels."""
    num_images: int
    """Images that show it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagePixels:
    """How well one image is segmented; NaN where all of it is ignored."""

    miou: float
    """Mean IoU over the classes that occur in it or in its prediction."""
    accuracy: float
    """Share of its labelled pixels whose class is recognised."""
    share: float
    """Of its pixels among all labelled ones."""


def segmentation_metrics(outcomes: MaskOutcomes) -> SegmentationMetrics | None:
    """Return the main numbers; None where no pixel is labelled."""
    right, true, said = (column.sum(0, dtype=np.int64) for column in (outcomes.right, outcomes.true, outcomes.said))
    num_pixels = int(true.sum())
    if not num_pixels:
        return None
    iou = ratio(right, true + said - right)  # (C,)
    per_image = image_ious(outcomes)[outcomes.is_labelled]
    return SegmentationMetrics(
        miou=float(np.nanmean(iou)),
        miou_true_classes=float(iou[true > 0].mean()),
        miou_all_classes=float(np.nan_to_num(iou).mean()),
        miou_per_image=float(per_image.mean()),
        weighted_iou=float((np.nan_to_num(iou) * true).sum() / num_pixels),
        mean_accuracy=float(np.nanmean(ratio(right, true))),
        pixel_accuracy=float(right.sum() / num_pixels),
        num_images=len(outcomes),
        num_ignored_images=int(np.count_nonzero(~outcomes.is_labelled)),
        num_pixels=num_pixels,
    )


def class_pixels(outcomes: MaskOutcomes) -> list[ClassPixels]:
    """Return the numbers of every class."""
    right, true, said = (column.sum(0, dtype=np.int64) for column in (outcomes.right, outcomes.true, outcomes.said))
    columns = ratio(right, true + said - right), ratio(right, true), ratio(right, said), true / max(1, true.sum())
    images = np.count_nonzero(outcomes.true, axis=0)
    return [
        ClassPixels(
            iou=float(iou),
            accuracy=float(accuracy),
            precision=float(precision),
            share=float(share),
            num_images=int(number),
        )
        for iou, accuracy, precision, share, number in zip(*columns, images, strict=True)
    ]


def image_pixels(outcomes: MaskOutcomes) -> list[ImagePixels]:
    """Return the numbers of every image."""
    true = outcomes.true.sum(1, dtype=np.int64)
    accuracy, shares = ratio(outcomes.right.sum(1, dtype=np.int64), true), true / max(1, true.sum())
    return [
        ImagePixels(miou=float(miou), accuracy=float(found), share=float(share))
        for miou, found, share in zip(image_ious(outcomes), accuracy, shares, strict=True)
    ]


def image_ious(outcomes: MaskOutcomes) -> Floats:
    """Return each image's mean IoU over the classes that occur in it, (n,); NaN where all of it is ignored."""
    right = outcomes.right.astype(np.float64)
    unions = outcomes.true + outcomes.said - right  # (n, C)
    iou = ratio(right, unions)
    return ratio(np.nansum(iou, axis=1), np.count_nonzero(unions, axis=1))


def miou_interval(outcomes: MaskOutcomes) -> Limits | None:
    """Return the 95 % interval of mean IoU; None for fewer than two labelled images.

    It says what the number may be on other images of their kind, and is too narrow for images that are alike, such as
    the frames of a video; it says nothing about other seeds.

    Source: Efron 1987, the bias-corrected and accelerated bootstrap, over images; a plain one misses mean IoU, which is
    lower where rare classes are few, too often (on 100 images 88 % instead of 94 %, simulated). Each resample has a
    mean IoU of its own, over the classes that occur in it. Differs: nothing.
    """
    labelled = outcomes.is_labelled
    if np.count_nonzero(labelled) < 2:
        return None
    return _limits(_counts(outcomes, labelled), _means)


def miou_difference_interval(first: MaskOutcomes, second: MaskOutcomes) -> Limits | None:
    """Return the 95 % interval of how much better the second of two models is on the same images, in mean IoU.

    Both are drawn the same images, so that what makes an image hard for both does not count. See `miou_interval`.
    """
    assert np.array_equal(first.positions, second.positions)
    labelled = first.is_labelled
    if np.count_nonzero(labelled) < 2:
        return None
    counts = [*_counts(first, labelled), *_counts(second, labelled)]
    return _limits(counts, lambda right, union, *other: _means(*other) - _means(right, union))


def guessing(outcomes: MaskOutcomes) -> tuple[float, int]:
    """Return the mean IoU of always saying the class with most pixels, and that class."""
    true = outcomes.true.sum(0, dtype=np.int64)
    return float(true.max() / true.sum() / np.count_nonzero(true)), int(true.argmax())


def ratio(part: NDArray[np.number], whole: NDArray[np.number]) -> Floats:
    """Divide; NaN where there is nothing to divide by."""
    result = np.full(np.shape(part), np.nan)
    np.divide(part, whole, out=result, where=np.asarray(whole) > 0)
    return result


def _counts(outcomes: MaskOutcomes, chosen: NDArray[np.bool_]) -> list[Floats]:
    """Return intersections and unions of the chosen images, (m, C) each."""
    right = outcomes.right[chosen].astype(np.float64)
    return [right, outcomes.true[chosen] + outcomes.said[chosen] - right]


def _means(right: Floats, union: Floats) -> Floats:
    """Return the mean IoU of every set of images, (R,), from the sums over its images, (R, C)."""
    return ratio(np.nansum(ratio(right, union), axis=1), np.count_nonzero(union, axis=1))


def _limits(counts: list[Floats], number: Callable[..., Floats]) -> Limits:
    """Return the 95 % interval of a number of sets of images.

    Args:
        counts: Arrays of the images, (m, C) each.
        number: From the sums of each array over sets of images, (R, C), to the number of each set, (R,).
    """
    sums = [values.sum(0, keepdims=True) for values in counts]
    found, drawn = float(number(*sums)[0]), number(*_resampled(counts))
    without = number(*(total - values for total, values in zip(sums, counts, strict=True)))  # each image in turn
    # How far resamples lie to one side of the number, and how its spread changes with it.
    below = float((drawn < found).mean() + (drawn == found).mean() / 2)
    bias = _NORMAL.inv_cdf(min(max(below, 1 / (_RESAMPLES + 1)), _RESAMPLES / (_RESAMPLES + 1)))
    influence = np.nanmean(without) - without[~np.isnan(without)]
    spread = float((influence**2).sum())
    acceleration = float((influence**3).sum()) / (6 * spread**1.5) if spread else 0.0
    shares = [bias + quantile for quantile in (-_NORMAL.inv_cdf(_CERTAIN), _NORMAL.inv_cdf(_CERTAIN))]
    ends = [100 * _NORMAL.cdf(bias + share / max(1 - acceleration * share, 0.1)) for share in shares]
    low, high = np.percentile(drawn, ends)
    return float(low), float(high)


def _resampled(arrays: list[Floats]) -> list[Floats]:
    """Draw as many images as there are, again and again, and return the sums of each array (m, C) over them, (R, C)."""
    count = len(arrays[0])
    rng = np.random.default_rng(0)  # the interval of a record is always the same
    sums: list[list[Floats]] = [[] for _ in arrays]
    for _ in range(0, _RESAMPLES, _AT_ONCE):
        times = rng.multinomial(count, np.full(count, 1 / count), size=_AT_ONCE).astype(np.float64)
        for found, values in zip(sums, arrays, strict=True):
            found.append(times @ values)
    return [np.concatenate(found) for found in sums]
