"""Which labelled images a run trains and evaluates on, checked before anything is built.

What happens to their pixels is `finetune/augment/augment.py`. Listing them is `beit.common.sources.index_build`, their
order `beit.common.reading.order`, reading them `beit.common.reading.reader`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import InputError, require
from beit.common.sources.index import LabelledIndex
from beit.common.sources.index_build import build_index
from beit.common.sources.types import LABEL_SEPARATOR
from beit.finetune.config import DataConfig

_NAMES_IN_MESSAGE = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledData:
    """The images of one run."""

    train: LabelledIndex
    """To learn from, the chosen subset."""
    val: LabelledIndex | None
    """To evaluate on, with the class ids of `train`."""
    class_names: tuple[str, ...]
    """Name of each class id; the number itself where the data name none."""
    source: LabelledIndex
    """All labelled images of DATA, of which `train` are some."""
    is_multi_label: bool = False
    """Whether an image may be of several classes or none. Labels of the indexes then number combinations of them."""

    def label_table(self, index: LabelledIndex) -> NDArray[np.bool_] | None:
        """Return what the labels of `index` stand for, see `label_table`; None where each is a class."""
        return label_table(index, self.class_names) if self.is_multi_label else None


def open_training_data(data: str, settings: DataConfig, *, multi_label: bool = False) -> LabelledData:
    """Open DATA and, if given, the validation images.

    Args:
        data: Labelled images: folder with a sub-folder per class, tars, Parquet, CSV.
        settings: Subset and validation images.
        multi_label: Read `a|b` as the two classes a and b, and a missing label as none of the classes.
    """
    train = source = build_index(data, for_classes=True)
    class_names = _trained_classes(train, multi_label=multi_label)
    if settings.num_labels is not None or settings.label_fraction is not None:
        train = _subset(train, settings)
    val = None if settings.val is None else open_evaluation_data(settings.val, class_names, multi_label=multi_label)
    return LabelledData(
        train=train,
        val=_part_to_measure_on(val, settings),
        class_names=class_names,
        source=source,
        is_multi_label=multi_label,
    )


def open_evaluation_data(data: str, class_names: Sequence[str], *, multi_label: bool = False) -> LabelledIndex:
    """Open labelled images whose classes are those of `class_names`, matched by name.

    Classes without an image are no error: a small validation set may lack some.

    Args:
        data: As in `open_training_data`.
        class_names: Of the model.
        multi_label: See `open_training_data`; labels then stay numbers of combinations, for `label_table`.
    """
    index = build_index(data, for_classes=True)
    if multi_label:
        _require_any_label(index)
        label_table(index, class_names)
        return index
    index.require_labels()
    return index.with_class_names(class_names)


def image_name(index: LabelledIndex, position: int) -> str:
    """Name an image as its user knows it: by path, or inside containers, where paths may repeat, by shard and key."""
    if index.info.kind == "files":
        return index.ref_at(position).path
    shard_id, rank = index.locate(position)
    return f"{index.info.shard_names[shard_id]}/{index.ref(shard_id, rank).key}"


def label_table(index: LabelledIndex, class_names: Sequence[str]) -> NDArray[np.bool_]:
    """Return what the labels of multi-label data stand for.

    Args:
        index: Whose labels number combinations of classes.
        class_names: C classes.
    Returns:
        bool (K + 1, C): for each combination its classes; the last row, which the absent label -1 finds, has none.
    """
    combinations = _combinations(index)
    position = {name: class_id for class_id, name in enumerate(class_names)}
    unknown = sorted({name for names in combinations for name in names} - set(class_names))
    if unknown:
        raise InputError(
            f"{index.name} has classes that the model does not know ({', '.join(unknown[:_NAMES_IN_MESSAGE])}); "
            f"it knows {', '.join(list(class_names)[:_NAMES_IN_MESSAGE])}, ..."
        )
    table = np.zeros((len(combinations) + 1, len(class_names)), np.bool_)
    for row, names in enumerate(combinations):
        table[row, [position[name] for name in names]] = True
    return table


def _combinations(index: LabelledIndex) -> list[list[str]]:
    return [[part.strip() for part in name.split(LABEL_SEPARATOR) if part.strip()] for name in _class_names(index)]


def _require_any_label(index: LabelledIndex) -> None:
    if not index.has_labels:
        index.require_labels()


def _trained_classes(index: LabelledIndex, *, multi_label: bool) -> tuple[str, ...]:
    if multi_label:
        _require_any_label(index)
        return tuple(sorted({name for names in _combinations(index) for name in names}))
    index.require_labels()
    class_names = _class_names(index)
    used = np.flatnonzero(index.class_counts())
    require(
        len(used) >= 2,
        f"{index.name} holds one class only ({class_names[used[0]]}); classification needs two or more, each in a "
        "sub-folder of its own or with a label of its own",
    )
    return class_names


def _class_names(index: LabelledIndex) -> tuple[str, ...]:
    return tuple(index.class_names or map(str, range(index.num_classes)))


def _part_to_measure_on(val: LabelledIndex | None, settings: DataConfig) -> LabelledIndex | None:
    if settings.num_val_images is None:
        return val
    if val is None:
        raise InputError(f"data.num_val_images ({settings.num_val_images}) needs validation images; give --val")
    if settings.num_val_images > len(val):
        raise InputError(
            f"data.num_val_images ({settings.num_val_images}) must not exceed the {len(val)} images of "
            f"{val.name}; leave it out to use all"
        )
    return val.subset(num_labels=settings.num_val_images)


def _subset(index: LabelledIndex, settings: DataConfig) -> LabelledIndex:
    num_classes = int(np.count_nonzero(index.class_counts()))
    num_labels = settings.num_labels
    if num_labels is None:
        assert settings.label_fraction is not None
        num_labels = max(num_classes, round(settings.label_fraction * len(index)))
    if not num_classes <= num_labels <= len(index):
        raise InputError(
            f"data.num_labels ({num_labels}) must be between the {num_classes} classes and the {len(index)} labelled "
            f"images of {index.name}"
        )
    return index.subset(num_labels=num_labels, seed=settings.subset_seed)
