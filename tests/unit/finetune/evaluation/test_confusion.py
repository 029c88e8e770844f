"""Pixels are counted exactly: against a count pixel by pixel, on sets made to trip it, for any number of ranks."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import scipy.stats

from beit.finetune.evaluation import confusion
from beit.finetune.evaluation.confusion import MaskLog, MaskOutcomes, confusion_counts
from beit.finetune.evaluation.segmentation_scores import (
    DEFINITIONS,
    class_pixels,
    guessing,
    image_pixels,
    miou_difference_interval,
    miou_interval,
    segmentation_metrics,
)
from beit.finetune.masks.classes import IGNORED


@dataclass
class Ranks:
    """One rank of several, whose values come after the others'."""

    others: list = field(default_factory=list)

    def gather(self, value):
        self.others = [*self.others, value]
        return self.others


def outcomes_of(pairs, num_classes):
    log = MaskLog(num_classes)
    for position, (truth, said) in enumerate(pairs):
        log.add(position, truth, said)
    return log.collect(Ranks())


def by_hand(pairs, num_classes):
    """Go through all pixels one by one, with sets and dictionaries and without any array arithmetic."""
    right, true, said = ([0] * num_classes for _ in range(3))
    images = []
    for truth, prediction in pairs:
        own = [[0] * num_classes for _ in range(3)]
        for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
            if t == IGNORED:
                continue
            own[0][t] += t == p
            own[1][t] += 1
            own[2][p] += 1
        if sum(own[1]):
            ious = [r / (t + s - r) for r, t, s in zip(*own, strict=True) if t + s - r]
            images.append(sum(ious) / len(ious))
        for total, part in zip((right, true, said), own, strict=True):
            for number, value in enumerate(part):
                total[number] += value
    ious = {c: right[c] / (true[c] + said[c] - right[c]) for c in range(num_classes) if true[c] + said[c]}
    there = [c for c in range(num_classes) if true[c]]
    pixels = sum(true)
    return {
        "miou": sum(ious.values()) / len(ious),
        "miou_true_classes": sum(ious[c] for c in there) / len(there),
        "miou_all_classes": sum(ious.values()) / num_classes,
        "miou_per_image": sum(images) / len(images),
        "weighted_iou": sum(true[c] * ious[c] for c in there) / pixels,
        "mean_accuracy": sum(right[c] / true[c] for c in there) / len(there),
        "pixel_accuracy": sum(right) / pixels,
        "num_images": len(pairs),
        "num_ignored_images": len(pairs) - len(images),
        "num_pixels": pixels,
    }, ious


def mask(rows):
    return np.array(rows, np.uint8)


