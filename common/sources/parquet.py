"""Parquet files as a source of images: one shard per row group, the Hugging Face `image` feature or a binary column.

Which columns hold images and labels is decided in `parquet_layout.py`.
"""

from __future__ import annotations

import functools
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, ClassVar, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beit.common.errors import LFS_ADVICE, BadSample, InputError, is_lfs_pointer
from beit.common.images.decoding import MAX_IMAGE_BYTES
from beit.common.sources.label_column import plain
from beit.common.sources.labels import UNLABELLED, listed
from beit.common.sources.parquet_layout import ParquetLayout, other_images, plain_schema, read_layout
from beit.common.sources.splits import warn_of_split_rows
from beit.common.sources.types import (
    SampleRef,
    Source,
    SourceKind,
    SourceShard,
    escape_name,
    listing_digest,
    listing_stamp,
    packed_key,
)
from beit.common.storage.paths import relative_to
from beit.common.storage.place import FileStat, RemoteError, for_each, place_of
from beit.common.storage.remote_place import RemotePlace

logger = logging.getLogger(__name__)

_START_BYTES = 1024
_STREAM_ROWS = 16  # an image has at most 256 MB, mostly 0.1
_STREAM_BUFFER_BYTES = 8 << 20
_SPLIT_COLUMNS = ("split", "subset", "partition", "set")
_MAX_WHOLE = 1 << 53  # beyond it floating-point numbers are not those that were meant

Rows = TypeVar("Rows", pa.Table, pa.RecordBatch)


class _TooLargeForOneArray(Exception):
    """pyarrow cannot return a struct with more than 2 GiB of bytes as one array, only in pieces."""


class ParquetReader:
    """Rows of one row group in memory.

    Args:
        images: Encoded images.
        label: What to call the row group.
        first_row: Row in the row group that `images` begins with.
    """

    def __init__(self, images: pa.ChunkedArray | pa.Array, label: str, *, first_row: int = 0) -> None:
        self._images = images
        self._label = label
        self._first_row = first_row

    def __len__(self) -> int:
        return len(self._images)

    @property
    def nbytes(self) -> int:
        """Memory held by the images."""
        return int(self._images.nbytes)

    def read(self, ref: SampleRef) -> bytes:
        """Return the image bytes of one row.

        Raises:
            BadSample: the cell is null, or larger than any image may be.
        """
        value = self._images[ref.offset - self._first_row]
        if not value.is_valid:
            raise BadSample("empty", f"{self._label} row {ref.offset} has no image bytes")
        data: bytes = value.as_py()
        if len(data) > MAX_IMAGE_BYTES:
            raise BadSample("too-large", f"{len(data)} bytes, at most {MAX_IMAGE_BYTES}")
        return data


@dataclass(frozen=True, slots=True)
class ParquetShard:
    """One row group of one Parquet file."""

    name: str
    location: str
    row_group: int
    file: FileStat
    layout: ParquetLayout
    first_row: int
    """Rows in the row groups before this one."""
    num_rows: int
    """Rows in this one."""
    scope: str
    """Name that keeps the keys of this file apart from those of the source's other files."""
    keys_from_path: bool
    """Keys are made from the path column, because it is complete and has no repetition."""

    kind: ClassVar[SourceKind] = "parquet"

    def refs(self) -> list[SampleRef]:
        """List the rows in order."""
        layout = self.layout
        columns = [f"{layout.image_column}.path"] if layout.has_path else []
        columns += [layout.label_column] if layout.label_column else []
        table = _read_row_group(self.file, self.row_group, columns)
        paths = [None] * self.num_rows
        if layout.has_path:
            paths = pc.struct_field(table[layout.image_column], "path").to_pylist()
        labels = table[layout.label_column].to_pylist() if layout.label_column else [None] * self.num_rows
        ids = {name: class_id for class_id, name in enumerate(layout.class_names or ())}
        return [
            SampleRef(
                self._key(row, path), row, 0, self._class_id(row, label, ids), path or f"row {self.first_row + row}"
            )
            for row, (path, label) in enumerate(zip(paths, labels, strict=True))
        ]

    @contextmanager
    def open(self) -> Iterator[ParquetReader]:
        """Load the images of the row group."""
        try:
            images = self._images(_read_row_group(self.file, self.row_group, [self._image_leaf]))
        except _TooLargeForOneArray:
            images = pa.chunked_array([self._images(batch) for batch in self._batches()])
        yield ParquetReader(images, self._label)

    def stream(self) -> Iterator[ParquetReader]:
        """Load the images of the row group a few at a time, front to back: a row group may be larger than memory.

        Pages are decoded whole. They are 1 MB by the format's advice, but pyarrow writes up to 1024 rows to one.
        """
        first_row = 0
        for batch in self._batches():
            yield ParquetReader(self._images(batch), self._label, first_row=first_row)
            first_row += batch.num_rows

    def _batches(self) -> Iterator[pa.RecordBatch]:
        return row_batches(self.file, self.row_group, self._image_leaf)

    @property
    def _label(self) -> str:
        return f"{self.location} row group {self.row_group}"

    def rows_without_image(self) -> set[int]:
        """Return the rows with a null; images are read only if the footer cannot exclude that there are some."""
        if not may_have_nulls(self.file, self.row_group, self._image_leaf):
            return set()
        valid = [image.is_valid for batch in self._batches() for image in self._images(batch)]
        return {row for row, is_valid in enumerate(valid) if not is_valid}

    @property
    def _image_leaf(self) -> str:
        column = self.layout.image_column
        return f"{column}.bytes" if self.layout.is_struct else column

    def _images(self, rows: pa.Table | pa.RecordBatch) -> pa.ChunkedArray | pa.Array:
        column = rows[self.layout.image_column]
        return pc.struct_field(column, "bytes") if self.layout.is_struct else column

    def _key(self, row: int, path: str | None) -> str:
        if self.keys_from_path and path is not None:
            return packed_key(path, scope=self.scope)
        return f"{escape_name(self.scope.removesuffix('.parquet'))}-{self.first_row + row:08d}"

    def _class_id(self, row: int, value: Any, ids: Mapping[str, int]) -> int | None:
        names = self.layout.class_names
        label = self.layout.label_of(value, f"{self.location} row {self.first_row + row}")
        if label is None or label == UNLABELLED or (names is not None and isinstance(label, int) and label < 0):
            return None
        if self.layout.label_is_text:
            return ids[label] if names is not None else None
        if names is not None and label >= len(names):
            raise InputError(
                f"{self.location} row {self.first_row + row} has label {label}, but {len(names)} class names; "
                "repair the file"
            )
        return int(label)


