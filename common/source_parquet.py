"""Parquet files as a source of images: one shard per row group, the Hugging Face `image` feature or a binary column.

Which columns hold images and labels is decided in `parquet_layout.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beit.common.errors import BadSample, InputError
from beit.common.images import MAX_IMAGE_BYTES
from beit.common.locations import FileInfo, is_remote, open_binary
from beit.common.parquet_layout import ParquetLayout, read_layout
from beit.common.remote_file import RemoteError
from beit.common.source_types import (
    SampleRef,
    Source,
    SourceKind,
    SourceShard,
    escape_name,
    listing_digest,
    packed_key,
)


class ParquetReader:
    """One row group in memory."""

    def __init__(self, images: pa.ChunkedArray, label: str) -> None:
        self._images = images
        self._label = label

    @property
    def nbytes(self) -> int:
        """Memory held by the row group's image column."""
        return int(self._images.nbytes)

    def read(self, ref: SampleRef) -> bytes:
        """Return the image bytes of one row.

        Raises:
            BadSample: the cell is null, or larger than any image may be.
        """
        value = self._images[ref.offset]
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
    file: FileInfo
    layout: ParquetLayout
    first_row: int
    """Rows in the row groups before this one."""
    scope: str
    """Name that keeps the keys of this file apart from those of the source's other files."""
    keys_from_path: bool
    """Keys are made from the path column, because it is complete and has no repetition."""

    kind: ClassVar[SourceKind] = "parquet"

    def refs(self) -> list[SampleRef]:
        """List the rows in order.

        Raises:
            InputError: the file is damaged, or a label is not one of the class names.
        """
        layout = self.layout
        columns = [f"{layout.image_column}.path"] if layout.has_path else []
        columns += [layout.label_column] if layout.label_column else []
        table = _read_row_group(self.file, self.row_group, columns)
        num_rows = _read_metadata(self.file).row_group(self.row_group).num_rows
        paths = _image_paths(table, layout) if layout.has_path else [None] * num_rows
        labels = table[layout.label_column].to_pylist() if layout.label_column else [None] * num_rows
        return [
            SampleRef(self._key(row, path), row, 0, self._class_id(row, label), path or f"row {self.first_row + row}")
            for row, (path, label) in enumerate(zip(paths, labels, strict=True))
        ]

    @contextmanager
    def open(self) -> Iterator[ParquetReader]:
        """Load the images of the row group."""
        column = self.layout.image_column
        table = _read_row_group(self.file, self.row_group, [f"{column}.bytes" if self.layout.is_struct else column])
        images = pc.struct_field(table[column], "bytes") if self.layout.is_struct else table[column]
        yield ParquetReader(images, f"{self.location} row group {self.row_group}")

    def _key(self, row: int, path: str | None) -> str:
        if self.keys_from_path and path is not None:
            return packed_key(path, scope=self.scope)
        return f"{escape_name(self.scope.removesuffix('.parquet'))}-{self.first_row + row:08d}"

    def _class_id(self, row: int, label: Any) -> int | None:
        names = self.layout.class_names
        if label is None or (isinstance(label, int) and label < 0):
            return None  # Hugging Face marks unlabelled test rows with -1
        if self.layout.label_is_text:
            return names.index(label) if names is not None else None
        if names is not None and label >= len(names):
            raise InputError(
                f"{self.location} row {self.first_row + row} has label {label}, but {len(names)} class names; "
                "repair the file"
            )
        return int(label)


