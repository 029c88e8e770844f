"""Which labelled images a run trains and evaluates on, checked before anything is built.

What happens to their pixels is `augment.py`. Listing them is `beit.common.labelled_index_build`, their order
`beit.common.sampler`, reading them `beit.common.reader`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from beit.common.errors import InputError, require
from beit.common.labelled_index import LabelledIndex
from beit.common.labelled_index_build import build_index
from beit.finetune.config import DataConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledData:
    """The images of one run."""

    train: LabelledIndex
    """To learn from, the chosen subset."""
    val: LabelledIndex | None
    """To evaluate on, with the class ids of `train`."""
    class_names: tuple[str, ...]
    """Name of each class id; the number itself where the data name none."""


def open_training_data(data: str, settings: DataConfig) -> LabelledData:
    """Open DATA and, if given, the validation images.

    Args:
        data: Labelled images: folder with a sub-folder per class, tars, Parquet, CSV.
        settings: Subset and validation images.
    Raises:
        InputError: images or labels are missing, there is one class only, or validation has classes of its own.
    """
    train = build_index(data)
    train.require_labels()
    class_names = _class_names(train)
    _require_two_classes(train, class_names)
    if settings.num_labels is not None or settings.label_fraction is not None:
        train = _subset(train, settings)
    val = None if settings.val is None else open_evaluation_data(settings.val, class_names)
    return LabelledData(train=train, val=val, class_names=class_names)


def open_evaluation_data(data: str, class_names: Sequence[str]) -> LabelledIndex:
    """Open labelled images whose classes are those of `class_names`, matched by name.

    Classes without an image are no error: a small validation set may lack some.

    Raises:
        InputError: images or labels are missing, or there is a class that `class_names` lacks.
    """
    index = build_index(data)
    index.require_labels()
    return index.with_class_names(class_names)


def _class_names(index: LabelledIndex) -> tuple[str, ...]:
    if index.class_names is not None:
        return tuple(index.class_names)
    return tuple(str(class_id) for class_id in range(index.num_classes))


def _require_two_classes(index: LabelledIndex, class_names: Sequence[str]) -> None:
    used = np.flatnonzero(index.class_counts())
    require(
        len(used) >= 2,
        f"{index.info.root} holds one class only ({class_names[used[0]]}); classification needs two or more, each in a "
        "sub-folder of its own or with a label of its own",
    )


def _subset(index: LabelledIndex, settings: DataConfig) -> LabelledIndex:
    num_classes = int(np.count_nonzero(index.class_counts()))
    num_labels = settings.num_labels
    if num_labels is None:
        assert settings.label_fraction is not None
        num_labels = max(num_classes, round(settings.label_fraction * len(index)))
    if not num_classes <= num_labels <= len(index):
        raise InputError(
            f"data.num_labels ({num_labels}) must be between the {num_classes} classes and the {len(index)} labelled "
            f"images of {index.info.root}"
        )
    return index.subset(num_labels=num_labels, seed=settings.subset_seed)