def open_parquet_files(
    files: Sequence[FileStat],
    root: str,
    *,
    label_column: str | None = None,
    image_column: str | None = None,
    is_alone: bool = True,
) -> Source:
    """Return a source over the row groups of Parquet files, classes and images from these columns or the usual ones.

    Args:
        files: The files, listed.
        root: Folder or URL above them.
        label_column: Column of the classes; left out, the usual one.
        image_column: Column of the images; left out, the usual one.
        is_alone: False where the caller reads several columns of images, which need no classes: then there are none,
            and no word is said of the other columns.
    """
    listed = {file.path: file for file in files}
    footers = for_each(lambda path: _describe(listed[path], label_column, image_column), list(listed))
    layouts = [layout for layout, _ in footers]
    if is_alone:
        _say_what_is_left_out(root, files, layouts)
    else:
        layouts = [layout.without_labels() for layout in layouts]
    layouts = _without_odd_labels(files, layouts, wanted=label_column)
    if any(layout.label_is_text for layout in layouts):
        layouts = _number_text_labels(files, layouts)
    for file, layout in zip(files, layouts, strict=True):
        if _labelling(layout) != _labelling(layouts[0]):
            raise InputError(
                f"{file.path} and {files[0].path} differ in their labels ({_label_text(layout)}; "
                f"{_label_text(layouts[0])}); give files of one data set"
            )
    names = [file.path.rsplit("/", 1)[-1] for file in files]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    columns = {
        file.path: f"{layout.image_column}.path" for file, layout in zip(files, layouts, strict=True) if layout.has_path
    }
    unique = for_each(lambda path: _paths_identify_rows(listed[path], columns[path]), list(columns))
    identified = dict(zip(columns, unique, strict=True))
    shards: list[SourceShard] = []
    for file, name, (_, row_counts), layout in zip(files, names, footers, layouts, strict=True):
        # The file name alone keeps keys independent of where the files lie and of which of them are given.
        scope = relative_to(root, file.path) if name in repeated else name
        shards += _row_group_shards(file, layout, row_counts, scope, keys_from_path=identified.get(file.path, False))
    if not shards:
        raise InputError(f"{root} holds no rows")
    first = layouts[0]
    chosen = [] if label_column is None else [first.label_column or ""]
    chosen += [] if image_column is None else [f"image {image_column}"]
    return Source(
        kind="parquet",
        root=root,
        shards=shards,
        class_names=first.class_names,
        digest=listing_digest(root, files, labels=chosen),
        stamp=listing_stamp(root, files),
        columns=first.columns,
        label_notes=first.label_notes,
    )


def _say_what_is_left_out(root: str, files: Sequence[FileStat], layouts: list[ParquetLayout]) -> None:
    left_out = other_images(read_schema(files[0]), layouts[0].image_column)
    if left_out:
        logger.info("%s: the images of %s are left out", root, ", ".join(left_out))
    warn_of_split_columns(root, files, but=layouts[0].label_column)


