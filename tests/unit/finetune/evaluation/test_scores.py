"""Every number of an evaluation, against its definition."""

import math

import numpy as np
import pytest
import torch

from beit.finetune.evaluation.outcomes import OutcomeLog
from beit.finetune.evaluation.scores import (
    average_precision,
    calibration_error,
    class_scores,
    compute_metrics,
    confusion_matrix,
    macro_f1,
)


class Alone:
    def gather(self, value):
        return [value]


class Ranks:
    """Hands out what the ranks gave, to the one that collects last."""

    def __init__(self, *logs):
        self.parts = []
        for log in logs:
            log.collect(self)

    def gather(self, value):
        self.parts.append(value)
        return self.parts


def record(logits, labels, table=None):
    log = OutcomeLog(None if table is None else np.asarray(table, bool))
    log.add(list(range(len(labels))), torch.tensor(logits), torch.tensor(labels))
    return log.collect(Alone())


LOGITS = [[3.0, 0, 0], [0, 3.0, 0], [0, 3.0, 0], [0, 0, 1.0]]
SINGLE = record(LOGITS, [0, 1, 0, 2])


def test_single_label_numbers_by_hand():
    metrics = compute_metrics(SINGLE)
    assert (metrics.top1, metrics.top5, metrics.num_images) == (0.75, 1.0, 4)
    expected = torch.nn.functional.cross_entropy(torch.tensor(LOGITS), torch.tensor([0, 1, 0, 2]))
    assert metrics.loss == pytest.approx(float(expected), rel=1e-6)
    assert confusion_matrix(SINGLE, 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    first, second, third = class_scores(SINGLE, 3)
    assert (first.num_images, first.accuracy, first.precision) == (2, 0.5, 1.0)
    assert (second.accuracy, second.precision) == (1.0, 0.5)
    assert first.f1 == second.f1 == pytest.approx(2 / 3)
    assert third.f1 == 1.0
    assert macro_f1([first, second, third]) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_calibration_error_is_the_mean_gap_of_the_bins():
    sure, unsure = math.exp(3) / (math.exp(3) + 2), math.e / (math.e + 2)  # 0.909 and 0.576, in two of the 15 bins
    expected = (3 * abs(sure - 2 / 3) + abs(unsure - 1)) / 4
    assert calibration_error(SINGLE) == pytest.approx(expected, rel=1e-6)


def test_class_that_does_not_occur_is_not_defined_and_not_in_the_mean():
    scores = class_scores(record([[1.0, 0, 0], [0, 1.0, 0]], [0, 1]), 3)
    assert math.isnan(scores[2].accuracy)
    assert math.isnan(scores[2].f1)
    assert macro_f1(scores) == 1.0


@pytest.mark.parametrize(
    ("scores", "targets", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0], (1 + 2 / 3) / 2),
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.8333333),  # the example in scikit-learn's documentation
        ([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0], 0.25),
    ],
)
def test_average_precision(scores, targets, expected):
    assert average_precision(np.array(scores), np.array(targets, bool)) == pytest.approx(expected)


def test_average_precision_without_a_positive_is_not_defined():
    assert math.isnan(average_precision(np.array([0.5]), np.array([False])))


def test_several_labels_by_hand():
    table = [[1, 1, 0], [0, 0, 1], [0, 0, 0]]
    outcomes = record([[2.0, 2.0, -2.0], [2.0, -2.0, -2.0]], [0, -1], table)
    metrics = compute_metrics(outcomes)
    assert outcomes.targets.tolist() == [[True, True, False], [False] * 3]
    assert metrics.map == pytest.approx((0.5 + 1) / 2)  # the first class ties, the third has no image
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 1) / 2)
    p = 1 / (1 + math.exp(-2))
    assert metrics.loss == pytest.approx(-(5 * math.log(p) + math.log(1 - p)) / 6, rel=1e-5)
    assert calibration_error(outcomes) == pytest.approx((3 * abs(p - 2 / 3) + 3 * (1 - p)) / 6, rel=1e-5)


def test_ranks_give_the_record_of_one_process():
    logits, labels = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32), [0, 1, 2, 3, 4, 5, 0]
    whole = record(logits.tolist(), labels)
    logs = []
    for rows in ([4, 5, 6], [], [0, 1, 2, 3]):
        log = OutcomeLog()
        if rows:
            log.add(rows, torch.from_numpy(logits[rows]), torch.tensor([labels[row] for row in rows]))
        logs.append(log)
    shared = logs[-1].collect(Ranks(*logs[:-1]))
    for name in ("positions", "losses", "top_classes", "top_probabilities", "labels"):
        assert np.array_equal(getattr(whole, name), getattr(shared, name)), name
    assert OutcomeLog().collect(Alone()) is None
