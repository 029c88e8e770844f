"""The two Parquet files of a store: one table of samples per shard, and the table of shards.

Both are written with fixed settings, so that equal content gives equal bytes for one version of pyarrow. Their columns
are explained in docs/store-format.md.

The shard table is kept as columns, and a row is made an object only where one is asked for: a store of 100 million
images has 100 000 shards, whose rows would take a hundred megabytes as Python objects in every process of a training.

Whether the numbers in a sample table can be true is checked before anything is read, or made, by them. Hashes find
damage; they do not find a table that was made wrong on purpose, and a reader must answer that one with a line, too, not
with a crash or a gigabyte of memory.
"""

from __future__ import annotations

import base64
import io
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from beit.common.errors import InputError, require
from beit.common.shards.schema import FORMAT_VERSION, MAX_COUNT, ShardRow, StoreInfo, is_below
from beit.common.storage.samples import NO_LABEL
from beit.common.views import VIEW_DTYPE

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
_SUMS_KEY = b"beit.token_crc32"
"""In the file's key-value metadata, which readers of other versions pass over."""
_KEPT_ROWS = 1024
_ROWS_AT_ONCE = 1024


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
    token_sums: NDArray[np.uint32] | None = None
    """Checksums of every view as in `token_sums`, (num_samples, K, 2); None where an earlier version wrote none."""

    def __len__(self) -> int:
        return len(self.key)

    def held_out(self, threshold: int | None) -> NDArray[np.bool_]:
        """Return which samples are held out, shape (num_samples,)."""
        return self.key_hash < np.uint64(threshold or 0)


def encode_samples(rows: list[dict[str, Any]], *, num_crops: int = 0) -> bytes:
    """Encode samples as Parquet.

    Args:
        rows: One dict per sample, keys as in `SampleTable`, label and token_sums None where absent.
        num_crops: K where img_off and img_len are lists of K numbers, one per materialised crop; else 0.
    """
    schema = _sample_schema(num_crops)
    columns = {name: [row[name] for row in rows] for name in schema.names}
    sums = [row["token_sums"] for row in rows if row.get("token_sums") is not None]
    extra = {_SUMS_KEY: base64.b64encode(np.stack(sums).astype("<u4").tobytes())} if sums else {}
    return _encode(pa.table(columns, schema=schema), extra)


def token_sums(token_ids: NDArray[np.uint16], views: np.ndarray[Any, np.dtype[np.void]]) -> NDArray[np.uint32]:
    """Return the crc32 of each view's stored tokens and of its stored record, (K, 2), from (K, g, g) and (K,)."""
    pairs = [
        (zlib.crc32(tokens.tobytes()), zlib.crc32(view.tobytes()))
        for tokens, view in zip(token_ids, views, strict=True)
    ]
    return np.array(pairs, dtype=np.uint32).reshape(-1, 2)


def decode_samples(data: bytes, *, label: str) -> SampleTable:
    """Decode a sample table; `label` names the file in errors."""
    table = _decode(data, lambda found: _sample_schema(_count_crops(found)), label)
    labels = table["label"].fill_null(NO_LABEL)
    try:
        arrays = {name: _to_numpy(table[name]) for name in table.column_names if name not in ("key", "label")}
        sums = _decode_sums(table)
    except (pa.ArrowException, ValueError) as error:  # nulls among the offsets of crops
        raise _unreadable(label, error) from None
    return SampleTable(
        key=np.array(table["key"].to_pylist(), dtype=object),
        label=labels.to_numpy().astype(np.int64),
        token_sums=sums,
        **arrays,
    )


def _decode_sums(table: pa.Table) -> NDArray[np.uint32] | None:
    text = (table.schema.metadata or {}).get(_SUMS_KEY)
    if text is None or not len(table):
        return None
    sums = np.frombuffer(base64.b64decode(text, validate=True), dtype="<u4")
    return sums.astype(np.uint32).reshape(len(table), -1, 2)


def encode_index(rows: list[ShardRow]) -> bytes:
    """Encode the shard table as Parquet."""
    return _encode(_index_table(rows))


def _index_table(rows: Iterable[ShardRow]) -> pa.Table:
    """Return the shard table as Arrow columns."""
    return pa.Table.from_pylist([asdict(row) for row in rows], schema=_INDEX_SCHEMA)


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


def _encode(table: pa.Table, extra: dict[bytes, bytes] | None = None) -> bytes:
    """Encode a table; `extra` goes to the file's metadata, beside the Arrow schema, which would double it."""
    table = table.replace_schema_metadata({_VERSION_KEY: str(FORMAT_VERSION).encode()})
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer,
        table.schema,
        version="2.6",
        data_page_version="1.0",
        compression="zstd",
        compression_level=3,
        use_dictionary=False,
        write_statistics=False,
    ) as writer:
        writer.write_table(table, row_group_size=1 << 20)
        if extra:
            writer.add_key_value_metadata(extra)
    return buffer.getvalue()