def open_parquet_files(files: Sequence[FileInfo], root: str) -> Source:
    """Return a source over the row groups of Parquet files.

    Raises:
        InputError: a file is not readable as Parquet, has no image column, or disagrees with the first on labels.
    """
    layouts = [read_layout(_read_metadata(file).schema.to_arrow_schema(), label=file.path) for file in files]
    if any(layout.label_is_text for layout in layouts):
        layouts = _number_text_labels(files, layouts)
    for file, layout in zip(files, layouts, strict=True):
        if _labelling(layout) != _labelling(layouts[0]):
            raise InputError(f"{file.path} and {files[0].path} differ in their labels; give files of one data set")
    names = [file.path.rsplit("/", 1)[-1] for file in files]
    shards: list[SourceShard] = []
    for file, layout, name in zip(files, layouts, names, strict=True):
        # The file name alone keeps keys independent of where the files lie and of which of them are given.
        scope = name if names.count(name) == 1 else file.path.removeprefix(root).lstrip("/")
        shards += _row_group_shards(file, layout, scope)
    if not shards:
        raise InputError(f"{root} holds no rows")
    class_names = layouts[0].class_names
    return Source(
        kind="parquet",
        root=root,
        shards=shards,
        class_names=list(class_names) if class_names is not None else None,
        digest=listing_digest(root, files),
    )


def _labelling(layout: ParquetLayout) -> tuple[object, ...]:
    return layout.label_column, layout.label_is_text, layout.class_names


def _row_group_shards(file: FileInfo, layout: ParquetLayout, scope: str) -> Iterator[ParquetShard]:
    metadata = _read_metadata(file)
    keys_from_path = layout.has_path and _paths_identify_rows(file, layout)
    stem = file.path.rsplit("/", 1)[-1].removesuffix(".parquet")
    first_row = 0
    for row_group in range(metadata.num_row_groups):
        yield ParquetShard(
            name=f"{stem}-rg{row_group:05d}",
            location=file.path,
            row_group=row_group,
            file=file,
            layout=layout,
            first_row=first_row,
            scope=scope,
            keys_from_path=keys_from_path,
        )
        first_row += metadata.row_group(row_group).num_rows


@contextmanager
def _opened(file: FileInfo, metadata: pq.FileMetaData | None) -> Iterator[pq.ParquetFile]:
    """Open for one read: a shared handle would not be safe between threads."""
    handle = open_binary(file.path, read_ahead=False) if is_remote(file.path) else nullcontext(file.path)
    try:
        with handle as opened, pq.ParquetFile(opened, metadata=metadata) as parquet:
            yield parquet
    except RemoteError:
        raise
    except (pa.ArrowException, OSError) as error:
        first_line = str(error).partition("\n")[0]
        raise InputError(f"{file.path} is not readable as Parquet ({first_line}); copy or make it again") from None


@functools.lru_cache(maxsize=8)
def _read_metadata(file: FileInfo) -> pq.FileMetaData:
    # Cached because neighbouring row groups are read from the same file, and a footer can be large.
    with _opened(file, None) as parquet:
        return parquet.metadata


def _read_row_group(file: FileInfo, row_group: int, columns: list[str]) -> pa.Table:
    with _opened(file, _read_metadata(file)) as parquet:
        return parquet.read_row_group(row_group, columns=columns, use_threads=False)


def _read_column(file: FileInfo, column: str) -> pa.Table:
    with _opened(file, _read_metadata(file)) as parquet:
        return parquet.read(columns=[column], use_threads=False)


def _paths_identify_rows(file: FileInfo, layout: ParquetLayout) -> bool:
    column = _read_column(file, f"{layout.image_column}.path")[layout.image_column]
    paths = pc.struct_field(column, "path")
    return paths.null_count == 0 and int(pc.count_distinct(paths).as_py()) == len(paths)


def _image_paths(table: pa.Table, layout: ParquetLayout) -> list[str | None]:
    paths: list[str | None] = pc.struct_field(table[layout.image_column], "path").to_pylist()
    return paths


def _number_text_labels(files: Sequence[FileInfo], layouts: list[ParquetLayout]) -> list[ParquetLayout]:
    names: set[str] = set()
    for file, layout in zip(files, layouts, strict=True):
        if layout.label_is_text and layout.label_column is not None:
            column = _read_column(file, layout.label_column)[layout.label_column]
            names.update(name for name in pc.unique(column).to_pylist() if name is not None)
    return [replace(layout, class_names=tuple(sorted(names))) for layout in layouts]
