"""The mistakes a classifier is most certain of, and the pictures they were made on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import BadSample
from beit.common.images.channels import in_colour
from beit.common.reading.labelled_dataset import LabelledDataset
from beit.common.sources.index import LabelledIndex
from beit.common.vit.transform import resize_and_center_crop
from beit.finetune.data import image_name
from beit.finetune.evaluation.outcomes import Outcomes

MAX_MISTAKES = 24
"""Three rows of eight; arbitrary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """An image the classifier is wrong about."""

    name: str
    """Path, or shard and key."""
    position: int
    """Place in the index."""
    claim: str
    """What the classifier says; "not X" for a class it misses among several."""
    confidence: float
    """Its probability of that."""
    truth: str
    """The right class, or classes."""


def confident_mistakes(outcomes: Outcomes, index: LabelledIndex, class_names: Sequence[str]) -> list[Mistake]:
    """Return the mistakes of highest confidence, the highest first; ties in the order of the images."""
    confidence, claims = _claims(outcomes, class_names)
    order = np.argsort(-confidence, kind="stable")[:MAX_MISTAKES]
    return [
        Mistake(
            name=image_name(index, int(outcomes.positions[row])),
            position=int(outcomes.positions[row]),
            claim=claims[row],
            confidence=float(confidence[row]),
            truth=_truth(outcomes, row, class_names),
        )
        for row in map(int, order)
        if confidence[row] >= 0
    ]


def mistake_pictures(
    mistakes: Sequence[Mistake], index: LabelledIndex, *, img_size: int, crop_pct: float
) -> list[NDArray[np.uint8]]:
    """Return what the classifier saw of each mistake, (img_size, img_size, 3) uint8; grey if it cannot be read now."""
    dataset = LabelledDataset(index)
    pictures = []
    for mistake in mistakes:
        try:
            image = dataset.fetch(*index.locate(mistake.position), 0).decode_image()
            pictures.append(in_colour(resize_and_center_crop(image, img_size, crop_pct=crop_pct)))
        except BadSample:
            pictures.append(np.full((img_size, img_size, 3), 128, np.uint8))
    dataset.close()
    return pictures


def _claims(outcomes: Outcomes, class_names: Sequence[str]) -> tuple[NDArray[np.float64], list[str]]:
    """Return the confidence (n,) in each image's wrong claim, -1 where there is none, and the claims."""
    if not outcomes.is_multi_label:
        best = outcomes.top_classes[:, 0]
        confidence = np.where(best == outcomes.labels, -1.0, outcomes.top_probabilities[:, 0].astype(np.float64))
        return confidence, [class_names[class_id] for class_id in best]
    said = outcomes.probabilities >= 0.5
    wrong = np.where(said, outcomes.probabilities, 1.0 - outcomes.probabilities).astype(np.float64)
    wrong[said == outcomes.targets] = -1.0
    worst = wrong.argmax(1)
    rows = np.arange(len(outcomes))
    claims = [("" if said[row, c] else "not ") + class_names[c] for row, c in zip(rows, worst, strict=True)]
    return wrong[rows, worst], claims


def _truth(outcomes: Outcomes, row: int, class_names: Sequence[str]) -> str:
    if not outcomes.is_multi_label:
        return class_names[int(outcomes.labels[row])]
    return ", ".join(class_names[int(c)] for c in np.flatnonzero(outcomes.targets[row])) or "none"
