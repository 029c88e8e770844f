"""Choosing labelled samples by class, the same ones every time: a few in proportion, or all in equal numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from beit.common.rng import CounterRng

Int64Array = NDArray[np.int64]


def apportion(class_counts: Int64Array, total: int) -> Int64Array:
    """Divide `total` samples among classes in proportion to their counts.

    Largest remainders; every class that has samples gets one as long as `total` covers all such classes.

    Args:
        class_counts: Samples there are, int64 (C,).
        total: Samples wanted, at most the sum of `class_counts`.
    Returns:
        Samples per class, int64 (C,), summing to `total`.
    """
    exact = class_counts * (total / class_counts.sum())
    present = class_counts > 0
    least: Int64Array = present.astype(np.int64) * int(total >= np.count_nonzero(present))
    counts: Int64Array = np.maximum(np.floor(exact).astype(np.int64), least)
    while (missing := total - int(counts.sum())) != 0:
        open_classes = counts < class_counts if missing > 0 else counts > least
        gap = np.where(open_classes, (exact - counts) * np.sign(missing), -np.inf)
        counts[int(np.argmax(gap))] += np.sign(missing)
    return counts


def draw_subset(labels: Int64Array, total: int, seed: int) -> Int64Array:
    """Choose `total` samples, balanced by label; samples without a label count as one more class.

    A larger subset of the same seed contains a smaller one, up to the rounding of `apportion`.

    Args:
        labels: Class id of every sample, int64 (N,).
        total: Samples wanted, in [0, N].
        seed: Another seed chooses other samples.
    Returns:
        Indices of the chosen samples, ascending, int64 (total,).
    """
    classes, members = np.unique(labels, return_inverse=True)
    counts = apportion(np.bincount(members, minlength=len(classes)).astype(np.int64), total)
    by_class = np.split(np.argsort(members, kind="stable"), np.cumsum(np.bincount(members))[:-1])
    chosen = [
        samples[CounterRng(seed, "label subset", int(label)).permutation(len(samples))[:count]]
        for label, samples, count in zip(classes, by_class, counts, strict=True)
    ]
    return np.asarray(np.sort(np.concatenate(chosen)), dtype=np.int64)


def repetitions(labels: Int64Array, seed: int) -> Int64Array:
    """Return how often to list each sample so that all classes are as frequent as the largest one.

    Args:
        labels: Class id of every sample, int64 (N,).
        seed: Chooses the samples that are listed once more, where a class does not fit a whole number of times.
    Returns:
        int64 (N,), at least 1 each.
    """
    classes, members = np.unique(labels, return_inverse=True)
    counts = np.bincount(members)
    times: Int64Array = (counts.max() // counts)[members].astype(np.int64)
    by_class = np.split(np.argsort(members, kind="stable"), np.cumsum(counts)[:-1])
    for label, samples, count in zip(classes, by_class, counts, strict=True):
        rest = int(counts.max() % count)
        times[samples[CounterRng(seed, "balance", int(label)).permutation(len(samples))[:rest]]] += 1
    return times
