"""Whether the numbers in a sample table can be true, before anything is read, or made, by them.

Hashes find damage. They do not find a table that was made wrong on purpose, and a reader must answer that one with a
line, too, not with a crash or a gigabyte of memory.
"""

from __future__ import annotations

import numpy as np

from beit.common.errors import InputError, require
from beit.common.sample_table import SampleTable
from beit.common.store_schema import ShardRow, StoreInfo
from beit.common.views import VIEW_DTYPE


def check_sample_table(table: SampleTable, row: ShardRow, info: StoreInfo, *, label: str) -> None:
    """Check that a sample table has as many samples as the shard table says, and that all lie inside their tars.

    Raises:
        InputError: it does not; names what is wrong.
    """
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