def _decode(data: bytes, schema_for: Callable[[pa.Schema], pa.Schema], label: str) -> pa.Table:
    """Read a table and check it against the schema that `schema_for` names, given the one that is in the file."""
    try:
        # In this thread alone: `read_table` reads in threads of Arrow's own, which may still hold a Python object when
        # the interpreter ends, and abort it.
        file = pq.ParquetFile(pa.BufferReader(data))
        table, metadata = file.read(use_threads=False), file.metadata.metadata or {}
        names = table.schema.names
    # The bytes are in memory: an OSError is pyarrow's word for a damaged footer, a ValueError for names not in UTF-8.
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(label, error) from None
    version = metadata.get(_VERSION_KEY, b"none").decode(errors="replace")
    if version != str(FORMAT_VERSION) or names != schema_for(table.schema).names:
        raise InputError(
            f"{label} has format_version {version}, this beit reads version {FORMAT_VERSION}; "
            "use the beit that wrote it, or run beit tokenize again"
        )
    try:
        kept = {key: value for key, value in metadata.items() if key == _SUMS_KEY}
        table = table.cast(schema_for(table.schema).with_metadata(kept))
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


class ShardTable(Sequence[ShardRow]):
    """The rows of index.parquet, read-only.

    Args:
        table: Columns as in `ShardRow`.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table.combine_chunks()
        self._rows: dict[int, ShardRow] = {}

    @classmethod
    def from_rows(cls, rows: Iterable[ShardRow]) -> ShardTable:
        """Build a table of the given rows."""
        return cls(_index_table(rows))

    @classmethod
    def decode(cls, data: bytes, *, label: str) -> ShardTable:
        """Decode index.parquet, without making an object of every row; `label` names it in errors."""
        table = _decode(data, lambda found: _INDEX_SCHEMA, label)
        _check_names(table, label)
        return cls(table)

    def __repr__(self) -> str:
        return f"ShardTable(shards={len(self)}, nbytes={self._table.nbytes})"

    def __reduce__(self) -> tuple[type[ShardTable], tuple[pa.Table]]:
        """Leave the rows in use behind."""
        return type(self), (self._table,)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> ShardRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[ShardRow]: ...
    def __getitem__(self, index: int | slice) -> ShardRow | list[ShardRow]:
        """Return one row, or some."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        row = self._rows.get(index)
        if row is None:
            if not -len(self) <= index < len(self):
                raise IndexError(f"shard {index} of {len(self)}")
            row = ShardRow(**self._table.slice(index % len(self), 1).to_pylist()[0])
            if len(self._rows) >= _KEPT_ROWS:
                self._rows.clear()
            self._rows[index] = row
        return row

    def __iter__(self) -> Iterator[ShardRow]:
        """Yield every row, without keeping any."""
        for batch in self._table.to_batches(max_chunksize=_ROWS_AT_ONCE):
            for row in batch.to_pylist():
                yield ShardRow(**row)

    @property
    def num_samples(self) -> NDArray[np.int64]:
        """Usable samples per shard, held-out ones included, int64 (S,)."""
        return self._column("num_samples")

    @property
    def num_held_out(self) -> NDArray[np.int64]:
        """Held-out samples per shard, int64 (S,)."""
        return self._column("num_held_out")

    def _column(self, name: str) -> NDArray[np.int64]:
        return np.asarray(self._table[name].to_numpy(), dtype=np.int64)


def check_sample_table(table: SampleTable, row: ShardRow, info: StoreInfo, *, label: str) -> None:
    """Check that a sample table has as many samples as the shard table says, and that all lie inside their tars."""
    require(len(table) == row.num_samples, f"{label} has {len(table)} samples, the shard table says {row.num_samples}")
    shape = (len(table), info.views) if info.is_materialized else (len(table),)
    require(
        table.img_off.shape == shape == table.img_len.shape,
        f"{label} has images of shape {table.img_off.shape}, store.json asks for {shape}; tokenise anew",
    )
    sizes = {"img": row.image_bytes, "tok": row.token_bytes, "view": row.token_bytes}
    for name, size in sizes.items():
        offsets, lengths = getattr(table, f"{name}_off"), getattr(table, f"{name}_len")
        if offsets.size and (int(offsets.max()) > size or int((offsets + lengths).max()) > size):
            raise InputError(f"{label} points behind the end of a tar of {size} bytes ({name}_off); tokenise anew")
    expected = {"tok": info.views * info.grid_size**2 * 2, "view": info.views * VIEW_DTYPE.itemsize}
    for name, length in expected.items():
        lengths = getattr(table, f"{name}_len")
        if not np.all(lengths == length):
            found = int(lengths[lengths != length][0])
            raise InputError(
                f"{label} has {found} bytes in {name}_len, but store.json says {info.views} views of "
                f"{info.grid_size} x {info.grid_size} tokens, {length} bytes; restore store.json or tokenise anew"
            )
    found_sums = None if table.token_sums is None else table.token_sums.shape
    require(
        found_sums in (None, (len(table), info.views, 2)),
        f"{label} has checksums of shape {found_sums}, store.json says {info.views} views; tokenise anew",
    )
