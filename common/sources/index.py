"""The table behind labelled data: where each sample of a DATA lies, and its class.

Here: the table as training and evaluation use it, whole or as a subset by class, the same one every time: a few in
proportion, or all in equal numbers. Building it is `index_build.py`, reading the images is
`common/reading/labelled_dataset.py`.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beit.common.errors import InputError
from beit.common.images.decoding import USUAL, Decoding
from beit.common.sources.class_names import ClassNames
from beit.common.sources.label_column import HOW_TO_CHOOSE
from beit.common.sources.labels import (
    UNLABELLED,
    ClassMatcher,
    Int64Array,
    draw_subset,
    in_order,
    listed,
    meant_number,
    one_form,
    repetitions,
    require_distinct,
    split_label,
    subset_size,
    unknown_classes,
)
from beit.common.sources.types import SampleRef, SourceShard
from beit.common.storage.documents import Format
from beit.common.storage.paths import normalise
from beit.common.storage.samples import NO_LABEL, locate, shard_starts

logger = logging.getLogger(__name__)

INDEX_FORMAT = Format("beit-labelled-index", 3)
"""Of index.json; its version is also that of the table."""
_NAMES_IN_MESSAGE = 5
_MAPPED_SHARDS = 2048
_OFFSET, _PATH = 1, 4  # columns of the table
_REMADE = ("_batches", "_mapped", "labels")  # had again from the table, in whichever process needs them


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexInfo:
    """index.json: what the table of samples does not say itself."""

    format: str = INDEX_FORMAT.name
    """As `INDEX_FORMAT` says."""
    format_version: int = INDEX_FORMAT.version
    """The same."""
    root: str
    """Folder or URL of the data."""
    kind: str
    """Kind of container: "files", "tar" or "parquet"."""
    shard_names: tuple[str, ...]
    """First part of the sample ids, unique."""
    shard_sizes: tuple[int, ...]
    """Samples per shard."""
    shard_bytes: int
    """Memory that reading one sample of a shard takes, at most, as far as measured; 0 where samples are read singly."""
    sha256: str
    """Over all keys, offsets, lengths and labels: equal for a copy of the data elsewhere."""
    numbers: tuple[str, ...] | None = None
    """Where classes are numbers: the text of each that occurs, in the order in which the table counts them. None where
    the source names its classes."""

    def identity(self, decoding: Decoding) -> str:
        """Return the hash of the samples as they are decoded so: others are skipped then, or they look otherwise."""
        if decoding == USUAL:
            return self.sha256
        return hashlib.sha256(f"{self.sha256} {decoding.identity()}".encode()).hexdigest()


class LabelledIndex:
    """The samples in use of one DATA. Pickles to a path and the rows in use; the table itself is memory-mapped.

    Args:
        table: samples.arrow, one record batch per shard.
        info: What index.json says.
        shards: Containers to read from, in the order of the record batches; their own lists of samples are not needed.
        class_names: Name of each class id in the table, or None where there are no labels.
        name: What the user calls the data, for messages; by default their folder.
        stamp: Of the source, see there.
        columns: Of a table, for messages.
        decoding: How images are decoded; part of the identity.
        label_notes: What whoever uses the labels is told once.
    """

    def __init__(
        self,
        table: Path,
        info: IndexInfo,
        *,
        shards: Sequence[SourceShard],
        class_names: Sequence[str] | None,
        name: str = "",
        stamp: str = "",
        columns: Sequence[str] = (),
        label_notes: Sequence[str] = (),
        decoding: Decoding = USUAL,
    ) -> None:
        self.info = info
        self.decoding = decoding
        """How the images are decoded."""
        self.name = name or info.root
        self.shards = list(shards)
        self.class_names = list(class_names) if class_names is not None else None
        self.index_sha256 = info.identity(decoding)
        """Identity of the samples in use, their numbering and their classes."""
        self.stamp = stamp
        """Hash of sizes and times of all files; empty where they are not known."""
        self.columns = tuple(columns)
        self._label_notes = tuple(label_notes)
        self._table = table
        self._starts = shard_starts(info.shard_sizes)
        self._rows: Int64Array | None = None  # of the whole table, ascending; None is all of them
        self._offsets = self._starts  # of each shard among the rows in use
        self._class_ids: Int64Array | None = None  # new id of each id in the table

    def __repr__(self) -> str:
        return f"LabelledIndex({self.name!r}, kind={self.info.kind}, samples={len(self)})"

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what can be had again from the table."""
        return {name: value for name, value in self.__dict__.items() if name not in _REMADE}

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def decoded_as(self, decoding: Decoding) -> LabelledIndex:
        """Return the same samples, to be decoded otherwise."""
        other = copy.copy(self)
        other.decoding, other.index_sha256 = decoding, self.info.identity(decoding)
        return other

    @property
    def shard_sizes(self) -> Int64Array:
        """Samples in use per shard, int64 (S,)."""
        return np.diff(self._offsets)

    @property
    def num_classes(self) -> int:
        """Classes that the names list; 0 without labels."""
        return len(self.class_names or ())

    @property
    def has_labels(self) -> bool:
        """Tell whether any sample in use has a label."""
        return bool((self.labels != NO_LABEL).any())

    @property
    def location(self) -> str:
        """What the user gave, as a URL or an absolute path: of two tables in one folder `info.root` is the same."""
        return normalise(self.name)

    @property
    def folder(self) -> Path:
        """Where the index is kept."""
        return self._table.parent

    def num_bytes(self) -> int:
        """Return the size of the images in use; of Parquet files, of all row groups that hold some."""
        if self.info.kind == "parquet":
            return self.info.shard_bytes * int(np.count_nonzero(self.shard_sizes))
        columns = [self._batches.get_batch(shard)["length"].to_numpy() for shard in range(len(self.shards))]
        lengths = np.concatenate(columns)
        return int((lengths if self._rows is None else lengths[self._rows]).sum())

    @cached_property
    def labels(self) -> Int64Array:
        """Class id of every sample in use, in index order, int64 (N,); -1 where there is none."""
        columns = [self._batches.get_batch(shard)["label"].to_numpy() for shard in range(len(self.shards))]
        labels = np.concatenate(columns).astype(np.int64)
        labels = labels if self._rows is None else labels[self._rows]
        if self._class_ids is None:
            return labels
        return np.where(labels == NO_LABEL, NO_LABEL, self._class_ids[labels])

    @cached_property
    def _batches(self) -> pa.RecordBatchFileReader:
        return pa.ipc.open_file(pa.memory_map(str(self._table)))

    def _columns(self, shard_id: int) -> list[pa.Array]:
        # Kept because finding a batch in the file costs more than reading a row of it. The data stay on the disk.
        if shard_id not in self._mapped:
            if len(self._mapped) >= _MAPPED_SHARDS:
                self._mapped.clear()
            self._mapped[shard_id] = self._batches.get_batch(shard_id).columns
        return self._mapped[shard_id]

    @cached_property
    def _mapped(self) -> dict[int, list[pa.Array]]:
        return {}

    def class_counts(self) -> Int64Array:
        """Count the samples in use of every class, int64 (num_classes,)."""
        return np.bincount(self.labels[self.labels != NO_LABEL], minlength=self.num_classes).astype(np.int64)

    def ref(self, shard_id: int, rank: int) -> SampleRef:
        """Return where a sample lies.

        Args:
            shard_id: Index into `shards`.
            rank: Index among the shard's samples in use.
        """
        row = rank
        if self._rows is not None:
            row = int(self._rows[self._offsets[shard_id] + rank] - self._starts[shard_id])
        key, offset, length, label, path = (column[row].as_py() for column in self._columns(shard_id))
        if label != NO_LABEL and self._class_ids is not None:
            label = int(self._class_ids[label])
        return SampleRef(key, offset, length, None if label == NO_LABEL else label, path)

    def ref_at(self, position: int) -> SampleRef:
        """Return where the sample at a position in index order lies, as counted by `sequential_loader`."""
        return self.ref(*self.locate(position))

    def locate(self, position: int) -> tuple[int, int]:
        """Return shard and rank in the shard of the sample at a position in index order."""
        return locate(self._offsets, position)

    def require_labels(self) -> None:
        """Insist that every sample in use has a label, and say how the labels were read where that was a choice."""
        self.require_any_label()
        missing = np.flatnonzero(self.labels == NO_LABEL)
        if not len(missing):
            return
        first = ", ".join(self.ref_at(int(position)).path for position in missing[:_NAMES_IN_MESSAGE])
        hint = "" if self.info.kind == "files" else "; the number -1 stands for none"
        raise InputError(
            f"{len(missing)} of {len(self)} samples in {self.name} have no label (first: {first}){hint}; "
            "label them or leave them out"
        )

    def require_any_label(self) -> None:
        """Insist that there are labels, and say how they were read where that was a choice."""
        if not self.has_labels:
            way_out = (
                f"its columns are {', '.join(self.columns)}: {HOW_TO_CHOOSE}"
                if self.columns
                else "sort the images into one sub-folder per class, or give a CSV with path and label, tars with "
                ".cls members, or Parquet with a label column"
            )
            raise InputError("; ".join([f"no labels found in {self.name}", *self._label_notes, way_out]))
        for note in self._label_notes:
            logger.info("%s", note)

    def require_one_class_each(self) -> None:
        """Insist that every sample has a label that is one class, and that no two classes are one number."""
        self.require_labels()
        names = [name for name, count in zip(self.class_names or (), self.class_counts(), strict=True) if count]
        if not all(map(split_label, names)):
            raise InputError(f"{self.name} has samples whose label is an empty text; label them or leave them out")
        several = [name for name in names if len(split_label(name)) > 1]
        if several:
            raise InputError(
                f"{self.name} has images of several classes ({listed(several)}), and each may be of one only here; "
                "train with classifier.multi_label=true (classification only), or leave one class per image"
            )
        require_distinct(names, self.name)
        if str(UNLABELLED) in names:
            logger.warning("%s has a class %d; where that means no label, leave it empty", self.name, UNLABELLED)

    def subset(self, *, num_labels: int | None = None, fraction: float | None = None, seed: int = 0) -> LabelledIndex:
        """Return an index of some of the samples, with the class proportions of all.

        Args:
            num_labels: Samples to keep; excludes `fraction`.
            fraction: Share of the samples to keep.
            seed: Another seed keeps others. Which ones are kept depends on nothing else but the data.
        """
        wanted = subset_size(len(self), num_labels=num_labels, fraction=fraction, of=f"samples in {self.name}")
        if wanted == len(self):
            return self
        return self._keep(draw_subset(self.labels, wanted, seed), f"subset {wanted} {seed}")

    def balanced(self, *, seed: int) -> LabelledIndex:
        """Return an index that lists the samples of rare classes repeatedly, so that all classes are equally frequent.

        The largest class is listed once. Of another, every sample is listed as often as fits, and some, chosen by
        `seed`, once more. `repeat` tells the listings of a sample apart.

        Args:
            seed: Another seed lists other samples once more.
        """
        times = repetitions(self.labels, seed)
        return self._keep(np.repeat(np.arange(len(self), dtype=np.int64), times), f"balanced {seed}")

    def repeat(self, shard_id: int, rank: int) -> int:
        """Return how often the sample was listed before, in its shard; 0 unless the index is `balanced`."""
        if self._rows is None:
            return 0
        position = int(self._offsets[shard_id]) + rank
        return position - int(np.searchsorted(self._rows, self._rows[position]))

    def keys(self) -> Iterator[str]:
        """Yield the key of every sample in use, in index order."""
        for shard_id, (start, end) in enumerate(itertools.pairwise(self._offsets)):
            keys = self._columns(shard_id)[0]
            if self._rows is not None:
                keys = keys.take(pa.array(self._rows[start:end] - self._starts[shard_id]))
            yield from keys.to_pylist()

    def offsets_in_use(self, shard_id: int) -> Int64Array | None:
        """Return where the samples in use of a shard lie in it, int64 (R,); None where all of it is in use."""
        if self._rows is None:
            return None
        start, end = self._offsets[shard_id], self._offsets[shard_id + 1]
        offsets = self._columns(shard_id)[_OFFSET].to_numpy(zero_copy_only=False)
        return np.asarray(offsets[self._rows[start:end] - self._starts[shard_id]], dtype=np.int64)

    def paths(self, shard_id: int) -> list[str]:
        """Return the original names of all samples of a shard, in use or not."""
        return self._columns(shard_id)[_PATH].to_pylist()  # type: ignore[no-any-return]

    def split(self, is_chosen: NDArray[np.bool_], *, change: str) -> tuple[LabelledIndex, LabelledIndex]:
        """Divide the samples in use into two indexes.

        Args:
            is_chosen: Bool (N,), in index order.
            change: What the choice depends on; part of the identity of both.
        Returns:
            The chosen samples, and the others.
        """
        return (
            self._keep(np.flatnonzero(is_chosen), f"{change}: chosen"),
            self._keep(np.flatnonzero(~is_chosen), f"{change}: others"),
        )

    def identified(self, change: str) -> LabelledIndex:
        """Return an index of the same samples that also stands for something beside them, such as masks."""
        return self._copy(change)

    def with_numbers_named(self, names: ClassNames) -> LabelledIndex:
        """Return an index whose numbered classes have the names that a file gives them, and say which got which.

        Names, and indexes without any numbers, stay as they are.
        """
        own, counts = self.class_names or [], self.class_counts()
        used = {name for label, count in zip(own, counts, strict=True) if count for name in split_label(label)}
        require_distinct(used, self.name)
        taken = {number: name for name in in_order(used) if (number := meant_number(name)) is not None}
        missing = [name for number, name in taken.items() if number not in names.of]
        if missing:
            raise InputError(f"{names.file} has no name for {listed(missing)}, of the classes of {self.name}; add it")
        if not taken:
            logger.info("%s: its classes are names, so %s says nothing about them", self.name, names.file)
            return self
        logger.info(
            "%s: by %s, %s", self.name, names.file, listed([f"{number} is {names.of[number]}" for number in taken])
        )
        renamed = [names.named(label) for label in own]
        return self.renamed(renamed, change=f"named {renamed}")

    def renamed(self, names: Sequence[str], *, change: str | None = None) -> LabelledIndex:
        """Return an index whose classes are called otherwise; those that get one name become one class.

        Args:
            names: New name of each class.
            change: What the names depend on; part of the identity. None for other spellings of the same names.
        """
        unique = list(dict.fromkeys(names))
        if len(unique) < len(names):
            change = f"{change} merged {list(names)}"
        other = self._copy(change) if change is not None else copy.copy(self)
        ids = {name: class_id for class_id, name in enumerate(unique)}
        return other._with_ids(np.array([ids[name] for name in names], dtype=np.int64), unique)

    def reordered(self, names: Sequence[str]) -> LabelledIndex:
        """Return an index of the same classes, counted in the order of `names`; that is no part of its identity."""
        if list(names) == self.class_names:
            return self
        ids = {name: class_id for class_id, name in enumerate(names)}
        return copy.copy(self)._with_ids(np.array([ids[name] for name in self.class_names or ()], np.int64), names)

    def with_class_names(self, class_names: Sequence[str], *, numbers: ClassNames | None = None) -> LabelledIndex:
        """Return an index whose class ids follow `class_names`, such as those of a trained model.

        Classes are matched by name, whatever their order: validation data may lack a class that training data have. The
        name of a number is its text; numbers and names match only by what a file says.

        Args:
            class_names: Of the model.
            numbers: What numbers mean, where the model's classes are some.
        """
        own = self.class_names or []
        matcher = ClassMatcher(class_names, None if numbers is None else numbers.of)
        found = [matcher.find(name) for name in own]
        counts = self.class_counts()
        used = [(name, class_id) for name, class_id, count in zip(own, found, counts, strict=True) if count]
        unknown = [name for name, class_id in used if class_id is None]
        if unknown:
            raise InputError(unknown_classes(self.name, unknown, class_names))
        others = [
            f"{name} is {class_names[i]}" for name, i in used if i is not None and one_form(class_names[i]) != name
        ]
        if others:
            logger.info("%s: of the classes that the model knows, %s", self.name, listed(others))
        if own == list(class_names):
            return self
        other = self._copy(f"classes {list(class_names)}")
        ids = np.array([NO_LABEL if class_id is None else class_id for class_id in found], dtype=np.int64)
        return other._with_ids(ids, class_names)

    def _with_ids(self, new_ids: Int64Array, class_names: Sequence[str]) -> LabelledIndex:
        """Give this copy other classes: `new_ids` of the present ones, and all names."""
        self._class_ids = new_ids if self._class_ids is None else new_ids[self._class_ids]
        self.class_names = list(class_names)
        return self

    def _keep(self, chosen: Int64Array, change: str) -> LabelledIndex:
        """Return an index of the samples at `chosen`, ascending positions among those in use."""
        other = self._copy(change)
        other._rows = chosen if self._rows is None else self._rows[chosen]
        other._offsets = np.searchsorted(other._rows, self._starts).astype(np.int64)
        return other

    def _copy(self, change: str) -> LabelledIndex:
        other = copy.copy(self)
        other.index_sha256 = hashlib.sha256(f"{self.index_sha256} {change}".encode()).hexdigest()
        return other