def drawn(seed, num_images, num_classes, *, used=None, ignored=0.2, sides=(1, 40)):
    """Random masks and predictions that agree more often than not."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(num_images):
        size = rng.integers(*sides, size=2)
        truth = rng.integers(0, used or num_classes, size=size).astype(np.uint8)
        said = np.where(rng.random(size) < 0.6, truth, rng.integers(0, num_classes, size=size)).astype(np.uint8)
        truth[rng.random(size) < ignored] = IGNORED
        pairs.append((truth, said))
    return pairs


X = IGNORED
CASES = {
    "absent classes": (7, [(mask([[0, 0], [3, 3]]), mask([[0, 3], [3, 0]]))]),
    "a class only in a prediction": (4, [(mask([[0, 0, 1]]), mask([[0, 2, 1]])), (mask([[1, 1]]), mask([[1, 1]]))]),
    "an image wholly ignored": (3, [(mask([[X, X]]), mask([[1, 2]])), (mask([[0, 1]]), mask([[0, 0]]))]),
    "one-pixel images": (3, [(mask([[c]]), mask([[p]])) for c, p in ((0, 0), (1, 0), (2, 2), (X, 1))]),
    "ignored in the middle": (3, [(mask([[0, 0, 0], [1, X, 1], [2, 2, 2]]), mask([[0, 1, 0], [1, 2, 1], [2, 0, 2]]))]),
    "nothing right": (3, [(mask([[0, 1]]), mask([[1, 0]]))]),
    "everything right": (3, [(mask([[0, 1, X]]), mask([[0, 1, 2]]))]),
    "a class that is only said where it does not count": (3, [(mask([[0, 1, X]]), mask([[0, 1, 2]]))]),
    "all 255 classes": (255, drawn(1, 4, 255)),
    "images of many sizes": (11, drawn(2, 12, 11)),
    "few classes of many": (150, drawn(3, 6, 150, used=5)),
    "nearly all ignored": (5, drawn(4, 6, 5, ignored=0.99)),
}


@pytest.mark.parametrize("name", CASES)
def test_numbers_equal_a_count_pixel_by_pixel(name):
    num_classes, pairs = CASES[name]
    outcomes = outcomes_of(pairs, num_classes)
    metrics = segmentation_metrics(outcomes)
    expected, ious = by_hand(pairs, num_classes)
    for key, value in expected.items():
        assert getattr(metrics, key) == pytest.approx(value, rel=1e-12), key
    found = class_pixels(outcomes)
    assert {c: score.iou for c, score in enumerate(found) if not math.isnan(score.iou)} == pytest.approx(ious)
    assert sum(score.share for score in found) == pytest.approx(1.0)
    assert outcomes.confusion.sum() == metrics.num_pixels
    assert np.array_equal(np.diag(outcomes.confusion), outcomes.right.sum(0))
    assert [math.isnan(image.miou) for image in image_pixels(outcomes)] == (~outcomes.is_labelled).tolist()


def test_each_definition_of_mean_iou_is_another_number():
    """Two classes of four in the truth, one more only said: 1/2, 2/3 and 0 over the set."""
    pairs = [(mask([[0, 0, 1, 1]]), mask([[0, 2, 1, 1]])), (mask([[1, 1]]), mask([[1, 0]]))]
    metrics = segmentation_metrics(outcomes_of(pairs, 4))
    iou = {0: 1 / 3, 1: 3 / 4, 2: 0.0}
    assert metrics.miou == pytest.approx(sum(iou.values()) / 3)
    assert metrics.miou_true_classes == pytest.approx((iou[0] + iou[1]) / 2)
    assert metrics.miou_all_classes == pytest.approx(sum(iou.values()) / 4)
    assert metrics.miou_per_image == pytest.approx(((1 / 2 + 1 + 0) / 3 + (1 / 2 + 0) / 2) / 2)
    assert set(DEFINITIONS) == {name for name in dir(metrics) if name.startswith("miou")}


def test_nothing_labelled_has_no_numbers():
    outcomes = outcomes_of([(mask([[X]]), mask([[1]]))], 3)
    assert segmentation_metrics(outcomes) is None and miou_interval(outcomes) is None
    assert math.isnan(class_pixels(outcomes)[0].iou)
    assert MaskLog(3).collect(Ranks()) is None


@pytest.mark.parametrize("sizes", [(7,), (4, 3), (0, 7), (3, 0, 4), (1,) * 7])
def test_ranks_count_every_image_once(sizes):
    pairs = drawn(5, 7, 6)
    whole = outcomes_of(pairs, 6)
    logs, position = [], 0
    for size in sizes:
        log = MaskLog(6)
        for _ in range(size):
            log.add(position, *pairs[position])
            position += 1
        logs.append(log)
    ranks = Ranks()
    for log in reversed(logs):  # in any order: positions say which image is which
        joined = log.collect(ranks)
    for name in ("positions", "right", "true", "said", "confusion"):
        assert np.array_equal(getattr(joined, name), getattr(whole, name)), name
    assert segmentation_metrics(joined) == segmentation_metrics(whole)


def test_a_large_image_is_counted_in_parts(monkeypatch):
    (truth, said), *_ = drawn(6, 1, 9, sides=(60, 61))
    whole = confusion_counts(truth, said, 9)
    for size in (1, 7, 3599, 3600, 3601):
        monkeypatch.setattr(confusion, "_PIXELS_AT_ONCE", size)
        assert np.array_equal(confusion_counts(truth, said, 9), whole)


def test_the_interval_holds_the_number_and_shrinks_with_the_images():
    few, many = outcomes_of(drawn(7, 8, 5), 5), outcomes_of(drawn(7, 200, 5), 5)
    widths = []
    for outcomes in (few, many):
        low, high = miou_interval(outcomes)
        assert low < segmentation_metrics(outcomes).miou < high
        assert miou_interval(outcomes) == (low, high), "the same for the same record"
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
    assert miou_interval(outcomes_of(drawn(7, 1, 5), 5)) is None


def taken(outcomes, rows):
    """The record of some of the images, which may repeat."""
    columns = {name: getattr(outcomes, name)[rows] for name in ("right", "true", "said")}
    return replace(outcomes, positions=np.arange(len(rows)), **columns)


def test_the_interval_is_that_of_scipy():
    """Up to the sets that are drawn."""
    outcomes = outcomes_of(drawn(12, 25, 6, sides=(4, 12)), 6)

    def miou(rows):
        return segmentation_metrics(taken(outcomes, rows)).miou

    found = scipy.stats.bootstrap((np.arange(25),), miou, n_resamples=1000, method="BCa", random_state=1)
    low, high = found.confidence_interval
    assert miou_interval(outcomes) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_the_interval_covers_what_it_is_to_cover():
    """Of many sets of 30 images from one population, with classes that some of them lack."""
    rng = np.random.default_rng(3)
    true = np.stack([rng.multinomial(2000, rng.dirichlet((2, 1, 1, 0.2, 0.05))) for _ in range(2000)])
    right = rng.binomial(true, rng.uniform(0.3, 0.9, (2000, 1)))
    said = right + np.stack([rng.multinomial(rest, (0.4, 0.2, 0.2, 0.1, 0.1)) for rest in (true - right).sum(1)])
    whole = MaskOutcomes(
        positions=np.arange(2000), right=right, true=true, said=said, confusion=np.zeros((5, 5), np.int64)
    )
    miou = segmentation_metrics(whole).miou
    limits = [miou_interval(taken(whole, rng.integers(0, 2000, 30))) for _ in range(60)]
    assert 0.85 < np.mean([low <= miou <= high for low, high in limits]) <= 1


def test_nothing_to_doubt_has_an_interval_of_no_width():
    same = [(mask([[0, 1]]), mask([[0, 1]]))] * 5
    assert miou_interval(outcomes_of(same, 2)) == (1.0, 1.0)


def test_images_without_labels_do_not_change_the_interval():
    pairs = drawn(8, 10, 4)
    padded = [(np.full((3, 3), X, np.uint8), np.zeros((3, 3), np.uint8)), *pairs]
    assert miou_interval(outcomes_of(padded, 4)) == miou_interval(outcomes_of(pairs, 4))


def test_two_models_on_the_same_images_are_told_apart_better_than_by_their_intervals():
    rng = np.random.default_rng(9)
    first, second = [], []
    for number in range(30):  # hard images and easy ones; the second model is a little better on all
        truth = rng.integers(0, 3, (30, 30)).astype(np.uint8)
        noise, other = rng.random((30, 30)), rng.integers(0, 3, (30, 30)).astype(np.uint8)
        hard = 0.1 + 0.8 * number / 30
        first.append((truth, np.where(noise < hard, other, truth)))
        second.append((truth, np.where(noise < hard - 0.05, other, truth)))
    one, two = outcomes_of(first, 3), outcomes_of(second, 3)
    low, high = miou_difference_interval(one, two)
    assert 0 < low < segmentation_metrics(two).miou - segmentation_metrics(one).miou < high
    assert miou_interval(one)[1] > miou_interval(two)[0], "alone, they overlap"


def test_always_saying_the_commonest_class():
    pairs = [(mask([[0, 1, 1, 1, 2, X]]), mask([[1] * 6]))]
    outcomes = outcomes_of(pairs, 5)
    assert guessing(outcomes) == (segmentation_metrics(outcomes).miou, 1) == (pytest.approx(3 / 5 / 3), 1)
