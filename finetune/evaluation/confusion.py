"""What a segmenter said about every labelled pixel: counts per image and in all, from all ranks.

Everything an evaluation reports is computed from this record (`segmentation_scores.py`). It is made of whole numbers,
so none depends on how the images were spread over ranks.

Legend: n = images, C = classes, H, W = size of an image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from beit.common.processes.distributed import World
from beit.finetune.masks.classes import IGNORED

_PIXELS_AT_ONCE = 2**20
"""Of an image, whose pairs of classes take 8 bytes each while they are counted; arbitrary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskOutcomes:
    """One row per image, and the sum of all; ignored pixels are in none of it."""

    positions: NDArray[np.int64]
    """(n,) place in the index, ascending."""
    right: NDArray[np.int32]
    """(n, C) pixels of each class that are recognised."""
    true: NDArray[np.int32]
    """(n, C) pixels of each class."""
    said: NDArray[np.int32]
    """(n, C) pixels that are said to be of each class."""
    confusion: NDArray[np.int64]
    """(C, C) pixels of all images by true class (row) and class that the model says (column)."""

    @property
    def is_labelled(self) -> NDArray[np.bool_]:
        """Whether an image has a pixel that counts, (n,)."""
        return np.asarray(self.true.any(1))

    def __len__(self) -> int:
        return len(self.positions)


class MaskLog:
    """Takes what was said about one image after the other.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        self._confusion = np.zeros((num_classes, num_classes), np.int64)
        self._positions: list[int] = []
        self._rows: list[NDArray[np.int32]] = []

    def add(self, position: int, truth: NDArray[np.uint8], said: NDArray[np.uint8]) -> None:
        """Take truth, whose ids may be `IGNORED`, and prediction of the image at `position`, (H, W) both."""
        counts = confusion_counts(truth, said, len(self._confusion))
        self._confusion += counts
        self._positions.append(position)
        self._rows.append(np.stack([np.diag(counts), counts.sum(1), counts.sum(0)]).astype(np.int32))

    def collect(self, world: World) -> MaskOutcomes | None:
        """Return the record of all ranks, on every rank, or None when no rank had an image."""
        own = self._positions, np.array(self._rows, np.int32), self._confusion
        parts: list[Any] = [part for part in world.gather(own) if part[0]]
        if not parts:
            return None
        positions = np.concatenate([np.asarray(part[0], np.int64) for part in parts])
        order = np.argsort(positions, kind="stable")
        rows = np.concatenate([part[1] for part in parts])[order]  # (n, 3, C)
        return MaskOutcomes(
            positions=positions[order],
            right=rows[:, 0],
            true=rows[:, 1],
            said=rows[:, 2],
            confusion=np.sum([part[2] for part in parts], axis=0),
        )


def confusion_counts(truth: NDArray[np.uint8], said: NDArray[np.uint8], num_classes: int) -> NDArray[np.int64]:
    """Count the labelled pixels of an image by true class (row) and class that is said (column), int64 (C, C)."""
    assert truth.shape == said.shape, "a prediction is as large as its image"
    counts = np.zeros(num_classes**2, np.int64)
    flat_truth, flat_said = truth.reshape(-1), said.reshape(-1)
    for begin in range(0, truth.size, _PIXELS_AT_ONCE):
        some, guessed = flat_truth[begin : begin + _PIXELS_AT_ONCE], flat_said[begin : begin + _PIXELS_AT_ONCE]
        counted = some != IGNORED
        pairs = some[counted].astype(np.int64) * num_classes + guessed[counted]
        # A class beyond the last one would count as another pair, or make the table longer.
        assert not len(pairs) or max(some[counted].max(), guessed[counted].max()) < num_classes
        counts += np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)
