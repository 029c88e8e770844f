"""The two Parquet files of a store: one table of samples per shard, and the table of shards.

Both are written with fixed settings, so that equal content gives equal bytes for one version of pyarrow. Their columns
are explained in docs/store-format.md.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beit.common.errors import InputError
from beit.common.store_schema import FORMAT_VERSION, ShardRow

_SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("key_hash", pa.uint64(), nullable=False),
        pa.field("img_off", pa.uint64(), nullable=False),
        pa.field("img_len", pa.uint32(), nullable=False),
        pa.field("tok_off", pa.uint64(), nullable=False),
        pa.field("tok_len", pa.uint32(), nullable=False),
        pa.field("view_off", pa.uint64(), nullable=False),
        pa.field("view_len", pa.uint32(), nullable=False),
        pa.field("label", pa.int64()),
    ]
)
_IMAGE_COLUMNS = ("img_off", "img_len")
_INDEX_TYPES = {"str": pa.string(), "int": pa.int64()}
_INDEX_SCHEMA = pa.schema(
    [pa.field(field.name, _INDEX_TYPES[str(field.type)], nullable=False) for field in fields(ShardRow)]
)
_VERSION_KEY = b"beit.format_version"

NO_LABEL = -1
"""Stands for an absent label in the arrays; the Parquet file has a null."""


@dataclass(frozen=True, slots=True)
class SampleTable:
    """The usable samples of one shard in canonical order; every array has shape (num_samples,).

    Offsets and lengths are bytes: of the encoded image in the image tar, and of the raw array data, behind the npy
    header, in the token tar. They are 0 where a store has no tokens.
    """

    key: NDArray[np.object_]
    key_hash: NDArray[np.uint64]
    """`held_out_hash` of the key."""
    img_off: NDArray[np.uint64]
    """In a materialised store (num_samples, K): one encoded crop per view."""
    img_len: NDArray[np.uint32]
    """As `img_off`."""
    tok_off: NDArray[np.uint64]
    tok_len: NDArray[np.uint32]
    view_off: NDArray[np.uint64]
    view_len: NDArray[np.uint32]
    label: NDArray[np.int64]
    """-1 where there is none."""

    def __len__(self) -> int:
        return len(self.key)

    def image_range(self, row: int, view_k: int = 0) -> tuple[int, int]:
        """Return offset and length of the encoded image that a view is rendered from."""
        if self.img_off.ndim == 1:
            return int(self.img_off[row]), int(self.img_len[row])
        return int(self.img_off[row, view_k]), int(self.img_len[row, view_k])

    def held_out(self, threshold: int | None) -> NDArray[np.bool_]:
        """Return which samples are held out, shape (num_samples,)."""
        return self.key_hash < np.uint64(threshold or 0)


def encode_samples(rows: list[dict[str, Any]], *, num_crops: int = 0) -> bytes:
    """Encode samples as Parquet.

    Args:
        rows: One dict per sample, keys as in `SampleTable`, label None where absent.
        num_crops: K where img_off and img_len are lists of K numbers, one per materialised crop; else 0.
    """
    schema = _sample_schema(num_crops)
    columns = {name: [row[name] for row in rows] for name in schema.names}
    return _encode(pa.table(columns, schema=schema))


def decode_samples(data: bytes, *, label: str) -> SampleTable:
    """Decode a sample table; `label` names the file in errors.

    Raises:
        InputError: not a sample table of this version.
    """
    table = _read(data, label)
    table = _checked(table, _sample_schema(_count_crops(table.schema)), label)
    labels = table["label"].fill_null(NO_LABEL)
    arrays = {name: _to_numpy(table[name]) for name in table.column_names if name not in ("key", "label")}
    return SampleTable(
        key=np.array(table["key"].to_pylist(), dtype=object), label=labels.to_numpy().astype(np.int64), **arrays
    )


def encode_index(rows: list[ShardRow]) -> bytes:
    """Encode the shard table as Parquet."""
    return _encode(index_table(rows))


def decode_index(data: bytes, *, label: str) -> list[ShardRow]:
    """Decode the shard table; `label` names the file in errors.

    Raises:
        InputError: not a shard table of this version.
    """
    return [ShardRow(**row) for row in decode_index_table(data, label=label).to_pylist()]


def index_table(rows: Iterable[ShardRow]) -> pa.Table:
    """Return the shard table as Arrow columns."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=_INDEX_SCHEMA)


def decode_index_table(data: bytes, *, label: str) -> pa.Table:
    """Decode the shard table without making an object of every row; as `decode_index`."""
    return _checked(_read(data, label), _INDEX_SCHEMA, label)


def _sample_schema(num_crops: int) -> pa.Schema:
    """Return the columns of a sample table whose image columns are lists of `num_crops`, or plain numbers at 0."""
    if not num_crops:
        return _SAMPLE_SCHEMA
    return pa.schema(
        [
            pa.field(field.name, pa.list_(field.type, num_crops), nullable=False)
            if field.name in _IMAGE_COLUMNS
            else field
            for field in _SAMPLE_SCHEMA
        ]
    )


def _count_crops(schema: pa.Schema) -> int:
    position = schema.get_field_index("img_off")
    kind = schema.field(position).type if position >= 0 else None
    return kind.list_size if isinstance(kind, pa.FixedSizeListType) else 0


def _to_numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    array = column.combine_chunks()
    if not isinstance(array, pa.FixedSizeListArray):
        return column.to_numpy()  # type: ignore[no-any-return]
    values: NDArray[Any] = array.flatten().to_numpy().reshape(len(array), array.type.list_size)
    return values


def _encode(table: pa.Table) -> bytes:
    table = table.replace_schema_metadata({_VERSION_KEY: str(FORMAT_VERSION).encode()})
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=3,
        use_dictionary=False,
        write_statistics=False,
        row_group_size=1 << 20,
    )
    return buffer.getvalue()


def _read(data: bytes, label: str) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(data), use_threads=False)
    except pa.ArrowException as error:
        raise InputError(f"{label} is not a readable Parquet file ({error}); run beit tokenize again") from None


def _checked(table: pa.Table, schema: pa.Schema, label: str) -> pa.Table:
    version = (table.schema.metadata or {}).get(_VERSION_KEY, b"none").decode()
    if version != str(FORMAT_VERSION) or table.schema.names != schema.names:
        raise InputError(
            f"{label} has format_version {version}, this beit reads version {FORMAT_VERSION}; "
            "use the beit that wrote it, or run beit tokenize again"
        )
    try:
        return table.cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise InputError(f"{label} has columns of another type ({error}); run beit tokenize again") from None
