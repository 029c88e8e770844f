"""What the words of an image say about its class, where the images have labels.

An image becomes a bag of words: how often each occurs, in square roots, as is usual for visual words. A linear
classifier (ridge regression) is fitted on all images but one and asked for that one, in turns, which has a closed form.
Beside it stand the commonest class, and the same classifier on words that are nothing but mean colours, as many as the
tokenizer has: what needs no learning.

n images, g tokens per side, V words, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

MAX_IMAGES = 2000
"""Images scored, the first ones: a standard error near one point, and a second of processor time."""
MIN_IMAGES = 40
"""Fewer say nothing: the standard error is eight points."""
MIN_PER_CLASS = 5
"""Images of classes with fewer are left out: one is asked for, and the rest must show what the class is like."""
PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Of the ridge, in units of the mean variance of a bag; the one that leaves the smallest squared error is taken. The
range holds the best of `mini` on 256 to 2000 images of CIFAR-10."""
_TINY = 1e-12
"""Where every image has the same words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScore:
    """How often the words of an image tell its class."""

    num_images: int
    """Images scored: labelled, and of a class with `MIN_PER_CLASS` or more."""
    num_classes: int
    """Classes of these."""
    commonest_share: float
    """Share of the commonest class: what guessing it scores."""
    accuracy: float
    """Share of images whose class the words tell, by a linear classifier fitted on all others."""
    standard_error: float
    """Of `accuracy`."""
    colours_accuracy: float
    """The same from mean colours."""
    difference_error: float
    """Standard error of `accuracy` - `colours_accuracy`, which are of the same images."""


class ClassTally:
    """Keeps the words and mean colours of labelled images, at most `MAX_IMAGES`."""

    def __init__(self, vocab_size: int, downsampling: int) -> None:
        self._downsampling = downsampling
        self._vocab_size, self._levels = vocab_size, colour_levels(vocab_size)
        self._labels: list[int] = []
        self._words: list[NDArray[np.int64]] = []
        self._colours: list[NDArray[np.int64]] = []

    def add(self, views: NDArray[np.uint8], token_ids: NDArray[np.integer], labels: NDArray[np.int64]) -> None:
        """Take uint8 views (B, S, S, 3), their words (B, g, g) and classes (B,), below 0 where there is none."""
        for view, grid, label in zip(views, token_ids, labels.tolist(), strict=True):
            if label < 0 or len(self._labels) == MAX_IMAGES:
                continue
            self._labels.append(label)
            self._words.append(grid.astype(np.int64).ravel())
            self._colours.append(colour_words(view, self._downsampling, self._levels))

    @property
    def num_labelled(self) -> int:
        """Labelled images so far."""
        return len(self._labels)

    def result(self) -> ClassScore | None:
        """Return the score; None where there are too few images to have one."""
        labels = np.asarray(self._labels, dtype=np.int64)
        counts = np.bincount(labels) if len(labels) else np.zeros(0, dtype=np.int64)
        chosen = np.flatnonzero(counts[labels] >= MIN_PER_CLASS)
        classes, targets = np.unique(labels[chosen], return_inverse=True)
        if len(chosen) < MIN_IMAGES or len(classes) < 2:
            return None
        told = told_by_others(bags(self._words, chosen, self._vocab_size), targets)
        by_colour = told_by_others(bags(self._colours, chosen, self._levels**3), targets)
        accuracy, number = float(told.mean()), len(chosen)
        return ClassScore(
            num_images=number,
            num_classes=len(classes),
            commonest_share=float(np.bincount(targets).max() / number),
            accuracy=accuracy,
            standard_error=math.sqrt(accuracy * (1.0 - accuracy) / number),
            colours_accuracy=float(by_colour.mean()),
            difference_error=float(np.std(told.astype(float) - by_colour) / math.sqrt(number)),
        )


def colour_levels(vocab_size: int) -> int:
    """Return into how many levels each of three channels is cut for about `vocab_size` colours."""
    return max(2, round(float(np.cbrt(vocab_size))))


def colour_words(view: NDArray[np.uint8], downsampling: int, levels: int) -> NDArray[np.int64]:
    """Number the mean colour of each token's square of a view (S, S, 3), one of levels ** 3, (g * g,)."""
    pixels = torch.from_numpy(view).permute(2, 0, 1)[None].float()
    means = F.avg_pool2d(pixels, downsampling)[0].flatten(1).numpy()  # (3, g * g)
    red, green, blue = np.minimum((means * (levels / 256.0)).astype(np.int64), levels - 1)
    return np.asarray((red * levels + green) * levels + blue)


def bags(words: list[NDArray[np.int64]], chosen: NDArray[np.integer], vocab_size: int) -> NDArray[np.float32]:
    """Count the words of some images, (n, V): square roots of their shares, so every row has length 1.

    Source: F. Perronnin et al., "Large-scale image categorization with explicit data embedding", 2010: the square root
        makes an inner product of two bags their Bhattacharyya coefficient.
    """
    counts = np.stack([np.bincount(words[place], minlength=vocab_size) for place in chosen])
    shares: NDArray[np.float64] = counts / counts.sum(axis=1, keepdims=True)
    return np.sqrt(shares).astype(np.float32)


def told_by_others(rows: NDArray[np.float32], labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Tell for each row whether a classifier fitted on all others gives its class.

    Ridge regression of the classes' indicators with an intercept. Leaving row i out changes its own residual to
    r_i / (1 - h_ii), h the matrix that maps targets to fits, so one fit does for all. The penalty is chosen among
    `PENALTIES` by the squares of these residuals, not by what is told.

    Args:
        rows: (n, V).
        labels: (n,) in [0, C).
    Returns:
        (n,).
    Source: D. M. Allen, "The Relationship between Variable Selection and Data Augmentation and a Method for
        Prediction", 1974 (PRESS).
    """
    classes = torch.from_numpy(labels.astype(np.int64))
    targets = F.one_hot(classes).double()
    centred = torch.from_numpy(rows - rows.mean(axis=0)).double()
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    scale = float(values.clamp_min(0.0).mean())
    least, predicted = math.inf, targets
    for penalty in PENALTIES:
        shrunk = values.clamp_min(0.0) / (values.clamp_min(0.0) + penalty * max(scale, _TINY))
        own = (vectors.square() @ shrunk + 1.0 / len(rows))[:, None]  # h_ii, with the intercept's share
        fits = vectors @ (shrunk[:, None] * (vectors.T @ targets)) + targets.mean(dim=0)
        residuals = (targets - fits) / (1.0 - own)
        error = float(residuals.square().sum())
        if error < least:
            least, predicted = error, targets - residuals
    return np.asarray((predicted.argmax(dim=1) == classes).numpy())
