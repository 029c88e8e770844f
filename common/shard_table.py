"""The shard table in memory: columns, and a row as an object only where one is asked for.

A store of 100 million images has 100 000 shards. As Python objects their rows would take a hundred megabytes in every
process of a training, as columns they take less than half of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from beit.common.sample_table import decode_index_table, index_table
from beit.common.store_schema import ShardRow

_KEPT_ROWS = 1024
_ROWS_AT_ONCE = 1024


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
        return cls(index_table(rows))

    @classmethod
    def decode(cls, data: bytes, *, label: str) -> ShardTable:
        """Decode index.parquet; `label` names it in errors.

        Raises:
            InputError: not a shard table of this version.
        """
        return cls(decode_index_table(data, label=label))

    def __repr__(self) -> str:
        """Show the extent."""
        return f"ShardTable(shards={len(self)}, nbytes={self._table.nbytes})"

    def __reduce__(self) -> tuple[type[ShardTable], tuple[pa.Table]]:
        """Leave the rows in use behind."""
        return type(self), (self._table,)

    def __len__(self) -> int:
        """Return the number of shards."""
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
