"""Which labelled images a run trains and evaluates on, checked before anything is built.

What happens to their pixels is `finetune/augment/augment.py`. Listing them is `beit.common.sources.index_build`, their
order `beit.common.reading.order`, reading them `beit.common.reading.reader`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from beit.common.errors import InputError, require
from beit.common.images.missed import RangeOption
from beit.common.sources.class_names import ClassNames, read_class_names
from beit.common.sources.config import SourceConfig
from beit.common.sources.glance.depth import warn_of_missed, warn_of_range
from beit.common.sources.glance.transparency import warn_of_hidden_colours
from beit.common.sources.index import LabelledIndex
from beit.common.sources.index_build import open_labelled
from beit.common.sources.labels import (
    LABEL_SEPARATOR,
    ClassMatcher,
    require_distinct,
    split_label,
    unknown_classes,
)
from beit.common.sources.overlap import warn_of_shared_images
from beit.finetune.config import DataConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledData:
    """The images of one run."""

    train: LabelledIndex
    """To learn from, the chosen subset."""
    val: LabelledIndex | None
    """To evaluate on, with the class ids of `train`."""
    class_names: tuple[str, ...]
    """Name of each class id; of a number its text, where nothing names it."""
    source: LabelledIndex
    """All labelled images of DATA, of which `train` are some."""
    is_multi_label: bool = False
    """Whether an image may be of several classes or none. Labels of the indexes then number combinations of them."""

    def label_table(self, index: LabelledIndex) -> NDArray[np.bool_] | None:
        """Return what the labels of `index` stand for, see `label_table`; None where each is a class."""
        return label_table(index, self.class_names) if self.is_multi_label else None


def open_training_data(
    data: str, settings: DataConfig, *, multi_label: bool = False, reading: SourceConfig | None = None
) -> LabelledData:
    """Open DATA and, if given, the validation images.

    Args:
        data: Labelled images: folder with a sub-folder per class, tars, Parquet, CSV.
        settings: Subset and validation images.
        multi_label: Read `a|b` as the two classes a and b, and a missing label as none of the classes.
        reading: Which images are read.
    """
    numbers = None if settings.class_names is None else read_class_names(settings.class_names)
    train = open_labelled(data, class_names=numbers, label_column=settings.label_column, settings=reading)
    class_names = _trained_classes(train, multi_label=multi_label)
    warn_of_range(train, train.decoding)
    warn_of_hidden_colours(train, train.decoding)
    source = train
    if settings.num_labels is not None or settings.label_fraction is not None:
        train = _subset(train, settings)
    val = None
    if settings.val is not None:
        val = open_evaluation_data(
            settings.val,
            class_names,
            multi_label=multi_label,
            numbers=numbers,
            label_column=settings.label_column,
            reading=None if reading is None else reading.with_values_of(train.decoding),
        )
        warn_of_shared_images(source, val)
    return LabelledData(
        train=train,
        val=_part_to_measure_on(val, settings),
        class_names=class_names,
        source=source,
        is_multi_label=multi_label,
    )


def open_evaluation_data(
    data: str,
    class_names: Sequence[str],
    *,
    multi_label: bool = False,
    numbers: ClassNames | None = None,
    label_column: str | None = None,
    reading: SourceConfig | None = None,
    option: RangeOption = "",
) -> LabelledIndex:
    """Open labelled images whose classes are those of `class_names`, matched by name.

    Classes without an image are no error: a small validation set may lack some.

    Args:
        data: As in `open_training_data`.
        class_names: Of the model.
        multi_label: See `open_training_data`; labels then stay numbers of combinations, for `label_table`.
        numbers: What the numbers of the data, or those of the model, mean.
        label_column: Column of the classes in tables; left out, the one that is called so.
        reading: Which images are read.
        option: How the command sets a range for these images alone, for `warn_of_missed`; empty where it does not.
    """
    index = open_labelled(data, class_names=numbers, label_column=label_column, settings=reading)
    if multi_label:
        index.require_any_label()
        label_table(index, class_names, numbers=numbers)
    else:
        index.require_labels()
        index = index.with_class_names(class_names, numbers=numbers)
    warn_of_missed(index, index.decoding, option=option)
    return index


def image_name(index: LabelledIndex, position: int) -> str:
    """Name an image as its user knows it: by path, or inside containers, where paths may repeat, by shard and key."""
    if index.info.kind == "files":
        return index.ref_at(position).path
    shard_id, rank = index.locate(position)
    return f"{index.info.shard_names[shard_id]}/{index.ref(shard_id, rank).key}"


def label_table(
    index: LabelledIndex, class_names: Sequence[str], *, numbers: ClassNames | None = None
) -> NDArray[np.bool_]:
    """Return what the labels of multi-label data stand for.

    Args:
        index: Whose labels number combinations of classes.
        class_names: C classes.
        numbers: See `open_evaluation_data`.
    Returns:
        bool (K + 1, C): for each combination its classes; the last row, which the absent label -1 finds, has none.
    """
    combinations = _combinations(index)
    matcher = ClassMatcher(class_names, None if numbers is None else numbers.of)
    position = {name: matcher.find(name) for names in combinations for name in names}
    unknown = sorted(name for name, class_id in position.items() if class_id is None)
    if unknown:
        raise InputError(unknown_classes(index.name, unknown, class_names))
    table = np.zeros((len(combinations) + 1, len(class_names)), np.bool_)
    for row, names in enumerate(combinations):
        for name in names:
            table[row, position[name]] = True
    return table


def _combinations(index: LabelledIndex) -> list[list[str]]:
    return [split_label(name) for name in index.class_names or ()]


def _trained_classes(index: LabelledIndex, *, multi_label: bool) -> tuple[str, ...]:
    if multi_label:
        index.require_any_label()
        classes = tuple(sorted({name for names in _combinations(index) for name in names}))
        require_distinct(classes, index.name)
        _warn_of_other_separators(index)
        return classes
    index.require_one_class_each()
    class_names = tuple(index.class_names or ())
    used = np.flatnonzero(index.class_counts())
    require(
        len(used) >= 2,
        f"{index.name} holds one class only ({class_names[used[0]]}); classification needs two or more, each in a "
        "sub-folder of its own or with a label of its own",
    )
    return class_names


def _warn_of_other_separators(index: LabelledIndex) -> None:
    """Say so where no image is of several classes, and names look as if they were lists."""
    names = index.class_names or []
    lists = [name for name in names if re.search(r"[,;]", name)]
    if lists and all(len(split_label(name)) < 2 for name in names):
        logger.warning(
            "no image of %s has several classes, and %r is taken as the name of one; classes are joined by %s",
            index.name,
            lists[0],
            LABEL_SEPARATOR,
        )


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
