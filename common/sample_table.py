"""The two Parquet files of a store: one table of samples per shard, and the table of shards.

Both are written with fixed settings, so that equal content gives equal bytes for one version of pyarrow. Their columns
are explained in docs/store-format.md.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beit.common.errors import InputError, require
from beit.common.store_schema import FORMAT_VERSION, MAX_COUNT, ShardRow, is_below

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
_CONTROL_CHARACTERS = "[\\x00-\\x1f\\x7f]"
_STEM = re.compile(r"[0-9]{6,}-[A-Za-z0-9._-]{1,200}")
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
    table = _decode(data, lambda found: _sample_schema(_count_crops(found)), label)
    labels = table["label"].fill_null(NO_LABEL)
    try:
        arrays = {name: _to_numpy(table[name]) for name in table.column_names if name not in ("key", "label")}
    except (pa.ArrowException, ValueError) as error:  # nulls among the offsets of crops
        raise _unreadable(label, error) from None
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
    table = _decode(data, lambda found: _INDEX_SCHEMA, label)
    _check_names(table, label)
    return table


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


def _decode(data: bytes, schema_for: Callable[[pa.Schema], pa.Schema], label: str) -> pa.Table:
    """Read a table and check it against the schema that `schema_for` names, given the one that is in the file."""
    try:
        # In this thread alone: `read_table` reads in threads of Arrow's own, which may still hold a Python object when
        # the interpreter ends, and abort it.
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        names = table.schema.names
    # The bytes are in memory: an OSError is pyarrow's word for a damaged footer, a ValueError for names not in UTF-8.
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(label, error) from None
    version = (table.schema.metadata or {}).get(_VERSION_KEY, b"none").decode(errors="replace")
    if version != str(FORMAT_VERSION) or names != schema_for(table.schema).names:
        raise InputError(
            f"{label} has format_version {version}, this beit reads version {FORMAT_VERSION}; "
            "use the beit that wrote it, or run beit tokenize again"
        )
    try:
        table = table.cast(schema_for(table.schema))
        table.validate(full=True)  # damaged offsets and text would otherwise come out where they are used
    except (pa.ArrowException, ValueError) as error:
        raise _unreadable(label, error) from None
    _check_columns(table, label)
    return table


def _check_names(table: pa.Table, label: str) -> None:
    """Check that no row names a file that is not of this store, or of its image root."""
    for stem, token_file, image_file in zip(table["stem"], table["token_file"], table["image_file"], strict=True):
        names = (stem.as_py(), token_file.as_py(), image_file.as_py())
        fits = _STEM.fullmatch(names[0]) and names[1] in ("", f"{names[0]}.tar") and is_below(names[2])
        require(bool(fits), f"{label} names files that are none of a store's ({', '.join(names)[:200]}); tokenise anew")


def _check_columns(table: pa.Table, label: str) -> None:
    """Check that names are free of control characters, and that counts and sizes of shards can be true."""
    for name in table.column_names:
        column = table[name]
        if pa.types.is_string(column.type):
            is_bad = pc.any(pc.match_substring_regex(column, _CONTROL_CHARACTERS)).as_py()
            require(not is_bad, f"{label} has control characters in column {name}; run beit tokenize again")
        elif name.startswith("num_") or name.endswith("_bytes"):
            limits = pc.min_max(column).as_py()
            fits = limits["min"] is None or (limits["min"] >= 0 and limits["max"] <= MAX_COUNT)
            require(fits, f"{label} has {name} from {limits['min']} to {limits['max']}; run beit tokenize again")


def _unreadable(label: str, error: Exception) -> InputError:
    first_line = str(error).partition("\n")[0]
    return InputError(f"{label} is not a readable Parquet file ({first_line}); run beit tokenize again")