def _labelling(layout: ParquetLayout) -> tuple[object, ...]:
    return layout.label_column, layout.label_is_text, layout.class_names


def _label_text(layout: ParquetLayout) -> str:
    """Say where the labels of a file stand, and what they are."""
    if layout.label_column is None:
        return "none"
    if layout.label_is_text:
        return f"texts in column {layout.label_column}"
    named = "" if layout.class_names is None else f" named {listed(layout.class_names)}"
    return f"numbers in column {layout.label_column}{named}"


def _describe(file: FileStat, label_column: str | None, image_column: str | None) -> tuple[ParquetLayout, list[int]]:
    """Return the layout of a file and the number of rows in each of its row groups."""
    metadata = _read_metadata(file)
    layout = read_layout(read_schema(file), label=file.path, label_column=label_column, image_column=image_column)
    _refuse_paths_only(file, metadata, layout)
    return layout, [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


def _row_group_shards(
    file: FileStat, layout: ParquetLayout, row_counts: list[int], scope: str, *, keys_from_path: bool
) -> Iterator[ParquetShard]:
    stem = file.path.rsplit("/", 1)[-1].removesuffix(".parquet")
    first_row = 0
    for row_group, num_rows in enumerate(row_counts):
        yield ParquetShard(
            name=f"{stem}-rg{row_group:05d}",
            location=file.path,
            row_group=row_group,
            file=file,
            layout=layout,
            first_row=first_row,
            num_rows=num_rows,
            scope=scope,
            keys_from_path=keys_from_path,
        )
        first_row += num_rows


@contextmanager
def _opened(file: FileStat, metadata: pq.FileMetaData | None, *, buffer_bytes: int = 0) -> Iterator[pq.ParquetFile]:
    """Open for one read: a shared handle would not be safe between threads.

    Each column chunk is read in one go, or in pieces of `buffer_bytes`; of a remote file, that many requests.
    """
    place = place_of(file.path)
    known = None if metadata is None else file  # with the footer it is looked at whether the server knows offsets
    handle = place.open(read_ahead=False, stat=known) if isinstance(place, RemotePlace) else nullcontext(file.path)
    try:
        with (
            handle as opened,
            pq.ParquetFile(opened, metadata=metadata, buffer_size=buffer_bytes, pre_buffer=not buffer_bytes) as parquet,
        ):
            yield parquet
    except RemoteError:
        raise
    except pa.ArrowNotImplementedError as error:
        if "chunked array" not in str(error):
            raise InputError(f"{file.path} cannot be read ({error})") from None
        raise _TooLargeForOneArray(str(error)) from None
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: names of columns not in UTF-8
        if metadata is None and is_lfs_pointer(place.read(limit=_START_BYTES)):
            raise InputError(f"{file.path} {LFS_ADVICE}") from None
        first_line = str(error).partition("\n")[0]
        raise InputError(f"{file.path} is not readable as Parquet ({first_line}); copy or make it again") from None


@functools.lru_cache(maxsize=8)
def _read_metadata(file: FileStat) -> pq.FileMetaData:
    # Cached because neighbouring row groups are read from the same file, and a footer can be large.
    with _opened(file, None) as parquet:
        return parquet.metadata


def read_schema(file: FileStat) -> pa.Schema:
    """Return the schema of a file, without views."""
    return plain_schema(_read_metadata(file).schema.to_arrow_schema())


def may_have_nulls(file: FileStat, row_group: int, column: str) -> bool:
    """Tell whether the footer leaves it open that a column, or the field of a struct after a dot, has a null."""
    group = _read_metadata(file).row_group(row_group)
    leaves = [group.column(number) for number in range(group.num_columns)]
    own = [leaf.statistics for leaf in leaves if f"{leaf.path_in_schema}.".startswith(f"{column}.")]
    return any(statistics is None or not statistics.has_null_count or statistics.null_count for statistics in own)


def row_batches(file: FileStat, row_group: int, column: str) -> Iterator[pa.RecordBatch]:
    """Yield a column of a row group, or the field of a struct after a dot, a few rows at a time."""
    with _opened(file, _read_metadata(file), buffer_bytes=_STREAM_BUFFER_BYTES) as parquet:
        for batch in parquet.iter_batches(_STREAM_ROWS, row_groups=[row_group], columns=[column], use_threads=False):
            yield _validated(batch)


def _read_row_group(file: FileStat, row_group: int, columns: list[str]) -> pa.Table:
    with _opened(file, _read_metadata(file)) as parquet:
        return _validated(parquet.read_row_group(row_group, columns=columns, use_threads=False))


def _read_column(file: FileStat, column: str) -> pa.Table:
    with _opened(file, _read_metadata(file)) as parquet:
        return _validated(parquet.read(columns=[column], use_threads=False))


def _validated(rows: Rows) -> Rows:
    """Return the rows, without views, if offsets and texts are sound, which else would come out where they are used."""
    rows.validate(full=True)
    schema = plain_schema(rows.schema)
    return rows if schema.equals(rows.schema) else rows.cast(schema)


def _refuse_paths_only(file: FileStat, metadata: pq.FileMetaData, layout: ParquetLayout) -> None:
    """Refuse a table that names images and holds none, as `datasets` may write of a folder of images."""
    if not layout.has_path or not metadata.num_rows:
        return
    leaves = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
    position = leaves.index(f"{layout.image_column}.bytes")
    for number in range(metadata.num_row_groups):
        column = metadata.row_group(number).column(position)
        statistics = column.statistics
        if statistics is None or not statistics.has_null_count or statistics.null_count < column.num_values:
            return
    paths = pc.struct_field(_read_column(file, f"{layout.image_column}.path")[layout.image_column], "path")
    example = next((path for path in paths.to_pylist() if path), None)
    if example is not None:
        raise InputError(
            f"{file.path} holds paths of images, such as {example}, and no images; give the folder or a list of the "
            "images, or have them embedded (docs/sources.md)"
        )


def _paths_identify_rows(file: FileStat, column: str) -> bool:
    paths = pc.struct_field(_read_column(file, column)[column.rpartition(".")[0]], "path")
    return paths.null_count == 0 and int(pc.count_distinct(paths).as_py()) == len(paths)


def _number_text_labels(files: Sequence[FileStat], layouts: list[ParquetLayout]) -> list[ParquetLayout]:
    names: set[str] = set()
    for file, layout in zip(files, layouts, strict=True):
        if layout.label_is_text and layout.label_column is not None:
            column = _read_column(file, layout.label_column)[layout.label_column]
            # pc.unique would make empty texts of the nulls in a column of text views.
            has_values = layout.label_is_list or pa.types.is_string_view(column.type)
            found = column.to_pylist() if has_values else pc.unique(column).to_pylist()
            names.update(name for value in found if (name := layout.label_of(value, file.path)) is not None)
    class_names = tuple(sorted(names))
    return [replace(layout, class_names=class_names) if layout.label_is_text else layout for layout in layouts]


def warn_of_split_columns(root: str, files: Sequence[FileStat], *, but: str | None = None) -> None:
    """Say so where a column holds the names of splits; `but` is one that holds classes."""
    schema = read_schema(files[0])
    for name in schema.names:
        if plain(name) in _SPLIT_COLUMNS and name != but and pa.types.is_string(schema.field(name).type):
            present = [file for file in files if name in read_schema(file).names]
            values = {value for file in present for value in pc.unique(_read_column(file, name)[name]).to_pylist()}
            warn_of_split_rows(root, name, [value for value in values if isinstance(value, str)])


def _without_odd_labels(
    files: Sequence[FileStat], layouts: list[ParquetLayout], *, wanted: str | None
) -> list[ParquetLayout]:
    """Leave out a column whose cells turn out to be no classes; refuse it if the user named it."""
    for file, layout in zip(files, layouts, strict=True):
        if layout.label_column is None or not (layout.label_is_fraction or layout.label_is_list):
            continue
        column = _read_column(file, layout.label_column)[layout.label_column]
        oddity = (
            _odd_lists(column.to_pylist()) if layout.label_is_list else _odd_fraction(pc.unique(column).to_pylist())
        )
        if oddity is None:
            continue
        note = f"{file.path}: column {layout.label_column} holds {oddity}"
        if wanted is not None:
            raise InputError(note)
        return [layout.without_labels(note) for layout in layouts]
    return layouts


def _odd_fraction(values: Sequence[float | Decimal | None]) -> str | None:
    """Say which value is no whole number; None if all are."""
    for value in values:
        if value is None or math.isnan(value):
            continue
        if not math.isfinite(value) or int(value) != value or abs(int(value)) > _MAX_WHOLE:
            return f"{value}; numbers of classes must be whole"
    return None


def _odd_lists(values: Sequence[list[Any] | None]) -> str | None:
    """Say so where lists have a 0 or 1 for every class instead of the classes; None if they have not."""
    lists = [value for value in values if value is not None]
    lengths = {len(value) for value in lists}
    if len(lengths) != 1 or max(lengths) < 2 or not all(item in (0, 1) for value in lists for item in value):
        return None
    if lengths == {2} and all(len(set(value)) == 2 for value in lists):  # the classes 0 and 1, or one of two: who knows
        return None
    return "lists with a 0 or 1 for every class; they must list the classes of their image"
