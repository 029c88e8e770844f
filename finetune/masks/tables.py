"""Parquet files with a column of images and a column of masks, as `datasets` writes them.

Masks are encoded images, or rows of numbers: of an array of uint8 `datasets` makes lists of 64-bit numbers. These are
given as PNG of the same numbers. A row group is read as a whole, its images and its masks each by itself.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from PIL import Image

from beit.common.errors import BadSample, InputError, require
from beit.common.sources.config import SourceConfig
from beit.common.sources.label_column import matching, plain
from beit.common.sources.opening import table_files
from beit.common.sources.parquet import (
    ParquetShard,
    may_have_nulls,
    open_parquet_files,
    read_schema,
    row_batches,
    warn_of_split_columns,
)
from beit.common.sources.parquet_layout import (
    IMAGE_COLUMNS,
    MASK_COLUMNS,
    huggingface_features,
    image_columns,
    is_list_type,
)
from beit.common.sources.types import SampleRef, ShardReader, SourceKind, SourceShard, listing_digest
from beit.common.storage.matching import is_folder, list_folder
from beit.common.storage.paths import normalise, split_query
from beit.common.storage.place import FileStat
from beit.finetune.masks.class_table import ClassEntry, ClassTable, table_beside
from beit.finetune.masks.settings import MaskDataConfig
from beit.finetune.masks.types import MaskedSource

_PAIRED_IMAGE_COLUMNS = (*IMAGE_COLUMNS, "pixel_values", "images", "picture", "photo", "rgb")
_LARGEST = 65535


def looks_like_tables(data: str) -> bool:
    """Tell whether these are Parquet files, or a folder of some."""
    path = split_query(data)[0]
    if path.lower().endswith(".parquet"):
        return True
    root = normalise(path)
    return is_folder(root) and any(file.path.lower().endswith(".parquet") for file in list_folder(root))


def open_table_pairs(data: str, settings: MaskDataConfig, *, reading: SourceConfig) -> MaskedSource:
    """Open Parquet files with images and masks.

    Args:
        data: As `beit.common.sources.opening.open_source` takes Parquet files.
        settings: `image_column` and `mask_column` say which columns are which.
        reading: `image_member` names the column of the images, too.
    """
    files, root = table_files(data)
    schema = read_schema(files[0])
    masks = _mask_column(files[0].path, schema, settings)
    images = _image_column(files[0].path, schema, settings.image_column or reading.image_member, masks)
    for file in files[1:]:
        missing = [name for name in (images, masks) if name not in read_schema(file).names]
        require(not missing, f"{file.path} has no column {', '.join(missing)}, which {files[0].path} has")
    image_source = open_parquet_files(files, root, image_column=images, is_alone=False)
    image_shards = [shard for shard in image_source.shards if isinstance(shard, ParquetShard)]
    warn_of_split_columns(root, files, but=masks)
    mask_shards: Sequence[NumbersShard | ParquetShard]
    if is_list_type(schema.field(masks).type):
        mask_shards = [NumbersShard(shard, masks) for shard in image_shards]
    else:
        found_masks = open_parquet_files(files, root, image_column=masks, is_alone=False)
        mask_shards = [shard for shard in found_masks.shards if isinstance(shard, ParquetShard)]
    rows = [_Rows.of(shard, own) for shard, own in zip(image_shards, mask_shards, strict=True)]
    require(any(found.both for found in rows), f"{data}: no row has both an image and a mask ({images}, {masks})")
    return MaskedSource(
        images=replace(
            image_source,
            shards=[_chosen(shard, found) for shard, found in zip(image_shards, rows, strict=True)],
            digest=listing_digest(root, [], labels=[image_source.digest, f"image {images} mask {masks}"]),
        ),
        masks=tuple(_chosen(shard, found) for shard, found in zip(mask_shards, rows, strict=True)),
        table=_class_table(files[0], schema, masks) or table_beside(root),
        without_mask=tuple(row for found in rows for row in found.without_mask),
        without_image=tuple(row for found in rows for row in found.without_image),
        notes=(f"{split_query(data)[0]}: images are column {images}, masks column {masks}",),
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """Which rows of a row group have an image and a mask."""

    both: tuple[int, ...]
    without_mask: tuple[str, ...]
    without_image: tuple[str, ...]

    @classmethod
    def of(cls, shard: ParquetShard, masks: NumbersShard | ParquetShard) -> _Rows:
        no_image, no_mask = shard.rows_without_image(), masks.rows_without_image()
        return cls(
            tuple(row for row in range(shard.num_rows) if row not in no_image | no_mask),
            *(
                tuple(f"{shard.location} row {shard.first_row + row}" for row in sorted(rows))
                for rows in (no_mask - no_image, no_image - no_mask)
            ),
        )


@dataclass(frozen=True, slots=True)
class ChosenRows:
    """Some rows of a row group."""

    shard: SourceShard
    rows: tuple[int, ...]

    kind: ClassVar[SourceKind] = "parquet"

    @property
    def name(self) -> str:
        """As that of the whole row group."""
        return self.shard.name

    @property
    def location(self) -> str:
        """Path or URL of the file."""
        return self.shard.location

    @property
    def row_group(self) -> int:
        """Number of the row group."""
        return self.shard.row_group

    def refs(self) -> list[SampleRef]:
        """List the rows in order."""
        refs = self.shard.refs()
        return [refs[row] for row in self.rows]

    def open(self) -> AbstractContextManager[ShardReader]:
        """Load the row group."""
        return self.shard.open()


@dataclass(frozen=True, slots=True)
class NumbersShard:
    """Masks of a row group that are lists of lists of numbers."""

    images: ParquetShard
    """Beside them."""
    column: str

    kind: ClassVar[SourceKind] = "parquet"

    @property
    def name(self) -> str:
        """As that of the images."""
        return self.images.name

    @property
    def location(self) -> str:
        """Path or URL of the file."""
        return self.images.location

    @property
    def row_group(self) -> int:
        """Number of the row group."""
        return self.images.row_group

    def refs(self) -> list[SampleRef]:
        """List the rows in order, under the keys of their images."""
        return [replace(ref, path=f"row {self.images.first_row + ref.offset}") for ref in self.images.refs()]

    @contextmanager
    def open(self) -> Iterator[NumbersReader]:
        """Load the masks of the row group."""
        yield NumbersReader(pa.chunked_array(self._cells()), f"{self.location} row group {self.row_group}")

    def rows_without_image(self) -> set[int]:
        """Return the rows with a null, as `ParquetShard` does."""
        if not may_have_nulls(self.images.file, self.row_group, self.column):
            return set()
        valid = [cell.is_valid for cells in self._cells() for cell in cells]
        return {row for row, is_valid in enumerate(valid) if not is_valid}

    def _cells(self) -> list[pa.Array]:
        # In pieces, because a list of lists with more than 2^31 numbers cannot be had as one array.
        return [batch[self.column] for batch in row_batches(self.images.file, self.row_group, self.column)]


class NumbersReader:
    """Masks as lists of lists of numbers, in memory.

    Args:
        masks: Of all rows.
        label: What to call the row group.
    """

    def __init__(self, masks: pa.ChunkedArray, label: str) -> None:
        self._masks = masks
        self._label = label

    @property
    def nbytes(self) -> int:
        """Memory held by the numbers."""
        return int(self._masks.nbytes)

    def read(self, ref: SampleRef) -> bytes:
        """Return one mask as PNG of the same numbers, of 8 or of 16 bits.

        Raises:
            BadSample: it is no rectangle of whole numbers from 0 to 65535.
        """
        where = f"{self._label} row {ref.offset}"
        lines = self._masks[ref.offset].values
        widths = {} if lines is None else set(lines.value_lengths().to_pylist())
        numbers = pa.array([]) if lines is None else lines.flatten()
        if len(widths) != 1 or numbers.null_count or not len(numbers):
            raise BadSample("decode-error", f"{where} is no rectangle of numbers")
        values = numbers.to_numpy(zero_copy_only=False)
        if values.min() < 0 or values.max() > _LARGEST:
            raise BadSample("decode-error", f"{where} holds {values.min()} to {values.max()}; ids are 0 to {_LARGEST}")
        pixels = values.reshape(len(lines), -1).astype(np.uint8 if values.max() < 256 else np.uint16)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


def _chosen(shard: SourceShard, rows: _Rows) -> SourceShard:
    return ChosenRows(shard, rows.both) if rows.without_mask or rows.without_image or not rows.both else shard


def _mask_column(label: str, schema: pa.Schema, settings: MaskDataConfig) -> str:
    """Choose the column of masks: the one that is named, or is called so, or is the only one beside the images."""
    usable: list[str] = [*image_columns(schema), *(field.name for field in schema if _holds_numbers(field.type))]
    wanted = settings.mask_column
    listed = ", ".join(f"{field.name} ({str(field.type).partition('<')[0]})" for field in schema)
    if wanted is not None:
        found = matching(usable, wanted)
        if found is None:
            raise InputError(
                f"{label} has no column {wanted} with masks (data.mask_column): encoded images, or lists of lists of "
                f"numbers; columns: {listed}"
            )
        return found
    images = settings.image_column
    if images is not None:
        usable = [name for name in usable if plain(name) != plain(images)]
        if len(usable) == 1:
            return str(usable[0])
    named: str | None = next((found for name in MASK_COLUMNS if (found := matching(usable, name)) is not None), None)
    if named is None and len(usable) == 2:  # the one that is not called as images are
        images = next((found for name in _PAIRED_IMAGE_COLUMNS if (found := matching(usable, name)) is not None), None)
        others = set(usable) - {images}
        named = others.pop() if len(others) == 1 else None
    if named is None:
        raise InputError(
            f"{label} has no column of masks that is called so ({', '.join(MASK_COLUMNS[:4])}; encoded images, or "
            f"lists of lists of numbers); name it with data.mask_column; columns: {listed}"
        )
    return named


def _image_column(label: str, schema: pa.Schema, wanted: str | None, masks: str) -> str:
    usable = [name for name in image_columns(schema) if name != masks]
    if wanted is not None:
        found = matching(usable, wanted)
        require(
            found is not None,
            f"{label} has no column {wanted} with images beside the masks ({masks}); those with images are "
            f"{', '.join(usable) or 'none'}; data.image_column and data.mask_column choose",
        )
        return str(found)
    named = next((found for name in _PAIRED_IMAGE_COLUMNS if (found := matching(usable, name)) is not None), None)
    if named is None and len(usable) == 1:
        named = usable[0]
    if named is None:
        raise InputError(
            f"{label} has {'no' if not usable else 'more than one possible'} column of images beside the masks "
            f"({masks}){': ' if usable else ''}{', '.join(usable)}; name it with data.image_column"
        )
    return named


def _holds_numbers(column_type: pa.DataType) -> bool:
    if not is_list_type(column_type) or not is_list_type(column_type.value_type):
        return False
    inner = column_type.value_type.value_type
    return bool(pa.types.is_integer(inner) or pa.types.is_boolean(inner))


def _class_table(file: FileStat, schema: pa.Schema, masks: str) -> ClassTable | None:
    """Return the names of the ids, where the file gives some for the masks themselves, at any depth."""
    names = _names_in(huggingface_features(schema).get(masks))
    if not names:
        return None
    entries = tuple(ClassEntry(name=name, value=value) for value, name in enumerate(names))
    return ClassTable(origin=f"{file.path} (column {masks})", entries=entries)


def _names_in(feature: Any) -> Sequence[str]:
    while isinstance(feature, dict | list):
        if isinstance(feature, list):
            feature = feature[0] if feature else None
        elif isinstance(feature.get("names"), list):
            return [str(name) for name in feature["names"]]
        else:
            feature = feature.get("feature")
    return ()
